//! `gauntlet list`: the catalogue.

use std::io::Write;
use std::process::ExitCode;

use gauntlet_harness::case::Level;

use super::CommandError;
use super::select::{ProfileArg, select};

/// Options of `gauntlet list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only cases of this surface
    #[arg(long, value_enum)]
    profile: Option<ProfileArg>,
    /// Only these cases: an id (TIME-02) or an area (TIME)
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
}

/// Prints one line a case.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let cases = select(
        gauntlet_suites::cases::all(),
        &args.cases,
        args.profile.map(Into::into),
        None,
    )
    .map_err(CommandError)?;
    let mut out = std::io::stdout().lock();
    for case in &cases {
        let level = if case.level == Level::Must {
            "MUST  "
        } else {
            "SHOULD"
        };
        // a reader that has gone wants no more lines
        if writeln!(out, "{:<9} {level}  {}", case.id, case.requirement).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
