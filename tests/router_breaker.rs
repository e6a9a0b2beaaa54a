//! The guards of a provider in the router, under a paused clock: breaker and bulkhead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use gauntlet::llm::cause::Cause;
use gauntlet::llm::chat::{Answer, StreamItem};
use gauntlet::resilience::breaker::BreakerState;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::schedule::{Action, Played};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::rules::{SECOND, doing, ms, sim, status};
use crate::providers::{RouterSim, config_of, context, failure, read, request};

/// After the threshold nothing reaches the provider until the cool-down is over. Then one probe
/// passes and closes the breaker.
#[tokio::test(start_paused = true)]
async fn the_breaker_opens_and_recovers() {
    let mut schedule = doing(&[&[status(500), status(500)]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (2, 1);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    for _ in 0..2 {
        assert_eq!(
            failure(router.chat(request(false), context(None)).await).cause,
            Cause::ServerError
        );
    }
    tokio::time::advance(10 * SECOND).await;
    let refused = failure(router.chat(request(false), context(None)).await);
    assert_eq!(
        (refused.cause, refused.retry_after),
        (Cause::BreakerOpen, Some(20 * SECOND))
    );
    assert_eq!(router.health()[0].breaker, BreakerState::Open);
    assert_eq!(sim.calls().len(), 2);
    tokio::time::advance(20 * SECOND).await;
    assert_eq!(router.health()[0].breaker, BreakerState::HalfOpen);
    assert!(router.chat(request(false), context(None)).await.is_ok());
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// A breaker that opens between the retries of a request ends them, and the provider's failure
/// stands.
#[tokio::test(start_paused = true)]
async fn an_opening_breaker_ends_the_retries() {
    let mut schedule = doing(&[&[status(500); 9]]);
    schedule.settings.failure_threshold = 2;
    let sim = sim(&schedule);
    let failure = failure(
        sim.router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, failure.attempts.len(), sim.calls().len()),
        (Cause::ServerError, 2, 2)
    );
    assert_eq!(
        ms(sim.now()),
        100,
        "the router does not wait for a retry that the breaker refuses"
    );
}

/// Rejections, clients that leave and short deadlines of callers do not count against the provider;
/// all other failures do.
#[rstest]
#[case::rejected(status(400), None, BreakerState::Closed)]
#[case::not_found(status(404), None, BreakerState::Closed)]
#[case::short_deadline(Action::Silent, Some(50), BreakerState::Closed)]
#[case::slower_than_the_callers_deadline(Action::Silent, Some(4_000), BreakerState::Closed)]
#[case::short_deadline_while_it_answers(Action::DripForever { every_ms: 700 }, Some(4_000), BreakerState::Closed)]
#[case::short_deadline_to_connect(Action::NeverAccept, Some(400), BreakerState::Closed)]
#[case::never_accepts(Action::NeverAccept, Some(4_000), BreakerState::Open)]
#[case::configured_deadline(Action::Silent, None, BreakerState::Open)]
#[case::bad_key(status(401), None, BreakerState::Open)]
#[case::html(Action::Html, None, BreakerState::Open)]
#[tokio::test(start_paused = true)]
async fn a_failure_counts_against_the_provider_by_its_cause(
    #[case] action: Action,
    #[case] deadline_ms: Option<u64>,
    #[case] state: BreakerState,
) {
    let mut schedule = doing(&[&[action]]);
    schedule.settings.failure_threshold = 1;
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    failure(router.chat(request(false), context(deadline)).await);
    assert_eq!(router.health()[0].breaker, state);
}

/// A stream that is cut at the caller's deadline does not count against the provider. One that is
/// cut at the configured deadline does.
#[rstest]
#[case::the_callers(Some(4_000), BreakerState::Closed)]
#[case::the_configured(None, BreakerState::Open)]
#[tokio::test(start_paused = true)]
async fn a_stream_cut_at_a_deadline_counts_by_who_set_it(
    #[case] deadline_ms: Option<u64>,
    #[case] state: BreakerState,
) {
    let mut schedule = doing(&[&[Action::DripForever { every_ms: 700 }]]);
    schedule.settings.failure_threshold = 1;
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let served = router
        .chat(request(true), context(deadline))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    assert_eq!(read(served).await.failed[0].cause, Cause::DeadlineExceeded);
    assert_eq!(router.health()[0].breaker, state);
}

/// A deadline that passes because the client reads slowly does not count against the provider.
#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_the_providers_failure() {
    let mut schedule = doing(&[&[]]);
    schedule.settings.failure_threshold = 1;
    let sim = RouterSim::new(|_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        Played::flowing(
            whole,
            Plan::of(std::iter::once(Step::Head).chain((0..7).map(|_| Step::Events(1)))),
        )
    });
    let router = sim.router(&config_of(&schedule));
    let served = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    tokio::time::advance(11 * SECOND).await;
    assert_eq!(read(served).await.failed[0].cause, Cause::DeadlineExceeded);
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// A stream has succeeded as a probe at its commit point. If it breaks later, that is a failure
/// like any other.
#[rstest]
#[case::ends_well(Action::Answer, usize::MAX, BreakerState::Closed)]
#[case::breaks(Action::Cut { events: 3 }, usize::MAX, BreakerState::Open)]
#[case::is_left(Action::Stall { events: 3 }, 1, BreakerState::Closed)]
#[case::is_left_unread(Action::Answer, 0, BreakerState::Closed)]
#[tokio::test(start_paused = true)]
async fn a_probe_that_streams(
    #[case] action: Action,
    #[case] items: usize,
    #[case] state: BreakerState,
) {
    let mut schedule = doing(&[&[status(500), action]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (1, 1);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let served = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("the probe passes"));
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
    assert!(
        router.chat(request(false), context(None)).await.is_ok(),
        "other requests pass while the probe streams"
    );
    let Answer::Stream(stream) = served.answer else {
        panic!("a stream was asked for")
    };
    let _read: Vec<StreamItem> = stream.items.take(items).collect().await;
    assert_eq!(router.health()[0].breaker, state);
    assert_eq!(sim.open(), 0);
}

/// A probe whose client leaves before the commit point counts neither way and returns its permit.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_left_before_its_commit_point() {
    let mut schedule = doing(&[&[status(500), Action::Stall { events: 1 }]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (1, 1);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let mut probe = Box::pin(router.chat(request(true), context(None)));
    assert!(probe.as_mut().now_or_never().is_none());
    assert_eq!(
        failure(router.chat(request(true), context(None)).await).cause,
        Cause::BreakerOpen,
        "the probe permit is in use"
    );
    drop(probe);
    assert_eq!(router.health()[0].breaker, BreakerState::HalfOpen);
    assert!(
        router.chat(request(false), context(None)).await.is_ok(),
        "the breaker is not stuck"
    );
}

/// A stream keeps its permit of the bulkhead to its end, and returns it when the client leaves.
#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_permit_to_its_end() {
    let schedule = doing(&[&[Action::Stall { events: 3 }], &[]]);
    let mut config = config_of(&schedule);
    (
        config.providers["p1"].max_in_flight,
        config.providers["p1"].queue,
    ) = (1, 0);
    let sim = sim(&schedule);
    let router = sim.router(&config);
    let first = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let second = router
        .chat(request(false), context(None))
        .await
        .unwrap_or_else(|_| panic!("the other candidate serves"));
    assert_eq!(&*second.by.provider, "p2");
    assert_eq!(
        second.attempts[0].error.as_ref().map(|error| error.cause),
        Some(Cause::BulkheadFull)
    );
    drop(first);
    let third = router
        .chat(request(false), context(None))
        .await
        .unwrap_or_else(|_| panic!("the permit is free"));
    assert_eq!(&*third.by.provider, "p1");
}

/// Under load the limit is reached and never exceeded, and every request in the queue is served.
#[tokio::test(start_paused = true)]
async fn the_concurrency_limit_is_reached_and_never_exceeded() {
    let schedule = doing(&[&[]]);
    let mut config = config_of(&schedule);
    config.providers["p1"].max_in_flight = 4;
    let sim = RouterSim::new(|_, call, stream| {
        let whole = doing(&[&[]]).play(0, call, stream).response;
        Played::flowing(
            whole,
            Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest]),
        )
    });
    let router = sim.router(&config);
    let served =
        futures::future::join_all((0..12).map(|_| router.chat(request(false), context(None))))
            .await;
    assert!(
        served.iter().all(Result::is_ok),
        "four run at once and eight wait in the queue"
    );
    assert_eq!(
        (sim.most_open(), sim.calls().len(), ms(sim.now())),
        (4, 12, 300)
    );
}

/// A half-open breaker admits its probes and no more, however many requests arrive at once.
#[rstest]
#[case(1)]
#[case(3)]
#[tokio::test(start_paused = true)]
async fn half_open_under_a_herd(#[case] probes: u32) {
    let mut schedule = doing(&[&[]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
        schedule.settings.half_open_probes,
    ) = (1, 1, probes);
    let sim = RouterSim::new(|_, call, stream| {
        let script = doing(&[&[status(500)]]);
        match call {
            0 => script.play(0, 0, stream),
            _ => Played::flowing(
                script.play(0, call, stream).response,
                Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest]),
            ),
        }
    });
    let router = sim.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let herd =
        futures::future::join_all((0..64).map(|_| router.chat(request(false), context(None))))
            .await;
    let served = herd.iter().filter(|result| result.is_ok()).count();
    assert_eq!(
        (served, sim.calls().len()),
        (probes as usize, 1 + probes as usize)
    );
    assert!(
        herd.into_iter()
            .filter(Result::is_err)
            .all(|result| failure(result).cause == Cause::BreakerOpen)
    );
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// A breaker guards one provider and model: it does not affect another candidate.
#[tokio::test(start_paused = true)]
async fn a_breaker_is_its_candidates_own() {
    let mut schedule = doing(&[&[status(500)], &[]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (1, 1);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    for _ in 0..3 {
        let served = router
            .chat(request(false), context(None))
            .await
            .unwrap_or_else(|_| panic!("the other candidate serves"));
        assert_eq!(&*served.by.provider, "p2");
    }
    assert_eq!(sim.order(), [1, 2, 2, 2]);
    let states: Vec<BreakerState> = router
        .health()
        .iter()
        .map(|health| health.breaker)
        .collect();
    assert_eq!(states, [BreakerState::Open, BreakerState::Closed]);
}

/// A request that finds the queue full is refused at once, with a Retry-After.
#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_refuses_at_once() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    (
        config.providers["p1"].max_in_flight,
        config.providers["p1"].queue,
    ) = (1, 2);
    let sim = sim(&schedule);
    let router = sim.router(&config);
    let mut under_way: Vec<_> = (0..3)
        .map(|_| Box::pin(router.chat(request(false), context(None))))
        .collect();
    for call in &mut under_way {
        assert!(call.as_mut().now_or_never().is_none());
    }
    let refused = router
        .chat(request(false), context(None))
        .now_or_never()
        .expect("the request is refused at once");
    let refused = failure(refused);
    assert_eq!(
        (refused.cause, refused.retry_after),
        (Cause::BulkheadFull, Some(SECOND))
    );
    assert_eq!(sim.calls().len(), 1);
}

/// If a permit becomes free only at the deadline, nothing is sent and no attempt is counted.
#[tokio::test(start_paused = true)]
async fn a_permit_that_becomes_free_too_late_is_no_attempt() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    config.providers["p1"].max_in_flight = 1;
    let sim = sim(&schedule);
    let router = sim.router(&config);
    let (first, second) = futures::join!(
        router.chat(request(false), context(None)),
        router.chat(request(false), context(None))
    );
    assert_eq!(
        (failure(first).cause, failure(second).cause),
        (Cause::DeadlineExceeded, Cause::BulkheadFull)
    );
    assert_eq!(sim.calls().len(), 1);
    let text = sim.metrics.render();
    let attempts: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("gauntlet_attempts_total") && !line.ends_with(" 0"))
        .collect();
    assert!(
        attempts.len() == 1 && attempts[0].ends_with("outcome=\"deadline_exceeded\"} 1"),
        "{text}"
    );
}
