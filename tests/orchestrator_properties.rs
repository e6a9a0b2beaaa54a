//! DEGR-09, DEGR-10 and DATA-01 over random schedules of agents, providers and database, on the
//! paused clock (PROP-04), with the proof that the properties can fail and reach every outcome.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod scripted;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use gauntlet::config::StepConfig;
use gauntlet::orchestrator::cause::StepCause;
use gauntlet::orchestrator::outcome::Status;
use gauntlet::orchestrator::step::Step;
use gauntlet::orchestrator::{Ask, QueryDocument};
use gauntlet::store::StoreError;
use gauntlet_suites::properties::counterexample;
use proptest::prelude::*;
use rstest::rstest;
use scripted::{
    Behaviour, Event, Pace, RECORD_BOUND, Scenario, Simulation, StoreBehaviour, agents, step,
};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

/// The timer of tokio counts in milliseconds and rounds up.
const GRACE: Duration = Duration::from_millis(5);

type Property = Result<(), TestCaseError>;

#[derive(Clone, Debug)]
struct Schedule {
    deadline: u64,
    minimum: u64,
    found: usize,
    content: Content,
    steps: BTreeMap<Step, (u64, Planned)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Planned {
    Works,
    Fails(StepCause),
    NeverAnswers,
}

/// What the models reply where they work: good and bad.
#[derive(Clone, Debug)]
struct Content {
    supported: usize,
    unclear: usize,
    good_quotes: usize,
    bad_quotes: usize,
    scores: [f64; 3],
}

impl Schedule {
    fn scenario(&self) -> Scenario {
        let mut scenario = Scenario {
            deadline: Duration::from_millis(self.deadline),
            ..Scenario::default()
        };
        scenario.passages.truncate(self.found);
        scenario.limits = Step::all()
            .map(|step| {
                let limits = StepConfig {
                    cap: step.def().settings.cap,
                    minimum: Duration::from_millis(self.minimum),
                };
                (step, limits)
            })
            .collect();
        for (step, (delay, planned)) in &self.steps {
            let pace = Pace::After(Duration::from_millis(*delay));
            if *step == Step::RECORD {
                scenario.record = (pace, store_behaviour(*planned));
            } else if step.def().settings.asks_model {
                let behaviour = match planned {
                    Planned::Works => self.content.reply(*step),
                    Planned::Fails(StepCause::InvalidOutput) => {
                        Some(Behaviour::Replies("{}".into()))
                    }
                    Planned::Fails(cause) => Some(Behaviour::Fails(*cause)),
                    Planned::NeverAnswers => Some(Behaviour::NeverReplies),
                };
                let script = scenario.models.get_mut(step).unwrap();
                script.0 = pace;
                script.1 = behaviour.unwrap_or_else(|| script.1.clone());
            } else {
                scenario.search = (pace, store_behaviour(*planned));
            }
        }
        scenario
    }

    fn with(&self, step: Step, planned: Planned) -> Self {
        let mut faulty = self.clone();
        faulty.steps.get_mut(&step).unwrap().1 = planned;
        faulty
    }

    fn answer(&self, bug: Bug) -> QueryDocument {
        on_paused_clock(async {
            let simulation = self.scenario().start();
            answered(&simulation, simulation.ask(), bug).await
        })
    }
}

impl Content {
    /// Returns the reply of a step; `None` for the step's usual reply.
    fn reply(&self, step: Step) -> Option<Behaviour> {
        let good = "discovered radium in December 1898";
        let reply = match step.name() {
            "entities" => json!({"entities": [{"name": "radium", "kind": "substance"}]}),
            "fact_check" => {
                let claim = |verdict: &'static str| json!({"claim": "c", "source": 1, "verdict": verdict, "quote": good});
                let supported = (0..self.supported).map(|_| claim("supported"));
                let unclear = (0..self.unclear).map(|_| claim("unclear"));
                json!({"claims": supported.chain(unclear).collect::<Vec<_>>()})
            }
            "synthesis" => json!({"answer": "The Curies found it [1]."}),
            "citation" => {
                let quote = |quote: &str| json!({"sentence": 1, "source": 1, "quote": quote});
                let kept = (0..self.good_quotes).map(|at| quote(&good[..good.len() - at]));
                let refused = (0..self.bad_quotes).map(|_| quote("invented"));
                json!({"citations": kept.chain(refused).collect::<Vec<_>>()})
            }
            "review" => {
                let [coherence, relevance, support] = self.scores;
                json!({"coherence": coherence, "relevance": relevance, "support": support})
            }
            _ => return None,
        };
        Some(Behaviour::Replies(reply.to_string()))
    }
}

fn store_behaviour(planned: Planned) -> StoreBehaviour {
    match planned {
        Planned::Works => StoreBehaviour::Works,
        Planned::Fails(StepCause::StoreUnavailable) => {
            StoreBehaviour::Fails(StoreError::Unavailable("scripted".into()))
        }
        Planned::Fails(StepCause::Timeout) => {
            StoreBehaviour::Fails(StoreError::Timeout(Duration::from_secs(1)))
        }
        Planned::Fails(_) => StoreBehaviour::Fails(StoreError::Failed("scripted".into())),
        Planned::NeverAnswers => StoreBehaviour::NeverAnswers,
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

fn cause() -> impl Strategy<Value = StepCause> {
    prop_oneof![
        Just(StepCause::Error),
        Just(StepCause::Timeout),
        Just(StepCause::InvalidOutput),
        Just(StepCause::BreakerOpen),
        Just(StepCause::StoreUnavailable)
    ]
}

fn planned() -> impl Strategy<Value = Planned> {
    prop_oneof![8 => Just(Planned::Works), 3 => cause().prop_map(Planned::Fails), 1 => Just(Planned::NeverAnswers)]
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
    let steps = prop::collection::vec((delay(), planned()), Step::all().count() + 1);
    (deadline, minimum, 0_usize..3, content(), steps).prop_map(
        |(deadline, minimum, found, content, planned)| {
            let steps = Step::all().chain([Step::RECORD]).zip(planned).collect();
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
    prop::sample::select(Step::all().chain([Step::RECORD]).collect::<Vec<_>>())
}

/// What is between the orchestrator and its client: nothing, or a bug that the properties have to
/// find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// DEGR-09: an answer that lacks something has full confidence.
    FaultRaisesConfidence,
    /// DEGR-10: an answer that lacks something is sent far beyond the deadline.
    AnswersLate,
    /// DATA-01: what is sent is changed after it was recorded.
    ChangesAfterRecord,
    /// DATA-01: an answer that was not recorded claims that it was.
    ClaimsRecord,
}

async fn answered(simulation: &Simulation, ask: Ask, bug: Bug) -> QueryDocument {
    let mut document = simulation.orchestrator.answer(ask).await;
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
fn one_more_fault(schedule: &Schedule, step: Step, cause: StepCause, bug: Bug) -> Property {
    no_better(
        &schedule.with(step, Planned::Fails(cause)).answer(bug),
        &schedule.with(step, Planned::Works).answer(bug),
    )
}

/// DEGR-10, DATA-01: an answer comes by the deadline, plus the store's own timeouts for the record.
/// It is recorded once and equal, or marked as not recorded.
fn in_time_and_recorded_once(schedule: &Schedule, bug: Bug) -> Property {
    on_paused_clock(async {
        let simulation = schedule.scenario().start();
        let ask = simulation.ask();
        let latest = ask.deadline.at + RECORD_BOUND + GRACE;
        let document = timeout_at(latest, answered(&simulation, ask, bug)).await;
        prop_assert!(document.is_ok(), "no answer by the deadline and its grace");
        let document = document.unwrap();
        let called_to_record = simulation.log.at(&Event::Called(Step::RECORD));
        prop_assert_eq!(
            called_to_record,
            simulation
                .log
                .events()
                .iter()
                .rposition(|event| matches!(event, Event::Called(_)))
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
        let records = simulation.records();
        prop_assert_eq!(records.len(), usize::from(document.recorded), "records");
        if document.recorded {
            prop_assert_eq!(&records[0].document, &document.to_json());
        } else {
            prop_assert!(
                document
                    .degraded
                    .iter()
                    .any(|lost| lost.step == Step::RECORD)
            );
        }
        for step in agents() {
            prop_assert!(
                simulation.log.calls(step) <= 1,
                "{:?} was called again",
                step
            );
        }
        Ok(())
    })
}

/// CANC-03, DATA-01: nothing stays in flight, and the query is recorded once, as cancelled or as it
/// ended. Returns whether the client left before the end.
fn left_at(schedule: &Schedule, leaves: u64) -> Result<bool, TestCaseError> {
    let mut schedule = schedule.clone();
    schedule.steps.insert(Step::RECORD, (0, Planned::Works));
    on_paused_clock(async {
        let simulation = schedule.scenario().start();
        let client = timeout_at(
            Instant::now() + Duration::from_millis(leaves),
            simulation.orchestrator.answer(simulation.ask()),
        )
        .await;
        simulation.orchestrator.drained().await;
        let events = simulation.log.events();
        let calls = events
            .iter()
            .filter(|event| matches!(event, Event::Called(_)))
            .count();
        prop_assert_eq!(
            calls * 2,
            events.len(),
            "every call was answered or dropped: {:?}",
            events
        );
        let records = simulation.records();
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

    /// DEGR-09, where the fault also costs time: a step never answers. The schedules have no
    /// minimums, because a step that is skipped leaves its time to later steps, which is better
    /// than letting both run out.
    #[test]
    fn degr_09_one_more_stall_never_improves_status_or_confidence(schedule in schedule(Just(0)), step in any_step()) {
        no_better(&schedule.with(step, Planned::NeverAnswers).answer(Bug::None), &schedule.answer(Bug::None))?;
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

/// Each bug is found, so the properties can fail.
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

/// The schedules reach what they are made for: every status, every step that is lost for every
/// cause that it can have, and clients that leave early and late.
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
        "synthesis by Skipped",
    ]
    .map(String::from);
    let causes = [
        StepCause::Error,
        StepCause::Timeout,
        StepCause::InvalidOutput,
        StepCause::BreakerOpen,
    ];
    let of_agents = agents().flat_map(|step| causes.map(|cause| format!("{step:?} by {cause:?}")));
    let of_store = [step("retrieval"), Step::RECORD]
        .into_iter()
        .flat_map(|step| {
            [
                StepCause::Error,
                StepCause::Timeout,
                StepCause::StoreUnavailable,
            ]
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
