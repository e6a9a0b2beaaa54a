//! A gateway that the harness starts: its configuration is rendered, its process spawned, and its
//! readiness awaited.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::render::Renderer;
use super::{
    AliasSetting, Capability, ChildProcess, Deployment, Manifest, Process, Ready, RunningTarget,
    Start, Target, TargetError, TargetFile,
};
use crate::gate::{bounded, pace};
use crate::tape::{Event, Side};

/// The time between two checks of a target that is not ready yet.
const POLL: Duration = Duration::from_millis(10);
/// How often a program is started: another program may take its port before it binds.
const ATTEMPTS: u32 = 3;
/// The longest wait for a version command; some gateways load all their modules first.
const VERSION: Duration = Duration::from_secs(30);

/// A target whose file has `[start]`.
#[derive(Debug)]
pub struct CommandTarget {
    file: TargetFile,
    start: Start,
    manifest: Manifest,
    gauntlet: PathBuf,
}

impl CommandTarget {
    /// Makes the target of that file; runs its version command, if it has one.
    ///
    /// # Errors
    /// [`TargetError::Definition`] if the file has no `[start]`, or if the version command is a
    /// broken template.
    pub fn new(file: TargetFile, gauntlet: PathBuf) -> Result<Self, TargetError> {
        let start = file.start.clone().ok_or_else(|| {
            TargetError::Definition(format!(
                "target {}: it has no [start]; add the command that starts it",
                file.name
            ))
        })?;
        let mut manifest = file.manifest();
        if manifest.version.is_none() {
            manifest.version = version(&file, &gauntlet)?;
        }
        Ok(Self {
            file,
            start,
            manifest,
            gauntlet,
        })
    }

    fn spawn(&self, deployment: &Deployment, port: u16) -> Result<ChildProcess, TargetError> {
        let names: Vec<String> = self
            .start
            .files
            .iter()
            .map(|file| file.name.clone())
            .collect();
        let renderer = Renderer::new(&self.file.name, &self.gauntlet, deployment, port, &names)?;
        for file in &self.start.files {
            let path = deployment.folder.join(&file.name);
            let text =
                renderer.render(&format!("the template of {}", file.name), &file.template)?;
            std::fs::write(&path, text).map_err(|error| {
                TargetError::Start(format!(
                    "cannot write {}: {error}; make room in the temporary folder, or set TMPDIR",
                    path.display()
                ))
            })?;
        }
        let words: Vec<String> = self
            .start
            .command
            .iter()
            .map(|word| renderer.render("start.command", word))
            .collect::<Result<_, _>>()?;
        let (program, arguments) = words.split_first().ok_or_else(|| {
            TargetError::Definition(format!(
                "target {}: start.command is empty; give the program and its arguments",
                self.file.name
            ))
        })?;
        let env: Vec<(String, String)> = self
            .start
            .env
            .iter()
            .map(|(name, value)| {
                Ok((
                    name.clone(),
                    renderer.render(&format!("start.env.{name}"), value)?,
                ))
            })
            .collect::<Result<_, TargetError>>()?;
        ChildProcess::spawn(
            program,
            arguments,
            &env,
            &self.start.unset,
            &deployment.folder.join("target.log"),
            &deployment.tape,
        )
        .map_err(|error| {
            let hint = if self.start.hint.is_empty() {
                String::new()
            } else {
                format!("; {}", self.start.hint)
            };
            TargetError::Start(format!("cannot start {program}: {error}{hint}"))
        })
    }
}

#[async_trait]
impl Target for CommandTarget {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn shared(&self) -> bool {
        self.file.shared
    }

    fn per_alias(&self) -> BTreeSet<AliasSetting> {
        self.file.per_alias.clone()
    }

    fn why_not(&self, capability: Capability) -> Option<String> {
        self.file.not_supported_reason.get(&capability).cloned()
    }

    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError> {
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            let process = self.spawn(&deployment, port)?;
            match self.until_ready(&process, port).await? {
                Started::Ready(address) => return Ok(self.running(&address, process, &deployment)),
                Started::Ended(_)
                    if attempt < ATTEMPTS
                        && (occupied(port) || process.log().to_lowercase().contains("in use")) =>
                {
                    let what = format!(
                        "another program took port {port}; the gateway is started again on another port"
                    );
                    deployment.tape.record(Side::Target, Event::Target { what });
                    attempt += 1;
                }
                Started::Ended(reason) => return Err(reason),
            }
        }
    }
}

/// How a start ended.
enum Started {
    /// The gateway is ready at this address.
    Ready(String),
    /// The process ended before it was ready.
    Ended(TargetError),
}

impl CommandTarget {
    /// Waits for the readiness or for the end of the process, whichever comes first. Both futures
    /// only observe, so that dropping one loses nothing.
    async fn until_ready(&self, process: &ChildProcess, port: u16) -> Result<Started, TargetError> {
        let limit = Duration::from_millis(self.file.ready.timeout_ms);
        let fallback = format!("127.0.0.1:{port}");
        tokio::select! {
            // if the process has ended, whatever answers at the address is another program
            biased;
            how = process.until_ended() => Ok(Started::Ended(TargetError::NotReady(format!(
                "{} {how} before it was ready; its last lines:\n{}",
                self.file.name,
                indented(&process.log_tail())
            )))),
            address = bounded(limit, ready(process, &self.file.ready, &fallback)) => {
                address.map(Started::Ready).ok_or_else(|| self.not_ready(process))
            }
        }
    }

    fn running(
        &self,
        address: &str,
        process: ChildProcess,
        deployment: &Deployment,
    ) -> RunningTarget {
        deployment.tape.record(
            Side::Target,
            Event::Target {
                what: format!("ready at {address}"),
            },
        );
        RunningTarget {
            base_url: format!(
                "http://{address}{}",
                self.file.base_path.trim_end_matches('/')
            ),
            model_prefix: String::new(),
            headers: self
                .file
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            process: Some(Box::new(process)),
        }
    }

    fn not_ready(&self, process: &ChildProcess) -> TargetError {
        let Ready {
            path,
            status,
            timeout_ms,
            announced,
        } = &self.file.ready;
        let wanted = match announced {
            Some(words) => {
                format!("write \"{words}http://…\" and answer GET {path} with {status}")
            }
            None => format!("answer GET {path} with {status}"),
        };
        TargetError::NotReady(format!(
            "{} is not ready: it has to {wanted} within {timeout_ms} ms (ready.timeout_ms); its last \
             lines:\n{}",
            self.file.name,
            indented(&process.log_tail())
        ))
    }
}

/// Waits until the target has written where it listens and answers there. This may take
/// forever: the caller bounds it. Cancel safe.
async fn ready(process: &ChildProcess, ready: &Ready, fallback: &str) -> String {
    loop {
        let address = match &ready.announced {
            Some(words) => announced(&process.log(), words),
            None => Some(fallback.to_string()),
        };
        if let Some(address) = address
            && get_status(&address, &ready.path, Duration::from_secs(5)).await == Some(ready.status)
        {
            return address;
        }
        pace(POLL).await;
    }
}

/// Returns `host:port` from the first complete line that holds `words` followed by a URL.
fn announced(log: &str, words: &str) -> Option<String> {
    let complete = &log[..log.rfind('\n')?];
    let line = complete.lines().find(|line| line.contains(words))?;
    let url = line.split_once(words)?.1.strip_prefix("http://")?;
    Some(
        url.split(|c: char| c == '/' || c.is_whitespace())
            .next()?
            .to_string(),
    )
}

/// Returns the status of `GET path` at `address`, or `None` if no status comes within the bound.
pub(super) async fn get_status(address: &str, path: &str, bound: Duration) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head).await.ok()?;
        std::str::from_utf8(&head)
            .ok()?
            .strip_prefix("HTTP/1.1 ")?
            .parse()
            .ok()
    };
    bounded(bound, ask).await.flatten()
}

/// Returns a port that was free a moment ago.
fn free_port() -> Result<u16, TargetError> {
    let free =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    free.map(|address| address.port()).map_err(|error| {
        TargetError::Start(format!(
            "there is no free port on 127.0.0.1: {error}; end programs that hold many ports"
        ))
    })
}

/// Returns whether a program listens on the port now.
fn occupied(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn version(file: &TargetFile, gauntlet: &std::path::Path) -> Result<Option<String>, TargetError> {
    let renderer = Renderer::bare(&file.name, gauntlet);
    let words: Vec<String> = file
        .version_command
        .iter()
        .map(|word| renderer.render("version_command", word))
        .collect::<Result<_, _>>()?;
    let Some((program, arguments)) = words.split_first() else {
        return Ok(None);
    };
    Ok(output_of(program, arguments, VERSION).and_then(|output| version_in(&output)))
}

/// Returns what a program writes to stdout, if it ends with success within the bound; otherwise it
/// is killed.
fn output_of(program: &str, arguments: &[String], bound: Duration) -> Option<String> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        runtime.block_on(async {
            let output = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            let output = bounded(bound, output).await?.ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    // the caller may be a task, and its thread cannot run a second runtime
    std::thread::scope(|scope| scope.spawn(ask).join())
        .ok()
        .flatten()
}

/// Finds the version in the output of a program: the first word of its first line that begins
/// with a digit, or else the whole line.
fn version_in(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let number = line.split_whitespace().find(|word| {
        word.trim_start_matches('v')
            .starts_with(|c: char| c.is_ascii_digit())
    });
    Some(number.unwrap_or(line).to_string())
}

fn indented(text: &str) -> String {
    if text.is_empty() {
        "  (it wrote nothing)".to_string()
    } else {
        text.lines()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::spec::Spec;
    use crate::tape::Tape;
    use indexmap::IndexMap;

    fn target(command: &str) -> CommandTarget {
        let text = format!(
            "name = \"t\"\n[start]\ncommand = [\"sh\", \"-c\", '''{command}''']\n[ready]\nannounced = \"listening on \"\ntimeout_ms = 400\n"
        );
        CommandTarget::new(
            TargetFile::parse(&text, "t.toml").unwrap(),
            "gauntlet".into(),
        )
        .unwrap()
    }

    async fn start(command: &str) -> Result<RunningTarget, TargetError> {
        let folder = tempfile::tempdir().unwrap();
        target(command).start(deployment(&folder)).await
    }

    fn deployment(folder: &tempfile::TempDir) -> Deployment {
        Deployment {
            id: "t".into(),
            spec: Spec::solo(),
            endpoints: IndexMap::new(),
            database_url: None,
            folder: folder.path().to_path_buf(),
            tape: Tape::new(),
        }
    }

    #[tokio::test]
    async fn a_target_that_ends_early_is_reported_with_its_exit_code_and_last_lines() {
        let error = start("echo no such model >&2; exit 3")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("exited with code 3") && error.contains("no such model"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_gateway_whose_port_was_taken_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let ports = folder.path().join("ports");
        // reports a taken port twice, then stays up without answering
        let script = format!(
            "echo {{{{ port }}}} >>{0}; if [ $(wc -l <{0}) -lt 3 ]; then echo Address already in use >&2; exit 1; fi; echo third; exec tail -f /dev/null",
            ports.display()
        );
        let error = target(&script)
            .start(deployment(&folder))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("within 400 ms") && error.contains("third"),
            "{error}"
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(occupied(listener.local_addr().unwrap().port()));
    }

    #[tokio::test]
    async fn a_target_that_never_becomes_ready_is_reported_with_what_was_expected() {
        let error = start("echo starting; exec tail -f /dev/null")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("GET /health/live")
                && error.contains("400 ms")
                && error.contains("starting"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let file = TargetFile::parse(
            "name = \"t\"\n[start]\ncommand = [\"no-such-gateway\"]\nhint = \"pip install it\"\n",
            "t.toml",
        )
        .unwrap();
        let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = target
            .start(deployment(&folder))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("no-such-gateway") && error.contains("pip install it"),
            "{error}"
        );
    }

    #[test]
    fn a_version_is_found_in_the_output_of_a_program() {
        assert_eq!(version_in("gauntlet 0.1.0\n").as_deref(), Some("0.1.0"));
        assert_eq!(
            version_in("\nLiteLLM: Current Version = 1.106.2\n").as_deref(),
            Some("1.106.2")
        );
        assert_eq!(version_in("nightly\n").as_deref(), Some("nightly"));
        assert_eq!(version_in(""), None);
    }

    #[tokio::test]
    async fn a_version_command_that_does_not_end_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = "echo $$ >\"$0\"; echo 1.0; exec tail -f /dev/null";
        let arguments = ["-c".into(), script.into(), file.display().to_string()];
        assert_eq!(
            output_of("sh", &arguments, Duration::from_millis(500)),
            None
        );
        assert_eq!(
            output_of("echo", &["gauntlet 0.1.0".into()], Duration::from_secs(20)).as_deref(),
            Some("gauntlet 0.1.0\n")
        );
        let pid = std::fs::read_to_string(file).unwrap_or_default();
        super::super::process::tests::until_gone(&pid).await;
    }

    #[test]
    fn the_address_is_read_from_a_complete_line_only() {
        assert_eq!(
            announced("x\nlistening on http://127.0.0.1:80", "listening on "),
            None
        );
        assert_eq!(
            announced(
                "x\nlistening on http://127.0.0.1:8080/ now\n",
                "listening on "
            )
            .as_deref(),
            Some("127.0.0.1:8080")
        );
    }
}
