//! The record of a run, and its four forms: an HTML page, JUnit XML, Markdown and JSON.
//!
//! The JSON is the record itself. The other forms are made from it, so that `gauntlet report` can
//! make them again.

mod badge;
mod crowd;
mod html;
mod junit;
mod markdown;
mod messages;
mod secret;
mod setup;
mod timeline;
mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::exercise::State;
use crate::levels::Levels;
use crate::problem;
use crate::runner::{Outcome, Setup};
use crate::subject::Rendered;
use crate::verdict::{Failure, Level, Verdict};

pub use timeline::timeline;
pub use words::{counted, duration};

/// The version of the form of report.json. It is raised when a reader of the previous form would
/// misunderstand the new one.
pub const SCHEMA: u32 = 1;

/// The record of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// The version of the form; see [`SCHEMA`].
    pub schema: u32,
    /// The version of `gauntlet` that made the run.
    pub gauntlet: String,
    /// When the run began.
    pub started_at: jiff::Timestamp,
    /// How long the run took, in milliseconds.
    pub duration_ms: u64,
    /// The gateway under test.
    pub target: TargetRecord,
    /// The database of the cases.
    pub database: DatabaseRecord,
    /// The command that examines the same target again; with the id of a case appended, it runs
    /// that case.
    pub command: String,
    /// The arguments of that command that selected the cases; empty if all were run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selection: String,
    /// Whether a SHOULD that does not hold fails the run.
    pub strict: bool,
    /// Why the run could not be finished; `None` if it was.
    pub broken: Option<String>,
    /// How the run compares with the file of known failures.
    #[serde(default, skip_serializing_if = "Baseline::is_empty")]
    pub baseline: Baseline,
    /// Which levels the gateway carries, by which requirement set; `None` for a run of no cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<Levels>,
    /// The outcomes of the cases, in the order of the catalogue.
    pub outcomes: Vec<Outcome>,
}

/// How a run compares with the file of known failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The ids of the failures that the file lists. They do not change the exit code.
    pub known: Vec<String>,
    /// A sentence for each line of the file that must be removed. One fails the run.
    pub stale: Vec<String>,
}

impl Baseline {
    /// Returns whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.stale.is_empty()
    }
}

/// A record as it is written: beside it, what the gateways were started with, each once.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateways: Vec<&'a Rendered>,
}

/// The part of a written record that [`RunRecord`] has in its outcomes.
#[derive(Deserialize)]
struct Gateways {
    #[serde(default)]
    gateways: Vec<Arc<Rendered>>,
}

/// The gateway under test, in a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The name of the target: `bundled`, `litellm`, …
    pub name: String,
    /// The version of the gateway, if it is known.
    pub version: Option<String>,
}

/// The database of the cases, in a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseRecord {
    /// The database: `Postgres 17.5 in Docker (…)`, `SQLite, …` or `none`.
    pub kind: String,
    /// Why this database was taken, and which cases are therefore not run.
    pub why: String,
}

/// The number of cases for each verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All cases.
    pub total: usize,
    /// Cases whose requirement holds.
    pub passed: usize,
    /// Cases whose MUST does not hold.
    pub failed: usize,
    /// Cases whose SHOULD does not hold.
    pub warned: usize,
    /// Cases that failed and then passed.
    pub flaky: usize,
    /// Cases that need a capability that the target does not declare.
    pub not_supported: usize,
    /// Cases for which something was missing on this machine.
    pub not_run: usize,
    /// Cases whose fault was never met, or whose state was never reached.
    pub not_exercised: usize,
    /// Cases in which the harness itself failed, so that nothing is known about the gateway.
    pub harness: usize,
}

impl Summary {
    /// Returns the number of cases whose requirement was examined.
    pub fn examined(&self) -> usize {
        self.passed + self.failed + self.warned + self.flaky
    }
}

impl Outcome {
    /// Returns one word for the verdict: `passed`, `failed`, `warned`, `flaky`, `not-supported`,
    /// `not-run`, `not-exercised` or `harness`.
    pub fn word(&self) -> &'static str {
        match &self.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed {
                failure: Failure::Harness { .. },
            } => "harness",
            Verdict::Failed { .. } if self.level == Level::Should => "warned",
            Verdict::Failed { .. } => "failed",
            Verdict::Flaky { .. } => "flaky",
            Verdict::NotSupported { .. } => "not-supported",
            Verdict::NotRun { .. } => "not-run",
            Verdict::NotExercised { .. } => "not-exercised",
        }
    }

    /// Returns the reason of any verdict but *passed*, in one sentence; otherwise an empty text.
    pub fn reason(&self) -> String {
        match &self.verdict {
            Verdict::Passed => String::new(),
            Verdict::Failed { failure } => failure.to_string(),
            Verdict::Flaky { failure } => {
                format!("it passed when it was repeated; the first time: {failure}")
            }
            Verdict::NotSupported { capability } => capability.clone(),
            Verdict::NotRun { why } | Verdict::NotExercised { why } => why.clone(),
        }
    }
}

/// Makes the folder of a report, and a file in it, which is removed at once: a run whose report
/// cannot be written need not begin.
///
/// # Errors
/// A sentence with the path, the reason and the remedy.
pub fn prepare(folder: &Path) -> Result<(), String> {
    let probe = folder.join(".gauntlet-probe");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&probe, ""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| {
            format!(
                "cannot write a report into {}: {error}; give another folder with --report",
                folder.display()
            )
        })
}

/// Formats a number of cases: `1 case`, `2 cases`.
pub fn cases(n: usize) -> String {
    counted(n, "case", "cases")
}

impl RunRecord {
    /// Returns the command that makes the same run again.
    pub fn again(&self) -> String {
        if self.selection.is_empty() {
            self.command.clone()
        } else {
            format!("{} {}", self.command, self.selection)
        }
    }

    /// Returns the record without its outcomes.
    fn head(&self) -> Self {
        Self {
            outcomes: Vec::new(),
            target: self.target.clone(),
            database: self.database.clone(),
            command: self.command.clone(),
            selection: self.selection.clone(),
            broken: self.broken.clone(),
            baseline: self.baseline.clone(),
            levels: self.levels.clone(),
            gauntlet: self.gauntlet.clone(),
            ..*self
        }
    }

    /// Counts the cases for each verdict.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            total: self.outcomes.len(),
            ..Summary::default()
        };
        for outcome in &self.outcomes {
            *match outcome.word() {
                "passed" => &mut summary.passed,
                "failed" => &mut summary.failed,
                "warned" => &mut summary.warned,
                "flaky" => &mut summary.flaky,
                "not-supported" => &mut summary.not_supported,
                "not-run" => &mut summary.not_run,
                "not-exercised" => &mut summary.not_exercised,
                _ => &mut summary.harness,
            } += 1;
        }
        summary
    }

    /// Returns the exit code of the run. 0: every MUST that was examined holds. 1: a MUST does not
    /// hold (with `strict` also: a SHOULD does not hold, or a case is flaky). 2: the run itself
    /// failed, or nothing was examined.
    pub fn exit_code(&self) -> u8 {
        let summary = self.summary();
        if self.why_invalid().is_some() || summary.harness > 0 {
            2
        } else if !self.baseline.stale.is_empty() || self.has_new_failure() {
            1
        } else {
            0
        }
    }

    /// Returns why the run is no verdict on the gateway, and what to do: it could not be finished,
    /// or it examined nothing. Returns `None` for a run that is a verdict.
    pub fn why_invalid(&self) -> Option<String> {
        let summary = self.summary();
        if let Some(broken) = &self.broken {
            return Some(format!("The run could not be finished: {broken}"));
        }
        if summary.examined() + summary.harness > 0 {
            return None;
        }
        if summary.total == 0 {
            return Some(
                "Nothing was examined, because no case was selected; `gauntlet list` shows all \
                 cases"
                    .into(),
            );
        }
        let mut counts: IndexMap<String, usize> = IndexMap::new();
        for outcome in &self.outcomes {
            let reason = outcome.reason();
            *counts
                .entry(reason.lines().next().unwrap_or_default().to_string())
                .or_default() += 1;
        }
        counts.sort_by(|_, one, _, other| other.cmp(one));
        let reason = counts.first().map_or("", |(reason, _)| reason.as_str());
        let remedy = if summary.not_supported >= summary.not_run {
            "select other cases, or correct the capabilities and settings in the target file \
             (`gauntlet explain ID` lists what a case needs)"
        } else {
            "provide what is missing, or select other cases"
        };
        let exercised = match summary.not_exercised {
            0 => String::new(),
            n => format!(", and {} not exercised", counted(n, "is", "are")),
        };
        Some(format!(
            "Nothing was examined: of {}, {} not supported and {} not run{exercised}. The most \
             frequent reason: {reason}; {remedy}",
            cases(summary.total),
            counted(summary.not_supported, "is", "are"),
            counted(summary.not_run, "is", "are"),
        ))
    }

    /// Returns the levels that the gateway carries; `None` for a run that left cases out, which
    /// says nothing about them.
    pub fn whole_levels(&self) -> Option<&Levels> {
        self.levels.as_ref().filter(|levels| !levels.is_partial())
    }

    /// Returns each state with the number of cases that reached it, in the order of the table of
    /// states; a state that no case reached has 0. It is empty if no case was examined.
    pub fn states(&self) -> Vec<(State, usize)> {
        if self.outcomes.iter().all(|outcome| outcome.attempts == 0) {
            return Vec::new();
        }
        let cases = |state: State| {
            let reached = |outcome: &&Outcome| outcome.states.contains(&state);
            self.outcomes.iter().filter(reached).count()
        };
        let states = State::ALL.iter();
        states.map(|state| (*state, cases(*state))).collect()
    }

    /// Returns each kind of fault that cases planted, in alphabetical order, with how often it was
    /// planted and how often it was met.
    pub fn faults(&self) -> Vec<(String, u64, u64)> {
        let mut faults: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for fault in self.outcomes.iter().flat_map(|outcome| &outcome.faults) {
            let counts = faults.entry(fault.fault.clone()).or_default();
            counts.0 += fault.planted;
            counts.1 += fault.met;
        }
        let row = |(fault, (planted, met))| (fault, planted, met);
        faults.into_iter().map(row).collect()
    }

    /// Returns whether this is a failure that the file of known failures lists.
    pub fn is_known(&self, outcome: &Outcome) -> bool {
        let fails = matches!(outcome.word(), "failed" | "warned" | "flaky");
        fails && self.baseline.known.contains(&outcome.id)
    }

    /// Returns whether a failure counts and is not a known one.
    fn has_new_failure(&self) -> bool {
        self.outcomes.iter().any(|outcome| {
            let counts = match outcome.word() {
                "failed" => true,
                "warned" | "flaky" => self.strict,
                _ => false,
            };
            counts && !self.is_known(outcome)
        })
    }

    /// Returns what the exit code means for this run, in a few words.
    pub fn meaning(&self) -> &'static str {
        let summary = self.summary();
        match self.exit_code() {
            0 if !self.baseline.known.is_empty() => {
                "every MUST that was examined holds, apart from the known failures"
            }
            0 => "every MUST that was examined holds",
            1 if !self.has_new_failure() => "a line of the baseline is stale",
            1 if summary.failed > 0 => "a MUST does not hold",
            1 => "a SHOULD does not hold or a case is flaky, and the run is strict",
            _ if self.broken.is_none() && summary.harness == 0 => "nothing was examined",
            _ => "the run itself failed",
        }
    }

    /// Returns the result of the run in one sentence.
    pub fn headline(&self) -> String {
        let summary = self.summary();
        if let Some(why) = self.why_invalid() {
            return why.lines().next().unwrap_or_default().to_string();
        }
        match (summary.harness, summary.failed) {
            (0, 0) => format!(
                "Every MUST that was examined holds: {} of {} passed",
                summary.passed,
                cases(summary.examined())
            ),
            (0, failed) => {
                let known = self.baseline.known.len();
                let mut text = counted(failed, "MUST does not hold", "MUSTs do not hold");
                if known > 0 {
                    text.push_str(&format!(
                        " ({})",
                        counted(known, "known failure", "known failures")
                    ));
                }
                text
            }
            (harness, _) => format!("The harness itself failed in {}", cases(harness)),
        }
    }

    /// Writes `index.html`, `junit.xml`, `report.md`, `report.json` and, for a verdict on all
    /// cases, `badge.svg` and `badge.json` into `folder`, which is made if it does not exist, and
    /// returns the path of the page. None of the files holds a credential, because reports are
    /// uploaded and forwarded. A long tape is cut to its beginning,
    /// its end and its failures, and counts what is left out. A case that passed is recorded more
    /// briefly: with the beginnings of texts, and without its set-up and without what the stubs
    /// planned to send.
    ///
    /// # Errors
    /// A sentence with the path, the reason and the remedy.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, String> {
        std::fs::create_dir_all(folder).map_err(|error| {
            format!(
                "cannot make the report folder {}: {error}; give another with --report",
                folder.display()
            )
        })?;
        let unwritable =
            |error: serde_json::Error| format!("cannot write the record as JSON: {error}");
        let mut record = secret::redacted(self).map_err(unwritable)?;
        crowd::bound(&mut record.outcomes);
        record.number_gateways();
        let record = &record;
        let json = serde_json::to_string(&Written {
            record,
            gateways: record.gateways(),
        })
        .map_err(unwritable)?;
        let page = folder.join("index.html");
        let mut files = vec![
            (folder.join("report.json"), json),
            (folder.join("junit.xml"), junit::render(record)?),
            (folder.join("report.md"), markdown::render(record)),
            (page.clone(), html::render(record)?),
        ];
        let badges = ["badge.svg", "badge.json"].map(|name| folder.join(name));
        match badge::render(record) {
            Some((svg, json)) => {
                let [image, endpoint] = badges;
                files.extend([(image, svg), (endpoint, json)]);
            }
            // an old badge would speak for this run; it need not exist
            None => badges
                .iter()
                .for_each(|old| drop(std::fs::remove_file(old))),
        }
        for (path, text) in files {
            std::fs::write(&path, text).map_err(|error| {
                format!(
                    "cannot write {}: {error}; give another folder with --report",
                    path.display()
                )
            })?;
        }
        Ok(page)
    }

    /// Reads a record that [`RunRecord::write`] has written.
    ///
    /// # Errors
    /// A sentence with the path, the reason and the remedy.
    pub fn read(path: &Path) -> Result<Self, String> {
        let syntax = |error: &serde_json::Error| problem::json(error, problem::RECORD);
        let not_a_report = |why: &str| {
            format!(
                "{} is not a report of gauntlet: {why}; give the report.json that `gauntlet run` has \
                 written",
                path.display()
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!(
                "cannot read {}: {error}; give the report.json that `gauntlet run` has written",
                path.display()
            )
        })?;
        let form: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| not_a_report(&syntax(&error)))?;
        match form.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(schema) => {
                return Err(format!(
                    "{} has schema {schema}, and this version of gauntlet reads schema {SCHEMA}; run the \
                     cases again",
                    path.display()
                ));
            }
            None => {
                return Err(not_a_report("it has no schema"));
            }
        }
        // the text again, since a value has no lines
        let mut record: Self =
            serde_json::from_str(&text).map_err(|error| not_a_report(&syntax(&error)))?;
        let Gateways { gateways } =
            serde_json::from_str(&text).map_err(|error| not_a_report(&syntax(&error)))?;
        for setup in record.setups_mut() {
            if let Some(rendered) = gateways.get(setup.gateway) {
                setup.rendered = Arc::clone(rendered);
            }
        }
        Ok(record)
    }

    fn setups_mut(&mut self) -> impl Iterator<Item = &mut Setup> {
        self.outcomes
            .iter_mut()
            .filter_map(|outcome| outcome.setup.as_mut())
    }

    /// Gives each outcome the index of what its gateway was started with.
    fn number_gateways(&mut self) {
        let mut known: Vec<Arc<Rendered>> = Vec::new();
        for setup in self.setups_mut() {
            let index = known.iter().position(|known| *known == setup.rendered);
            setup.gateway = index.unwrap_or_else(|| {
                known.push(Arc::clone(&setup.rendered));
                known.len() - 1
            });
        }
    }

    /// What the gateways were started with, by the indices of the outcomes.
    fn gateways(&self) -> Vec<&Rendered> {
        let setups = || {
            self.outcomes
                .iter()
                .filter_map(|outcome| outcome.setup.as_ref())
        };
        (0..)
            .map_while(|index| setups().find(|setup| setup.gateway == index))
            .map(|setup| setup.rendered.as_ref())
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::case::Profile;
    use crate::tape::{Close, Event, Side, Tape};
    use crate::verdict::FailureMode;

    pub(crate) fn outcome(id: &str, level: Level, verdict: Verdict) -> Outcome {
        let tape = Tape::new();
        let client = || Side::Client("a".into());
        let p1 = || Side::Provider("p1".into());
        tape.record(
            client(),
            Event::ClientSent {
                method: "POST".into(),
                path: "/v1/chat/completions".into(),
                headers: Vec::new(),
                body: "{}".into(),
                dribbled: None,
            },
        );
        tape.record(p1(), Event::Accepted { connection: 1 });
        tape.record(
            p1(),
            Event::RequestRead {
                connection: 1,
                request: 1,
                method: "POST".into(),
                path: "/v1/chat/completions".into(),
                headers: Vec::new(),
                body: "{\"a\":\"<script>\"}".into(),
            },
        );
        tape.record(
            p1(),
            Event::Held {
                request: 1,
                gate: "held".into(),
            },
        );
        tape.record(
            p1(),
            Event::PeerClosed {
                connection: 1,
                request: Some(1),
                how: Close::Fin,
            },
        );
        tape.record(
            client(),
            Event::ClientStatus {
                status: 504,
                headers: Vec::new(),
            },
        );
        tape.record(
            client(),
            Event::ClientAnswered {
                status: 504,
                body: "{\"error\":\"<timeout>\"}".into(),
            },
        );
        tape.record(Side::Gate("held".into()), Event::Opened);
        Outcome {
            id: id.into(),
            level,
            profiles: vec![Profile::Llm],
            requirement: "a provider that accepts and never answers: 504 while the stub still holds the request".into(),
            why: "callers wait forever".into(),
            shown: "the provider holds".into(),
            remedy: "set a first-token timeout".into(),
            verdict,
            duration_ms: 12,
            attempts: 1,
            tape: tape.entries(),
            log_tail: "INFO <started>".into(),
            faults: Vec::new(),
            states: Vec::new(),
            instances: Vec::new(),
            setup: None,
        }
    }

    pub(crate) fn record(outcomes: Vec<Outcome>) -> RunRecord {
        RunRecord {
            schema: SCHEMA,
            gauntlet: "0.1.0".into(),
            started_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            duration_ms: 1234,
            target: TargetRecord {
                name: "bundled".into(),
                version: Some("gauntlet 0.1.0".into()),
            },
            database: DatabaseRecord {
                kind: "SQLite".into(),
                why: "no Docker here".into(),
            },
            command: "gauntlet run --target bundled".into(),
            selection: String::new(),
            strict: false,
            broken: None,
            baseline: Baseline::default(),
            levels: None,
            outcomes,
        }
    }

    pub(crate) fn violated() -> Verdict {
        Verdict::Failed {
            failure: Failure::Violated {
                fact: "answer.status".into(),
                expected: "504 & <timeout>".into(),
                observed: "200".into(),
                mode: FailureMode::Silent,
            },
        }
    }

    #[test]
    fn the_exit_code_follows_the_levels() {
        let must = |verdict| outcome("A-01", Level::Must, verdict);
        let should = |verdict| outcome("A-02", Level::Should, verdict);
        assert_eq!(record(vec![must(Verdict::Passed)]).exit_code(), 0);
        assert_eq!(record(vec![must(violated())]).exit_code(), 1);
        assert_eq!(record(vec![should(violated())]).exit_code(), 0);
        let mut strict = record(vec![should(violated())]);
        strict.strict = true;
        assert_eq!(strict.exit_code(), 1);
        assert_eq!(
            record(vec![must(Verdict::Failed {
                failure: Failure::Harness { what: "x".into() }
            })])
            .exit_code(),
            2
        );
        let mut broken = record(vec![must(violated())]);
        broken.broken = Some("interrupted".into());
        assert_eq!(broken.exit_code(), 2);
    }

    #[test]
    fn a_run_that_examined_nothing_failed_and_says_why() {
        let unsupported = |id: &str, why: &str| {
            let capability = why.to_string();
            outcome(id, Level::Must, Verdict::NotSupported { capability })
        };
        let missing = Verdict::NotRun {
            why: "no database".into(),
        };
        let run = record(vec![
            outcome("A-01", Level::Must, missing.clone()),
            unsupported("A-02", "the target does not declare `chat`"),
            unsupported("A-03", "the target does not declare `chat`"),
        ]);
        assert_eq!(
            (run.exit_code(), run.meaning()),
            (2, "nothing was examined")
        );
        assert_eq!(
            run.headline(),
            "Nothing was examined: of 3 cases, 2 are not supported and 1 is not run. The most \
             frequent reason: the target does not declare `chat`; select other cases, or correct \
             the capabilities and settings in the target file (`gauntlet explain ID` lists what a \
             case needs)"
        );
        let run = record(vec![outcome("A-01", Level::Must, missing)]);
        assert_eq!(run.exit_code(), 2);
        assert!(
            run.headline()
                .contains("no database; provide what is missing")
        );
        let run = record(Vec::new());
        assert_eq!(run.exit_code(), 2);
        assert!(run.headline().contains("no case was selected"));
    }

    #[test]
    fn what_was_not_exercised_is_neither_passed_nor_failed() {
        let why = "status 503 at p1 was never met".to_string();
        let mut idle = outcome("A-02", Level::Must, Verdict::NotExercised { why });
        idle.states = vec![State::Held];
        let fault = |met| crate::exercise::PlantedFault {
            at: "p1".into(),
            fault: "status 503".into(),
            planted: 1,
            met,
        };
        idle.faults = vec![fault(0), fault(3)];
        let passed = outcome("A-01", Level::Must, Verdict::Passed);
        let mut run = record(vec![passed, idle.clone()]);
        run.strict = true;
        let summary = run.summary();
        assert_eq!((summary.not_exercised, summary.examined()), (1, 1));
        assert_eq!(run.exit_code(), 0);
        assert_eq!(
            run.headline(),
            "Every MUST that was examined holds: 1 of 1 case passed"
        );
        assert_eq!(run.faults(), [("status 503".to_string(), 2, 3)]);
        let states = run.states();
        assert!(states.contains(&(State::Held, 1)) && states.contains(&(State::BreakerOpen, 0)));
        let page = markdown::render(&run);
        for line in [
            "| A-02 | ",
            "| answer held | 1 | ",
            "| breaker open | 0 | ",
            "| status 503 | 2 | 3 |",
        ] {
            assert!(page.contains(line), "{line:?} in {page}");
        }
        let run = record(vec![idle]);
        assert_eq!(
            (run.exit_code(), run.meaning()),
            (2, "nothing was examined")
        );
        let headline = run.headline();
        assert!(
            headline.contains("0 are not run, and 1 is not exercised"),
            "{headline}"
        );
    }

    #[test]
    fn a_known_failure_counts_nothing_and_a_stale_line_fails_the_run() {
        let mut run = record(vec![outcome("A-01", Level::Must, violated())]);
        run.baseline.known.push("A-01".into());
        assert_eq!(
            (run.exit_code(), run.meaning()),
            (
                0,
                "every MUST that was examined holds, apart from the known failures"
            )
        );
        run.outcomes.push(outcome("A-02", Level::Must, violated()));
        assert_eq!(
            (run.exit_code(), run.meaning()),
            (1, "a MUST does not hold")
        );
        run.outcomes.pop();
        run.baseline.stale.push("A-03 passes".into());
        assert_eq!(
            (run.exit_code(), run.meaning()),
            (1, "a line of the baseline is stale")
        );
    }

    #[test]
    fn a_record_survives_its_json() {
        let folder = tempfile::tempdir().unwrap();
        let failure = || Failure::NotRun { why: "w".into() };
        let verdicts = [
            Verdict::Passed,
            violated(),
            Verdict::Failed { failure: failure() },
            Verdict::Flaky { failure: failure() },
            Verdict::NotSupported {
                capability: "c".into(),
            },
            Verdict::NotRun {
                why: "no database".into(),
            },
            Verdict::NotExercised {
                why: "status 503 at p1 was never met".into(),
            },
        ];
        let before = record(
            verdicts
                .into_iter()
                .map(|verdict| outcome("A-01", Level::Must, verdict))
                .collect(),
        );
        before.write(folder.path()).unwrap();
        let after = RunRecord::read(&folder.path().join("report.json")).unwrap();
        assert_eq!(after.outcomes, before.outcomes);
    }

    #[test]
    fn a_report_of_another_form_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, "{\"schema\": 99}").unwrap();
        assert!(RunRecord::read(&path).unwrap_err().contains("schema 99"));
        std::fs::write(&path, "[]").unwrap();
        assert!(RunRecord::read(&path).unwrap_err().contains("no schema"));
    }
}
