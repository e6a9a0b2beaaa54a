//! Streams, under a paused clock: what holds before their commit point, after it, and behind their end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod providers;

use std::time::Duration;

use futures::StreamExt;
use gauntlet::llm::cause::Cause;
use gauntlet::llm::chat::{Answer, StreamItem};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::schedule::{Action, Played, Response, Schedule, full_text, word};
use rstest::rstest;
use tokio::time::Instant;

use crate::providers::rules::{SECOND, doing, ms, world};
use crate::providers::{World, config_of, content_of, context, failure, read, request};

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
    let served = world
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("the second serves"));
    assert_eq!(served.by.provider, "p2");
    let told = read(served).await;
    assert_eq!(
        (told.text, told.done, told.failed.len()),
        (full_text(1, 0), 1, 0)
    );
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
async fn a_stream_that_breaks_after_its_first_token_says_so(
    #[case] action: Action,
    #[case] cause: Cause,
) {
    let schedule = doing(&[&[action; 9], &[]]);
    let world = world(&schedule);
    let served = world
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
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
    let failure = failure(
        world
            .router(&config_of(&schedule))
            .chat(request(true), context(None))
            .await,
    );
    assert_eq!(
        (failure.cause, ms(start.elapsed())),
        (Cause::FirstTokenTimeout, 3_000)
    );
    assert_eq!(world.open(), 0);
}

/// A slow client slows the provider down: nothing is read ahead of it, and its own slowness is no idle time-out.
#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_the_provider_back() {
    let mut schedule = doing(&[&[]]);
    schedule.settings.total_ms = 60_000;
    let world = World::new(|_, _, _| {
        let whole = doing(&[&[]]).play(0, 0, true).response;
        Played::flowing(
            whole,
            Plan::of(std::iter::once(Step::Head).chain((0..7).map(|_| Step::Events(1)))),
        )
    });
    let served = world
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
    let Answer::Stream(mut stream) = served.answer else {
        panic!("a stream was asked for")
    };
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
        let later = if pause_ms == u64::MAX {
            Step::Stall
        } else {
            Step::Pause { ms: pause_ms }
        };
        Played::flowing(whole, Plan::of([Step::Head, Step::Rest, later]))
    });
    let router = world.router(&config_of(&schedule));
    let start = Instant::now();
    let served = router
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|_| panic!("committed"));
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
            world
                .router(&config_of(&schedule))
                .chat(request(true), context(None))
                .await
        )
        .cause,
        Cause::Oversized
    );
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
        let body = event(serde_json::json!({"content": said}), None)
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
    let served = world
        .router(&config_of(&schedule))
        .chat(request(true), context(None))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(read(served).await.text, text);
}
