//! What guards a provider, as the router uses it: breaker and concurrency limit, under a paused clock.

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

use crate::providers::rules::{SECOND, doing, ms, status, world};
use crate::providers::{World, config_of, context, failure, read, request};

/// After the threshold nothing reaches the provider until the cool-down is over; then one probe, which closes it.
#[tokio::test(start_paused = true)]
async fn the_breaker_opens_and_recovers() {
    let mut schedule = doing(&[&[status(500), status(500)]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (2, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
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
    assert_eq!(world.calls().len(), 2);
    tokio::time::advance(20 * SECOND).await;
    assert_eq!(router.health()[0].breaker, BreakerState::HalfOpen);
    assert!(router.chat(request(false), context(None)).await.is_ok());
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// The breaker that opens in the middle of a request's retries ends them; what the provider said stands.
#[tokio::test(start_paused = true)]
async fn an_opening_breaker_ends_the_retries() {
    let mut schedule = doing(&[&[status(500); 9]]);
    schedule.settings.failure_threshold = 2;
    let world = world(&schedule);
    let failure = failure(
        world
            .router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, failure.attempts.len(), world.calls().len()),
        (Cause::ServerError, 2, 2)
    );
    assert_eq!(
        ms(world.now()),
        100,
        "nobody waits for a retry that will not be let through"
    );
}

/// What does not count against the provider: rejections, clients that leave, and a caller in a hurry. What does: the rest.
#[rstest]
#[case::rejected(status(400), None, BreakerState::Closed)]
#[case::not_found(status(404), None, BreakerState::Closed)]
#[case::in_a_hurry(Action::Silent, Some(50), BreakerState::Closed)]
#[case::slower_than_its_caller_wants(Action::Silent, Some(4_000), BreakerState::Closed)]
#[case::in_a_hurry_while_it_answers(Action::DripForever { every_ms: 700 }, Some(4_000), BreakerState::Closed)]
#[case::in_a_hurry_to_connect(Action::NeverAccept, Some(400), BreakerState::Closed)]
#[case::never_accepts(Action::NeverAccept, Some(4_000), BreakerState::Open)]
#[case::given_its_time(Action::Silent, None, BreakerState::Open)]
#[case::bad_key(status(401), None, BreakerState::Open)]
#[case::html(Action::Html, None, BreakerState::Open)]
#[tokio::test(start_paused = true)]
async fn what_counts_against_the_provider(
    #[case] action: Action,
    #[case] deadline_ms: Option<u64>,
    #[case] state: BreakerState,
) {
    let mut schedule = doing(&[&[action]]);
    schedule.settings.failure_threshold = 1;
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    failure(router.chat(request(false), context(deadline)).await);
    assert_eq!(router.health()[0].breaker, state);
}

/// The caller's deadline ends a stream whose tokens flow: the provider is well. The configured one says that it never ends.
#[rstest]
#[case::the_callers(Some(4_000), BreakerState::Closed)]
#[case::the_configured(None, BreakerState::Open)]
#[tokio::test(start_paused = true)]
async fn a_stream_cut_at_a_deadline_counts_by_whose_it_is(
    #[case] deadline_ms: Option<u64>,
    #[case] state: BreakerState,
) {
    let mut schedule = doing(&[&[Action::DripForever { every_ms: 700 }]]);
    schedule.settings.failure_threshold = 1;
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let served = router
        .chat(request(true), context(deadline))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    assert_eq!(read(served).await.failed[0].cause, Cause::DeadlineExceeded);
    assert_eq!(router.health()[0].breaker, state);
}

/// Whoever reads so slowly that the deadline passes between two reads says nothing about the provider.
#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_the_providers_failure() {
    let mut schedule = doing(&[&[]]);
    schedule.settings.failure_threshold = 1;
    let world = World::new(|_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        Played::flowing(
            whole,
            Plan::of(std::iter::once(Step::Head).chain((0..7).map(|_| Step::Events(1)))),
        )
    });
    let router = world.router(&config_of(&schedule));
    let served = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    tokio::time::advance(11 * SECOND).await;
    assert_eq!(read(served).await.failed[0].cause, Cause::DeadlineExceeded);
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// A stream has succeeded as a probe at its commit point: nobody waits for its end. Its break is then a failure like any other.
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
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let served = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("the probe is let through"));
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
    assert!(
        router.chat(request(false), context(None)).await.is_ok(),
        "while the probe streams"
    );
    let Answer::Stream(stream) = served.answer else {
        panic!("a stream was asked for")
    };
    let _read: Vec<StreamItem> = stream.take(items).collect().await;
    assert_eq!(router.health()[0].breaker, state);
    assert_eq!(world.open(), 0);
}

/// A probe whose client leaves before the commit point counts for nothing, and gives its place back.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_left_before_its_commit_point() {
    let mut schedule = doing(&[&[status(500), Action::Stall { events: 1 }]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (1, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let mut probe = Box::pin(router.chat(request(true), context(None)));
    assert!(probe.as_mut().now_or_never().is_none());
    assert_eq!(
        failure(router.chat(request(true), context(None)).await).cause,
        Cause::BreakerOpen,
        "the probe's place is taken"
    );
    drop(probe);
    assert_eq!(router.health()[0].breaker, BreakerState::HalfOpen);
    assert!(
        router.chat(request(false), context(None)).await.is_ok(),
        "not wedged"
    );
}

/// The provider's concurrency limit holds for streams to their end, and is given back by the client that leaves.
#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_place_to_its_end() {
    let schedule = doing(&[&[Action::Stall { events: 3 }], &[]]);
    let mut config = config_of(&schedule);
    (
        config.providers["p1"].max_in_flight,
        config.providers["p1"].queue,
    ) = (1, 0);
    let world = world(&schedule);
    let router = world.router(&config);
    let first = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let second = router
        .chat(request(false), context(None))
        .await
        .unwrap_or_else(|_| panic!("served by the other"));
    assert_eq!(second.by.provider, "p2");
    assert_eq!(
        second.attempts[0].error.as_ref().map(|error| error.cause),
        Some(Cause::BulkheadFull)
    );
    drop(first);
    let third = router
        .chat(request(false), context(None))
        .await
        .unwrap_or_else(|_| panic!("the place is free"));
    assert_eq!(third.by.provider, "p1");
}

/// Under load the limit is reached and never exceeded, and whoever finds room in the queue is served.
#[tokio::test(start_paused = true)]
async fn the_concurrency_limit_is_reached_and_never_exceeded() {
    let schedule = doing(&[&[]]);
    let mut config = config_of(&schedule);
    config.providers["p1"].max_in_flight = 4;
    let world = World::new(|_, call, stream| {
        let whole = doing(&[&[]]).play(0, call, stream).response;
        Played::flowing(
            whole,
            Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest]),
        )
    });
    let router = world.router(&config);
    let served =
        futures::future::join_all((0..12).map(|_| router.chat(request(false), context(None))))
            .await;
    assert!(
        served.iter().all(Result::is_ok),
        "four at once, eight in the queue"
    );
    assert_eq!(
        (world.most_open(), world.calls().len(), ms(world.now())),
        (4, 12, 300)
    );
}

/// Half-open lets through its probes and no more, whoever else comes at that moment.
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
    let world = World::new(|_, call, stream| {
        let script = doing(&[&[status(500)]]);
        match call {
            0 => script.play(0, 0, stream),
            _ => Played::flowing(
                script.play(0, call, stream).response,
                Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest]),
            ),
        }
    });
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let herd =
        futures::future::join_all((0..64).map(|_| router.chat(request(false), context(None))))
            .await;
    let served = herd.iter().filter(|result| result.is_ok()).count();
    assert_eq!(
        (served, world.calls().len()),
        (probes as usize, 1 + probes as usize)
    );
    assert!(
        herd.into_iter()
            .filter(Result::is_err)
            .all(|result| failure(result).cause == Cause::BreakerOpen)
    );
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// Breakers are of a provider and a model: a neighbour is not affected.
#[tokio::test(start_paused = true)]
async fn a_breaker_is_its_candidates_own() {
    let mut schedule = doing(&[&[status(500)], &[]]);
    (
        schedule.settings.failure_threshold,
        schedule.settings.max_attempts,
    ) = (1, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    for _ in 0..3 {
        let served = router
            .chat(request(false), context(None))
            .await
            .unwrap_or_else(|_| panic!("the neighbour serves"));
        assert_eq!(served.by.provider, "p2");
    }
    assert_eq!(world.order(), [1, 2, 2, 2]);
    let states: Vec<BreakerState> = router
        .health()
        .iter()
        .map(|health| health.breaker)
        .collect();
    assert_eq!(states, [BreakerState::Open, BreakerState::Closed]);
}

/// A full queue is refused at once, with a hint when to come again.
#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_says_so() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    (
        config.providers["p1"].max_in_flight,
        config.providers["p1"].queue,
    ) = (1, 2);
    let world = world(&schedule);
    let router = world.router(&config);
    let mut under_way: Vec<_> = (0..3)
        .map(|_| Box::pin(router.chat(request(false), context(None))))
        .collect();
    for call in &mut under_way {
        assert!(call.as_mut().now_or_never().is_none());
    }
    let refused = router
        .chat(request(false), context(None))
        .now_or_never()
        .expect("at once");
    let refused = failure(refused);
    assert_eq!(
        (refused.cause, refused.retry_after),
        (Cause::BulkheadFull, Some(SECOND))
    );
    assert_eq!(world.calls().len(), 1);
}

/// A place that comes free when the time is over is of no use: nothing was sent, and nothing is counted as sent.
#[tokio::test(start_paused = true)]
async fn a_place_that_comes_too_late_is_no_attempt() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    config.providers["p1"].max_in_flight = 1;
    let world = world(&schedule);
    let router = world.router(&config);
    let (first, second) = futures::join!(
        router.chat(request(false), context(None)),
        router.chat(request(false), context(None))
    );
    assert_eq!(
        (failure(first).cause, failure(second).cause),
        (Cause::DeadlineExceeded, Cause::BulkheadFull)
    );
    assert_eq!(world.calls().len(), 1);
    let text = world.metrics.render();
    let attempts: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("gauntlet_attempts_total") && !line.ends_with(" 0"))
        .collect();
    assert!(
        attempts.len() == 1 && attempts[0].ends_with("outcome=\"deadline_exceeded\"} 1"),
        "{text}"
    );
}
