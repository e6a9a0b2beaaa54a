//! The rules for streams under a paused clock: before the commit point, after it, and behind the
//! end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::time::Duration;

use futures::StreamExt;
use gauntlet::llm::cause::Cause;
use gauntlet::llm::chat::{Answer, Served, StreamItem};
use gauntlet::llm::router::Router;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::schedule::{Action, Played, Response, Schedule, full_text, word};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::rules::{SECOND, doing, ms, sim};
use crate::providers::{RouterSim, config_of, content_of, context, failure, read, request};

/// A failure before the commit point leads to the next candidate, and the client receives one clean
/// stream.
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
    let sim = sim(&schedule);
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("the second candidate serves"));
    assert_eq!(&*served.by.provider, "p2");
    let received = read(served).await;
    assert_eq!(
        (received.text, received.done, received.failed.len()),
        (full_text(1, 0), 1, 0)
    );
    assert_eq!(sim.open(), 0);
}

/// A failure after the commit point is the last item, and no candidate is asked any more.
#[rstest]
#[case::stall(Action::Stall { events: 3 }, Cause::IdleTimeout)]
#[case::cut(Action::Cut { events: 3 }, Cause::Truncated)]
#[case::reset(Action::ResetAfter { events: 3 }, Cause::Truncated)]
#[case::cut_inside(Action::CutInside { events: 3 }, Cause::Truncated)]
#[case::no_finish(Action::NoFinish { events: 3 }, Cause::Truncated)]
#[case::in_band(Action::InBandError { events: 3 }, Cause::InBand)]
#[case::not_json(Action::Malformed { events: 3 }, Cause::BadResponse)]
#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_after_its_first_token_ends_with_the_failure(
    #[case] action: Action,
    #[case] cause: Cause,
) {
    let schedule = doing(&[&[action; 9], &[]]);
    let sim = sim(&schedule);
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let received = read(served).await;
    assert_eq!(received.text, [word(0, 0, 0), word(0, 0, 1)].concat());
    assert_eq!((received.done, received.failed.len()), (0, 1));
    assert_eq!(received.failed[0].cause, cause);
    assert_eq!(sim.order(), [1]);
    assert_eq!(sim.open(), 0);
}

/// The first-token timeout starts with the attempt and applies to streams only. Events without
/// content do not extend it.
#[rstest]
#[case::nothing(Plan::silent())]
#[case::head_alone(Plan::of([Step::Head, Step::Stall]))]
#[case::pings(Plan::of([Step::Head, Step::Garbage(b": ping\n\n".to_vec()), Step::Pause { ms: 1_500 }, Step::Garbage(b": ping\n\n".to_vec()), Step::Pause { ms: 1_400 }, Step::Garbage(b": ping\n\n".to_vec()), Step::Stall]))]
#[case::roles(Plan::of([Step::Head, Step::Events(1), Step::RepeatForever { every_ms: 200 }]))]
#[tokio::test(start_paused = true)]
async fn the_first_token_timeout_bounds_the_wait_for_content(#[case] plan: Plan) {
    let schedule = doing(&[&[]]);
    let sim = RouterSim::new(move |_, _, _| {
        let body = Schedule::play(&doing(&[&[]]), 0, 0, true).response.body;
        Played::flowing(Response::ok("text/event-stream", body), plan.clone())
    });
    let start = Instant::now();
    let failure = failure(
        sim.router(&config_of(&schedule))
            .chat(request(true), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, ms(start.elapsed())),
        (Cause::FirstTokenTimeout, 3_000)
    );
    assert_eq!(sim.open(), 0);
}

/// A slow client slows the provider down: nothing is read ahead, and the idle timeout does not run
/// while the client is slow.
#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_the_provider_back() {
    let mut schedule = doing(&[&[]]);
    schedule.settings.total_ms = 60_000;
    let sim = RouterSim::new(|_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        Played::flowing(
            whole,
            Plan::of(std::iter::once(Step::Head).chain((0..7).map(|_| Step::Events(1)))),
        )
    });
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let Answer::Stream(stream) = served.answer else {
        panic!("a stream was asked for")
    };
    let mut stream = stream.items;
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

/// The bytes behind the end of a stream are read for a while, so that the connection can be used
/// again. The client does not wait for them.
#[rstest]
#[case::ends_later(300, 300)]
#[case::never_ends(u64::MAX, 1_000)]
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_body_is_read_for_a_while(#[case] pause_ms: u64, #[case] open_ms: u64) {
    let schedule = doing(&[&[]]);
    let sim = RouterSim::new(move |_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        let later = if pause_ms == u64::MAX {
            Step::Stall
        } else {
            Step::Pause { ms: pause_ms }
        };
        Played::flowing(whole, Plan::of([Step::Head, Step::Rest, later]))
    });
    let router = sim.router(&config_of(&schedule));
    let start = Instant::now();
    let served = committed(&router).await;
    let received = read(served).await;
    assert_eq!((received.done, ms(start.elapsed())), (1, 0));
    tokio::time::sleep(Duration::from_millis(open_ms - 1)).await;
    assert_eq!(sim.open(), 1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(sim.open(), 0);
}

/// A stream that starts with more bytes without content than the limit is abandoned.
#[tokio::test(start_paused = true)]
async fn the_start_up_buffer_is_bounded() {
    let schedule = doing(&[&[]]);
    let sim = RouterSim::new(|_, _, _| {
        let role = doing(&[&[]])
            .play(0, 0, true)
            .response
            .body
            .split_inclusive("\n\n")
            .next()
            .unwrap()
            .to_owned();
        Played::at_once(Response::ok("text/event-stream", role.repeat(4_000)))
    });
    assert_eq!(
        failure(
            sim.router(&config_of(&schedule))
                .chat(request(true), context(None))
                .await
        )
        .cause,
        Cause::Oversized
    );
}

/// The first event may be as large as the framing permits, in any number of reads.
#[tokio::test(start_paused = true)]
async fn a_large_first_event_is_taken() {
    let schedule = doing(&[&[]]);
    let text = "x".repeat(1 << 20);
    let content = text.clone();
    let sim = RouterSim::new(move |_, _, _| {
        let event = |delta: serde_json::Value, reason: Option<&str>| {
            let chunk = serde_json::json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
            format!("data: {chunk}\n\n")
        };
        let body = event(serde_json::json!({"content": content}), None)
            + &event(serde_json::json!({}), Some("stop"))
            + "data: [DONE]\n\n";
        Played::flowing(
            Response::ok("text/event-stream", body),
            Plan::of(
                std::iter::once(Step::Head)
                    .chain((0..64).map(|_| Step::Bytes(16 << 10)))
                    .chain([Step::Rest]),
            ),
        )
    });
    let served = sim
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(read(served).await.text, text);
}

const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

/// A router over one provider that streams these events by this plan.
fn streaming(events: &[&str], plan: Plan) -> (std::sync::Arc<RouterSim>, Router) {
    let body: String = events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    let sim = RouterSim::new(move |_, _, _| {
        Played::flowing(
            Response::ok("text/event-stream", body.clone()),
            plan.clone(),
        )
    });
    let router = sim.router(&config_of(&doing(&[&[]])));
    (sim, router)
}

/// A stream of this router past its commit point.
async fn committed(router: &Router) -> Served {
    router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"))
}

/// A plan that sends two events, then each of these heartbeats half a second after the other.
fn heartbeats(beat: &str, times: usize) -> Plan {
    let beats = (0..times).flat_map(|_| {
        [
            Step::Pause { ms: 500 },
            Step::Garbage(beat.as_bytes().to_vec()),
        ]
    });
    Plan::of([Step::Head, Step::Events(2)].into_iter().chain(beats))
}

/// An answer whose choices are all finished ends a short time later, although the provider sends
/// nothing more, or only heartbeats, and keeps its connection open.
#[rstest]
#[case::silence(heartbeats("", 0))]
#[case::comments(heartbeats(": ping\n\n", 40))]
#[case::empty_data(heartbeats("data:\n\n", 40))]
#[tokio::test(start_paused = true)]
async fn a_complete_answer_ends_although_its_provider_does_not(#[case] plan: Plan) {
    let Plan { steps, .. } = plan;
    let plan = Plan::of(steps.into_iter().chain([Step::Stall]));
    let (sim, router) = streaming(&[TEXT, STOP], plan);
    let served = committed(&router).await;
    let start = Instant::now();
    let received = read(served).await;
    assert_eq!(
        (received.text.as_str(), received.done, received.failed.len()),
        ("Hel", 1, 0)
    );
    assert_eq!(ms(start.elapsed()), 2_000);
    tokio::time::advance(2 * SECOND).await;
    tokio::task::yield_now().await;
    assert_eq!(sim.open(), 0, "the provider's connection is closed");
}

/// With one of two choices unfinished the answer is not complete.
#[tokio::test(start_paused = true)]
async fn an_unfinished_choice_is_no_end() {
    let (_sim, router) = streaming(
        &[TEXT, STOP],
        Plan::of([Step::Head, Step::Events(2), Step::Stall]),
    );
    let two = serde_json::json!({
        "model": gauntlet_harness::schedule::ALIAS, "n": 2, "stream": true,
        "messages": [{"role": "user", "content": "hello"}]
    });
    let two = gauntlet::llm::chat::ChatRequest::parse(two.to_string().as_bytes()).unwrap();
    let served = router
        .chat(two, context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let received = read(served).await;
    assert_eq!((received.done, received.failed.len()), (0, 1));
    assert_eq!(received.failed[0].cause, Cause::IdleTimeout);
}

/// Heartbeats carry nothing: they do not extend the idle timeout.
#[rstest]
#[case::comments(": ping\n\n")]
#[case::a_comment_without_its_end(": ping\n")]
#[case::empty_data("data:\n\n")]
#[case::empty_data_with_a_blank("data: \n\n")]
#[case::names("event: ping\n\n")]
#[case::ids("id: 7\n\n")]
#[case::blank_lines("\n")]
#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_extend_the_idle_timeout(#[case] beat: &str) {
    let (sim, router) = streaming(&[TEXT, TEXT, STOP], heartbeats(beat, 18));
    let served = committed(&router).await;
    let start = Instant::now();
    let received = read(served).await;
    assert_eq!((received.done, received.failed.len()), (0, 1));
    assert_eq!(received.failed[0].cause, Cause::IdleTimeout);
    assert_eq!(ms(start.elapsed()), 2_000);
    assert_eq!(sim.open(), 0);
}

/// A provider that is slow and alive is waited for, with heartbeats between its events, and so is a
/// long event that arrives in small parts.
#[tokio::test(start_paused = true)]
async fn what_follows_heartbeats_arrives() {
    let pings = |plan: Vec<Step>| {
        let ping = || Step::Garbage(b": ping\n\ndata:\n\n".to_vec());
        plan.into_iter().flat_map(move |step| {
            [
                Step::Pause { ms: 900 },
                ping(),
                Step::Pause { ms: 900 },
                step,
            ]
        })
    };
    let events = pings(vec![Step::Events(1), Step::Events(1), Step::Events(1)]);
    let drip = Step::Drip {
        bytes: 4,
        every_ms: 100,
    };
    let steps = [Step::Head, Step::Events(1)]
        .into_iter()
        .chain(events)
        .chain([drip]);
    let (_sim, router) = streaming(&[TEXT, TEXT, TEXT, TEXT, STOP], Plan::of(steps));
    let served = committed(&router).await;
    let received = read(served).await;
    assert_eq!(
        (received.text.as_str(), received.done, received.failed.len()),
        ("HelHelHelHel", 1, 0)
    );
}
