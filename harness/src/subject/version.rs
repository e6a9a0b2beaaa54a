//! The version of a gateway that the harness starts: what its version command writes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::render::Renderer;
use super::{TargetError, TargetFile};
use crate::gate::bounded;

/// The longest wait for a version command; some gateways load all their modules first.
const VERSION: Duration = Duration::from_secs(30);

/// Returns the version of the gateway as the version command of the file says it; `None` if the
/// file has no such command, or if the command fails.
///
/// # Errors
/// [`TargetError::Definition`] if the command is a broken template.
pub(super) fn version(file: &TargetFile, gauntlet: &Path) -> Result<Option<String>, TargetError> {
    let renderer = Renderer::bare(file, gauntlet);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
