//! TIME, of providers: every wait for a provider has an end, and the gateway itself ends it. That
//! a certain timeout ended it follows from the others, which are a minute, far beyond the hang
//! guard. That it was a timeout and no other failure follows from a lower bound.

use std::time::Duration;

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, silent};
use gauntlet_harness::client::Transcript;
use gauntlet_harness::gate::{at_least, gap, guard};
use gauntlet_harness::llm::{Stub, reply};
use gauntlet_harness::plan::{Listen, Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;

use crate::cases::CaseRow;
use crate::cases::support::{asked_for, broken, refused, took, until_asked, whole};

/// A short timeout in milliseconds, and the same as a bound: long enough to reach the provider
/// within it.
const SHORT: Option<u64> = Some(1_000);
const SHORT_BOUND: Duration = Duration::from_secs(1);
/// The default connect timeout.
const CONNECT: Duration = Duration::from_secs(1);
/// The idle timeout of a stream that must stay whole.
const IDLE: Duration = Duration::from_millis(1_500);

const STREAM: &[Capability] = &[Capability::Chat, Capability::Stream];

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "TIME-01",
        why: "A host that swallows connections holds a caller for two minutes, which is the timeout \
              of the operating system.",
        shown: "The provider's port never completes a connection, and every other timeout is a minute.",
        remedy: "Give the connection a timeout of its own, of one second or a few.",
        needs: &[Capability::Chat, Capability::ConnectTimeout],
        instances: &[],
        spec: || {
            Spec::pair()
                .model("solo", &["p1"])
                .model_timeouts("solo", Timeouts::PATIENT)
                .model_timeouts("pair", Timeouts::PATIENT)
        },
        run: &time_01,
    },
    CaseRow {
        id: "TIME-02",
        why: "A provider that hangs must not hang its callers: their own timeouts are longer, and \
              their users have left by then.",
        shown: "The provider holds its answer at a gate that opens only after the client has got the \
                gateway's answer, which must be an error of any status.",
        remedy: "Give each attempt a timeout until its first byte, and answer with an error when it \
                 passes.",
        needs: &[Capability::Chat],
        instances: &[],
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    total_ms: SHORT,
                    ..Timeouts::default()
                },
            )
        },
        run: &time_02,
    },
    CaseRow {
        id: "TIME-03",
        why: "A timer that every read restarts never fires at a peer that sends a byte each second.",
        shown: "The provider sends its headers byte by byte without an end. The client must get an \
                error while they still drip.",
        remedy: "Start the timer once, when the request is sent, and let no read restart it.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::HeadersTimeout,
        ],
        instances: &[],
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    first_token_ms: SHORT,
                    ..Timeouts::PATIENT
                },
            )
        },
        run: &time_03,
    },
    CaseRow {
        id: "TIME-04",
        why: "Streams that stalled after their first token were held for a quarter of an hour, until \
              the pool was empty (https://github.com/tensorzero/tensorzero/issues/6328).",
        shown: "The provider sends two pieces of text and nothing more. Every timeout except the idle \
                timeout is a minute.",
        remedy: "Measure the gap between two events, and end the stream with an error event when it \
                 exceeds the idle timeout.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::IdleTimeout,
        ],
        instances: &[],
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    idle_ms: SHORT,
                    ..Timeouts::PATIENT
                },
            )
        },
        run: &time_04,
    },
    CaseRow {
        id: "TIME-05",
        why: "A model in a loop streams forever; each token restarts the idle timer, and somebody \
              pays for every token.",
        shown: "The provider repeats its last event forever. The stream must end with an error, \
                although no event was ever late.",
        remedy: "Keep a deadline over the whole request that no event moves.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::TotalDeadline,
        ],
        instances: &[],
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    total_ms: SHORT,
                    ..Timeouts::default()
                },
            )
        },
        run: &time_05,
    },
    CaseRow {
        id: "TIME-09",
        why: "Attempts that are given up and left running hold the provider's capacity, and are \
              billed (https://github.com/BerriAI/litellm/issues/31499).",
        shown: "The provider holds a plain and a streamed answer. After the client's errors, which may \
                be statuses or events, it must see every connection close on which it still held one.",
        remedy: "Drop the call with its connection when its time is over, and leave it to no task of \
                 its own.",
        needs: STREAM,
        instances: &[],
        spec: || {
            Spec::solo().model_timeouts(
                "solo",
                Timeouts {
                    total_ms: SHORT,
                    ..Timeouts::default()
                },
            )
        },
        run: &time_09,
    },
    CaseRow {
        id: "TIME-11",
        why: "A client library's read timeout over the whole body killed healthy streams \
              (https://github.com/maximhq/bifrost/issues/1157).",
        shown: "The provider drips a stream and a plain body for longer than the idle timeout, with \
                gaps of a sixth of it. Both must arrive whole.",
        remedy: "Restart the idle timer with each read, and switch off the whole-body timeouts of client \
                 libraries.",
        needs: STREAM,
        instances: &[],
        spec: || {
            let idle = Timeouts {
                idle_ms: Some(1_500),
                ..Timeouts::PATIENT
            };
            Spec::solo()
                .provider("p2", Protocol::OPENAI)
                .model("plain", &["p2"])
                .model_timeouts("solo", idle)
                .model_timeouts("plain", idle)
        },
        run: &time_11,
    },
    CaseRow {
        id: "TIME-12",
        why: "A timer that ends with the headers waits forever for a provider that sends them first \
              and thinks later (https://github.com/maximhq/bifrost/issues/7034).",
        shown: "The first provider sends its headers and nothing more. The client must read one clean \
                stream from the second provider.",
        remedy: "Let the first-token timeout run until the first content, and send the client nothing \
                 before it.",
        needs: &[
            Capability::Chat,
            Capability::Stream,
            Capability::FirstTokenTimeout,
            Capability::Fallback,
        ],
        instances: &[],
        spec: || {
            let total = Timeouts {
                total_ms: Some(60_000),
                ..Timeouts::default()
            };
            Spec::pair()
                .provider_timeouts(
                    "p1",
                    Timeouts {
                        first_token_ms: SHORT,
                        idle_ms: Some(60_000),
                        ..total
                    },
                )
                .model_timeouts("pair", total)
        },
        run: &time_12,
    },
];

async fn time_01(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.listen(Listen::NeverAccept).await?;
    ctx.stub("p2")?.answers(reply("Paris"));
    // when
    let (alone, pair) = futures::try_join!(
        ctx.client.chat(ctx.prompt("solo", "hello")),
        ctx.client.chat(ctx.prompt("pair", "hello"))
    )?;
    // then
    refused(alone.status)?;
    at_least(
        "error.lower_bound",
        "the error",
        took(ctx, &alone.label),
        CONNECT,
    )?;
    if ctx.declares(Capability::Fallback) {
        equal(
            "second.status",
            "the status with a second candidate",
            200,
            pair.status,
        )?;
        equal(
            "second.text",
            "the text of the second candidate",
            "Paris",
            pair.content().as_str(),
        )?;
    }
    Ok(())
}

async fn time_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("too late").plan(Plan::held("late")));
    // when
    let answer = ctx.client.chat(ctx.prompt("solo", "hello")).await?;
    // then
    p1.seen(1).await?;
    ctx.gates.gate("late").open();
    asked_for(ctx, "provider.requests", p1, "hello")?;
    refused(answer.status)?;
    at_least(
        "error.lower_bound",
        "the error",
        took(ctx, &answer.label),
        SHORT_BOUND,
    )
}

async fn time_03(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("never").plan(Plan::of([Step::DripHead {
        every_ms: 20,
        finish: false,
    }])));
    // when
    let stream = ctx
        .client
        .labelled("dripped")
        .streamed(ctx.prompt("solo", "hello"))
        .await?;
    // then
    broken(&stream)?;
    at_least(
        "error.lower_bound",
        "the error",
        took(ctx, "dripped"),
        SHORT_BOUND,
    )?;
    p1.peer_closed(1).await.map(|_| ())
}

async fn time_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(
        reply("")
            .tokens(["Par", "is", "!"])
            .plan(Plan::events_then(3, Step::Stall)),
    );
    // when
    let stream = ctx
        .client
        .labelled("stalled")
        .streamed(ctx.prompt("solo", "capital"))
        .await?;
    // then
    equal(
        "stream.text",
        "the text of the stream",
        "Paris",
        stream.text.as_str(),
    )?;
    broken(&stream)?;
    at_least(
        "error.lower_bound",
        "the error",
        took(ctx, "stalled"),
        SHORT_BOUND,
    )?;
    p1.peer_closed(1).await.map(|_| ())
}

async fn time_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("").tokens(["and "; 3]).plan(Plan::of([
        Step::Head,
        Step::Events(3),
        Step::RepeatForever { every_ms: 20 },
    ])));
    // when
    let stream = ctx
        .client
        .labelled("endless")
        .stream(ctx.prompt("solo", "go on"))
        .await?;
    let transcript: Transcript = guard(
        "hang.stream",
        "the end of a stream whose provider never ends it",
        stream.collect(),
    )
    .await??;
    // then
    broken(&transcript)?;
    at_least(
        "error.lower_bound",
        "the error",
        took(ctx, "endless"),
        SHORT_BOUND,
    )?;
    p1.peer_closed(1).await.map(|_| ())
}

async fn time_09(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("never").plan(Plan::held("late")));
    // when
    ctx.client.chat(ctx.prompt("solo", "plain")).await?;
    until_asked(ctx, "solo", p1).await?;
    ctx.client.streamed(ctx.prompt("solo", "streamed")).await?;
    // then: what the clients got instead of an answer is judged by TIME-02 and ERR-01
    let held = p1.calls("plain").len() + p1.calls("streamed").len();
    p1.peer_closed(held).await?;
    for what in ["plain", "streamed"] {
        asked_for(ctx, "provider.requests", p1, what)?;
    }
    Ok(())
}

async fn time_11(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let slow = Plan::of([
        Step::Head,
        Step::Events(2),
        Step::Drip {
            bytes: 130,
            every_ms: 250,
        },
    ]);
    p1.answers(
        reply("")
            .tokens(["Par", "is", " is", " big", "."])
            .plan(slow),
    );
    let plain = ctx.stub("p2")?;
    plain.answers(reply("Paris is big.").plan(Plan::of([
        Step::Head,
        Step::Drip {
            bytes: 55,
            every_ms: 250,
        },
    ])));
    // when
    let (stream, answer) = futures::try_join!(
        ctx.client.streamed(ctx.prompt("solo", "capital")),
        ctx.client.chat(ctx.prompt("plain", "capital"))
    )?;
    // then
    for stub in [p1, plain] {
        at_least(
            "provider.pace",
            "the provider's last byte",
            sending(stub),
            IDLE,
        )
        .map_err(|early| Failure::Harness {
            what: early.to_string(),
        })?;
    }
    whole(&stream, "Paris is big.")?;
    equal(
        "plain.status",
        "the status of the plain answer",
        200,
        answer.status,
    )?;
    equal(
        "plain.text",
        "the text of the plain answer",
        "Paris is big.",
        answer.content().as_str(),
    )
    .map_err(silent)
}

async fn time_12(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("never").plan(Plan::of([Step::Head, Step::Stall])));
    ctx.stub("p2")?.answers(reply("").tokens(["Par", "is"]));
    // when
    let stream = ctx
        .client
        .labelled("waiting")
        .streamed(ctx.prompt("pair", "capital"))
        .await?;
    // then
    whole(&stream, "Paris")?;
    at_least(
        "second.lower_bound",
        "the second candidate's answer",
        took(ctx, "waiting"),
        SHORT_BOUND,
    )?;
    p1.peer_closed(1).await.map(|_| ())
}

/// The time from the head of the stub's first answer to a call (gateways also ask for lists of
/// models) to its last byte.
fn sending(stub: &Stub) -> Duration {
    let tape = stub.tape();
    let call = stub.requests().first().map(|received| received.request);
    let head = tape.iter().find(
        |entry| matches!(entry.event, Event::HeadSent { request, .. } if Some(request) == call),
    );
    let last = tape.iter().find(
        |entry| matches!(entry.event, Event::AnswerSent { request } if Some(request) == call),
    );
    // an answer that the gateway cut has no last byte, and the facts show that
    head.zip(last).map_or(IDLE, |(head, last)| gap(head, last))
}
