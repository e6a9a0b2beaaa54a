//! The record of a run, and its four readings: one HTML page, JUnit XML, Markdown, JSON.
//!
//! The JSON is the record itself; the others are made from it, so that `gauntlet report` can make them again.

mod html;
mod junit;
mod markdown;
mod secret;
mod timeline;
mod words;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::runner::Outcome;
use crate::verdict::{Failure, Level, Verdict};

pub use timeline::timeline;

/// The version of the record's form; raised when a reader of the old one would be misled.
pub const SCHEMA: u32 = 1;

/// Everything that is known of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The version of the examiner.
    pub gauntlet: String,
    /// When it began.
    pub started_at: jiff::Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The gateway that was examined.
    pub target: TargetRecord,
    /// The database that the cases had.
    pub database: DatabaseRecord,
    /// The command that examines the same target again; a case's id appended replays that case.
    pub command: String,
    /// What was chosen of the cases, as arguments of that command; empty for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selection: String,
    /// Whether a failing SHOULD fails the run.
    pub strict: bool,
    /// Why the run itself did not come to its end, if so.
    pub broken: Option<String>,
    /// The cases, in the order of the catalogue.
    pub outcomes: Vec<Outcome>,
}

/// The gateway that was examined.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetRecord {
    /// `bundled`, `litellm`, …
    pub name: String,
    /// Its version, if it is known.
    pub version: Option<String>,
}

/// The database that the cases had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseRecord {
    /// `PostgreSQL 17.5 (docker)`, `SQLite`, `none`.
    pub kind: String,
    /// Why this one, and what is therefore not run.
    pub why: String,
}

/// How many cases came to which verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All of them.
    pub total: usize,
    /// The requirement holds.
    pub passed: usize,
    /// A MUST that does not hold.
    pub failed: usize,
    /// A SHOULD that does not hold.
    pub warned: usize,
    /// Failed, then passed.
    pub flaky: usize,
    /// The target does not declare the capability.
    pub not_supported: usize,
    /// Something here was missing.
    pub not_run: usize,
    /// The harness failed; nothing is known.
    pub harness: usize,
}

impl Outcome {
    /// One word for the verdict: `passed`, `failed`, `warned`, `flaky`, `not-supported`, `not-run`, `harness`.
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
        }
    }

    /// Why the case did not pass, in one sentence; empty for one that did.
    pub fn reason(&self) -> String {
        match &self.verdict {
            Verdict::Passed => String::new(),
            Verdict::Failed { failure } => failure.to_string(),
            Verdict::Flaky { failure } => format!("passed on a repeat; at first: {failure}"),
            Verdict::NotSupported { capability } => capability.clone(),
            Verdict::NotRun { why } => why.clone(),
        }
    }
}

/// A number of cases, for people.
pub fn cases(n: usize) -> String {
    format!("{n} case{}", if n == 1 { "" } else { "s" })
}

impl RunRecord {
    /// The command that makes the same run again.
    pub fn again(&self) -> String {
        if self.selection.is_empty() {
            self.command.clone()
        } else {
            format!("{} {}", self.command, self.selection)
        }
    }

    /// How many cases came to which verdict.
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
                _ => &mut summary.harness,
            } += 1;
        }
        summary
    }

    /// 0: every MUST that was examined holds. 1: a MUST fails (with `strict`: a SHOULD, or a flaky case). 2: the run itself failed.
    pub fn exit_code(&self) -> u8 {
        let summary = self.summary();
        if self.broken.is_some() || summary.harness > 0 {
            2
        } else if summary.failed > 0 || (self.strict && summary.warned + summary.flaky > 0) {
            1
        } else {
            0
        }
    }

    /// The run in one sentence.
    pub fn headline(&self) -> String {
        let summary = self.summary();
        let examined = summary.passed + summary.failed + summary.warned + summary.flaky;
        if let Some(broken) = &self.broken {
            return format!(
                "The run did not come to its end: {}",
                broken.lines().next().unwrap_or_default()
            );
        }
        match (summary.harness, summary.failed) {
            (0, 0) if examined == 0 => "Nothing was examined".into(),
            (0, 0) => format!(
                "Every MUST that was examined holds: {} of {examined} cases passed",
                summary.passed
            ),
            (0, 1) => "1 MUST does not hold".into(),
            (0, failed) => format!("{failed} MUSTs do not hold"),
            (harness, _) => format!("The harness itself failed in {}", cases(harness)),
        }
    }

    /// Writes `index.html`, `junit.xml`, `report.md` and `report.json` into `folder`, which is made if need be; returns the page's path.
    /// None of them holds a credential: reports are uploaded by CI and sent around.
    ///
    /// # Errors
    /// A sentence that names the path and the reason.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, String> {
        std::fs::create_dir_all(folder).map_err(|error| {
            format!(
                "cannot make the report folder {}: {error}; give another with --report",
                folder.display()
            )
        })?;
        let unwritable =
            |error: serde_json::Error| format!("cannot write the record as JSON: {error}");
        let record = &secret::redacted(self).map_err(unwritable)?;
        let json = serde_json::to_string_pretty(record).map_err(unwritable)?;
        let page = folder.join("index.html");
        for (path, text) in [
            (folder.join("report.json"), json),
            (folder.join("junit.xml"), junit::render(record)?),
            (folder.join("report.md"), markdown::render(record)),
            (page.clone(), html::render(record)?),
        ] {
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
    /// A sentence that names the path and the reason.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!(
                "cannot read {}: {error}; `gauntlet run` writes report/report.json",
                path.display()
            )
        })?;
        let form: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| format!("{} is not a report of gauntlet: {error}", path.display()))?;
        match form.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(schema) => {
                return Err(format!(
                    "{} has schema {schema}; this version reads {SCHEMA}: run the cases again",
                    path.display()
                ));
            }
            None => {
                return Err(format!(
                    "{} is not a report of gauntlet: it has no schema",
                    path.display()
                ));
            }
        }
        serde_json::from_value(form)
            .map_err(|error| format!("{} is not a report of gauntlet: {error}", path.display()))
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
        tape.record(client(), Event::ClientStatus { status: 504 });
        tape.record(client(), Event::ClientAnswered { status: 504 });
        tape.record(Side::Gate("held".into()), Event::Opened);
        Outcome {
            id: id.into(),
            level,
            profiles: vec![Profile::Llm],
            requirement: "a provider that accepts and never answers: 504 while the stub still holds the request".into(),
            why: "callers wait for ever".into(),
            shown: "the provider holds".into(),
            remedy: "set a first-byte time-out".into(),
            verdict,
            duration_ms: 12,
            attempts: 1,
            tape: tape.entries(),
            log_tail: "INFO <started>".into(),
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
