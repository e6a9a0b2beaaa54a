//! PROP-01: whatever the providers do, a request has one terminal outcome, within the deadline and
//! the attempts, and its text is the beginning of what one provider sent.
//!
//! Thousands of fault schedules run against the real router and the real protocol under a paused
//! clock. Further tests prove that the property can fail: each router with one bug is found, and
//! every invariant can be violated.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gauntlet::config::Config;
use gauntlet::llm::chat::{Answer, ChatStream, StreamItem};
use gauntlet::llm::router::Router;
use gauntlet_harness::schedule::invariants::{
    self, Call, End, Exchange, Invariant, Observation, Violation,
};
use gauntlet_harness::schedule::{Action, Leave, Request, Schedule, Script, Settings, full_text};
use gauntlet_suites::properties::counterexample;
use gauntlet_suites::properties::schedules::schedules;
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::{RouterSim, config_of, content_of, context, request};

const REGRESSIONS: &str = "tests/regressions/router.txt";
/// The number of schedules of an ordinary test run.
const SCHEDULES: u32 = 2_000;

/// PROP-01: the router keeps all invariants under any schedule.
#[test]
fn any_schedule_keeps_all_invariants() {
    let found = counterexample::find(
        counterexample::config(SCHEDULES, REGRESSIONS),
        &schedules(),
        |schedule| judged(schedule, Bug::None),
    )
    .unwrap();
    if let Some((schedule, why)) = found {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .with_file_name("gauntlet")
            .join("schedules");
        let (_, text) = counterexample::report(&schedule, &why, &folder).unwrap();
        panic!("{text}");
    }
}

/// The schedules reach every end, streamed and plain, and retries, fallbacks, open breakers and
/// clients that leave.
#[test]
fn the_schedules_reach_every_outcome() {
    let reached = RefCell::new(BTreeMap::<String, usize>::new());
    let count = |what: &str| *reached.borrow_mut().entry(what.to_owned()).or_default() += 1;
    counterexample::find(counterexample::fixed(600), &schedules(), |schedule| {
        let seen = observe(schedule, Bug::None);
        for (asked, exchange) in schedule.requests.iter().zip(&seen.exchanges) {
            let kind = if asked.stream { "stream" } else { "plain" };
            match exchange.ends.first() {
                Some(end) => count(&format!("{kind} {end:?}")),
                None => count(&format!("{kind} Left")),
            }
            let mut served_by: Vec<usize> =
                exchange.calls.iter().map(|call| call.candidate).collect();
            if served_by.windows(2).any(|pair| pair[0] == pair[1]) {
                count("retry");
            }
            served_by.dedup();
            if served_by.len() > 1 {
                count("fallback");
            }
            if exchange.calls.is_empty() {
                count("nobody asked");
            }
        }
        Ok(())
    })
    .unwrap();
    for outcome in [
        "stream Complete",
        "stream Error",
        "stream Broken",
        "stream Left",
        "plain Complete",
        "plain Error",
        "plain Left",
        "retry",
        "fallback",
        "nobody asked",
    ] {
        assert!(
            reached
                .borrow()
                .get(outcome)
                .is_some_and(|times| *times >= 10),
            "{outcome} is hardly reached: {reached:#?}"
        );
    }
}

/// The property can fail: each bug is found within the ordinary number of schedules, by an
/// invariant that concerns it.
#[rstest]
#[case::a_broken_stream_ends_as_complete(Bug::HidesTheBreak, &[Invariant::SuccessIsWhole])]
#[case::asks_again_after_the_commit_point(
    Bug::AsksAgainAfterCommit,
    &[Invariant::OneText, Invariant::NothingAfterCommit, Invariant::SuccessIsWhole, Invariant::WithinAttempts, Invariant::InOrder]
)]
#[case::goes_on_without_its_client(Bug::GoesOnWithoutItsClient, &[Invariant::NothingAfterLeaving, Invariant::NothingLeftOpen, Invariant::Waits, Invariant::WithinAttempts])]
#[case::no_deadline_over_all(Bug::NoDeadline, &[Invariant::WithinDeadline])]
#[case::repeats_the_last_text(Bug::RepeatsText, &[Invariant::OneText, Invariant::SuccessIsWhole])]
#[case::one_attempt_too_many(Bug::OneAttemptTooMany, &[Invariant::WithinAttempts])]
#[case::no_end(Bug::NoEnd, &[Invariant::OneEnd])]
#[case::no_waiting(Bug::NoBackoff, &[Invariant::Waits])]
#[case::no_breaker(Bug::NoBreaker, &[Invariant::BreakerRests])]
#[case::no_budget(Bug::NoBudget, &[Invariant::WithinBudget])]
fn a_router_with_one_bug_is_found(#[case] bug: Bug, #[case] by: &[Invariant]) {
    let found = counterexample::find(counterexample::fixed(SCHEDULES), &schedules(), |schedule| {
        judged(schedule, bug)
    })
    .unwrap();
    let (schedule, why) =
        found.unwrap_or_else(|| panic!("{bug:?} was not found in {SCHEDULES} schedules"));
    let Violation { invariant, .. } = invariants::check(&schedule, &observe(&schedule, bug))
        .expect_err("the smallest schedule shows the bug again");
    assert!(
        by.contains(&invariant),
        "{bug:?} was found by {invariant:?}: {why}"
    );
    assert_eq!(
        judged(&schedule, Bug::None),
        Ok(()),
        "the router without the bug keeps the invariants under the same schedule"
    );
    // The schedule that is written is the one that was played.
    let json = serde_json::to_string(&schedule).unwrap();
    assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
}

/// Each invariant refuses an observation that violates it alone.
#[test]
fn every_invariant_can_be_violated() {
    for invariant in Invariant::ALL {
        let (schedule, good) = quiet();
        assert_eq!(
            invariants::check(&schedule, &good),
            Ok(()),
            "the original observation is good"
        );
        let (schedule, wrong) = spoiled(invariant);
        let found = invariants::check_only(&[invariant], &schedule, &wrong)
            .map_err(|violation| violation.invariant);
        assert_eq!(found, Err(invariant), "{invariant:?} accepts {wrong:#?}");
    }
}

fn judged(schedule: &Schedule, bug: Bug) -> Result<(), String> {
    invariants::check(schedule, &observe(schedule, bug)).map_err(|violation| violation.to_string())
}

/// A bug in the router or around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    HidesTheBreak,
    AsksAgainAfterCommit,
    GoesOnWithoutItsClient,
    NoDeadline,
    RepeatsText,
    OneAttemptTooMany,
    NoEnd,
    NoBackoff,
    NoBreaker,
    NoBudget,
}

impl Bug {
    /// Applies the bugs that lie in the configuration of the router.
    fn built_in(self, mut config: Config) -> Config {
        match self {
            Self::NoDeadline => config
                .models
                .values_mut()
                .for_each(|model| model.total *= 3),
            Self::OneAttemptTooMany => config.retry.max_attempts += 1,
            Self::NoBackoff => config.retry.base = Duration::ZERO,
            Self::NoBreaker => config.breaker.failure_threshold = u32::MAX,
            Self::NoBudget => config.retry.budget_floor = u32::MAX,
            _ => {}
        }
        config
    }
}

/// Plays the schedule against a router of its own and returns the observation.
fn observe(schedule: &Schedule, bug: Bug) -> Observation {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let script = schedule.clone();
        let sim =
            RouterSim::new(move |candidate, call, stream| script.play(candidate, call, stream));
        let router = Arc::new(sim.router(&bug.built_in(config_of(schedule))));
        let mut exchanges = Vec::new();
        for asked in &schedule.requests {
            tokio::time::sleep(Duration::from_millis(asked.after_ms)).await;
            exchanges.push(exchange(&sim, &router, *asked, bug).await);
        }
        drop(router);
        // The grace is the resolution of the clock, once for each timer of a chain.
        Observation {
            exchanges,
            left_open: sim.open(),
            grace_ms: 5,
        }
    })
}

async fn exchange(
    sim: &Arc<RouterSim>,
    router: &Arc<Router>,
    asked: Request,
    bug: Bug,
) -> Exchange {
    let before = sim.calls().len();
    let start = Instant::now();
    let mut seen = Exchange::default();
    match asked.leaves {
        Some(Leave::AfterMs(ms)) => {
            let leaving = tokio::time::timeout(
                Duration::from_millis(ms),
                client(router, asked, &mut seen, bug),
            )
            .await;
            if leaving.is_err() && bug == Bug::GoesOnWithoutItsClient {
                let router = Arc::clone(router);
                tokio::spawn(async move {
                    client(
                        &router,
                        Request {
                            leaves: None,
                            ..asked
                        },
                        &mut Exchange::default(),
                        Bug::None,
                    )
                    .await
                });
            }
        }
        _ => client(router, asked, &mut seen, bug).await,
    }
    seen.elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap();
    let left_at = sim.calls().len();
    // Work that still runs for a client that has left makes its calls now.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    let calls = sim.calls();
    seen.calls_after_leaving = calls.len() - left_at;
    seen.calls = calls[before..]
        .iter()
        .map(|seen| Call {
            candidate: seen.candidate,
            call: seen.call,
            at_ms: u64::try_from(seen.at.as_millis()).unwrap(),
        })
        .collect();
    seen
}

/// A client that sends a request and reads to the end, or until it has as many words as it wants.
async fn client(router: &Router, asked: Request, seen: &mut Exchange, bug: Bug) {
    let served = match router.chat(request(asked.stream), context(None)).await {
        Ok(served) => served,
        Err(_) => return seen.ends.push(End::Error),
    };
    match served.answer {
        Answer::Plain(completion) => {
            seen.text = completion.text().unwrap();
            seen.ends.push(End::Complete);
        }
        Answer::Stream(stream) => read(router, stream.items, asked, seen, bug).await,
    }
}

async fn read(
    router: &Router,
    mut stream: ChatStream,
    asked: Request,
    seen: &mut Exchange,
    bug: Bug,
) {
    let wanted = match asked.leaves {
        Some(Leave::AfterWords(words)) => words,
        _ => usize::MAX,
    };
    while let Some(item) = stream.next().await {
        match item {
            StreamItem::Chunk(data) => {
                seen.text.push_str(&content_of(&data));
                if bug == Bug::RepeatsText {
                    seen.text.push_str(&content_of(&data));
                }
            }
            StreamItem::Done(_) if bug == Bug::NoEnd => {}
            StreamItem::Done(_) => seen.ends.push(End::Complete),
            StreamItem::Failed(_) if bug == Bug::HidesTheBreak => seen.ends.push(End::Complete),
            StreamItem::Failed(_) if bug == Bug::AsksAgainAfterCommit => {
                return Box::pin(client(router, asked, seen, Bug::None)).await;
            }
            StreamItem::Failed(_) => seen.ends.push(End::Broken),
        }
        if seen.ends.is_empty() && seen.text.split_whitespace().count() >= wanted {
            return;
        }
    }
}

/// A schedule without a fault, and a good observation of it.
fn quiet() -> (Schedule, Observation) {
    let settings = Settings {
        connect_ms: 100,
        first_token_ms: 1_000,
        idle_ms: 1_000,
        total_ms: 10_000,
        reserve_ms: 1_000,
        max_attempts: 3,
        base_ms: 100,
        max_ms: 1_000,
        jitter_percent: 0,
        budget_percent: 0,
        budget_floor: 2,
        failure_threshold: 2,
        cool_down_ms: 5_000,
        half_open_probes: 1,
    };
    let schedule = Schedule {
        settings,
        candidates: vec![Script::default(), Script::default()],
        requests: vec![Request {
            after_ms: 0,
            stream: true,
            leaves: None,
        }],
    };
    let exchange = Exchange {
        text: full_text(0, 0),
        ends: vec![End::Complete],
        elapsed_ms: 1,
        calls: vec![call(0, 0, 0)],
        calls_after_leaving: 0,
    };
    (
        schedule,
        Observation {
            exchanges: vec![exchange],
            left_open: 0,
            grace_ms: 5,
        },
    )
}

fn call(candidate: usize, call: usize, at_ms: u64) -> Call {
    Call {
        candidate,
        call,
        at_ms,
    }
}

/// A schedule, and an observation of it that violates this invariant.
fn spoiled(invariant: Invariant) -> (Schedule, Observation) {
    let (mut schedule, mut seen) = quiet();
    let error = |status: u16| Action::Status {
        status,
        retry_after_s: None,
    };
    let exchange = &mut seen.exchanges[0];
    let first = &mut schedule.candidates[0].calls;
    match invariant {
        Invariant::OneEnd => exchange.ends = vec![End::Complete, End::Broken],
        Invariant::WithinDeadline => exchange.elapsed_ms = 10_006,
        Invariant::WithinAttempts => {
            exchange.calls = (0..4).map(|n| call(0, n, n as u64 * 3_000)).collect()
        }
        Invariant::InOrder => exchange.calls = vec![call(1, 0, 0), call(0, 0, 1)],
        Invariant::OneText => {
            *first = vec![Action::Cut { events: 3 }];
            exchange.calls = vec![call(0, 0, 0), call(1, 0, 1)];
            exchange.text = format!("{}{}", full_text(0, 0), full_text(1, 0));
        }
        Invariant::NothingAfterCommit => {
            *first = vec![Action::Cut { events: 3 }];
            exchange.calls = vec![call(0, 0, 0), call(1, 0, 1)];
            exchange.text = schedule.text_sent(0, 0, true);
            exchange.ends = vec![End::Broken];
        }
        Invariant::SuccessIsWhole => {
            *first = vec![Action::Cut { events: 3 }];
            exchange.text = schedule.text_sent(0, 0, true);
        }
        Invariant::GoodAnswerServed => exchange.ends = vec![End::Error],
        Invariant::NoUselessRetry => {
            *first = vec![error(401)];
            exchange.calls = vec![call(0, 0, 0), call(0, 1, 500)];
        }
        Invariant::NoFallbackOfRejected => {
            *first = vec![error(400)];
            exchange.calls = vec![call(0, 0, 0), call(1, 0, 500)];
        }
        Invariant::NobodyForgotten => {
            *first = vec![error(500)];
            exchange.text.clear();
            exchange.ends = vec![End::Error];
        }
        Invariant::Waits => {
            *first = vec![Action::Status {
                status: 429,
                retry_after_s: Some(2),
            }];
            exchange.calls = vec![call(0, 0, 0), call(0, 1, 1_900)];
        }
        Invariant::NothingAfterLeaving => exchange.calls_after_leaving = 1,
        Invariant::NothingLeftOpen => seen.left_open = 1,
        Invariant::BreakerRests => {
            *first = vec![error(500); 3];
            exchange.calls = vec![call(0, 0, 0), call(0, 1, 100), call(0, 2, 300)];
        }
        Invariant::WithinBudget => {
            *first = vec![error(500); 4];
            exchange.calls = (0..4).map(|n| call(0, n, n as u64 * 1_000)).collect();
        }
    }
    (schedule, seen)
}
