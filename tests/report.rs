//! SNAP-01: the report of a fixed run, as people read it in a job summary or a pull request; and
//! the published form of report.json.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use gauntlet_harness::case::{Failure, FailureMode, Level, Profile, Verdict};
use gauntlet_harness::gate::{hang_guard, with_hang_guard};
use gauntlet_harness::plan::Listen;
use gauntlet_harness::report::{Baseline, DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::{Outcome, examine};
use gauntlet_harness::subject::Target;
use gauntlet_harness::tape::{Action, Close, Data, Dribble, Entry, Event, Side, Tape};
use gauntlet_suites::{cases, defect::Defect, reference::Reference};
use serde_json::Value;

/// The hang guard of a defect; some of them are proven by a hang.
const GUARD: Duration = Duration::from_secs(6);

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
        instances: Vec::new(),
        setup: None,
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

/// The published form of report.json.
fn schema() -> Value {
    serde_json::from_str(include_str!("../docs/report.schema.json")).unwrap()
}

/// Everything in which a value deviates from a schema, and every property that the schema does not
/// describe: whoever adds a property describes it in docs/report.schema.json.
fn deviations(schema: &Value, root: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return deviations(root.pointer(&name[1..]).unwrap(), root, value, at);
    }
    if let Some(alternatives) = schema["oneOf"].as_array() {
        let found: Vec<Vec<String>> = alternatives
            .iter()
            .map(|one| deviations(one, root, value, at))
            .collect();
        return match found.iter().filter(|found| found.is_empty()).count() {
            1 => Vec::new(),
            0 => found.into_iter().min_by_key(Vec::len).unwrap_or_default(),
            n => vec![format!("{at}: {n} alternatives fit {value}")],
        };
    }
    if schema.get("const").is_some_and(|known| known != value) {
        return vec![format!("{at}: {value} is not {}", schema["const"])];
    }
    let allowed = schema["enum"].as_array();
    if allowed.is_some_and(|allowed| !allowed.contains(value)) {
        return vec![format!("{at}: {value} is not in {}", schema["enum"])];
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    if !kinds.is_empty() && !kinds.contains(&kind.into()) {
        return vec![format!("{at}: {kind} is not {}", schema["type"])];
    }
    let mut found = Vec::new();
    if let (Some(items), Some(elements)) = (schema.get("items"), value.as_array()) {
        for (n, element) in elements.iter().enumerate() {
            found.extend(deviations(items, root, element, &format!("{at}/{n}")));
        }
    }
    if let (Some(described), Some(properties)) =
        (schema["properties"].as_object(), value.as_object())
    {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !properties.contains_key(name.as_str().unwrap()) {
                found.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, property) in properties {
            let at = format!("{at}/{name}");
            match described.get(name) {
                Some(schema) => found.extend(deviations(schema, root, property, &at)),
                None => found.push(format!("{at} is not described")),
            }
        }
    }
    found
}

/// Writes the record, and compares report.json with the schema.
fn written(record: &RunRecord) -> Value {
    let folder = tempfile::tempdir().unwrap();
    record.write(folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("report.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let schema = schema();
    let found = deviations(&schema, &schema, &json, "");
    assert!(found.is_empty(), "{}", found.join("\n"));
    json
}

#[test]
fn each_verdict_event_and_action_is_in_the_published_form() {
    let mut record = run();
    let tape = Tape::new();
    every_event().into_iter().for_each(|(side, event)| {
        tape.record(side, event);
    });
    record.outcomes[3].tape = tape.entries();
    record.baseline.known = vec!["TIME-02".into()];
    record.levels = Some(gauntlet_suites::requirements::levels(&record.outcomes).unwrap());
    let json = written(&record);
    let described =
        |name: &str| -> usize { schema()["$defs"][name]["oneOf"].as_array().unwrap().len() };
    let events: BTreeSet<&str> = json["outcomes"][3]["tape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["event"].as_str().unwrap())
        .collect();
    assert_eq!(events.len(), described("entry"), "{events:?}");
    let actions = json["outcomes"][3]["tape"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|entry| entry["actions"].as_array())
        .unwrap();
    assert_eq!(actions.len(), described("action"));
    let again: Vec<Entry> = serde_json::from_value(json["outcomes"][3]["tape"].clone()).unwrap();
    assert_eq!(again, record.outcomes[3].tape);
}

#[tokio::test]
async fn reports_of_cases_that_were_examined_have_the_published_form() {
    let mut record = run();
    let ids = ["WIRE-02", "TIME-03", "FALL-06", "STRM-01", "CANC-02"];
    let examined = ids.into_iter().flat_map(|id| {
        let broken = Defect::of(id).first().copied();
        [(None, hang_guard()), (broken, GUARD)].map(|(defect, guard)| async move {
            let case = cases::all().into_iter().find(|case| case.id == id).unwrap();
            let target: Arc<dyn Target> = Arc::new(Reference::new(defect));
            // on the heap: the stack of a test does not hold all of them
            with_hang_guard(guard, Box::pin(examine(&target, &case, None))).await
        })
    });
    record.outcomes = join_all(examined).await;
    let json = written(&record);
    let outcomes = json["outcomes"].as_array().unwrap();
    for outcome in outcomes {
        let text = outcome.to_string();
        assert!(!text.contains("sk-canary"), "{text}");
        let is_full = outcome["verdict"] != "passed";
        assert_eq!(text.contains("\"planned\""), is_full, "{text}");
        assert_eq!(outcome.get("setup").is_some(), is_full, "{text}");
    }
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome["verdict"] == "failed");
    assert_eq!(failed.count(), 5);
}

fn every_event() -> Vec<(Side, Event)> {
    let client = || Side::Client("a".into());
    let provider = || Side::Provider("p1".into());
    let headers = || vec![("a".to_string(), "b".to_string())];
    let data = || Data::new("text");
    let actions = vec![
        Action::Send {
            bytes: Data::new(&b"\xff"[..]),
            event: Some(1),
        },
        Action::Drip {
            pieces: vec![Data::keeping("text", 2)],
            every_ms: 1,
        },
        Action::Repeat {
            before: data(),
            after: Some(data()),
            from: 2,
            every_ms: 1,
            chunked: true,
        },
        Action::Hold { gate: "g".into() },
        Action::Meet {
            rendezvous: "r".into(),
            count: 2,
        },
        Action::Acknowledged {
            interlock: "i".into(),
            event: 1,
        },
        Action::Pause { ms: 1 },
        Action::Drain,
        Action::Stall,
        Action::Cut,
        Action::Reset,
        Action::Close,
    ];
    let text = || "x".to_string();
    let (connection, request) = (1, 1);
    vec![
        (
            client(),
            Event::ClientSent {
                method: text(),
                path: text(),
                headers: headers(),
                body: data(),
                dribbled: Some(Dribble {
                    piece: 1,
                    every_ms: 2,
                }),
            },
        ),
        (
            client(),
            Event::ClientStatus {
                status: 200,
                headers: headers(),
            },
        ),
        (
            client(),
            Event::ClientChunk {
                n: 1,
                text: text(),
                name: Some(text()),
                data: data(),
            },
        ),
        (
            client(),
            Event::ClientAnswered {
                status: 200,
                body: data(),
            },
        ),
        (
            client(),
            Event::ClientFailed {
                error: text(),
                body: data(),
            },
        ),
        (client(), Event::ClientLeft),
        (
            provider(),
            Event::Listening {
                how: Listen::NeverAccept,
            },
        ),
        (provider(), Event::Accepted { connection }),
        (
            provider(),
            Event::RequestRead {
                connection,
                request,
                method: text(),
                path: text(),
                headers: headers(),
                body: text(),
            },
        ),
        (provider(), Event::Planned { request, actions }),
        (
            provider(),
            Event::Held {
                request,
                gate: text(),
            },
        ),
        (
            provider(),
            Event::HeadSent {
                request,
                status: 200,
            },
        ),
        (provider(), Event::EventSent { request, n: 1 }),
        (
            provider(),
            Event::Fault {
                request: None,
                fault: text(),
            },
        ),
        (provider(), Event::AnswerSent { request }),
        (
            provider(),
            Event::PeerClosed {
                connection,
                request: Some(request),
                how: Close::Reset,
            },
        ),
        (
            provider(),
            Event::Unmatched {
                request,
                reason: text(),
            },
        ),
        (Side::Gate("g".into()), Event::Opened),
        (Side::Gate("r".into()), Event::Met { count: 2 }),
        (Side::Database, Event::Database { what: text() }),
        (Side::Target, Event::Target { what: text() }),
        (client(), Event::Note { text: text() }),
    ]
}
