//! The commands of `[keys]`: how an operator makes and revokes keys of clients while the gateway
//! runs.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::TargetError;
use crate::gate::bounded;

/// The longest time that one command may take.
const LONGEST: Duration = Duration::from_secs(20);

/// A key of a client that was made while the gateway runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedKey {
    /// The id under which the gateway knows the key.
    pub id: String,
    /// The bearer token that the client presents.
    pub token: String,
}

/// The commands that make and revoke a key. Every word of them is a template, which also knows
/// `tenant`, or the `key` with its `id` and `token`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyCommands {
    /// The command that makes a key of the tenant `{{ tenant }}` and writes its token.
    pub add: Vec<String>,
    /// The text before the token in the output of `add`.
    pub token_after: String,
    /// The text before the id in the output of `add`; without it the token is the id.
    #[serde(default)]
    pub id_after: Option<String>,
    /// The command that revokes the key `{{ key.id }}`.
    pub revoke: Vec<String>,
}

impl KeyCommands {
    /// Reads the key in the output of `add`; names the text that is missing.
    pub(super) fn issued(&self, output: &str) -> Result<IssuedKey, String> {
        let token = after(output, &self.token_after)?;
        let id = match &self.id_after {
            Some(text) => after(output, text)?,
            None => token.clone(),
        };
        Ok(IssuedKey { id, token })
    }
}

/// Returns the word that follows the text; names the text that is missing.
fn after(output: &str, text: &str) -> Result<String, String> {
    let rest = output.split_once(text).map(|(_, rest)| rest);
    let word = rest.and_then(|rest| rest.split_whitespace().next());
    word.map(str::to_string).ok_or_else(|| text.to_string())
}

/// Runs a command to its end and returns its output. Dropping the future ends the command.
pub(super) async fn output(words: &[String]) -> Result<String, TargetError> {
    let command = words.join(" ");
    let failed = |why: String| TargetError::Start(format!("the command `{command}` {why}"));
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| failed("is empty; give the program and its arguments".into()))?;
    let running = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match bounded(LONGEST, running).await {
        Some(Ok(output)) => output,
        Some(Err(error)) => return Err(failed(format!("cannot be started: {error}"))),
        None => {
            return Err(failed(format!(
                "has not ended within {} s",
                LONGEST.as_secs()
            )));
        }
    };
    if !output.status.success() {
        return Err(failed(format!(
            "failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_key_is_read_from_what_the_command_writes() {
        let commands = KeyCommands {
            add: Vec::new(),
            token_after: "token".into(),
            id_after: Some("key".into()),
            revoke: Vec::new(),
        };
        let echo = |text: &str| ["sh", "-c", text].map(String::from);
        let written = output(&echo("printf 'key    7\\ntoken  gk-1\\n'"))
            .await
            .unwrap();
        let issued = commands.issued(&written).unwrap();
        assert_eq!((issued.id.as_str(), issued.token.as_str()), ("7", "gk-1"));
        assert_eq!(commands.issued("key 7"), Err("token".into()));
        let failed = output(&echo("echo no database >&2; exit 3")).await;
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("no database"), "{failed}");
    }
}
