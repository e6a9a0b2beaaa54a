//! The rules of the router, one by one, under a paused clock: which candidate is asked, how often,
//! after which wait and until when, and what the client receives. The providers are scripted;
//! protocol and router are real.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::time::Duration;

use gauntlet::llm::cause::Cause;
use gauntlet::llm::router::RouterError;
use gauntlet::resilience::breaker::BreakerState;
use gauntlet_harness::schedule::{Action, Played, Response, full_text};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::rules::{SECOND, doing, limited, ms, sim, status};
use crate::providers::{RouterSim, config_of, context, failure, read, request};

/// After each kind of failure, the first candidate is asked so often, and the second one or not.
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
async fn a_failure_is_retried_and_falls_back_by_its_cause(
    #[case] action: Action,
    #[case] cause: Cause,
    #[case] asked: usize,
    #[case] falls_back: bool,
) {
    let schedule = doing(&[&[action; 9], &[]]);
    let sim = sim(&schedule);
    let result = sim
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
    assert_eq!(sim.order(), order);
    assert_eq!(sim.open(), 0);
}

/// A 200 that holds a client error is treated as that error: it is neither retried nor sent to
/// another candidate, and does not count against the provider.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_error_inside_a_200(#[values(true, false)] stream: bool) {
    let mut schedule = doing(&[&[], &[]]);
    schedule.settings.failure_threshold = 1;
    let sim = RouterSim::new(|_, _, stream| {
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
    let router = sim.router(&config_of(&schedule));
    let failure = failure(router.chat(request(stream), context(None)).await);
    assert_eq!(
        (failure.cause, failure.attempts.len(), sim.order()),
        (Cause::Rejected, 1, vec![1])
    );
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// Each read restarts the idle timeout: an answer arrives complete although it takes longer than
/// every timeout but the deadline.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_cut(#[values(true, false)] stream: bool) {
    let mut schedule = doing(&[&[Action::Drip { every_ms: 1_400 }]]);
    schedule.settings.total_ms = 30_000;
    let sim = sim(&schedule);
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(stream), context(None))
        .await
        .unwrap_or_else(|_| panic!("the answer arrives before the deadline"));
    let received = read(served).await;
    assert_eq!((received.text, received.done), (full_text(0, 0), 1));
}

/// An answer that never ends is cut at the deadline. A stream has begun by then.
#[rstest]
#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_cut_at_the_deadline(#[values(true, false)] stream: bool) {
    let schedule = doing(&[&[Action::DripForever { every_ms: 700 }]]);
    let sim = sim(&schedule);
    let start = Instant::now();
    let cause = match sim
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
    assert_eq!(sim.open(), 0);
}

/// Three silent providers share one deadline, and each later one keeps its reserve.
#[tokio::test(start_paused = true)]
async fn silent_providers_share_one_deadline() {
    let schedule = doing(&[&[Action::Silent], &[Action::Silent], &[Action::Silent]]);
    let sim = sim(&schedule);
    let start = Instant::now();
    let failure = failure(
        sim.router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, failure.attempts.len(), ms(start.elapsed())),
        (Cause::DeadlineExceeded, 3, 10_000)
    );
    let starts: Vec<u128> = sim.calls().iter().map(|call| ms(call.at)).collect();
    assert_eq!(starts, [0, 8_000, 9_000]);
}

/// The caller's deadline can only shorten the configured one. If it has passed at the start, no
/// candidate is asked.
#[rstest]
#[case::shorter(2_000, 2_000, 1)]
#[case::longer(60_000, 10_000, 1)]
#[case::over(0, 0, 0)]
#[tokio::test(start_paused = true)]
async fn the_callers_deadline(#[case] asked_ms: u64, #[case] ends_ms: u128, #[case] calls: usize) {
    let schedule = doing(&[&[Action::Silent]]);
    let sim = sim(&schedule);
    let start = Instant::now();
    let deadline = Some(start + Duration::from_millis(asked_ms));
    let failure = failure(
        sim.router(&config_of(&schedule))
            .chat(request(false), context(deadline))
            .await,
    );
    assert_eq!(
        (failure.cause, ms(start.elapsed())),
        (Cause::DeadlineExceeded, ends_ms)
    );
    assert_eq!((failure.attempts.len(), sim.calls().len()), (calls, calls));
}

/// The deadline runs from the arrival of the request, not from the end of its body.
#[tokio::test(start_paused = true)]
async fn the_deadline_runs_from_the_arrival() {
    let schedule = doing(&[&[Action::Silent]]);
    let sim = sim(&schedule);
    let arrived = context(None);
    tokio::time::advance(4 * SECOND).await;
    let failure = failure(
        sim.router(&config_of(&schedule))
            .chat(request(false), arrived)
            .await,
    );
    assert_eq!(
        (failure.cause, ms(sim.now())),
        (Cause::DeadlineExceeded, 10_000)
    );
}

/// The backoff doubles, and every attempt carries the same body and idempotency key.
#[tokio::test(start_paused = true)]
async fn attempts_are_spaced_and_alike() {
    let mut schedule = doing(&[&[status(500); 9]]);
    schedule.settings.max_attempts = 4;
    let sim = sim(&schedule);
    failure(
        sim.router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await,
    );
    let calls = sim.calls();
    assert_eq!(
        calls.iter().map(|call| ms(call.at)).collect::<Vec<_>>(),
        [0, 100, 300, 700]
    );
    assert!(
        calls.iter().all(|call| call.body == calls[0].body
            && call.headers.get("idempotency-key").unwrap() == "k-1")
    );
}

/// A Retry-After that fits is waited for. Otherwise the next candidate is asked at once, and
/// without one the client receives the error at once.
#[rstest]
#[case::fits(vec![vec![limited(3)]], &[(1, 0), (1, 3_000)], None)]
#[case::shorter_than_the_backoff(vec![vec![limited(0)]], &[(1, 0), (1, 100)], None)]
#[case::too_long_with_another(vec![vec![limited(47)], vec![]], &[(1, 0), (2, 0)], None)]
#[case::too_long_for_the_share(vec![vec![limited(9)], vec![]], &[(1, 0), (2, 0)], None)]
#[case::too_long_and_no_other_candidate(vec![vec![limited(47)]], &[(1, 0)], Some(47))]
#[case::the_soonest_of_two(vec![vec![limited(47)], vec![limited(30)]], &[(1, 0), (2, 0)], Some(30))]
#[case::absurd(vec![vec![limited(u64::MAX / 2)]], &[(1, 0)], Some(86_400))]
#[tokio::test(start_paused = true)]
async fn retry_after(
    #[case] script: Vec<Vec<Action>>,
    #[case] calls: &[(usize, u128)],
    #[case] retry_after_s: Option<u64>,
) {
    let schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let sim = sim(&schedule);
    let result = sim
        .router(&config_of(&schedule))
        .chat(request(false), context(None))
        .await;
    let seen: Vec<(usize, u128)> = sim
        .calls()
        .iter()
        .map(|call| (call.candidate + 1, ms(call.at)))
        .collect();
    assert_eq!(seen, calls);
    match (result, retry_after_s) {
        (Ok(_), None) => {}
        (result, retry_after_s) => {
            let failure = failure(result);
            assert_eq!(
                (failure.cause, failure.retry_after),
                (Cause::RateLimited, retry_after_s.map(Duration::from_secs))
            );
        }
    }
}

/// A provider that asks for more than the longest backoff is left for the next candidate at once,
/// although the wait fits into the deadline.
#[rstest]
#[case::another_is_free(vec![vec![limited(3)], vec![]], &[(1, 0), (2, 0)])]
#[case::no_other_candidate(vec![vec![limited(3)]], &[(1, 0), (1, 3_000)])]
#[case::the_last_of_two(vec![vec![status(401)], vec![limited(3)]], &[(1, 0), (2, 0), (2, 3_000)])]
#[case::no_more_than_a_backoff(vec![vec![limited(2)], vec![]], &[(1, 0), (1, 2_000)])]
#[tokio::test(start_paused = true)]
async fn a_long_retry_after_is_not_slept_out_where_another_is_free(
    #[case] script: Vec<Vec<Action>>,
    #[case] calls: &[(usize, u128)],
) {
    let mut schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    schedule.settings.max_ms = 2_000;
    let sim = sim(&schedule);
    assert!(
        sim.router(&config_of(&schedule))
            .chat(request(false), context(None))
            .await
            .is_ok()
    );
    let seen: Vec<(usize, u128)> = sim
        .calls()
        .iter()
        .map(|call| (call.candidate + 1, ms(call.at)))
        .collect();
    assert_eq!(seen, calls);
}

/// A provider that fails every one of many requests receives no more attempts than the retry budget
/// permits.
#[tokio::test(start_paused = true)]
async fn retries_stay_within_the_budget() {
    let mut schedule = doing(&[&[status(500); 400]]);
    (
        schedule.settings.budget_percent,
        schedule.settings.budget_floor,
        schedule.settings.failure_threshold,
    ) = (20, 3, 10_000);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    let asked =
        futures::future::join_all((0..100).map(|_| router.chat(request(false), context(None))))
            .await;
    assert!(
        asked
            .into_iter()
            .all(|result| failure(result).cause == Cause::ServerError)
    );
    assert_eq!(sim.calls().len(), 100 + 23);
}

/// If the deadline is shorter than the connect timeout, the cause is the deadline.
#[rstest]
#[case::the_callers(400, Cause::DeadlineExceeded)]
#[case::its_own(501, Cause::ConnectTimeout)]
#[tokio::test(start_paused = true)]
async fn a_connection_is_waited_for_as_long_as_the_deadline_allows(
    #[case] deadline_ms: u64,
    #[case] cause: Cause,
) {
    let schedule = doing(&[&[Action::NeverAccept]]);
    let sim = sim(&schedule);
    let deadline = Some(Instant::now() + Duration::from_millis(deadline_ms));
    assert_eq!(
        failure(
            sim.router(&config_of(&schedule))
                .chat(request(false), context(deadline))
                .await
        )
        .cause,
        cause
    );
}

/// A client that leaves ends everything that runs for it, and nothing starts afterwards.
#[rstest]
#[case::before_the_head(&[Action::Silent], 50)]
#[case::before_the_first_token(&[Action::Stall { events: 1 }], 50)]
#[case::during_the_backoff(&[status(500)], 50)]
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves(#[case] script: &[Action], #[case] leaves_ms: u64) {
    let schedule = doing(&[script, &[]]);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    let left = tokio::time::timeout(
        Duration::from_millis(leaves_ms),
        router.chat(request(true), context(None)),
    )
    .await;
    assert!(left.is_err());
    assert_eq!(sim.open(), 0, "the connection is closed");
    tokio::time::advance(60 * SECOND).await;
    assert_eq!(sim.order(), [1], "nothing starts afterwards");
    assert!(
        router
            .health()
            .iter()
            .all(|health| health.breaker == BreakerState::Closed)
    );
}

/// Metrics count the attempts that the provider received, and an attempt that its client left as
/// cancelled.
#[tokio::test(start_paused = true)]
async fn metrics_count_what_happened() {
    let schedule = doing(&[
        &[status(500), Action::Answer, Action::Stall { events: 3 }],
        &[],
    ]);
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    assert!(router.chat(request(false), context(None)).await.is_ok());
    drop(router.chat(request(true), context(None)).await);
    let text = sim.metrics.render();
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

/// A plain answer beyond the size limit is abandoned while it arrives.
#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_bounded() {
    let schedule = doing(&[&[]]);
    let sim = RouterSim::new(|_, _, _| {
        Played::at_once(Response::ok("application/json", " ".repeat((32 << 20) + 1)))
    });
    assert_eq!(
        failure(
            sim.router(&config_of(&schedule))
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
    let sim = sim(&schedule);
    let router = sim.router(&config_of(&schedule));
    let mut asked = request(false);
    asked.model = "unknown".into();
    assert!(
        matches!(router.chat(asked, context(None)).await, Err(RouterError::UnknownModel(name)) if name == "unknown")
    );
    assert_eq!(router.aliases(), [gauntlet_harness::schedule::ALIAS]);
}

/// A provider that answers `x-should-retry: false` is not asked again; the next candidate is.
#[rstest]
#[case::no("false", &[1, 2])]
#[case::in_capitals("False", &[1, 2])]
#[case::yes("true", &[1, 1, 1, 2])]
#[tokio::test(start_paused = true)]
async fn a_provider_may_ask_not_to_be_retried(
    #[case] value: &'static str,
    #[case] order: &[usize],
) {
    let sim = RouterSim::new(move |candidate, _, stream| {
        if candidate == 1 {
            return doing(&[&[]]).play(0, 0, stream);
        }
        Played::at_once(Response {
            status: 500,
            headers: vec![("x-should-retry".into(), value.into())],
            ..Response::ok("application/json", "{}")
        })
    });
    let router = sim.router(&config_of(&doing(&[&[], &[]])));
    assert!(router.chat(request(false), context(None)).await.is_ok());
    assert_eq!(sim.order(), order);
}

/// Without any timeout but the total, a candidate that is silent leaves the reserve of those after
/// it, also to a plain request, and the next one answers while the first is still silent.
#[rstest]
#[case::two(2)]
#[case::three(3)]
#[tokio::test(start_paused = true)]
async fn a_silent_candidate_leaves_time_to_the_others(#[case] candidates: usize) {
    let silent: Vec<&[Action]> = vec![&[Action::Silent]; candidates - 1];
    let mut schedule = doing(&[silent, vec![&[]]].concat());
    let total = schedule.settings.total_ms;
    (
        schedule.settings.first_token_ms,
        schedule.settings.idle_ms,
        schedule.settings.connect_ms,
    ) = (total, total, total);
    let sim = sim(&schedule);
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(false), context(None))
        .await
        .unwrap_or_else(|_| panic!("the last candidate serves"));
    assert_eq!(&*served.by.provider, format!("p{candidates}"));
    assert!(sim.now() < Duration::from_millis(total));
}
