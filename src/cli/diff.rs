//! `gauntlet diff`: compares the reports of two runs, case by case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gauntlet_harness::case::Level;
use gauntlet_harness::report::{RunRecord, counted};
use gauntlet_harness::runner::Outcome;
use serde::Serialize;

use super::CommandError;

const AFTER_HELP: &str = "\
Exit codes:
  0  B has no new failure
  1  a MUST fails in B and not in A (with --strict also: a SHOULD fails newly, or a case became
     flaky)
  2  a report cannot be read, or the run of B was not finished or examined nothing, and shows no
     new failure

A reason counts as changed only if more than its ids, ports, UUIDs, temporary paths and measured
times differ, so that two runs of the same gateway give no line.";

/// Arguments of `gauntlet diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The earlier run: its report.json, or the folder that holds it
    #[arg(value_name = "A")]
    before: PathBuf,
    /// The later run: its report.json, or the folder that holds it
    #[arg(value_name = "B")]
    after: PathBuf,
    /// Count also a SHOULD that failed newly, or a case that became flaky, as a new failure
    #[arg(long)]
    strict: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
}

/// What changed from the first run to the second.
#[derive(Debug, Serialize)]
struct Difference {
    before: Run,
    after: Run,
    changes: Vec<Change>,
    /// The number of ids that both runs have, with the same verdict and reason.
    unchanged: usize,
    new_failures: usize,
    resolved: usize,
}

/// One of the two runs.
#[derive(Debug, Serialize)]
struct Run {
    target: String,
    version: Option<String>,
    started_at: jiff::Timestamp,
    /// Why the run was not finished or proves nothing, if that is so.
    broken: Option<String>,
}

/// One id whose verdict or reason changed.
#[derive(Debug, Serialize)]
struct Change {
    id: String,
    level: Level,
    /// The verdict in A, or `absent`.
    old: &'static str,
    /// The verdict in B, or `absent`.
    new: &'static str,
    old_reason: String,
    new_reason: String,
    is_new_failure: bool,
}

/// Compares the two reports. The exit code says whether there is a new failure.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let read = |path: &Path| RunRecord::read(&record_path(path)).map_err(CommandError);
    let difference = difference(&read(&args.before)?, &read(&args.after)?, args.strict);
    if args.json {
        let text = serde_json::to_string_pretty(&difference)
            .map_err(|error| CommandError(format!("cannot write the difference: {error}")))?;
        say!("{text}");
    } else {
        print(&difference);
    }
    match (&difference.after.broken, difference.new_failures) {
        (_, 1..) => Ok(ExitCode::from(1)),
        (Some(broken), 0) => Err(CommandError(format!(
            "the run of {} proves nothing about its missing cases ({}); run it again",
            args.after.display(),
            first_line(broken)
        ))),
        (None, 0) => Ok(ExitCode::SUCCESS),
    }
}

/// Returns the path of the record that `path` names: a folder means the report.json in it.
pub(super) fn record_path(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join("report.json"),
        false => path.to_path_buf(),
    }
}

fn difference(before: &RunRecord, after: &RunRecord, strict: bool) -> Difference {
    let by_id = |record: &RunRecord| -> BTreeMap<String, Outcome> {
        let outcomes = record.outcomes.iter().cloned();
        outcomes
            .map(|outcome| (outcome.id.clone(), outcome))
            .collect()
    };
    let (old, new) = (by_id(before), by_id(after));
    let only_old = before
        .outcomes
        .iter()
        .filter(|outcome| !new.contains_key(&outcome.id));
    let changes: Vec<Change> = after
        .outcomes
        .iter()
        .chain(only_old)
        .filter_map(|outcome| {
            let (old, new) = (old.get(&outcome.id), new.get(&outcome.id));
            change(outcome, old, new, strict)
        })
        .collect();
    let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|c| wanted(c)).count();
    Difference {
        before: described(before),
        after: described(after),
        unchanged: after.outcomes.len() - count(|change| change.new != "absent"),
        new_failures: count(|change| change.is_new_failure),
        resolved: count(|change| fails(change.old) && change.new == "passed"),
        changes,
    }
}

fn described(record: &RunRecord) -> Run {
    let harness = record.outcomes.iter().find(|o| o.word() == "harness");
    Run {
        target: record.target.name.clone(),
        version: record.target.version.clone(),
        started_at: record.started_at,
        broken: record
            .why_invalid()
            .or_else(|| harness.map(|outcome| format!("{}: {}", outcome.id, outcome.reason()))),
    }
}

/// Returns the change of one id, or `None` if verdict and reason are the same in both runs.
fn change(
    shown: &Outcome,
    old: Option<&Outcome>,
    new: Option<&Outcome>,
    strict: bool,
) -> Option<Change> {
    let word = |outcome: Option<&Outcome>| outcome.map_or("absent", Outcome::word);
    let reason = |outcome: Option<&Outcome>| outcome.map(Outcome::reason).unwrap_or_default();
    let (old_word, new_word) = (word(old), word(new));
    let (old_reason, new_reason) = (reason(old), reason(new));
    if old_word == new_word && normalised(&old_reason) == normalised(&new_reason) {
        return None;
    }
    let counts = new_word == "failed" || (strict && fails(new_word));
    Some(Change {
        id: shown.id.clone(),
        level: shown.level,
        old: old_word,
        new: new_word,
        old_reason,
        new_reason,
        is_new_failure: counts && old_word != new_word && old_word != "failed",
    })
}

/// Returns whether a verdict speaks against the gateway.
fn fails(word: &str) -> bool {
    matches!(word, "failed" | "warned" | "flaky")
}

fn print(difference: &Difference) {
    for change in &difference.changes {
        let (old, new) = (spaced(change.old), spaced(change.new));
        let reason = match (change.old == change.new, change.new_reason.is_empty()) {
            (true, _) => format!(
                "{}; before: {}",
                first_line(&change.new_reason),
                first_line(&change.old_reason)
            ),
            (false, true) if change.old_reason.is_empty() => String::new(),
            (false, true) => format!("before: {}", first_line(&change.old_reason)),
            (false, false) => first_line(&change.new_reason).to_string(),
        };
        let line = format!("{:<9} {old} → {new}  {reason}", change.id);
        say!("{}", line.trim_end());
    }
    let changed = counted(difference.changes.len(), "case changed", "cases changed");
    let failures = counted(difference.new_failures, "new failure", "new failures");
    say!(
        "{changed} ({failures}, {} resolved), {} unchanged: {} → {}",
        difference.resolved,
        difference.unchanged,
        name(&difference.before),
        name(&difference.after),
    );
}

fn name(run: &Run) -> String {
    let version = run.version.as_deref();
    let version = version.map_or_else(String::new, |version| format!(" ({version})"));
    format!("{}{version} of {}", run.target, run.started_at)
}

fn spaced(word: &str) -> String {
    word.replace('-', " ")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Returns a reason without what differs between two runs of the same gateway: UUIDs and other long
/// ids, numbers of requests and connections, ports, temporary paths, and measured times.
fn normalised(reason: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    let mut words: Vec<String> = Vec::new();
    let mut rest = reason;
    while let Some(first) = rest.chars().next() {
        let inside = is_part(first);
        let end = rest
            .find(|c: char| is_part(c) != inside)
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if !inside {
            words.push(word.into());
            continue;
        }
        let unit = after
            .strip_prefix(' ')
            .map(|unit| unit.split(|c: char| !c.is_alphanumeric()).next());
        let measured = matches!(unit, Some(Some("ms" | "µs" | "us" | "s")));
        let before = words.iter().rev().find(|word| !word.trim().is_empty());
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        let counted = before.is_some_and(|word| {
            matches!(
                word.as_str(),
                "request" | "connection" | "pid" | "process" | "port"
            )
        });
        words.push(match word {
            _ if measured && is_decimal(word) => "<time>".into(),
            _ if is_number && counted => "<number>".into(),
            _ => normalised_word(word),
        });
    }
    words.concat()
}

/// Returns a word without ports, temporary paths, ids, and a time with its unit.
fn normalised_word(word: &str) -> String {
    if let Some((before, _)) = word.split_once("/tmp/") {
        return format!("{before}/tmp/<path>");
    }
    let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    if unit.len() < word.len() && matches!(unit.trim_end_matches('.'), "ms" | "us" | "s") {
        return "<time>".into();
    }
    let mut parts = word.split_inclusive(['/', ':']);
    let mut text = String::with_capacity(word.len());
    let mut is_after_colon = false;
    for part in &mut parts {
        let core = part.trim_end_matches(['/', ':', '.', '-', '_']);
        let end = &part[core.len()..];
        let is_port = is_after_colon && core.len() >= 4 && core.bytes().all(|b| b.is_ascii_digit());
        text.push_str(match core {
            _ if is_port => "<port>",
            _ if is_id(core) => "<id>",
            core => core,
        });
        text.push_str(end);
        is_after_colon = part.ends_with(':');
    }
    text
}

fn is_decimal(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_digit())
        && word
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// Returns whether a word is a UUID, or is made like an id: 16 or more letters and digits, mixed.
fn is_id(word: &str) -> bool {
    let long = word
        .split(['-', '_', '.'])
        .any(|part| part.len() >= 16 && part.bytes().any(|byte| byte.is_ascii_digit()));
    long || uuid::Uuid::try_parse(word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_two_runs_is_the_same_text() {
        for (a, b) in [
            ("after 1203 ms", "after 998 ms"),
            ("within 1.25s", "within 0.9s"),
            (
                "at http://127.0.0.1:40123/v1",
                "at http://127.0.0.1:9101/v1",
            ),
            (
                "id 0192f0c1-7a11-7b00-8000-000000000001.",
                "id 0192f0c1-7a11-7b00-8000-0000000000ff.",
            ),
            ("saw req_0192f0c17a117b00", "saw req_0192f0c17a117bff"),
            ("request 7 on connection 12", "request 9 on connection 3"),
            ("cannot read /tmp/.tmpAb1/x", "cannot read /tmp/.tmpZz9/x"),
        ] {
            assert_eq!(normalised(a), normalised(b));
        }
    }

    #[test]
    fn a_reason_that_says_something_else_differs() {
        for (a, b) in [
            ("status 504", "status 502"),
            ("saw 3 requests", "saw 4 requests"),
            ("timeout", "rate_limit"),
            ("at /v1/models", "at /v1/chat"),
        ] {
            assert_ne!(normalised(a), normalised(b));
        }
    }
}
