//! `gauntlet report`: makes the page, JUnit and Markdown again from the record of a run.

use std::path::PathBuf;
use std::process::ExitCode;

use gauntlet_harness::report::RunRecord;

use super::CommandError;

/// Options of `gauntlet report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The record of a run
    #[arg(value_name = "RECORD", default_value = "report/report.json")]
    record: PathBuf,
    /// Where to write; the record's own folder by default
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the report and says where it is. The exit code tells whether it could be written, not what it says.
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
