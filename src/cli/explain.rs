//! `gauntlet explain ID`: one requirement: why, how it is shown, what it rejects, what to do.

use std::io::Write;
use std::process::ExitCode;

use gauntlet_harness::case::{Case, Level};
use gauntlet_suites::defect::Defect;

use super::CommandError;
use super::select::unknown;

/// Options of `gauntlet explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The id of a requirement: TIME-02
    #[arg(value_name = "ID")]
    id: String,
}

/// Prints what is known of one requirement.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let all = gauntlet_suites::cases::all();
    match all
        .iter()
        .find(|case| case.id.eq_ignore_ascii_case(&args.id))
    {
        Some(case) => {
            // a reader that has gone wants no more lines
            let _ = std::io::stdout().lock().write_all(text(case).as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        None => Err(CommandError(unknown(&all, &args.id))),
    }
}

fn text(case: &Case) -> String {
    let level = if case.level == Level::Must {
        "MUST"
    } else {
        "SHOULD"
    };
    let profiles: Vec<String> = case
        .profiles
        .iter()
        .map(|profile| format!("{profile:?}").to_lowercase())
        .collect();
    let needs: Vec<String> = case
        .needs
        .iter()
        .map(|need| need.name().to_string())
        .collect();
    let defects: Vec<String> = Defect::of(case.id)
        .iter()
        .map(|defect| format!("{defect:?}: {}", defect.bug()))
        .collect();
    let mut text = format!(
        "{} ({level}, {})\n\n{}\n",
        case.id,
        profiles.join(", "),
        case.requirement
    );
    for (title, body) in [
        ("Why", case.why.to_string()),
        ("How it is shown", case.shown.to_string()),
        (
            "What it rejects",
            if defects.is_empty() {
                "no defective gateway is kept for it".into()
            } else {
                defects.join("\n")
            },
        ),
        ("What to do about it", case.remedy.to_string()),
        (
            "Capabilities that a target declares for it",
            if needs.is_empty() {
                "none".into()
            } else {
                needs.join(", ")
            },
        ),
        ("Examine it", format!("gauntlet run {}", case.id)),
    ] {
        text.push_str(&format!("\n{title}\n"));
        for line in body.lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}
