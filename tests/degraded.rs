//! What the reader of a degraded answer is told, for every agent and every cause: one snapshot each. Durations are those of the
//! paused clock, so they are part of the snapshot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod scripted;

use std::time::Duration;

use gauntlet::config::StepConfig;
use gauntlet::orchestrator::outcome::Cause;
use gauntlet::orchestrator::step::{PIPELINE, Step};
use gauntlet::store::StoreError;
use rstest::rstest;
use scripted::{Act, FakeLane, Pace, StoreAct, World};

async fn snapshot(name: &str, world: World) {
    let world = world.start();
    let document = world.orchestrator.answer(world.ask()).await.to_json();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.add_redaction(".id", "[id]");
    settings.add_redaction(".created_at", "[time]");
    settings.bind(|| insta::assert_json_snapshot!(name, document));
}

fn requirement(step: Step) -> &'static str {
    match step {
        Step::Entities => "DEGR-01",
        Step::Retrieval => "DEGR-03",
        Step::FactCheck => "DEGR-04",
        Step::Synthesis => "DEGR-05",
        Step::Citation | Step::Review => "DEGR-06",
        Step::Record => "DEGR-08",
    }
}

fn act(cause: Cause) -> Act {
    match cause {
        Cause::Timeout => Act::Never,
        Cause::InvalidOutput => Act::Says("Certainly! Here is what I found.".into()),
        cause => Act::Fails(cause),
    }
}

/// More than any deadline leaves: the step is skipped.
const UNAFFORDABLE: StepConfig = StepConfig {
    cap: Duration::from_secs(7_200),
    minimum: Duration::from_secs(3_600),
};

#[rstest]
#[tokio::test(start_paused = true)]
async fn an_agent_fails(
    #[values(
        Step::Entities,
        Step::FactCheck,
        Step::Synthesis,
        Step::Citation,
        Step::Review
    )]
    step: Step,
    #[values(Cause::Error, Cause::Timeout, Cause::InvalidOutput, Cause::BreakerOpen)] cause: Cause,
) {
    snapshot(
        &format!("{}__{}__{}", requirement(step), step.name(), cause.name()),
        World::default().with(step, act(cause)),
    )
    .await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_step_is_skipped(
    #[values(
        Step::Entities,
        Step::Retrieval,
        Step::FactCheck,
        Step::Citation,
        Step::Review
    )]
    step: Step,
) {
    let world = World {
        steps: [(step, UNAFFORDABLE)].into(),
        ..World::default()
    };
    snapshot(
        &format!("{}__{}__skipped", requirement(step), step.name()),
        world,
    )
    .await;
}

fn store_act(cause: Cause) -> StoreAct {
    match cause {
        Cause::Timeout => StoreAct::Never,
        Cause::StoreUnavailable => {
            StoreAct::Fails(StoreError::Unavailable("connection refused".into()))
        }
        _ => StoreAct::Fails(StoreError::Failed(
            "relation \"documents\" does not exist".into(),
        )),
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn retrieval_fails(
    #[values(Cause::Error, Cause::Timeout, Cause::StoreUnavailable)] cause: Cause,
) {
    let mut world = World::default();
    world.search.1 = store_act(cause);
    snapshot(&format!("DEGR-03__retrieval__{}", cause.name()), world).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn one_lane_of_two_fails(
    #[values(Cause::Error, Cause::Timeout, Cause::StoreUnavailable)] cause: Cause,
) {
    let world = World {
        lanes: vec![FakeLane {
            name: "scripted",
            passages: Vec::new(),
            search: (Pace::AtOnce, store_act(cause)),
        }],
        ..World::default()
    };
    snapshot(&format!("DEGR-02__lane__{}", cause.name()), world).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_record_cannot_be_written(
    #[values(Cause::Error, Cause::Timeout, Cause::StoreUnavailable)] cause: Cause,
) {
    let mut world = World::default();
    world.record.1 = store_act(cause);
    snapshot(&format!("DEGR-08__record__{}", cause.name()), world).await;
}

#[tokio::test(start_paused = true)]
async fn the_database_is_gone() {
    let mut world = World::default();
    world.search.1 = store_act(Cause::StoreUnavailable);
    world.record.1 = store_act(Cause::StoreUnavailable);
    snapshot("DEGR-08__database__store_unavailable", world).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn everything_fails(
    #[values(Cause::Error, Cause::Timeout, Cause::InvalidOutput, Cause::BreakerOpen)] cause: Cause,
) {
    let mut world = PIPELINE
        .steps()
        .filter(|step| *step != Step::Retrieval)
        .fold(World::default(), |world, step| world.with(step, act(cause)));
    world.search.1 = store_act(Cause::StoreUnavailable);
    snapshot(&format!("DEGR-07__everything__{}", cause.name()), world).await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_leaves_no_time_for_anything() {
    snapshot(
        "DEGR-07__everything__skipped",
        World {
            deadline: Duration::from_millis(1),
            ..World::default()
        },
    )
    .await;
}
