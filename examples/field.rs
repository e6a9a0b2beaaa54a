//! Writes docs/field.md from the reports of gateways, and from the notes of docs/field-notes.toml
//! about their failures: `cargo run --example field -- docs/field-notes.toml REPORT…`. A report may
//! have a folder `reproduce` beside it, by `gauntlet reproduce --all`: its results.tsv says of each
//! failure whether it was reproduced.
//!
//! The verdicts are those of the reports. A note belongs to one version of a gateway and to one
//! case, and says what kind of requirement it is and what was seen by hand, with other tools. A
//! failure without a note is shown as not yet checked by hand.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use gauntlet_harness::report::{RunRecord, duration};
use gauntlet_harness::runner::Outcome;
use indexmap::IndexMap;
use serde::Deserialize;

/// What people have found out by hand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Notes {
    note: Vec<Note>,
}

/// What was found out about one failure of one version of a gateway.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    target: String,
    version: String,
    id: String,
    class: Class,
    /// What was sent and seen by hand, with an upstream and a client of another make.
    by_hand: String,
    /// What speaks for the gateway, or what its documentation says.
    #[serde(default)]
    word: String,
}

/// What a failure is measured by.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Class {
    /// A standard, or the form of OpenAI's API.
    Standard,
    /// What the gateway's own documentation promises.
    Documented,
    /// What this catalogue holds to be right.
    Judgement,
}

impl Class {
    fn words(self) -> &'static str {
        match self {
            Self::Standard => "a standard, or the form of OpenAI's API",
            Self::Documented => "what the gateway documents",
            Self::Judgement => "our judgement",
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [notes, reports @ ..] = arguments.as_slice() else {
        eprintln!("give the file of notes and the folders of the reports");
        return ExitCode::from(2);
    };
    match page(notes, reports) {
        Ok(page) => match std::fs::write("docs/field.md", page) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&format!("cannot write docs/field.md: {error}")),
        },
        Err(why) => complain(&why),
    }
}

fn complain(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(2)
}

fn page(notes: &str, reports: &[String]) -> Result<String, String> {
    let text =
        std::fs::read_to_string(notes).map_err(|error| format!("cannot read {notes}: {error}"))?;
    let notes: Notes = toml::from_str(&text).map_err(|error| format!("{notes}: {error}"))?;
    let mut runs = Vec::new();
    let mut reproductions = Vec::new();
    for report in reports {
        runs.push(RunRecord::read(&Path::new(report).join("report.json"))?);
        reproductions.push(reproduced(Path::new(report)));
    }
    let mut page = String::from(INTRODUCTION);
    overview(&mut page, &runs, &reproductions, &notes);
    matrix(&mut page, &runs);
    for (run, reproduced) in runs.iter().zip(&reproductions) {
        gateway(&mut page, run, reproduced, &notes);
    }
    Ok(page)
}

const INTRODUCTION: &str = "\
# Gateways in the field

`make field` writes this page: it installs these gateways, examines each with the target file of its
name in [fixtures/targets](../fixtures/targets), and takes verdicts, versions and dates from the
reports. The words about a failure come from [field-notes.toml](field-notes.toml): each failure with
a note was also seen by hand, with an upstream and a client on raw sockets that share
nothing with Gauntlet. A failure without a note is marked as not yet checked by hand.

A verdict is about one version, configured as its target file says, under the timeouts of the cases.
Each failure says what it is measured by: a standard or the form of OpenAI's API; what the gateway
itself documents; or the judgement of our catalogue, with which a maintainer may disagree.
The time that a run took is that of a machine with two cores and other work at the same time.
If a verdict is unfair to your gateway, please open an issue: the case or the target file is wrong
then.

";

/// The ids of the failures of a report that were played, and what came of it.
type Reproduced = IndexMap<String, String>;

/// Reads what came of the reproductions of a report. A report without any has none.
fn reproduced(report: &Path) -> Reproduced {
    let text = std::fs::read_to_string(report.join("reproduce/results.tsv")).unwrap_or_default();
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    rows.map(|(id, word)| (id.to_string(), word.to_string()))
        .collect()
}

fn overview(page: &mut String, runs: &[RunRecord], reproductions: &[Reproduced], notes: &Notes) {
    // writing to a String cannot fail
    let _ = writeln!(
        page,
        "| gateway | version | examined on | took | cases | passed | failed | warned | flaky | not \
         exercised | not supported | not run | of the failed and warned, reproduced | seen by hand |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for (run, reproduced) in runs.iter().zip(reproductions) {
        let summary = run.summary();
        let charged: Vec<&Outcome> = run.outcomes.iter().filter(|it| is_charge(it)).collect();
        let seen = charged
            .iter()
            .filter(|outcome| note(notes, run, outcome).is_some())
            .count();
        let shown = reproduced
            .values()
            .filter(|word| *word == "reproduced")
            .count();
        let _ = writeln!(
            page,
            "| [{name}](#{name}) | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {shown} of {played} | {seen} of {} |",
            version(run),
            run.started_at.strftime("%Y-%m-%d"),
            duration(run.duration_ms),
            summary.total,
            summary.passed,
            summary.failed,
            summary.warned,
            summary.flaky,
            summary.not_exercised,
            summary.not_supported,
            summary.not_run + summary.harness,
            charged.len(),
            played = reproduced.len(),
            name = run.target.name,
        );
    }
}

/// A row for each case that at least one gateway was examined by.
fn matrix(page: &mut String, runs: &[RunRecord]) {
    let mut rows: IndexMap<&str, (&Outcome, Vec<&'static str>)> = IndexMap::new();
    for (column, run) in runs.iter().enumerate() {
        for outcome in &run.outcomes {
            let row = rows
                .entry(&outcome.id)
                .or_insert_with(|| (outcome, vec![""; runs.len()]));
            row.1[column] = match outcome.word() {
                "passed" => "passed",
                "failed" => "**failed**",
                "warned" => "warned",
                "flaky" => "flaky",
                "not-exercised" => "not exercised",
                "not-supported" => "",
                _ => "not run",
            };
        }
    }
    let names: Vec<&str> = runs.iter().map(|run| run.target.name.as_str()).collect();
    let _ = writeln!(
        page,
        "\n## Case by case\n\nAn empty cell means *not supported*: the target does not declare what \
         the case needs, and its file says why.\n\n| case | requirement | {} |\n|---|---|{}",
        names.join(" | "),
        "---|".repeat(runs.len())
    );
    for (outcome, cells) in rows.values() {
        if cells.iter().any(|cell| !matches!(*cell, "" | "not run")) {
            let _ = writeln!(
                page,
                "| {} | {} | {} |",
                outcome.id,
                cell(&outcome.requirement),
                cells.join(" | ")
            );
        }
    }
}

fn gateway(page: &mut String, run: &RunRecord, reproduced: &Reproduced, notes: &Notes) {
    let name = &run.target.name;
    let _ = writeln!(
        page,
        "\n## {name}\n\nVersion {}, examined on {} with gauntlet {}. `{}` runs the cases again; \
         `gauntlet reproduce REPORT ID` writes what one needs to see a failure without Gauntlet, where \
         REPORT is target/field/reports/{name}; the column *reproduced* says what came of it.\n\n\
         | case | expected and observed | measured by | reproduced | seen by hand |\n\
         |---|---|---|---|---|",
        version(run),
        run.started_at.strftime("%Y-%m-%d"),
        run.gauntlet,
        run.command,
    );
    for outcome in run.outcomes.iter().filter(|outcome| is_charge(outcome)) {
        let (class, by_hand) = match note(notes, run, outcome) {
            Some(note) => (
                note.class.words(),
                format!("{} {}", note.by_hand.trim(), note.word.trim()),
            ),
            None => ("", "*not yet checked by hand*".to_string()),
        };
        let _ = writeln!(
            page,
            "| {} ({}) | {} | {class} | {}`gauntlet reproduce REPORT {}` | {} |",
            outcome.id,
            outcome.word(),
            cell(&shortened(&outcome.reason())),
            match reproduced.get(&outcome.id).map(String::as_str) {
                Some("reproduced") => "yes: ",
                Some("undecided") => "a part of it cannot be played: ",
                Some(_) => "no: ",
                None => "",
            },
            outcome.id,
            cell(by_hand.trim())
        );
    }
}

/// Returns whether the verdict says that the gateway does not do what is required.
fn is_charge(outcome: &Outcome) -> bool {
    matches!(outcome.word(), "failed" | "warned" | "flaky")
}

fn note<'a>(notes: &'a Notes, run: &RunRecord, outcome: &Outcome) -> Option<&'a Note> {
    notes.note.iter().find(|note| {
        note.target == run.target.name
            && note.id == outcome.id
            && run.target.version.as_deref() == Some(note.version.as_str())
    })
}

fn version(run: &RunRecord) -> &str {
    run.target.version.as_deref().unwrap_or("unknown")
}

/// The first deviation, in at most 300 characters, and how many more there are.
fn shortened(text: &str) -> String {
    let (first, more) = match text.split_once("; deviation 2: ") {
        Some((first, rest)) => (first, 1 + rest.matches("; deviation ").count()),
        None => (text, 0),
    };
    let mut short = match first.char_indices().nth(300) {
        Some((end, _)) => format!("{} …", &first[..end]),
        None => first.to_string(),
    };
    match more {
        0 => {}
        1 => short.push_str(" (and 1 deviation more)"),
        more => short.push_str(&format!(" (and {more} deviations more)")),
    }
    short
}

/// A text for a cell of a table, which it cannot leave.
fn cell(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '|' => "\\|".to_string(),
            '<' => "&lt;".to_string(),
            '*' | '_' | '`' | '[' | ']' => format!("\\{c}"),
            c if c.is_control() => " ".to_string(),
            c => c.to_string(),
        })
        .collect()
}
