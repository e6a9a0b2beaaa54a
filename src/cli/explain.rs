//! `gauntlet explain`: one requirement in full, or one capability.

use std::process::ExitCode;

use gauntlet_harness::case::Case;
use gauntlet_harness::subject::Capability;
use gauntlet_suites::catalogue::{self, Function, Observer, Proof, Requirement};
use gauntlet_suites::defect::Defect;

use super::CommandError;
use super::select::unknown;

/// Arguments of `gauntlet explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The id of a requirement such as TIME-02, or the name of a capability such as retry_budget
    #[arg(value_name = "ID")]
    id: String,
}

/// Prints everything about one requirement or one capability.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let id = args.id.to_ascii_uppercase();
    let capability = Capability::ALL
        .iter()
        .find(|row| row.name().eq_ignore_ascii_case(&args.id));
    match (catalogue::find(&id), capability) {
        (Some(row), _) => say!("{}", requirement(row)),
        (None, Some(row)) => say!("{}", explained(*row)),
        (None, None) => return Err(CommandError(unknown(&args.id))),
    }
    Ok(ExitCode::SUCCESS)
}

fn requirement(row: &Requirement) -> String {
    let profiles: Vec<&str> = row.profiles.iter().map(|profile| profile.name()).collect();
    let mut text = format!(
        "{} ({}, {})\n\n{}",
        row.id,
        row.keyword.name(),
        profiles.join(", "),
        row.text
    );
    if !row.seen_at.is_empty() {
        let observers: Vec<&str> = row.seen_at.iter().map(|who| observer(*who)).collect();
        section(&mut text, "Where it is observed", &observers.join("\n"));
    }
    let cases = gauntlet_suites::cases::all();
    match cases.iter().find(|case| case.id == row.id) {
        Some(case) => of_case(&mut text, case),
        None => section(&mut text, "Where it is proven", &proven(row.proof())),
    }
    text
}

fn of_case(text: &mut String, case: &Case) {
    let needs: Vec<String> = case
        .needs
        .iter()
        .map(|need| format!("{}: {}", need.name(), need.claim()))
        .collect();
    let defects: Vec<String> = Defect::of(case.id)
        .iter()
        .map(|defect| format!("{defect:?}: {}", defect.bug()))
        .collect();
    section(text, "Why it matters", case.why);
    section(text, "How it is examined", case.shown);
    let instances: Vec<String> = case.instances.iter().map(ToString::to_string).collect();
    section(
        text,
        "Instances of the requirement that it examines",
        &or_none(&instances),
    );
    section(
        text,
        "Bugs of the reference gateway that it rejects",
        &or_none(&defects),
    );
    section(text, "What to do if it fails", case.remedy);
    section(
        text,
        "What a target has to declare for it",
        &or_none(&needs),
    );
    section(text, "Run it", &format!("gauntlet run {}", case.id));
}

fn proven(proof: Proof) -> String {
    let listed = |kind: &str, functions: &[Function]| {
        let functions = functions
            .iter()
            .map(|function| format!("{} in {}", function.name, function.file));
        let lines: Vec<String> = std::iter::once(format!("by a {kind} on the bundled gateway:"))
            .chain(functions)
            .collect();
        lines.join("\n")
    };
    match proof {
        Proof::Case => "by a case".into(),
        Proof::Property(functions) => listed("property", functions),
        Proof::Test(functions) => listed("test", functions),
        Proof::NotYet => "nothing proves it yet".into(),
    }
}

const fn observer(observer: Observer) -> &'static str {
    match observer {
        Observer::Client => "at the client of the gateway",
        Observer::Provider => "at the provider, which the harness stubs",
        Observer::Database => "in the database, or at the wire in front of it",
    }
}

fn explained(capability: Capability) -> String {
    let needing: Vec<&str> = gauntlet_suites::cases::all()
        .iter()
        .filter(|case| case.needs.contains(&capability))
        .map(|case| case.id)
        .collect();
    let mut text = format!(
        "{} (capability)\n\n{}",
        capability.name(),
        capability.claim()
    );
    let needing = if needing.is_empty() {
        "none as a condition; a case may examine more if it is declared".into()
    } else {
        needing.join(", ")
    };
    section(&mut text, "Cases that need it", &needing);
    section(
        &mut text,
        "How to declare it",
        &format!(
            "capabilities = [\"{}\", …] in the target file",
            capability.name()
        ),
    );
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    text.push_str(&format!("\n\n{title}"));
    for line in body.lines() {
        text.push_str(&format!("\n  {line}"));
    }
}

fn or_none(lines: &[String]) -> String {
    if lines.is_empty() {
        "none".into()
    } else {
        lines.join("\n")
    }
}
