//! Reapers: processes that clean up when the run cannot. Each waits for the end of its standard
//! input, which the kernel closes however the run ends, `kill -9` included. A reaper leads a
//! process group of its own, so that Ctrl-C reaches the run alone.
//!
//! Each database has a reaper of its own. All gateways share one, so that starting a gateway costs
//! no second process (`subject::reaped`).

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::gate::bounded;

/// The longest wait for an orderly clean-up.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// A process that cleans up when this value is stopped or dropped, or when the run dies.
#[derive(Debug)]
pub(crate) struct Reaper {
    child: Child,
}

impl Reaper {
    /// Starts a shell script with arguments. The script must clean up and end when its standard
    /// input ends.
    pub fn start(
        script: &str,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> std::io::Result<Self> {
        Ok(Self {
            child: Command::from(shell(script, arguments, environment)).spawn()?,
        })
    }

    /// Lets the reaper clean up and waits until it has, for at most 20 s.
    pub async fn stop(mut self) {
        drop(self.child.stdin.take());
        if bounded(CLEAN_UP, self.child.wait()).await.is_none() {
            tracing::warn!(
                "the clean-up of the database takes longer than {CLEAN_UP:?} and goes on in the \
                 background"
            );
        }
    }
}

/// The command of a shell script whose standard input is a pipe, in a process group of its own.
pub(crate) fn shell(
    script: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command
        .arg("-c")
        .arg(script)
        .arg("gauntlet-reaper")
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}
