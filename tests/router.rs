//! The router's rules, one by one, under a paused clock: who is asked, how often, after which wait, until when, and what the
//! client is told. The providers follow a script; protocol and router are the real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use gauntlet::llm::chat::{Answer, Cause, StreamItem};
use gauntlet::llm::router::RouterError;
use gauntlet::telemetry::BreakerState;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::schedule::{Action, Played, Response, Schedule, Script, Settings, full_text, word};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::{World, config_of, content_of, context, failure, read, request};

const SECOND: Duration = Duration::from_secs(1);

/// Generous settings without jitter: 10 s in all, 1 s of reserve, first token 3 s, idle 2 s, back-off from 100 ms.
fn settings() -> Settings {
    Settings {
        connect_ms: 500,
        first_token_ms: 3_000,
        idle_ms: 2_000,
        total_ms: 10_000,
        reserve_ms: 1_000,
        max_attempts: 3,
        base_ms: 100,
        max_ms: 10_000,
        jitter_percent: 0,
        budget_percent: 1_000,
        budget_floor: 100,
        failure_threshold: 100,
        cool_down_ms: 30_000,
        half_open_probes: 1,
    }
}

/// Candidates that do this, call after call.
fn doing(candidates: &[&[Action]]) -> Schedule {
    let candidates = candidates.iter().map(|calls| Script { calls: calls.to_vec() }).collect();
    Schedule { settings: settings(), candidates, requests: Vec::new() }
}

fn world(schedule: &Schedule) -> Arc<World> {
    let script = schedule.clone();
    World::new(move |candidate, call, stream| script.play(candidate, call, stream))
}

fn status(status: u16) -> Action {
    Action::Status { status, retry_after_s: None }
}

fn limited(seconds: u64) -> Action {
    Action::Status { status: 429, retry_after_s: Some(seconds) }
}

fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}

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
async fn what_a_failure_leads_to(#[case] action: Action, #[case] cause: Cause, #[case] asked: usize, #[case] falls_back: bool) {
    let schedule = doing(&[&[action; 9], &[]]);
    let world = world(&schedule);
    let result = world.router(&config_of(&schedule)).chat(request(false), context(None)).await;
    let attempts = match &result {
        Ok(served) => &served.attempts,
        Err(RouterError::Failed(failure)) => &failure.attempts,
        Err(other) => panic!("{other:?}"),
    };
    let causes: Vec<_> = attempts.iter().map(|attempt| attempt.error.as_ref().map(|error| error.cause)).collect();
    assert_eq!(causes[..asked], vec![Some(cause); asked]);
    assert_eq!(result.is_ok(), falls_back);
    let order = if falls_back { [vec![1; asked], vec![2]].concat() } else { vec![1; asked] };
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
        let error = r#"{"error":{"message":"Too long.","type":"BadRequestError","param":null,"code":400}}"#;
        match stream {
            true => Played::at_once(Response::ok("text/event-stream", format!("data: {error}\n\ndata: [DONE]\n\n"))),
            false => Played::at_once(Response::ok("application/json", error)),
        }
    });
    let router = world.router(&config_of(&schedule));
    let failure = failure(router.chat(request(stream), context(None)).await);
    assert_eq!((failure.cause, failure.attempts.len(), world.order()), (Cause::Rejected, 1, vec![1]));
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// Before the commit point a stream's failures lead to the next candidate; the client sees one clean stream.
#[rstest]
#[case::role_only_then_silence(Action::Stall { events: 1 })]
#[case::role_only_then_cut(Action::Cut { events: 1 })]
#[case::role_only_then_reset(Action::ResetAfter { events: 1 })]
#[case::first_word_cut_inside(Action::CutInside { events: 1 })]
#[case::role_only_then_error(Action::InBandError { events: 1 })]
#[case::error_at_once(Action::InBandError { events: 0 })]
#[case::not_json(Action::Malformed { events: 1 })]
#[case::ends_without_content(Action::NoFinish { events: 1 })]
#[case::ends_at_once(Action::NoFinish { events: 0 })]
#[case::html(Action::Html)]
#[case::silent(Action::Silent)]
#[case::head_then_silence(Action::Stall { events: 0 })]
#[case::never_accepts(Action::NeverAccept)]
#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_before_its_first_token_falls_back(#[case] action: Action) {
    let schedule = doing(&[&[action; 9], &[]]);
    let world = world(&schedule);
    let served = world.router(&config_of(&schedule)).chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("the second serves"));
    assert_eq!(served.by.provider, "p2");
    let told = read(served).await;
    assert_eq!((told.text, told.done, told.failed.len()), (full_text(1, 0), 1, 0));
    assert_eq!(world.open(), 0);
}

/// After the commit point a failure is the last item, and nobody is asked any more.
#[rstest]
#[case::stall(Action::Stall { events: 3 }, Cause::IdleTimeout)]
#[case::cut(Action::Cut { events: 3 }, Cause::Truncated)]
#[case::reset(Action::ResetAfter { events: 3 }, Cause::Truncated)]
#[case::cut_inside(Action::CutInside { events: 3 }, Cause::Truncated)]
#[case::no_finish(Action::NoFinish { events: 3 }, Cause::Truncated)]
#[case::in_band(Action::InBandError { events: 3 }, Cause::InBand)]
#[case::not_json(Action::Malformed { events: 3 }, Cause::BadResponse)]
#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_after_its_first_token_says_so(#[case] action: Action, #[case] cause: Cause) {
    let schedule = doing(&[&[action; 9], &[]]);
    let world = world(&schedule);
    let served = world.router(&config_of(&schedule)).chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("committed"));
    let told = read(served).await;
    assert_eq!(told.text, [word(0, 0, 0), word(0, 0, 1)].concat());
    assert_eq!((told.done, told.failed.len()), (0, 1));
    assert_eq!(told.failed[0].cause, cause);
    assert_eq!(world.order(), [1]);
    assert_eq!(world.open(), 0);
}

/// The first-token time-out begins with the request, is not extended by what is no content, and bounds streams alone.
#[rstest]
#[case::nothing(Plan::silent())]
#[case::head_alone(Plan::of([Step::Head, Step::Stall]))]
#[case::pings(Plan::of([Step::Head, Step::Garbage(b": ping\n\n".to_vec()), Step::Pause { ms: 1_500 }, Step::Garbage(b": ping\n\n".to_vec()), Step::Pause { ms: 1_400 }, Step::Garbage(b": ping\n\n".to_vec()), Step::Stall]))]
#[case::roles(Plan::of([Step::Head, Step::Events(1), Step::RepeatForever { every_ms: 200 }]))]
#[tokio::test(start_paused = true)]
async fn the_first_token_is_waited_for_so_long(#[case] plan: Plan) {
    let schedule = doing(&[&[]]);
    let world = World::new(move |_, _, _| {
        let body = Schedule::play(&doing(&[&[]]), 0, 0, true).response.body;
        Played::flowing(Response::ok("text/event-stream", body), plan.clone())
    });
    let start = Instant::now();
    let failure = failure(world.router(&config_of(&schedule)).chat(request(true), context(None)).await);
    assert_eq!((failure.cause, ms(start.elapsed())), (Cause::FirstTokenTimeout, 3_000));
    assert_eq!(world.open(), 0);
}

/// Each read restarts the idle timer: an answer that is slower than every time-out but the total comes whole.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_cut(#[values(true, false)] stream: bool) {
    let mut schedule = doing(&[&[Action::Drip { every_ms: 1_400 }]]);
    schedule.settings.total_ms = 30_000;
    let world = world(&schedule);
    let served = world.router(&config_of(&schedule)).chat(request(stream), context(None)).await.unwrap_or_else(|_| panic!("it comes in time"));
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
    let cause = match world.router(&config_of(&schedule)).chat(request(stream), context(None)).await {
        Ok(served) => read(served).await.failed[0].cause,
        Err(error) => failure(Err(error)).cause,
    };
    assert_eq!((cause, ms(start.elapsed())), (Cause::DeadlineExceeded, 10_000));
    assert_eq!(world.open(), 0);
}

/// The deadline is one: three silent providers do not multiply it, and each later one keeps its reserve.
#[tokio::test(start_paused = true)]
async fn silent_providers_share_one_deadline() {
    let schedule = doing(&[&[Action::Silent], &[Action::Silent], &[Action::Silent]]);
    let world = world(&schedule);
    let start = Instant::now();
    let failure = failure(world.router(&config_of(&schedule)).chat(request(false), context(None)).await);
    assert_eq!((failure.cause, failure.attempts.len(), ms(start.elapsed())), (Cause::DeadlineExceeded, 3, 10_000));
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
    let failure = failure(world.router(&config_of(&schedule)).chat(request(false), context(deadline)).await);
    assert_eq!((failure.cause, ms(start.elapsed())), (Cause::DeadlineExceeded, ends_ms));
    assert_eq!((failure.attempts.len(), world.calls().len()), (calls, calls));
}

/// The deadline runs from the arrival of the request, not from the moment at which its body had been read.
#[tokio::test(start_paused = true)]
async fn the_deadline_runs_from_the_arrival() {
    let schedule = doing(&[&[Action::Silent]]);
    let world = world(&schedule);
    let arrived = context(None);
    tokio::time::advance(4 * SECOND).await;
    let failure = failure(world.router(&config_of(&schedule)).chat(request(false), arrived).await);
    assert_eq!((failure.cause, ms(world.now())), (Cause::DeadlineExceeded, 10_000));
}

/// Back-off doubles; every attempt carries the same body and the same idempotency key.
#[tokio::test(start_paused = true)]
async fn attempts_are_spaced_and_alike() {
    let mut schedule = doing(&[&[status(500); 9]]);
    schedule.settings.max_attempts = 4;
    let world = world(&schedule);
    failure(world.router(&config_of(&schedule)).chat(request(false), context(None)).await);
    let calls = world.calls();
    assert_eq!(calls.iter().map(|call| ms(call.at)).collect::<Vec<_>>(), [0, 100, 300, 700]);
    assert!(calls.iter().all(|call| call.body == calls[0].body && call.headers.get("idempotency-key").unwrap() == "k-1"));
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
async fn retry_after(#[case] script: Vec<Vec<Action>>, #[case] calls: &[(usize, u128)], #[case] told: Option<u64>) {
    let schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let world = world(&schedule);
    let result = world.router(&config_of(&schedule)).chat(request(false), context(None)).await;
    let seen: Vec<(usize, u128)> = world.calls().iter().map(|call| (call.candidate + 1, ms(call.at))).collect();
    assert_eq!(seen, calls);
    match (result, told) {
        (Ok(_), None) => {}
        (result, told) => {
            let failure = failure(result);
            assert_eq!((failure.cause, failure.retry_after), (Cause::RateLimited, told.map(Duration::from_secs)));
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
async fn a_long_retry_after_is_not_slept_out_where_another_is_free(#[case] script: Vec<Vec<Action>>, #[case] calls: &[(usize, u128)]) {
    let mut schedule = doing(&script.iter().map(Vec::as_slice).collect::<Vec<_>>());
    schedule.settings.max_ms = 2_000;
    let world = world(&schedule);
    assert!(world.router(&config_of(&schedule)).chat(request(false), context(None)).await.is_ok());
    let seen: Vec<(usize, u128)> = world.calls().iter().map(|call| (call.candidate + 1, ms(call.at))).collect();
    assert_eq!(seen, calls);
}

/// A dead provider under many requests sees no more than the budget allows.
#[tokio::test(start_paused = true)]
async fn retries_stay_within_the_budget() {
    let mut schedule = doing(&[&[status(500); 400]]);
    (schedule.settings.budget_percent, schedule.settings.budget_floor, schedule.settings.failure_threshold) = (20, 3, 10_000);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let asked = futures::future::join_all((0..100).map(|_| router.chat(request(false), context(None)))).await;
    assert!(asked.into_iter().all(|result| failure(result).cause == Cause::ServerError));
    assert_eq!(world.calls().len(), 100 + 23);
}

/// After the threshold nothing reaches the provider until the cool-down is over; then one probe, which closes it.
#[tokio::test(start_paused = true)]
async fn the_breaker_opens_and_recovers() {
    let mut schedule = doing(&[&[status(500), status(500)]]);
    (schedule.settings.failure_threshold, schedule.settings.max_attempts) = (2, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    for _ in 0..2 {
        assert_eq!(failure(router.chat(request(false), context(None)).await).cause, Cause::ServerError);
    }
    tokio::time::advance(10 * SECOND).await;
    let refused = failure(router.chat(request(false), context(None)).await);
    assert_eq!((refused.cause, refused.retry_after), (Cause::BreakerOpen, Some(20 * SECOND)));
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
    let failure = failure(world.router(&config_of(&schedule)).chat(request(false), context(None)).await);
    assert_eq!((failure.cause, failure.attempts.len(), world.calls().len()), (Cause::ServerError, 2, 2));
    assert_eq!(ms(world.now()), 100, "nobody waits for a retry that will not be let through");
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
async fn what_counts_against_the_provider(#[case] action: Action, #[case] deadline_ms: Option<u64>, #[case] state: BreakerState) {
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
async fn a_stream_cut_at_a_deadline_counts_by_whose_it_is(#[case] deadline_ms: Option<u64>, #[case] state: BreakerState) {
    let mut schedule = doing(&[&[Action::DripForever { every_ms: 700 }]]);
    schedule.settings.failure_threshold = 1;
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let served = router.chat(request(true), context(deadline)).await.unwrap_or_else(|_| panic!("committed"));
    assert_eq!(read(served).await.failed[0].cause, Cause::DeadlineExceeded);
    assert_eq!(router.health()[0].breaker, state);
}

/// A connection that the deadline did not give its time is told as the deadline's end, not as the provider's time-out.
#[rstest]
#[case::the_callers(400, Cause::DeadlineExceeded)]
#[case::its_own(501, Cause::ConnectTimeout)]
#[tokio::test(start_paused = true)]
async fn a_connection_is_waited_for_as_long_as_the_deadline_allows(#[case] deadline_ms: u64, #[case] cause: Cause) {
    let schedule = doing(&[&[Action::NeverAccept]]);
    let world = world(&schedule);
    let deadline = Some(Instant::now() + Duration::from_millis(deadline_ms));
    assert_eq!(failure(world.router(&config_of(&schedule)).chat(request(false), context(deadline)).await).cause, cause);
}

/// A stream has succeeded as a probe at its commit point: nobody waits for its end. Its break is then a failure like any other.
#[rstest]
#[case::ends_well(Action::Answer, usize::MAX, BreakerState::Closed)]
#[case::breaks(Action::Cut { events: 3 }, usize::MAX, BreakerState::Open)]
#[case::is_left(Action::Stall { events: 3 }, 1, BreakerState::Closed)]
#[case::is_left_unread(Action::Answer, 0, BreakerState::Closed)]
#[tokio::test(start_paused = true)]
async fn a_probe_that_streams(#[case] action: Action, #[case] items: usize, #[case] state: BreakerState) {
    let mut schedule = doing(&[&[status(500), action]]);
    (schedule.settings.failure_threshold, schedule.settings.max_attempts) = (1, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let served = router.chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("the probe is let through"));
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
    assert!(router.chat(request(false), context(None)).await.is_ok(), "while the probe streams");
    let Answer::Stream(stream) = served.answer else { panic!("a stream was asked for") };
    let _read: Vec<StreamItem> = stream.take(items).collect().await;
    assert_eq!(router.health()[0].breaker, state);
    assert_eq!(world.open(), 0);
}

/// A probe whose client leaves before the commit point counts for nothing, and gives its place back.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_left_before_its_commit_point() {
    let mut schedule = doing(&[&[status(500), Action::Stall { events: 1 }]]);
    (schedule.settings.failure_threshold, schedule.settings.max_attempts) = (1, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let mut probe = Box::pin(router.chat(request(true), context(None)));
    assert!(probe.as_mut().now_or_never().is_none());
    assert_eq!(failure(router.chat(request(true), context(None)).await).cause, Cause::BreakerOpen, "the probe's place is taken");
    drop(probe);
    assert_eq!(router.health()[0].breaker, BreakerState::HalfOpen);
    assert!(router.chat(request(false), context(None)).await.is_ok(), "not wedged");
}

/// The provider's concurrency limit holds for streams to their end, and is given back by the client that leaves.
#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_place_to_its_end() {
    let schedule = doing(&[&[Action::Stall { events: 3 }], &[]]);
    let mut config = config_of(&schedule);
    (config.providers["p1"].max_in_flight, config.providers["p1"].queue) = (1, 0);
    let world = world(&schedule);
    let router = world.router(&config);
    let first = router.chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("committed"));
    let second = router.chat(request(false), context(None)).await.unwrap_or_else(|_| panic!("served by the other"));
    assert_eq!(second.by.provider, "p2");
    assert_eq!(second.attempts[0].error.as_ref().map(|error| error.cause), Some(Cause::BulkheadFull));
    drop(first);
    let third = router.chat(request(false), context(None)).await.unwrap_or_else(|_| panic!("the place is free"));
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
        Played::flowing(whole, Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest]))
    });
    let router = world.router(&config);
    let served = futures::future::join_all((0..12).map(|_| router.chat(request(false), context(None)))).await;
    assert!(served.iter().all(Result::is_ok), "four at once, eight in the queue");
    assert_eq!((world.most_open(), world.calls().len(), ms(world.now())), (4, 12, 300));
}

/// Half-open lets through its probes and no more, whoever else comes at that moment.
#[rstest]
#[case(1)]
#[case(3)]
#[tokio::test(start_paused = true)]
async fn half_open_under_a_herd(#[case] probes: u32) {
    let mut schedule = doing(&[&[]]);
    (schedule.settings.failure_threshold, schedule.settings.max_attempts, schedule.settings.half_open_probes) = (1, 1, probes);
    let world = World::new(|_, call, stream| {
        let script = doing(&[&[status(500)]]);
        match call {
            0 => script.play(0, 0, stream),
            _ => Played::flowing(script.play(0, call, stream).response, Plan::of([Step::Pause { ms: 100 }, Step::Head, Step::Rest])),
        }
    });
    let router = world.router(&config_of(&schedule));
    failure(router.chat(request(false), context(None)).await);
    tokio::time::advance(30 * SECOND).await;
    let herd = futures::future::join_all((0..64).map(|_| router.chat(request(false), context(None)))).await;
    let served = herd.iter().filter(|result| result.is_ok()).count();
    assert_eq!((served, world.calls().len()), (probes as usize, 1 + probes as usize));
    assert!(herd.into_iter().filter(Result::is_err).all(|result| failure(result).cause == Cause::BreakerOpen));
    assert_eq!(router.health()[0].breaker, BreakerState::Closed);
}

/// Breakers are of a provider and a model: a neighbour is not affected.
#[tokio::test(start_paused = true)]
async fn a_breaker_is_its_candidates_own() {
    let mut schedule = doing(&[&[status(500)], &[]]);
    (schedule.settings.failure_threshold, schedule.settings.max_attempts) = (1, 1);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    for _ in 0..3 {
        let served = router.chat(request(false), context(None)).await.unwrap_or_else(|_| panic!("the neighbour serves"));
        assert_eq!(served.by.provider, "p2");
    }
    assert_eq!(world.order(), [1, 2, 2, 2]);
    let states: Vec<BreakerState> = router.health().iter().map(|health| health.breaker).collect();
    assert_eq!(states, [BreakerState::Open, BreakerState::Closed]);
}

/// A full queue is refused at once, with a hint when to come again.
#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_says_so() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    (config.providers["p1"].max_in_flight, config.providers["p1"].queue) = (1, 2);
    let world = world(&schedule);
    let router = world.router(&config);
    let mut under_way: Vec<_> = (0..3).map(|_| Box::pin(router.chat(request(false), context(None)))).collect();
    for call in &mut under_way {
        assert!(call.as_mut().now_or_never().is_none());
    }
    let refused = router.chat(request(false), context(None)).now_or_never().expect("at once");
    let refused = failure(refused);
    assert_eq!((refused.cause, refused.retry_after), (Cause::BulkheadFull, Some(SECOND)));
    assert_eq!(world.calls().len(), 1);
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
    let left = tokio::time::timeout(Duration::from_millis(leaves_ms), router.chat(request(true), context(None))).await;
    assert!(left.is_err());
    assert_eq!(world.open(), 0, "the connection is closed");
    tokio::time::advance(60 * SECOND).await;
    assert_eq!(world.order(), [1], "nothing started afterwards");
    assert!(router.health().iter().all(|health| health.breaker == BreakerState::Closed));
}

/// Attempts in metrics are what the provider saw; a client that leaves is told apart.
#[tokio::test(start_paused = true)]
async fn metrics_count_what_happened() {
    let schedule = doing(&[&[status(500), Action::Answer, Action::Stall { events: 3 }], &[]]);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    assert!(router.chat(request(false), context(None)).await.is_ok());
    drop(router.chat(request(true), context(None)).await);
    let text = world.metrics.render();
    for line in ["outcome=\"success\"} 1", "outcome=\"server_error\"} 1", "outcome=\"cancelled\"} 1"] {
        assert!(text.lines().any(|metric| metric.starts_with("gauntlet_attempts") && metric.ends_with(line)), "{line} in\n{text}");
    }
    assert!(text.lines().any(|metric| metric.starts_with("gauntlet_retries") && metric.ends_with("} 1")), "{text}");
}

/// A place that comes free when the time is over is of no use: nothing was sent, and nothing is counted as sent.
#[tokio::test(start_paused = true)]
async fn a_place_that_comes_too_late_is_no_attempt() {
    let schedule = doing(&[&[Action::Silent; 9]]);
    let mut config = config_of(&schedule);
    config.providers["p1"].max_in_flight = 1;
    let world = world(&schedule);
    let router = world.router(&config);
    let (first, second) = futures::join!(router.chat(request(false), context(None)), router.chat(request(false), context(None)));
    assert_eq!((failure(first).cause, failure(second).cause), (Cause::DeadlineExceeded, Cause::BulkheadFull));
    assert_eq!(world.calls().len(), 1);
    let text = world.metrics.render();
    let attempts: Vec<&str> = text.lines().filter(|line| line.starts_with("gauntlet_attempts_total")).collect();
    assert!(attempts.len() == 1 && attempts[0].ends_with("outcome=\"deadline_exceeded\"} 1"), "{text}");
}

/// A slow client slows the provider down: nothing is read ahead of it, and its own slowness is no idle time-out.
#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_the_provider_back() {
    let mut schedule = doing(&[&[]]);
    schedule.settings.total_ms = 60_000;
    let world = World::new(|_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        Played::flowing(whole, Plan::of(std::iter::once(Step::Head).chain((0..7).map(|_| Step::Events(1)))))
    });
    let served = world.router(&config_of(&schedule)).chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("committed"));
    let Answer::Stream(mut stream) = served.answer else { panic!("a stream was asked for") };
    let mut text = String::new();
    loop {
        tokio::time::advance(5 * SECOND).await;
        match stream.next().await {
            Some(StreamItem::Chunk(data)) => text.push_str(&content_of(&data)),
            Some(StreamItem::Done(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text, full_text(0, 0));
}

/// What a provider sends behind the end of its stream is read for a while, so that the connection can be used again; the
/// client waits for none of it.
#[rstest]
#[case::ends_later(300, 300)]
#[case::never_ends(u64::MAX, 1_000)]
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_body_is_read_for_a_while(#[case] pause_ms: u64, #[case] open_ms: u64) {
    let schedule = doing(&[&[]]);
    let world = World::new(move |_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        let later = if pause_ms == u64::MAX { Step::Stall } else { Step::Pause { ms: pause_ms } };
        Played::flowing(whole, Plan::of([Step::Head, Step::Rest, later]))
    });
    let router = world.router(&config_of(&schedule));
    let start = Instant::now();
    let served = router.chat(request(true), context(None)).await.unwrap_or_else(|_| panic!("committed"));
    let told = read(served).await;
    assert_eq!((told.done, ms(start.elapsed())), (1, 0));
    tokio::time::sleep(Duration::from_millis(open_ms - 1)).await;
    assert_eq!(world.open(), 1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(world.open(), 0);
}

/// What starts with more than the bound of no content is given up.
#[tokio::test(start_paused = true)]
async fn the_start_up_buffer_is_bounded() {
    let schedule = doing(&[&[]]);
    let world = World::new(|_, _, _| {
        let role = doing(&[&[]]).play(0, 0, true).response.body.split_inclusive("\n\n").next().unwrap().to_owned();
        Played::at_once(Response::ok("text/event-stream", role.repeat(4_000)))
    });
    assert_eq!(failure(world.router(&config_of(&schedule)).chat(request(true), context(None)).await).cause, Cause::Oversized);
}

/// An event may be as large as the framing takes, also the first one, in however many reads it comes.
#[tokio::test(start_paused = true)]
async fn a_large_first_event_is_taken() {
    let schedule = doing(&[&[]]);
    let text = "x".repeat(1 << 20);
    let said = text.clone();
    let world = World::new(move |_, _, _| {
        let event = |delta: serde_json::Value, reason: Option<&str>| {
            let chunk = serde_json::json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
            format!("data: {chunk}\n\n")
        };
        let body = event(serde_json::json!({"content": said}), None) + &event(serde_json::json!({}), Some("stop")) + "data: [DONE]\n\n";
        Played::flowing(
            Response::ok("text/event-stream", body),
            Plan::of(std::iter::once(Step::Head).chain((0..64).map(|_| Step::Bytes(16 << 10))).chain([Step::Rest])),
        )
    });
    let served = world.router(&config_of(&schedule)).chat(request(true), context(None)).await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(read(served).await.text, text);
}

/// A plain answer beyond the bound is given up while it comes.
#[tokio::test(start_paused = true)]
async fn a_plain_answer_is_bounded() {
    let schedule = doing(&[&[]]);
    let world = World::new(|_, _, _| Played::at_once(Response::ok("application/json", " ".repeat((32 << 20) + 1))));
    assert_eq!(failure(world.router(&config_of(&schedule)).chat(request(false), context(None)).await).cause, Cause::Oversized);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_alias() {
    let schedule = doing(&[&[]]);
    let world = world(&schedule);
    let router = world.router(&config_of(&schedule));
    let mut asked = request(false);
    asked.model = "nobody".into();
    assert!(matches!(router.chat(asked, context(None)).await, Err(RouterError::UnknownModel(name)) if name == "nobody"));
    assert_eq!(router.aliases(), [gauntlet_harness::schedule::ALIAS]);
}
