//! A guard process that cleans up when the run can't: it waits for the end of its standard input, which the kernel closes
//! however the run ends, `kill -9` included. It leads a process group of its own, so that Ctrl-C reaches the run alone.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// How long an orderly clean-up may take.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Something that is cleaned up when this is stopped, dropped, or the process dies.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Runs a shell script with arguments. The script must end, and clean up, when its standard input ends.
    pub fn start(script: &str, arguments: &[String], environment: &[(&str, &str)]) -> std::io::Result<Self> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg("gauntlet-guard").args(arguments).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        #[cfg(unix)]
        command.process_group(0);
        Ok(Self { child: command.spawn()? })
    }

    /// Tells the guard to clean up and waits until it has.
    pub async fn stop(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(CLEAN_UP, self.child.wait()).await.is_err() {
            tracing::warn!("the clean-up of the database takes longer than {CLEAN_UP:?}; it goes on without us");
        }
    }
}
