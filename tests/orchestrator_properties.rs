//! DEGR-09, DEGR-10 and DATA-01 over random schedules on the paused clock (PROP-04): whatever agents, providers and database do; and
//! proof that the properties can fail and reach every outcome.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod scripted;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use gauntlet::config::StepConfig;
use gauntlet::orchestrator::outcome::{Cause, Status};
use gauntlet::orchestrator::step::{PIPELINE, Step};
use gauntlet::orchestrator::{Ask, QueryDocument};
use gauntlet::store::StoreError;
use gauntlet_suites::properties::counterexample;
use proptest::prelude::*;
use rstest::rstest;
use scripted::{Act, Event, Pace, RECORD_BOUND, Running, StoreAct, World};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

/// tokio's timer counts in milliseconds and rounds up.
const GRACE: Duration = Duration::from_millis(5);

type Property = Result<(), TestCaseError>;

const AGENTS: [Step; 5] = [
    Step::Entities,
    Step::FactCheck,
    Step::Synthesis,
    Step::Citation,
    Step::Review,
];

#[derive(Clone, Debug)]
struct Schedule {
    deadline: u64,
    minimum: u64,
    found: usize,
    content: Content,
    steps: BTreeMap<Step, (u64, Fate)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Works,
    Fails(Cause),
    Never,
}

/// What the models say when they work: good and bad.
#[derive(Clone, Debug)]
struct Content {
    supported: usize,
    unclear: usize,
    good_quotes: usize,
    bad_quotes: usize,
    scores: [f64; 3],
}

impl Schedule {
    fn world(&self) -> World {
        let mut world = World {
            deadline: Duration::from_millis(self.deadline),
            ..World::default()
        };
        world.passages.truncate(self.found);
        world.steps = PIPELINE
            .steps()
            .map(|step| {
                (
                    step,
                    StepConfig {
                        minimum: Duration::from_millis(self.minimum),
                        ..step.default_bounds()
                    },
                )
            })
            .collect();
        for (step, (delay, fate)) in &self.steps {
            let pace = Pace::After(Duration::from_millis(*delay));
            match step {
                Step::Retrieval => world.search = (pace, store_act(*fate)),
                Step::Record => world.record = (pace, store_act(*fate)),
                step => {
                    let act = match fate {
                        Fate::Works => Act::Says(self.content.says(*step)),
                        Fate::Fails(Cause::InvalidOutput) => Act::Says("{}".into()),
                        Fate::Fails(cause) => Act::Fails(*cause),
                        Fate::Never => Act::Never,
                    };
                    world.acts.insert(*step, (pace, act));
                }
            }
        }
        world
    }

    fn with(&self, step: Step, fate: Fate) -> Self {
        let mut faulty = self.clone();
        faulty.steps.get_mut(&step).unwrap().1 = fate;
        faulty
    }

    fn answer(&self, bug: Bug) -> QueryDocument {
        on_paused_clock(async {
            let world = self.world().start();
            answered(&world, world.ask(), bug).await
        })
    }
}

impl Content {
    fn says(&self, step: Step) -> String {
        let good = "discovered radium in December 1898";
        match step {
            Step::Entities => json!({"entities": [{"name": "radium", "kind": "substance"}]}),
            Step::FactCheck => {
                let claim = |verdict: &'static str| json!({"claim": "c", "source": 1, "verdict": verdict, "quote": good});
                let claims: Vec<_> = (0..self.supported).map(|_| claim("supported")).chain((0..self.unclear).map(|_| claim("unclear"))).collect();
                json!({"claims": claims})
            }
            Step::Synthesis => json!({"answer": "The Curies found it [1]."}),
            Step::Citation => {
                let quote = |quote: &str| json!({"sentence": 1, "source": 1, "quote": quote});
                let words: Vec<_> = (0..self.good_quotes).map(|at| quote(&good[..good.len() - at])).collect();
                json!({"citations": words.into_iter().chain((0..self.bad_quotes).map(|_| quote("invented"))).collect::<Vec<_>>()})
            }
            _ => json!({"coherence": self.scores[0], "relevance": self.scores[1], "support": self.scores[2]}),
        }
        .to_string()
    }
}

fn store_act(fate: Fate) -> StoreAct {
    match fate {
        Fate::Works => StoreAct::Works,
        Fate::Fails(Cause::StoreUnavailable) => {
            StoreAct::Fails(StoreError::Unavailable("scripted".into()))
        }
        Fate::Fails(Cause::Timeout) => StoreAct::Fails(StoreError::Timeout(Duration::from_secs(1))),
        Fate::Fails(_) => StoreAct::Fails(StoreError::Failed("scripted".into())),
        Fate::Never => StoreAct::Never,
    }
}

fn on_paused_clock<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

fn cause() -> impl Strategy<Value = Cause> {
    prop_oneof![
        Just(Cause::Error),
        Just(Cause::Timeout),
        Just(Cause::InvalidOutput),
        Just(Cause::BreakerOpen),
        Just(Cause::StoreUnavailable)
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Works), 3 => cause().prop_map(Fate::Fails), 1 => Just(Fate::Never)]
}

fn delay() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..300, 3 => 0_u64..5_000, 1 => 0_u64..40_000]
}

fn content() -> impl Strategy<Value = Content> {
    (
        0_usize..3,
        0_usize..3,
        0_usize..3,
        0_usize..3,
        prop::array::uniform3(0.0..=1.0),
    )
        .prop_map(
            |(supported, unclear, good_quotes, bad_quotes, scores)| Content {
                supported,
                unclear,
                good_quotes,
                bad_quotes,
                scores,
            },
        )
}

fn schedule(minimum: impl Strategy<Value = u64>) -> impl Strategy<Value = Schedule> {
    let deadline = prop_oneof![1 => 1_u64..2_000, 3 => 1_u64..120_000];
    let steps = prop::collection::vec((delay(), fate()), 7);
    (deadline, minimum, 0_usize..3, content(), steps).prop_map(
        |(deadline, minimum, found, content, fates)| {
            let steps = PIPELINE.steps().chain([Step::Record]).zip(fates).collect();
            Schedule {
                deadline,
                minimum,
                found,
                content,
                steps,
            }
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    prop::sample::select(PIPELINE.steps().chain([Step::Record]).collect::<Vec<_>>())
}

/// What stands between the orchestrator and its client: nothing, or a bug that the properties have to find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// DEGR-09: an answer that lacks something is told as sure.
    FaultRaisesConfidence,
    /// DEGR-10: an answer that lacks something waits for it far beyond the deadline.
    AnswersLate,
    /// DATA-01: what is sent is changed after it was recorded.
    ChangesAfterRecord,
    /// DATA-01: an answer that was not recorded says nothing of it.
    ClaimsRecord,
}

async fn answered(world: &Running, ask: Ask, bug: Bug) -> QueryDocument {
    let mut document = world.orchestrator.answer(ask).await;
    let lacks = !document.degraded.is_empty();
    match bug {
        Bug::FaultRaisesConfidence if lacks => document.confidence = 1.0,
        Bug::AnswersLate if lacks => Pace::After(Duration::from_secs(3_600)).pass().await,
        Bug::ChangesAfterRecord => document.verified = !document.verified,
        Bug::ClaimsRecord => document.recorded = true,
        _ => {}
    }
    document
}

fn no_better(faulty: &QueryDocument, sound: &QueryDocument) -> Property {
    prop_assert!(
        faulty.status >= sound.status,
        "status {:?} became {:?}",
        sound.status,
        faulty.status
    );
    prop_assert!(
        faulty.confidence <= sound.confidence,
        "confidence {} became {}",
        sound.confidence,
        faulty.confidence
    );
    prop_assert!(
        sound.verified || !faulty.verified,
        "unverified became verified"
    );
    Ok(())
}

/// DEGR-09: a step that would have worked fails instead, at the same time; all else is equal.
fn one_more_fault(schedule: &Schedule, step: Step, cause: Cause, bug: Bug) -> Property {
    no_better(
        &schedule.with(step, Fate::Fails(cause)).answer(bug),
        &schedule.with(step, Fate::Works).answer(bug),
    )
}

/// DEGR-10, DATA-01: an answer by the deadline, plus the store's own time-outs for the record; recorded once and equal, or said not to be.
fn in_time_and_recorded_once(schedule: &Schedule, bug: Bug) -> Property {
    on_paused_clock(async {
        let world = schedule.world().start();
        let ask = world.ask();
        let latest = ask.deadline.at + RECORD_BOUND + GRACE;
        let document = timeout_at(latest, answered(&world, ask, bug)).await;
        prop_assert!(document.is_ok(), "no answer by the deadline and its grace");
        let document = document.unwrap();
        let asked_to_record = world.log.at(&Event::StubRequest(Step::Record));
        prop_assert_eq!(
            asked_to_record,
            world
                .log
                .events()
                .iter()
                .rposition(|event| matches!(event, Event::StubRequest(_)))
                .unwrap(),
            "the record comes last"
        );
        prop_assert_eq!(document.answer.is_some(), document.status < Status::Failed);
        prop_assert_eq!(
            document.status == Status::Complete,
            document.degraded.is_empty()
        );
        let evidence = !document.sources.is_empty();
        prop_assert!(
            document.answer.is_some() || !evidence,
            "once there is evidence there is an answer"
        );
        let records = world.records();
        prop_assert_eq!(records.len(), usize::from(document.recorded), "records");
        if document.recorded {
            prop_assert_eq!(&records[0].document, &document.to_json());
        } else {
            prop_assert!(
                document
                    .degraded
                    .iter()
                    .any(|lost| lost.step == Step::Record)
            );
        }
        for step in AGENTS {
            prop_assert!(world.log.asked(step) <= 1, "{:?} was asked again", step);
        }
        Ok(())
    })
}

/// CANC-03, DATA-01: nothing stays in flight, and the query is recorded once, as cancelled or as it had ended. Whether the client left first.
fn left_at(schedule: &Schedule, leaves: u64) -> Result<bool, TestCaseError> {
    let mut schedule = schedule.clone();
    schedule.steps.insert(Step::Record, (0, Fate::Works));
    on_paused_clock(async {
        let world = schedule.world().start();
        let client = timeout_at(
            Instant::now() + Duration::from_millis(leaves),
            world.orchestrator.answer(world.ask()),
        )
        .await;
        world.orchestrator.drained().await;
        let events = world.log.events();
        let asked = events
            .iter()
            .filter(|event| matches!(event, Event::StubRequest(_)))
            .count();
        prop_assert_eq!(
            asked * 2,
            events.len(),
            "what was asked was answered or dropped: {:?}",
            events
        );
        let records = world.records();
        prop_assert_eq!(records.len(), 1);
        if let Ok(document) = &client {
            prop_assert_eq!(&records[0].document, &document.to_json());
        }
        Ok(client.is_err())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn degr_09_one_more_fault_never_improves_status_or_confidence(schedule in schedule(0_u64..500), step in any_step(), cause in cause()) {
        one_more_fault(&schedule, step, cause, Bug::None)?;
    }

    /// DEGR-09, where the fault also costs time: a step never answers. (Without minimums: a step that is skipped for want of time
    /// leaves its time to the later ones, which is better than letting both run out.)
    #[test]
    fn degr_09_one_more_stall_never_improves_status_or_confidence(schedule in schedule(Just(0)), step in any_step()) {
        no_better(&schedule.with(step, Fate::Never).answer(Bug::None), &schedule.answer(Bug::None))?;
    }

    #[test]
    fn degr_10_an_answer_comes_by_the_deadline_and_is_recorded_once(schedule in schedule(0_u64..500)) {
        in_time_and_recorded_once(&schedule, Bug::None)?;
    }

    #[test]
    fn canc_03_a_client_may_leave_at_any_time(schedule in schedule(0_u64..500), leaves in delay()) {
        left_at(&schedule, leaves)?;
    }
}

/// The properties can fail: each bug is found.
#[rstest]
#[case::confidence(Bug::FaultRaisesConfidence, "confidence")]
#[case::late(Bug::AnswersLate, "no answer by the deadline")]
#[case::changed(Bug::ChangesAfterRecord, "assertion failed")]
#[case::unrecorded(Bug::ClaimsRecord, "records")]
fn every_bug_is_found(#[case] bug: Bug, #[case] seen: &str) {
    let any = (schedule(0_u64..500), any_step(), cause());
    let found = counterexample::find(
        counterexample::fixed(300),
        &any,
        |(schedule, step, cause)| {
            one_more_fault(schedule, *step, *cause, bug)
                .and_then(|()| in_time_and_recorded_once(schedule, bug))
                .map_err(|why| why.to_string())
        },
    );
    let (_, why) = found.unwrap().unwrap_or_else(|| panic!("{bug:?} survives"));
    assert!(
        why.contains(seen),
        "{bug:?} is found by another property: {why}"
    );
}

/// The schedules reach what they are made for: every status, every step lost for every cause that it can have, clients that leave early and late.
#[test]
fn the_schedules_reach_every_outcome() {
    let reached = RefCell::new(BTreeMap::<String, usize>::new());
    let count = |what: String| *reached.borrow_mut().entry(what).or_default() += 1;
    let any = (schedule(0_u64..500), delay());
    counterexample::find(counterexample::fixed(2_000), &any, |(schedule, leaves)| {
        let document = schedule.answer(Bug::None);
        count(format!("{:?}", document.status));
        count(format!("recorded {}", document.recorded));
        document
            .degraded
            .iter()
            .for_each(|lost| count(format!("{:?} by {:?}", lost.step, lost.cause)));
        count(format!(
            "left {}",
            left_at(schedule, *leaves).map_err(|why| why.to_string())?
        ));
        Ok(())
    })
    .unwrap();
    let statuses = [
        "Complete",
        "Degraded",
        "Failed",
        "recorded true",
        "recorded false",
        "left true",
        "left false",
        "Synthesis by Skipped",
    ]
    .map(String::from);
    let causes = [
        Cause::Error,
        Cause::Timeout,
        Cause::InvalidOutput,
        Cause::BreakerOpen,
    ];
    let of_agents = AGENTS
        .into_iter()
        .flat_map(|step| causes.map(|cause| format!("{step:?} by {cause:?}")));
    let of_store = [Step::Retrieval, Step::Record]
        .into_iter()
        .flat_map(|step| {
            [Cause::Error, Cause::Timeout, Cause::StoreUnavailable]
                .map(|cause| format!("{step:?} by {cause:?}"))
        });
    for outcome in statuses.into_iter().chain(of_agents).chain(of_store) {
        assert!(
            reached
                .borrow()
                .get(&outcome)
                .is_some_and(|times| *times >= 5),
            "{outcome} is hardly reached: {:#?}",
            reached.borrow()
        );
    }
}
