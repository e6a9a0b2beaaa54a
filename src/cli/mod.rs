//! The subcommands, one file each. Only this part of the program may know gateway, harness and suites together.
//!
//! Exit codes: 0 it worked, 1 what was examined failed, 2 the command itself could not do its work; the reason is on stderr.

/// Writes a line for people to stdout. A reader that has gone (`gauntlet run | head`) is no error: the work and its exit code stand.
#[cfg(feature = "examiner")]
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

mod discover;
#[cfg(feature = "examiner")]
mod explain;
mod keys;
#[cfg(feature = "examiner")]
mod list;
#[cfg(feature = "examiner")]
mod replay;
#[cfg(feature = "examiner")]
mod report;
#[cfg(feature = "examiner")]
mod run;
#[cfg(feature = "examiner")]
mod select;
mod serve;
#[cfg(feature = "examiner")]
mod stub;
#[cfg(feature = "examiner")]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gauntlet::config::{ConfigError, Loaded};

/// An LLM gateway and query orchestrator, and the conformance suite that proves how it fails.
#[derive(Debug, Parser)]
#[command(name = "gauntlet", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One variant a subcommand; its arguments and its work are in the file of that name.
#[derive(Debug, Subcommand)]
enum Command {
    /// Examine a gateway: start database, stubs and target, run the cases, write a report
    #[cfg(feature = "examiner")]
    Run(run::Args),
    /// List the catalogue of requirements
    #[cfg(feature = "examiner")]
    List(list::Args),
    /// Tell one requirement: why, how it is shown, what fails it, what to do
    #[cfg(feature = "examiner")]
    Explain(explain::Args),
    /// Make the report of a run again from its record
    #[cfg(feature = "examiner")]
    Report(report::Args),
    /// Stand in for OpenAI and Ollama on a port, from files with rules
    #[cfg(feature = "examiner")]
    Stub(stub::Args),
    /// Run the gateway
    Serve(serve::Args),
    /// Add, list and revoke API keys
    Keys(keys::Args),
}

/// Why a command could not do its work: told on stderr, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CommandError(String);

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        #[cfg(feature = "examiner")]
        Command::Run(args) => run::run(args),
        #[cfg(feature = "examiner")]
        Command::List(args) => list::run(&args),
        #[cfg(feature = "examiner")]
        Command::Explain(args) => explain::run(&args),
        #[cfg(feature = "examiner")]
        Command::Report(args) => report::run(&args),
        #[cfg(feature = "examiner")]
        Command::Stub(args) => stub::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Keys(args) => keys::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        for line in error.to_string().lines() {
            eprintln!("error: {line}");
        }
        ExitCode::from(2)
    })
}

/// The runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError(format!("the runtime can't be started ({error}): raise the limits of processes and open files")))
}

/// The whole environment; a variable that is not UTF-8 can't be meant for us.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The configuration of `file` under `environment`; without a file, of the environment alone.
fn configuration(
    file: Option<&PathBuf>,
    environment: Vec<(String, String)>,
) -> Result<Loaded, CommandError> {
    Ok(match file {
        Some(file) => Loaded::from_file(file, environment)?,
        None => Loaded::from_text("", "the environment", environment)?,
    })
}
