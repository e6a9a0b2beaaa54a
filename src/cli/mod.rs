//! The subcommands, one file each. This part of the program alone knows gateway, harness and suites
//! together.
//!
//! Adding a subcommand takes its file (`Args`, which clap reads, and `run`), its `mod` line, and
//! its row in `subcommands!`. Exit codes: 0 means that the command succeeded, 1 that a requirement
//! does not hold, 2 that the command itself failed; then stderr holds the reason.

/// Writes a line for people to stdout. A reader that has gone (`gauntlet run | head`) is no error:
/// the work is finished, and its exit code counts.
#[cfg(feature = "examiner")]
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

#[cfg(feature = "examiner")]
mod baseline;
#[cfg(feature = "examiner")]
mod diff;
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
mod reproduce;
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

macro_rules! subcommands {
    ($($(#[$attribute:meta])* $variant:ident($file:ident),)*) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($(#[$attribute])* $variant($file::Args),)*
        }

        impl Command {
            #[allow(unused_doc_comments, reason = "the help of a row is repeated here")]
            fn run(&self) -> Result<ExitCode, CommandError> {
                match self {
                    $($(#[$attribute])* Self::$variant(args) => $file::run(args),)*
                }
            }
        }
    };
}

subcommands! {
    /// Examine a gateway: start database, stubs and gateway, run the cases, write a report
    #[cfg(feature = "examiner")]
    Run(run),
    /// List the requirements of the catalogue, and where each is proven
    #[cfg(feature = "examiner")]
    List(list),
    /// Explain a requirement (why it matters, how it is examined, what to do) or a capability
    #[cfg(feature = "examiner")]
    Explain(explain),
    /// Write the report of a run again from its report.json
    #[cfg(feature = "examiner")]
    Report(report),
    /// Compare the reports of two runs: which verdicts and reasons changed
    #[cfg(feature = "examiner")]
    Diff(diff),
    /// Make files of a failed case with which anybody sees the failure, without Rust
    #[cfg(feature = "examiner")]
    Reproduce(reproduce),
    /// Answer instead of LLM providers on one port, as scripts say
    #[cfg(feature = "examiner")]
    Stub(stub),
    /// Run the gateway
    Serve(serve),
    /// Add, list and revoke API keys
    Keys(keys),
}

/// Why a command failed. The text goes to stderr, and the exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CommandError(String);

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// Runs the subcommand that the arguments name.
pub fn main() -> ExitCode {
    Cli::parse().command.run().unwrap_or_else(|error| {
        for line in error.to_string().lines() {
            eprintln!("error: {line}");
        }
        ExitCode::from(2)
    })
}

/// Makes the runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CommandError(format!(
                "cannot start the async runtime ({error}); raise the limits of threads and open files"
            ))
        })
}

/// Returns the environment, without variables that are not UTF-8, which no setting can be.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Loads the configuration from `file` and `environment`; without a file, from the environment
/// alone.
fn configuration(
    file: Option<&PathBuf>,
    environment: Vec<(String, String)>,
) -> Result<Loaded, CommandError> {
    Ok(match file {
        Some(file) => Loaded::from_file(file, environment)?,
        None => Loaded::from_text("", "the environment", environment)?,
    })
}
