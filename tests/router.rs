//! The router's rules, one by one, under a paused clock: who is asked, how often, after which wait, until when, and what the
//! client is told. The providers follow a script; protocol and router are the real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::time::Duration;

use gauntlet::llm::cause::Cause;
use gauntlet::llm::router::RouterError;
use gauntlet::resilience::breaker::BreakerState;
use gauntlet_harness::schedule::{Action, Played, Response, full_text};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::rules::{SECOND, doing, limited, ms, status, world};
use crate::providers::{World, config_of, context, failure, read, request};

/// What each failure of the first candidate leads to: how often it is asked, and whether the second is.
#[rstest]
#[case::refused(Action::Refuse, Cause::Refused, 3, true)]
#[case::reset(Action::Reset, Cause::Reset, 3, true)]
#[case::connect(Action::NeverAccept, Cause::ConnectTimeout, 1, true)]
#[case::silent(Action::Silent, Cause::DeadlineExceeded, 1, true)]
#[case::rate_limited(status(429), Cause::RateLimited, 3, true)]
#[case::quota(Action::Quota, Cause::QuotaExhausted, 1, true)]
#[case::payment(status(402), Cause::QuotaExhausted, 1, true)]
#[case::internal(status(500), Cause::ServerError, 3, true)]
#[case::bad_gateway(status(502), Cause::ServerError, 3, true)]
#[case::unavailable(status(503), Cause::Overloaded, 3, true)]
#[case::overloaded(status(529), Cause::Overloaded, 3, true)]
#[case::unauthorised(status(401), Cause::ProviderAuth, 1, true)]
#[case::forbidden(status(403), Cause::ProviderAuth, 1, true)]
#[case::bad_request(status(400), Cause::Rejected, 1, false)]
#[case::not_found(status(404), Cause::NotFound, 1, true)]
#[case::no_such_method(status(405), Cause::NotFound, 1, true)]
#[case::gone(status(410), Cause::NotFound, 1, true)]
#[case::too_large(status(413), Cause::Rejected, 1, false)]
#[case::unprocessable(status(422), Cause::Rejected, 1, false)]
#[case::html(Action::Html, Cause::BadResponse, 1, true)]
#[case::empty(Action::Empty, Cause::BadResponse, 1, true)]
#[case::no_choices(Action::NoFinish { events: 0 }, Cause::BadResponse, 1, true)]
#[case::not_json(Action::Malformed { events: 0 }, Cause::BadResponse, 1, true)]
#[case::in_band(Action::InBandError { events: 0 }, Cause::InBand, 3, true)]
#[case::cut(Action::Cut { events: 2 }, Cause::Truncated, 3, true)]
#[case::stalled(Action::Stall { events: 2 }, Cause::IdleTimeout, 1, true)]
#[tokio::test(start_paused = true)]
async fn what_a_failure_leads_to(
    #[case] action: Action,
    #[case] cause: Cause,
    #[case] asked: usize,
    #[case] falls_back: bool,
) {
    let schedule = doing(&[&[action; 9], &[]]);
    let world = world(&schedule);
    let result = world
        .router(&config_of(&schedule))
        .chat(request(false), context(None))
        .await;
    let attempts = match &result {
        Ok(served) => &served.attempts,
        Err(RouterError::Failed(failure)) => &failure.attempts,
        Err(other) => panic!("{other:?}"),
    };
    let causes: Vec<_> = attempts
        .iter()
        .map(|attempt| attempt.error.as_ref().map(|error| error.cause))
        .collect();
    assert_eq!(causes[..asked], vec![Some(cause); asked]);
    assert_eq!(result.is_ok(), falls_back);
    let order = if falls_back {
        [vec![1; asked], vec![2]].concat()
    } else {
        vec![1; asked]
    };
    assert_eq!(world.order(), order);
    assert_eq!(world.open(), 0);
}

/// A 200 that holds a client error is one: it is not tried again, goes nowhere else, and is not the provider's failure.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_error_inside_a_200(#[values(true, false)] stream: bool) {
    let mut schedule = doing(&[&[], &[]]);
    schedule.settings.failure_threshold = 1;
    let world = World::new(|_, _, stream| {
        let error =
            r#"{"error":{"message":"Too long.","type":"BadRequestError","param":null,"code":400}}"#;
        match stream {
            true => Played::at_once(Response::ok(
                "text/event-stream",
                format!("data: {error}\n\ndata: [DONE]\n\n"),
            )),
            false => Played::at_once(Response::ok("application/json", error)),
        }
    });
    let router = world.router(&config_of(&schedule));
    let failure = failure(router.chat(request(stream), context(None)).await);
    assert_eq!(
        (failure.cause, failure.attempts.len(), world.order()),
        (Cause::Rejected, 1, vec![1])
    );
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// Each read restarts the idle timer: an answer that is slower than every time-out but the total comes whole.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_cut(#[values(true, false)] stream: bool) {
    let mut schedule = doing(&[&[Action::Drip { every_ms: 1_400 }]]);
    schedule.settings.total_ms = 30_000;
    let world = world(&schedule);
    let served = world
        .router(&config_of(&schedule))
        .chat(request(stream), context(None))
        .await
        .unwrap_or_else(|_| panic!("it comes in time"));
    let told = read(served).await;
    assert_eq!((told.text, told.done), (full_text(0, 0), 1));
}

/// An answer that never ends is cut at the deadline; a stream by then has begun.
#[rstest]
#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_cut_at_the_deadline(#[values(true, false)] stream: bool) {
    let schedule = doing(&[&[Action::DripForever { every_ms: 700 }]]);
    let world = world(&schedule);
    let start = Instant::now();
    let cause = match world
        .router(&config_of(&schedule))
        .chat(request(stream), context(None))
        .await
    {
        Ok(served) => read(served).await.failed[0].cause,
        Err(error) => failure(Err(error)).cause,
    };
    assert_eq!(
        (cause, ms(start.elapsed())),
        (Cause::DeadlineExceeded, 10_000)
    );
    assert_eq!(world.open(), 0);
}

/// The deadline is one: three silent providers do not multiply it, and each later one keeps its reserve.
#[tokio::test(start_paused = true)]
async fn silent_providers_share_one_deadline() {
    let schedule = doing(&[&[Action::Silent], &[Action::Silent], &[Action::Silent]]);
    let world = world(&schedule);
    let start = Instant::now();
    let failure = failure(
        world
            .router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, failure.attempts.len(), ms(start.elapsed())),
        (Cause::DeadlineExceeded, 3, 10_000)
    );
    let starts: Vec<u128> = world.calls().iter().map(|call| ms(call.at)).collect();
    assert_eq!(starts, [0, 8_000, 9_000]);
}

/// The caller's deadline can only shorten; over at the start, nobody is asked.
#[rstest]
#[case::shorter(2_000, 2_000, 1)]
#[case::longer(60_000, 10_000, 1)]
#[case::over(0, 0, 0)]
#[tokio::test(start_paused = true)]
async fn the_callers_deadline(#[case] asked_ms: u64, #[case] ends_ms: u128, #[case] calls: usize) {
    let schedule = doing(&[&[Action::Silent]]);
    let world = world(&schedule);
    let start = Instant::now();
    let deadline = Some(start + Duration::from_millis(asked_ms));
    let failure = failure(
        world
            .router(&config_of(&schedule))
            .chat(request(false), context(deadline))
            .await,
    );
    assert_eq!(
        (failure.cause, ms(start.elapsed())),
        (Cause::DeadlineExceeded, ends_ms)
    );
    assert_eq!(
        (failure.attempts.len(), world.calls().len()),
        (calls, calls)
    );
}

/// The deadline runs from the arrival of the request, not from the moment at which its body had been read.
#[tokio::test(start_paused = true)]
async fn the_deadline_runs_from_the_arrival() {
    let schedule = doing(&[&[Action::Silent]]);
    let world = world(&schedule);
    let arrived = context(None);
    tokio::time::advance(4 * SECOND).await;
    let failure = failure(
        world
            .router(&config_of(&schedule))
            .chat(request(false), arrived)
            .await,
    );
    assert_eq!(
        (failure.cause, ms(world.now())),
        (Cause::DeadlineExceeded, 10_000)
    );
}

/// Back-off doubles; every attempt carries the same body and the same idempotency key.
#[tokio::test(start_paused = true)]
async fn attempts_are_spaced_and_alike() {
    let mut schedule = doing(&[&[status(500); 9]]);
    schedule.settings.max_attempts = 4;
    let world = world(&schedule);
    failure(
        world
            .router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    let calls = world.calls();
    assert_eq!(
        calls.iter().map(|call| ms(call.at)).collect::<Vec<_>>(),
        [0, 100, 300, 700]
    );
    assert!(
        calls.iter().all(|call| call.body == calls[0].body
            && call.headers.get("idempotency-key").unwrap() == "k-1")
    );
}

/// Retry-After is waited for where it fits, else the next candidate is asked at once, else the client is told at once.
#[rstest]
#[case::fits(vec![vec![limited(3)]], &[(1, 0), (1, 3_000)], None)]
#[case::shorter_than_the_back_off(vec![vec![limited(0)]], &[(1, 0), (1, 100)], None)]
#[case::too_long_but_another_is_there(vec![vec![limited(47)], vec![]], &[(1, 0), (2, 0)], None)]
#[case::too_long_for_the_share(vec![vec![limited(9)], vec![]], &[(1, 0), (2, 0)], None)]
#[case::too_long_and_nobody_else(vec![vec![limited(47)]], &[(1, 0)], Some(47))]
#[case::the_soonest_of_two(vec![vec![limited(47)], vec![limited(30)]], &[(1, 0), (2, 0)], Some(30))]
#[case::absurd(vec![vec![limited(u64::MAX / 2)]], &[(1, 0)], Some(86_400))]
#[tokio::test(start_paused = true)]
async fn retry_after(
    #[case] script: Vec<Vec<Action>>,
    #[case] calls: &[(usize, u128)],
    #[case] told: Option<u64>,
) {
    let schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let world = world(&schedule);
    let result = world
        .router(&config_of(&schedule))
        .chat(request(false), context(None))
        .await;
    let seen: Vec<(usize, u128)> = world
        .calls()
        .iter()
        .map(|call| (call.candidate + 1, ms(call.at)))
        .collect();
    assert_eq!(seen, calls);
    match (result, told) {
        (Ok(_), None) => {}
        (result, told) => {
            let failure = failure(result);
            assert_eq!(
                (failure.cause, failure.retry_after),
                (Cause::RateLimited, told.map(Duration::from_secs))
            );
        }
    }
}

/// Who asks for more than the longest back-off is left for the next candidate at once, although the wait would fit.
#[rstest]
#[case::another_is_free(vec![vec![limited(3)], vec![]], &[(1, 0), (2, 0)])]
#[case::nobody_else(vec![vec![limited(3)]], &[(1, 0), (1, 3_000)])]
#[case::the_last_of_two(vec![vec![status(401)], vec![limited(3)]], &[(1, 0), (2, 0), (2, 3_000)])]
#[case::no_more_than_a_back_off(vec![vec![limited(2)], vec![]], &[(1, 0), (1, 2_000)])]
#[tokio::test(start_paused = true)]
async fn a_long_retry_after_is_not_slept_out_where_another_is_free(
    #[case] script: Vec<Vec<Action>>,
    #[case] calls: &[(usize, u128)],
) {
    let mut schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    schedule.settings.max_ms = 2_000;
    let world = world(&schedule);
    assert!(
        world
            .router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await
            .is_ok()
    );
    let seen: Vec<(usize, u128)> = world
        .calls()
        .iter()
        .map(|call| (call.candidate + 1, ms(call.at)))
        .collect();
    assert_eq!(seen, calls);
}

/// A dead provider under many requests sees no more than the budget allows.
#[tokio::test(start_paused = true)]
async fn retries_stay_within_the_budget() {
    let mut schedule = doing(&[&[status(500); 400]]);
    (
        schedule.settings.budget_percent,
        schedule.settings.budget_floor,
        schedule.settings.failure_threshold,
    ) = (20, 3, 10_000);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let asked =
        futures::future::join_all((0..100).map(|_| router.chat(request(false), context(None))))
            .await;
    assert!(
        asked
            .into_iter()
            .all(|result| failure(result).cause == Cause::ServerError)
    );
    assert_eq!(world.calls().len(), 100 + 23);
}

/// A connection that the deadline did not give its time is told as the deadline's end, not as the provider's time-out.
#[rstest]
#[case::the_callers(400, Cause::DeadlineExceeded)]
#[case::its_own(501, Cause::ConnectTimeout)]
#[tokio::test(start_paused = true)]
async fn a_connection_is_waited_for_as_long_as_the_deadline_allows(
    #[case] deadline_ms: u64,
    #[case] cause: Cause,
) {
    let schedule = doing(&[&[Action::NeverAccept]]);
    let world = world(&schedule);
    let deadline = Some(Instant::now() + Duration::from_millis(deadline_ms));
    assert_eq!(
        failure(
            world
                .router(&config_of(&schedule))
                .chat(request(false), context(deadline))
                .await
        )
        .cause,
        cause
    );
}

/// The client that leaves ends what runs for it, and nothing starts afterwards.
#[rstest]
#[case::before_the_head(&[Action::Silent], 50)]
#[case::before_the_first_token(&[Action::Stall { events: 1 }], 50)]
#[case::during_the_back_off(&[status(500)], 50)]
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves(#[case] script: &[Action], #[case] leaves_ms: u64) {
    let schedule = doing(&[script, &[]]);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let left = tokio::time::timeout(
        Duration::from_millis(leaves_ms),
        router.chat(request(true), context(None)),
    )
    .await;
    assert!(left.is_err());
    assert_eq!(world.open(), 0, "the connection is closed");
    tokio::time::advance(60 * SECOND).await;
    assert_eq!(world.order(), [1], "nothing started afterwards");
    assert!(
        router
            .health()
            .iter()
            .all(|health| health.breaker == BreakerState::Closed)
    );
}

/// Attempts in metrics are what the provider saw; a client that leaves is told apart.
#[tokio::test(start_paused = true)]
async fn metrics_count_what_happened() {
    let schedule = doing(&[
        &[status(500), Action::Answer, Action::Stall { events: 3 }],
        &[],
    ]);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    assert!(router.chat(request(false), context(None)).await.is_ok());
    drop(router.chat(request(true), context(None)).await);
    let text = world.metrics.render();
    for line in [
        "outcome=\"success\"} 1",
        "outcome=\"server_error\"} 1",
        "outcome=\"cancelled\"} 1",
    ] {
        assert!(
            text.lines()
                .any(|metric| metric.starts_with("gauntlet_attempts") && metric.ends_with(line)),
            "{line} in\n{text}"
        );
    }
    assert!(
        text.lines()
            .any(|metric| metric.starts_with("gauntlet_retries") && metric.ends_with("} 1")),
        "{text}"
    );
}

/// A plain answer beyond the bound is given up while it comes.
#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_bounded() {
    let schedule = doing(&[&[]]);
    let world = World::new(|_, _, _| {
        Played::at_once(Response::ok("application/json", " ".repeat((32 << 20) + 1)))
    });
    assert_eq!(
        failure(
            world
                .router(&config_of(&schedule))
                .chat(request(false), context(None))
                .await
        )
        .cause,
        Cause::Oversized
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_alias() {
    let schedule = doing(&[&[]]);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let mut asked = request(false);
    asked.model = "nobody".into();
    assert!(
        matches!(router.chat(asked, context(None)).await, Err(RouterError::UnknownModel(name)) if name == "nobody")
    );
    assert_eq!(router.aliases(), [gauntlet_harness::schedule::ALIAS]);
}
