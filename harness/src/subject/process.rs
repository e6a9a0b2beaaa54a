//! The process of a started gateway: its group, its output and its end.
//!
//! The program runs in a process group of its own without standard input. Its output goes to one
//! file, so that nothing is lost and no pipe has to be read. Dropping [`ChildProcess`] kills the
//! whole group; if the run itself is killed and nothing is dropped, the reaper process kills it.

#[cfg(target_os = "linux")]
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
#[cfg(target_os = "linux")]
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::reaped::ReapedGroup;
use super::{Process, TargetError};
#[cfg(target_os = "linux")]
use crate::gate;
use crate::tape::{Event, Side, Tape};

/// The most time for which a number of descriptors is awaited that no longer changes.
#[cfg(target_os = "linux")]
const SETTLING: Duration = Duration::from_secs(2);

/// The number of log lines that an error message or a report shows.
const TAIL_LINES: usize = 25;

/// The exit code of a process that has ended; `None` if a signal ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended(Option<i32>);

/// A process that the harness started.
#[derive(Debug)]
pub struct ChildProcess {
    pid: u32,
    ended: watch::Receiver<Option<Ended>>,
    log: PathBuf,
    tape: Tape,
}

impl ChildProcess {
    /// Starts `program` with `env` added to its environment and `unset` removed from it; its
    /// output goes to the file `log`.
    ///
    /// # Errors
    /// The error of the operating system; nothing is left running.
    pub fn spawn(
        program: &str,
        arguments: &[String],
        env: &[(String, String)],
        unset: &[String],
        log: &Path,
        tape: &Tape,
    ) -> std::io::Result<Self> {
        let output = File::create(log)?;
        let mut command = Command::new(program);
        for name in unset {
            command.env_remove(name);
        }
        let child = command
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let group = ReapedGroup::watch(pid);
        let note = |what: String| tape.record(Side::Target, Event::Target { what });
        let name = Path::new(program)
            .file_name()
            .map_or_else(|| program.into(), |name| name.to_string_lossy());
        note(format!("started {name} as process {pid}"));
        let (sender, ended) = watch::channel(None);
        tokio::spawn(supervise(child, pid, group, sender, tape.clone()));
        Ok(Self {
            pid,
            ended,
            log: log.to_path_buf(),
            tape: tape.clone(),
        })
    }

    /// Returns how the process has ended, as the end of a sentence; `None` while it runs.
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().map(|ended| in_words(ended.0))
    }

    /// Waits until the process has ended and returns how, as the end of a sentence. Cancel safe.
    pub async fn until_ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => in_words(ended.and_then(|ended| ended.0)),
            Err(_) => "ended".to_string(),
        }
    }

    /// Sends a signal of this name to the process, and records it before it is sent.
    fn signal(&self, name: &str, signal: Signal) -> Result<(), TargetError> {
        let cannot = |why: String| TargetError::Died(format!("cannot send {name}{why}"));
        if let Some(how) = self.ended() {
            return Err(cannot(format!(": the gateway {how}")));
        }
        self.tape
            .record(Side::Target, Event::Target { what: name.into() });
        match self.group().map(|pid| kill_process(pid, signal)) {
            Some(Err(error)) => Err(cannot(format!(" to process {}: {error}", self.pid))),
            _ => Ok(()),
        }
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }
}

#[async_trait]
impl Process for ChildProcess {
    async fn terminate(&self) -> Result<(), TargetError> {
        self.signal("SIGTERM", Signal::TERM)
    }

    async fn hang_up(&self) -> Result<(), TargetError> {
        self.signal("SIGHUP", Signal::HUP)
    }

    async fn kill(&self) -> Result<(), TargetError> {
        self.tape.record(
            Side::Target,
            Event::Target {
                what: "SIGKILL".into(),
            },
        );
        if let Some(group) = self.group() {
            // a group that has ended already needs no signal
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.wait().await.map(|_| ())
    }

    #[cfg(target_os = "linux")]
    async fn leave_descriptors(&self, spare: Option<u64>) -> Result<(), TargetError> {
        let failed = |error: std::io::Error| {
            TargetError::Died(format!(
                "cannot limit the file descriptors of process {}: {error}",
                self.pid
            ))
        };
        let maximum = hardest_limit(self.pid).map_err(failed)?;
        // a connection that its peer has closed is given back a moment later
        let open = || open_descriptors(self.pid).map(|open| open.len()).ok();
        gate::bounded(SETTLING, gate::settled(open)).await;
        let current = match spare {
            None => maximum,
            Some(spare) => Some(limit_with(
                spare,
                &open_descriptors(self.pid).map_err(failed)?,
            )),
        };
        let limit = Rlimit { current, maximum };
        prlimit(self.group(), Resource::Nofile, limit).map_err(|error| failed(error.into()))?;
        self.tape.record(
            Side::Target,
            Event::Target {
                what: match spare {
                    None => "may open file descriptors again".into(),
                    Some(spare) => format!("may open {spare} more file descriptors"),
                },
            },
        );
        Ok(())
    }

    async fn wait(&self) -> Result<Option<i32>, TargetError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => Ok(ended.and_then(|ended| ended.0)),
            Err(_) => Err(TargetError::Died(format!(
                "the end of process {} can no longer be observed",
                self.pid
            ))),
        }
    }

    fn log_tail(&self) -> String {
        let log = without_colours(&self.log());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn id(&self) -> Option<u32> {
        Some(self.pid)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if self.ended.borrow().is_none()
            && let Some(group) = self.group()
        {
            // a group that has ended already needs no signal
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits for the end of the child, then kills what it left in its group. The task ends by itself,
/// because dropping [`ChildProcess`] kills the child.
async fn supervise(
    mut child: Child,
    pid: u32,
    watched: ReapedGroup,
    sender: watch::Sender<Option<Ended>>,
    tape: Tape,
) {
    let code = child.wait().await.ok().and_then(|status| status.code());
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    watched.has_ended();
    tape.record(
        Side::Target,
        Event::Target {
            what: in_words(code),
        },
    );
    sender.send_replace(Some(Ended(code)));
}

/// The limit of open files that a process cannot exceed; `None` if there is none.
#[cfg(target_os = "linux")]
fn hardest_limit(pid: u32) -> std::io::Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let row = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    Ok(row
        .and_then(|row| row.split_whitespace().nth(1))
        .and_then(|limit| limit.parse().ok()))
}

/// The file descriptors that a process has open.
#[cfg(target_os = "linux")]
fn open_descriptors(pid: u32) -> std::io::Result<BTreeSet<u64>> {
    let mut open = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u64>().ok()),
        );
    }
    Ok(open)
}

/// The limit below which exactly `spare` numbers are free: a limit bounds the highest number, and
/// the free ones below it can be used.
#[cfg(target_os = "linux")]
fn limit_with(spare: u64, open: &BTreeSet<u64>) -> u64 {
    let (mut limit, mut free) = (0, 0);
    while free < spare || open.range(limit..).next().is_some() {
        free += u64::from(!open.contains(&limit));
        if free > spare {
            break;
        }
        limit += 1;
    }
    limit
}

/// Removes the escape sequences of terminals (ECMA-48 CSI), which a report cannot show.
pub(crate) fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            plain.push(c);
        } else if rest.as_str().starts_with('[') {
            // parameters, then one final byte
            rest.by_ref().skip(1).find(|c| ('@'..='~').contains(c));
        }
    }
    plain
}

fn in_words(code: Option<i32>) -> String {
    match code {
        Some(code) => format!("exited with code {code}"),
        None => "was ended by a signal".to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::gate::{guard, poll_until};

    /// Waits until a process is gone, or is a zombie that its parent has not reaped.
    pub(in super::super) async fn until_gone(pid: &str) {
        let stat =
            || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let gone =
            poll_until(|| Some(stat()).filter(|stat| stat.is_empty() || stat.contains(") Z ")));
        guard("hang.process", &format!("the end of process {pid}"), gone)
            .await
            .unwrap();
    }

    /// Set for the run that is killed below, which is this test program, started once more.
    const FOLDER: &str = "GAUNTLET_TEST_FOLDER_OF_A_KILLED_RUN";

    #[tokio::test]
    async fn a_run_that_will_be_killed() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
            return;
        };
        let start = |script: &str, log: &str| {
            ChildProcess::spawn(
                "sh",
                &["-c".into(), script.into()],
                &[],
                &[],
                &folder.join(log),
                &Tape::new(),
            )
            .unwrap()
        };
        // one process that has ended, which the reaper has to forget
        start("exit 3", "first").until_ended().await;
        // and one that hands its work to another process of its group
        let gateway = start("tail -f /dev/null & echo $!; wait", "second");
        let worker = poll_until(|| Some(gateway.log()).filter(|log| log.ends_with('\n'))).await;
        println!("\ngateway {} {worker}", gateway.pid);
        let _ = guard("hang.process", "being killed", std::future::pending::<()>()).await;
    }

    #[tokio::test]
    async fn a_gateway_does_not_outlive_a_run_that_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "subject::process::tests::a_run_that_will_be_killed",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("gateway ").map(str::to_string))
            .unwrap();
        run.kill().unwrap();
        run.wait().unwrap();
        for pid in line.split_whitespace() {
            until_gone(pid).await;
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_limit_leaves_as_many_free_numbers_as_asked_for() {
        for (open, spare, limit) in [
            (&[0, 1, 2][..], 0, 3),
            (&[0, 1, 2], 2, 5),
            (&[0, 1, 3], 0, 2),
            (&[0, 1, 3], 1, 4),
            (&[0, 1, 3], 2, 5),
        ] {
            let set = open.iter().copied().collect();
            assert_eq!(limit_with(spare, &set), limit, "{open:?}, {spare}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_descriptors_of_a_process_are_limited_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo ready; ulimit -Sn; while [ ! -e go ]; do :; done; ulimit -Sn";
        let log = folder.path().join("log");
        let arguments = ["-c".into(), format!("cd {:?}; {script}", folder.path())];
        let process = ChildProcess::spawn("sh", &arguments, &[], &[], &log, &Tape::new()).unwrap();
        let ready = poll_until(|| Some(process.log()).filter(|log| log.lines().count() == 2));
        let before = guard("hang.ready", "the limit", ready).await.unwrap();
        process.leave_descriptors(None).await.unwrap();
        process.leave_descriptors(Some(0)).await.unwrap();
        std::fs::write(folder.path().join("go"), "").unwrap();
        process.until_ended().await;
        let after = process.log();
        assert_ne!(before.lines().last(), after.lines().last(), "{after}");
        assert!(process.leave_descriptors(Some(0)).await.is_err());
    }

    #[test]
    fn escape_sequences_are_removed() {
        assert_eq!(
            without_colours("\u{1b}[1;31mred\u{1b}[0m and [plain]"),
            "red and [plain]"
        );
        assert_eq!(without_colours("cut \u{1b}["), "cut ");
    }
}
