//! Guard processes that clean up when the run can't: each waits for the end of its standard input, which the kernel closes
//! however the run ends, `kill -9` included. They lead process groups of their own, so that Ctrl-C reaches the run alone.
//!
//! A database has a guard of its own ([`Guard`]); all gateways share one, which is told of each ([`Group`]), so that a start
//! costs no second process.

#[cfg(feature = "runner")]
use std::io::Write;
use std::os::unix::process::CommandExt;
#[cfg(feature = "runner")]
use std::process::ChildStdin;
use std::process::Stdio;
#[cfg(feature = "runner")]
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::gate::bounded;

/// How long an orderly clean-up may take.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Something that is cleaned up when this is stopped, dropped, or the process dies.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
}

impl Guard {
    /// Runs a shell script with arguments. The script must end, and clean up, when its standard input ends.
    pub fn start(
        script: &str,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> std::io::Result<Self> {
        Ok(Self {
            child: Command::from(shell(script, arguments, environment)).spawn()?,
        })
    }

    /// Tells the guard to clean up and waits until it has.
    pub async fn stop(mut self) {
        drop(self.child.stdin.take());
        if bounded(CLEAN_UP, self.child.wait()).await.is_none() {
            tracing::warn!(
                "the clean-up of the database takes longer than {CLEAN_UP:?}; it goes on without us"
            );
        }
    }
}

#[cfg(feature = "runner")]
/// Keeps a list of process groups (`+ 12`, `- 12`), and kills those that are left at the end.
const GROUPS: &str = r#"
groups=" "
while read -r sign group; do
  case $sign in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

#[cfg(feature = "runner")]
/// A process group that is killed when the process dies without having said that the group has ended.
#[derive(Debug)]
pub(crate) struct Group(u32);

#[cfg(feature = "runner")]
impl Group {
    /// Tells the guard of a group.
    pub fn watch(group: u32) -> Self {
        tell('+', group);
        Self(group)
    }

    /// Its number may be another's from now on.
    pub fn has_ended(self) {
        tell('-', self.0);
    }
}

#[cfg(feature = "runner")]
fn tell(sign: char, group: u32) {
    static GUARD: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();
    let guard = GUARD.get_or_init(|| {
        shell(GROUPS, &[], &[])
            .spawn()
            .ok()
            .and_then(|guard| guard.stdin)
            .map(Mutex::new)
    });
    let told = guard.as_ref().is_some_and(|guard| {
        // one short write: whole, or not at all
        guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(format!("{sign} {group}\n").as_bytes())
            .is_ok()
    });
    if !told {
        tracing::warn!(
            group,
            "no guard process: a gateway will outlive a run that is killed"
        );
    }
}

fn shell(
    script: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command
        .arg("-c")
        .arg(script)
        .arg("gauntlet-guard")
        .args(arguments)
        .envs(environment.iter().copied());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}
