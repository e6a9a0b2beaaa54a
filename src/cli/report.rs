//! `gauntlet report`: writes the page, JUnit, Markdown and JSON of a run again from its
//! report.json.

use std::path::PathBuf;
use std::process::ExitCode;

use gauntlet_harness::report::RunRecord;

use super::CommandError;

/// Arguments of `gauntlet report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The report.json of a run
    #[arg(value_name = "FILE", default_value = "report/report.json")]
    record: PathBuf,
    /// Write into this folder [default: the folder of FILE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the report and prints where it is. The exit code is 0 if it could be written, whatever
/// the result of the run.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let folder = args
        .out
        .clone()
        .or_else(|| args.record.parent().map(PathBuf::from))
        .unwrap_or_default();
    let record = RunRecord::read(&args.record).map_err(CommandError)?;
    let page = record.write(&folder).map_err(CommandError)?;
    say!("{}: {}", page.display(), record.headline());
    Ok(ExitCode::SUCCESS)
}
