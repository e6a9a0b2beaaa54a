//! What the reader of a degraded answer gets, for every step and every cause.
//!
//! A snapshot shows what concerns its own step: the status, the degradations and the report of that
//! step, and each field in which the document differs from that of a query without a failure. So a
//! new step changes no snapshot of another step. The steps derive from the rows. One snapshot,
//! `SNAP-01__query_document`, shows a whole document.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod scripted;

use std::time::Duration;

use gauntlet::config::StepConfig;
use gauntlet::orchestrator::QueryDocument;
use gauntlet::orchestrator::cause::StepCause;
use gauntlet::orchestrator::outcome::{Status, StepOutcome};
use gauntlet::orchestrator::step::Step;
use gauntlet::store::StoreError;
use rstest::rstest;
use scripted::{Behaviour, FakeRetriever, Pace, Scenario, StoreBehaviour, agents, step};
use serde_json::{Map, Value, json};

/// The fields that differ between any two queries, or that list every step.
const NOT_COMPARED: [&str; 8] = [
    "id",
    "created_at",
    "status",
    "confidence",
    "degraded",
    "steps",
    "usage",
    "further",
];

fn snapshot(name: &str, value: &Value) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.add_redaction(".id", "[id]");
    settings.add_redaction(".created_at", "[time]");
    settings.bind(|| insta::assert_json_snapshot!(name, value));
}

/// Returns what a query without a failure would have besides, and what concerns `steps`.
async fn view(scenario: Scenario, steps: &[Step]) -> Value {
    let sound = Scenario {
        retrievers: scenario.retrievers.iter().map(working).collect(),
        ..Scenario::default()
    };
    let sound = sound.start().answer().await;
    let document = scenario.start().answer().await;
    compare(&document, &sound, steps)
}

fn working(retriever: &FakeRetriever) -> FakeRetriever {
    FakeRetriever {
        name: retriever.name,
        passages: retriever.passages.clone(),
        search: (Pace::AtOnce, StoreBehaviour::Works),
    }
}

fn compare(document: &QueryDocument, sound: &QueryDocument, steps: &[Step]) -> Value {
    let of_steps = |step: &Step| steps.contains(step);
    let degraded: Vec<_> = document
        .degraded
        .iter()
        .filter(|lost| of_steps(&lost.step))
        .collect();
    let reports: Vec<_> = document
        .steps
        .iter()
        .filter(|report| of_steps(&report.step))
        .collect();
    let confidence = match document.confidence.total_cmp(&sound.confidence) {
        std::cmp::Ordering::Less if document.confidence == 0.0 => "0",
        std::cmp::Ordering::Less => "lower than without the failure",
        std::cmp::Ordering::Equal => "the same as without the failure",
        std::cmp::Ordering::Greater => panic!("the failure raises the confidence"),
    };
    let (sound, lacking) = (sound.to_json(), document.to_json());
    let fields = lacking.as_object().unwrap().keys();
    let mut changed: Map<String, Value> = fields
        .filter(|field| !NOT_COMPARED.contains(&field.as_str()))
        .filter(|field| sound[*field] != lacking[*field])
        .map(|field| (field.clone(), lacking[field].clone()))
        .collect();
    for step in steps.iter().map(|step| step.name()) {
        if sound["further"][step] != lacking["further"][step] {
            changed.insert(format!("further.{step}"), lacking["further"][step].clone());
        }
    }
    json!({
        "status": document.status,
        "confidence": confidence,
        "degraded": degraded,
        "steps": reports,
        "changed": changed,
    })
}

fn requirement(step: Step) -> &'static str {
    match step.name() {
        "entities" => "DEGR-01",
        "retrieval" => "DEGR-03",
        "fact_check" => "DEGR-04",
        "synthesis" => "DEGR-05",
        "record" => "DEGR-08",
        _ => "DEGR-06",
    }
}

fn behaviour(cause: StepCause) -> Behaviour {
    match cause {
        StepCause::Timeout => Behaviour::NeverReplies,
        StepCause::InvalidOutput => Behaviour::Replies("Certainly! Here is what I found.".into()),
        cause => Behaviour::Fails(cause),
    }
}

fn store_behaviour(cause: StepCause) -> StoreBehaviour {
    match cause {
        StepCause::Timeout => StoreBehaviour::NeverAnswers,
        StepCause::StoreUnavailable => {
            StoreBehaviour::Fails(StoreError::Unavailable("connection refused".into()))
        }
        _ => StoreBehaviour::Fails(StoreError::Failed(
            "relation \"documents\" does not exist".into(),
        )),
    }
}

/// The step needs more time than any deadline leaves, so that it is skipped.
const UNAFFORDABLE: StepConfig = StepConfig {
    cap: Duration::from_secs(7_200),
    minimum: Duration::from_secs(3_600),
};

#[tokio::test(start_paused = true)]
async fn a_query_without_a_failure_is_complete() {
    let document = Scenario::default().start().answer().await;
    snapshot("SNAP-01__query_document", &document.to_json());
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn an_agent_fails(
    #[values(
        StepCause::Error,
        StepCause::Timeout,
        StepCause::InvalidOutput,
        StepCause::BreakerOpen
    )]
    cause: StepCause,
) {
    for step in agents() {
        let view = view(Scenario::default().with(step, behaviour(cause)), &[step]).await;
        let name = format!("{}__{}__{}", requirement(step), step.name(), cause.name());
        snapshot(&name, &view);
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_is_skipped() {
    for step in Step::all() {
        let scenario = Scenario {
            limits: [(step, UNAFFORDABLE)].into(),
            ..Scenario::default()
        };
        let view = view(scenario, &[step]).await;
        snapshot(
            &format!("{}__{}__skipped", requirement(step), step.name()),
            &view,
        );
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn retrieval_fails(
    #[values(StepCause::Error, StepCause::Timeout, StepCause::StoreUnavailable)] cause: StepCause,
) {
    let mut scenario = Scenario::default();
    scenario.search.1 = store_behaviour(cause);
    let view = view(scenario, &[step("retrieval")]).await;
    snapshot(&format!("DEGR-03__retrieval__{}", cause.name()), &view);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn one_retriever_of_two_fails(
    #[values(StepCause::Error, StepCause::Timeout, StepCause::StoreUnavailable)] cause: StepCause,
) {
    let scenario = Scenario {
        retrievers: vec![FakeRetriever {
            name: "scripted",
            passages: Vec::new(),
            search: (Pace::AtOnce, store_behaviour(cause)),
        }],
        ..Scenario::default()
    };
    let view = view(scenario, &[step("retrieval")]).await;
    snapshot(&format!("DEGR-02__retriever__{}", cause.name()), &view);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_record_cannot_be_written(
    #[values(StepCause::Error, StepCause::Timeout, StepCause::StoreUnavailable)] cause: StepCause,
) {
    let mut scenario = Scenario::default();
    scenario.record.1 = store_behaviour(cause);
    let view = view(scenario, &[Step::RECORD]).await;
    snapshot(&format!("DEGR-08__record__{}", cause.name()), &view);
}

#[tokio::test(start_paused = true)]
async fn the_database_is_gone() {
    let mut scenario = Scenario::default();
    scenario.search.1 = store_behaviour(StepCause::StoreUnavailable);
    scenario.record.1 = store_behaviour(StepCause::StoreUnavailable);
    let view = view(scenario, &[step("retrieval"), Step::RECORD]).await;
    snapshot("DEGR-08__database__store_unavailable", &view);
}

/// The snapshot of a step shows the sentence for a query without an answer.
#[rstest]
#[tokio::test(start_paused = true)]
async fn everything_fails(
    #[values(
        StepCause::Error,
        StepCause::Timeout,
        StepCause::InvalidOutput,
        StepCause::BreakerOpen
    )]
    cause: StepCause,
) {
    let mut scenario = agents().fold(Scenario::default(), |scenario, step| {
        scenario.with(step, behaviour(cause))
    });
    scenario.search.1 = store_behaviour(StepCause::StoreUnavailable);
    let document = scenario.start().answer().await;
    let sound = Scenario::default().start().answer().await;
    assert_eq!(document.status, Status::Failed);
    assert_eq!(
        (document.answer.as_deref(), document.confidence),
        (None, 0.0)
    );
    assert!(document.recorded);
    for report in &document.steps {
        let expected = match report.outcome {
            StepOutcome::NotApplicable => None,
            _ if report.step == step("retrieval") => Some(StepCause::StoreUnavailable),
            _ => Some(cause),
        };
        let lost: Vec<_> = document
            .degraded
            .iter()
            .filter(|lost| lost.step == report.step)
            .collect();
        assert_eq!(report.cause, expected, "{:?}", report.step);
        assert_eq!(
            lost.iter().map(|lost| lost.cause).collect::<Vec<_>>(),
            Vec::from_iter(expected),
            "{:?} is listed once if it failed",
            report.step
        );
        if cause == StepCause::Error {
            let name = format!("DEGR-07__everything__{}", report.step.name());
            snapshot(&name, &compare(&document, &sound, &[report.step]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_leaves_no_time_for_anything() {
    let scenario = Scenario {
        deadline: Duration::from_millis(1),
        ..Scenario::default()
    };
    let document = scenario.start().answer().await;
    assert_eq!(document.status, Status::Failed);
    for report in &document.steps {
        let is_listed = document.degraded.iter().any(|lost| {
            (lost.step, lost.cause) == (report.step, StepCause::Skipped)
                && lost.effect == report.step.def().unanswered
        });
        assert_eq!(
            is_listed,
            report.outcome == StepOutcome::Skipped,
            "{:?}",
            report.step
        );
    }
    assert_eq!(document.steps[0].outcome, StepOutcome::Skipped);
}
