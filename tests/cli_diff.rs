//! `gauntlet diff` as people use it: which verdicts changed from one report to another.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use gauntlet_harness::case::{Failure, FailureMode, Level, Profile, Verdict};
use gauntlet_harness::report::{Baseline, DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::Outcome;

fn outcome(id: &str, level: Level, verdict: Verdict) -> Outcome {
    Outcome {
        id: id.into(),
        level,
        profiles: vec![Profile::Llm],
        requirement: "what is required".into(),
        why: "why it matters".into(),
        shown: "how it is shown".into(),
        remedy: "what to do".into(),
        verdict,
        duration_ms: 1,
        attempts: 1,
        tape: Vec::new(),
        log_tail: String::new(),
        faults: Vec::new(),
        states: Vec::new(),
        instances: Vec::new(),
        setup: None,
    }
}

fn failed(observed: &str) -> Verdict {
    Verdict::Failed {
        failure: Failure::Violated {
            fact: "answer.status".into(),
            expected: "status 504".into(),
            observed: observed.into(),
            mode: FailureMode::Visible,
        },
    }
}

fn must(id: &str, verdict: Verdict) -> Outcome {
    outcome(id, Level::Must, verdict)
}

fn report(folder: &Path, name: &str, outcomes: Vec<Outcome>) -> RunRecord {
    let record = RunRecord {
        schema: SCHEMA,
        gauntlet: "0.0.0".into(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 1,
        target: TargetRecord {
            name: "some-gateway".into(),
            version: None,
        },
        database: DatabaseRecord {
            kind: "none".into(),
            why: "because no case of this run needs one".into(),
        },
        command: "gauntlet run --target some-gateway".into(),
        selection: String::new(),
        strict: false,
        broken: None,
        baseline: Baseline::default(),
        levels: None,
        outcomes,
    };
    record.write(&folder.join(name)).unwrap();
    record
}

fn gauntlet(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn two_runs_of_the_same_gateway_differ_in_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let failures = |port, ms| {
        vec![
            must("WIRE-01", Verdict::Passed),
            must(
                "TIME-02",
                failed(&format!("127.0.0.1:{port} answered after {ms} ms")),
            ),
        ]
    };
    report(folder.path(), "a", failures(40_001, 20_003));
    report(folder.path(), "b", failures(51_234, 19_998));
    let (code, out, err) = gauntlet(folder.path(), &["diff", "a", "b/report.json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.starts_with("0 cases changed (0 new failures, 0 resolved), 2 unchanged"),
        "{out}"
    );
}

#[test]
fn each_change_has_a_line_and_a_new_failure_gives_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    report(
        folder.path(),
        "a",
        vec![
            must("WIRE-01", Verdict::Passed),
            must("WIRE-02", failed("status 200")),
            must("WIRE-03", failed("status 200")),
            must("WIRE-05", Verdict::Passed),
        ],
    );
    report(
        folder.path(),
        "b",
        vec![
            must("WIRE-01", failed("status 200")),
            must("WIRE-02", Verdict::Passed),
            must("WIRE-03", failed("status 502")),
            must("WIRE-06", Verdict::Passed),
        ],
    );
    let (code, out, err) = gauntlet(folder.path(), &["diff", "a", "b"]);
    assert_eq!(code, Some(1), "{out}{err}");
    for line in [
        "WIRE-01   passed → failed  expected status 504; observed status 200\n",
        "WIRE-02   failed → passed  before: expected status 504; observed status 200\n",
        "WIRE-03   failed → failed  expected status 504; observed status 502; before: expected",
        "WIRE-05   passed → absent\n",
        "WIRE-06   absent → passed\n",
        "5 cases changed (1 new failure, 1 resolved), 0 unchanged",
    ] {
        assert!(out.contains(line), "{line:?} is missing in:\n{out}");
    }
    let (code, out, _) = gauntlet(folder.path(), &["diff", "--json", "a", "b"]);
    assert_eq!(code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["new_failures"], 1);
    assert_eq!(json["changes"][0]["id"], "WIRE-01");
    assert_eq!(json["changes"][0]["old"], "passed");
    assert_eq!(json["changes"][0]["new"], "failed");
    assert_eq!(json["changes"][0]["is_new_failure"], true);
    // a failure that has gone or that has another reason is no new one
    let (code, ..) = gauntlet(folder.path(), &["diff", "b", "b"]);
    assert_eq!(code, Some(0));
}

#[test]
fn a_should_that_fails_newly_counts_only_with_strict() {
    let folder = tempfile::tempdir().unwrap();
    let should = |verdict| vec![outcome("WIRE-04", Level::Should, verdict)];
    report(folder.path(), "a", should(Verdict::Passed));
    report(folder.path(), "b", should(failed("status 200")));
    assert_eq!(gauntlet(folder.path(), &["diff", "a", "b"]).0, Some(0));
    let (code, out, _) = gauntlet(folder.path(), &["diff", "--strict", "a", "b"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("WIRE-04   passed → warned"), "{out}");
}

#[test]
fn bad_input_and_an_unfinished_run_give_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = report(folder.path(), "a", vec![must("WIRE-01", Verdict::Passed)]);
    std::fs::write(folder.path().join("text.json"), "no JSON").unwrap();
    for (other, words) in [("missing", "missing"), ("text.json", "text.json")] {
        let (code, _, err) = gauntlet(folder.path(), &["diff", "a", other]);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(words) && err.contains("report.json"), "{err}");
    }
    record.broken = Some("the gateway died".into());
    record.write(&folder.path().join("b")).unwrap();
    let (code, _, err) = gauntlet(folder.path(), &["diff", "a", "b"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("the gateway died"), "{err}");
}
