//! `gauntlet report`: makes the page, JUnit and Markdown again from the record of a run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use gauntlet_harness::report::RunRecord;

/// Options of `gauntlet report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// The record of a run
    #[arg(value_name = "RECORD", default_value = "report/report.json")]
    record: PathBuf,
    /// Where to write; the record's own folder by default
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the report and says where it is. The exit code tells whether it could be written, not what it says.
pub fn report(args: &ReportArgs) -> ExitCode {
    let folder = args.out.clone().or_else(|| args.record.parent().map(PathBuf::from)).unwrap_or_default();
    match RunRecord::read(&args.record).and_then(|record| record.write(&folder).map(|page| (record, page))) {
        Ok((record, page)) => {
            println!("{}: {}", page.display(), record.headline());
            ExitCode::SUCCESS
        }
        Err(why) => super::refuse(&why),
    }
}
