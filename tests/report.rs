//! SNAP-01: the report of a fixed run, as people read it in a job summary or a pull request.

#![allow(clippy::unwrap_used, missing_docs)]

use gauntlet_harness::case::{Failure, FailureMode, Level, Profile, Verdict};
use gauntlet_harness::report::{Baseline, DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::Outcome;

fn outcome(id: &str, level: Level, verdict: Verdict) -> Outcome {
    Outcome {
        id: id.into(),
        level,
        profiles: vec![Profile::Llm],
        requirement: format!("what {id} requires"),
        why: "why it matters".into(),
        shown: "how it is shown".into(),
        remedy: "what to do".into(),
        verdict,
        duration_ms: 1_234,
        attempts: 1,
        tape: Vec::new(),
        log_tail: String::new(),
        faults: Vec::new(),
        states: Vec::new(),
    }
}

fn violated(mode: FailureMode) -> Failure {
    Failure::Violated {
        fact: "answer.status".into(),
        expected: "status 504".into(),
        observed: "status 200 <a | b>\nand more".into(),
        mode,
    }
}

/// One case of every verdict.
fn run() -> RunRecord {
    let failed = |failure| Verdict::Failed { failure };
    RunRecord {
        schema: SCHEMA,
        gauntlet: "0.0.0".into(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 65_432,
        target: TargetRecord {
            name: "some-gateway".into(),
            version: Some("1.2.3".into()),
        },
        database: DatabaseRecord {
            kind: "SQLite".into(),
            why: "because there is no Docker".into(),
        },
        command: "gauntlet run --target some-gateway".into(),
        selection: "TIME WIRE-04".into(),
        strict: false,
        broken: None,
        baseline: Baseline::default(),
        levels: None,
        outcomes: vec![
            outcome("WIRE-01", Level::Must, Verdict::Passed),
            outcome(
                "WIRE-04",
                Level::Should,
                failed(violated(FailureMode::Silent)),
            ),
            outcome(
                "TIME-01",
                Level::Must,
                failed(Failure::Target {
                    what: "it exited with code 3".into(),
                }),
            ),
            outcome("TIME-02", Level::Must, failed(violated(FailureMode::Hang))),
            outcome(
                "TIME-03",
                Level::Must,
                failed(Failure::Harness {
                    what: "no port".into(),
                }),
            ),
            outcome(
                "PARA-01",
                Level::Must,
                Verdict::Flaky {
                    failure: violated(FailureMode::Visible),
                },
            ),
            outcome(
                "BRKR-01",
                Level::Must,
                Verdict::NotSupported {
                    capability: "the target does not declare `breaker`: it has none".into(),
                },
            ),
            outcome(
                "DATA-01",
                Level::Must,
                Verdict::NotRun {
                    why: "the case needs Postgres, and this run has SQLite".into(),
                },
            ),
            outcome(
                "DATA-02",
                Level::Must,
                Verdict::NotExercised {
                    why: "a cut at the database was never met".into(),
                },
            ),
        ],
    }
}

#[test]
fn snap_01_the_report_of_a_run_in_markdown() {
    let folder = tempfile::tempdir().unwrap();
    run().write(folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("SNAP-01__report", text));
}
