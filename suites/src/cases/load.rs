//! LOAD: what exceeds a limit is refused at once, and forgotten afterwards; what one client does
//! costs no other its permit.

use std::time::Duration;

use futures::future::try_join_all;
use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, FailureMode, State, equal, holds, json,
};
use gauntlet_harness::client::{Exchange, Reply, StreamReply, Transport};
use gauntlet_harness::gate::{converge, guard};
use gauntlet_harness::llm::{Responder, Stub, chat, error, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{LimitSpec, Protocol, Spec, Timeouts};
use gauntlet_harness::subject::{Capability, TargetError};
use gauntlet_harness::tape::{Entry, Event};
use serde_json::Value;

use super::CaseRow;
use super::support::{AHEAD, answers, endless, held_for, large_stream, noted, statuses, whole};

/// The limit of requests in flight.
const LIMIT: usize = 4;
/// The limit of a body in bytes.
const BODY: usize = 64 << 10;
const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

const ADMISSION: &[Capability] = &[Capability::Chat, Capability::Admission];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "LOAD-01",
        why: "A queue without a bound becomes timeouts for everybody: clients have given up the \
              requests that it answers.",
        shown: "As many requests are held as the limit allows: plain ones, streams past their first \
                token, and both. The next ones must be refused while they are. When one ends, or its \
                client leaves, one more must be served.",
        remedy: "Count the requests in flight on arrival, refuse with Retry-After beyond the limit, \
                 and count a stream until its last byte.",
        needs: ADMISSION,
        instances: &[
            "plain requests in flight",
            "streams past their first token in flight",
            "both in flight",
            "a plain request is refused",
            "a streamed request is refused",
            "a plain request ends",
            "a stream ends",
            "the client of a plain request leaves",
            "the client of a stream leaves",
        ],
        spec: limited,
        run: &load_01,
    },
    CaseRow {
        id: "LOAD-02",
        why: "Permits that were not given back refused healthy requests for up to an hour \
              (https://github.com/BerriAI/litellm/issues/27955).",
        shown: "Twice as many requests as the limit allows end in each way that there is. After each \
                burst the next requests must be served, as many at once as the limit allows and no \
                more.",
        remedy: "Tie the permit of a request to its task, so that every way out of the task gives it \
                 back, and once.",
        needs: ADMISSION,
        instances: &[
            "answered",
            "streamed to their end",
            "refused",
            "failed by the provider",
            "streams that fail before their first token",
            "streams that break",
            "left by their client",
            "streams left by their client",
            "not JSON",
            "an unknown model",
            "a body that is not sent whole",
        ],
        spec: limited,
        run: &load_02,
    },
    CaseRow {
        id: "LOAD-04",
        why: "Anybody who can connect can fill up a gateway that reads before it measures.",
        shown: "One client declares a length of 64 MiB and sends a few bytes; another sends 128 KiB in \
                chunks and no end. Both must get 413 before they send the rest. A body of exactly the \
                limit is served, and one of a byte more is refused.",
        remedy: "Check Content-Length before reading, count while reading, and answer 413 at the limit.",
        needs: &[Capability::Chat, Capability::BodyLimit],
        instances: &[
            "a declared length",
            "chunks",
            "a declared length, streamed",
            "exactly the limit",
            "exactly the limit, in chunks",
            "a byte more than the limit",
            "a byte more than the limit, in chunks",
            "a byte more than the limit, streamed",
        ],
        spec: || Spec {
            limits: LimitSpec {
                body_bytes: BODY as u64,
                body_ms: 60_000,
                ..Spec::default().limits
            },
            ..Spec::solo()
        },
        run: &load_04,
    },
    CaseRow {
        id: "LOAD-05",
        why: "A few hundred clients that send a byte each second hold every connection of a server \
              that waits for them (Slowloris).",
        shown: "Clients send their headers or their body byte by byte, or stop within them, on a new \
                and on a kept connection. Each must be answered with an error or closed before it \
                ends, and its connection must be closed.",
        remedy: "Bound the time of the headers and of the body as a whole; a timer between two reads is \
                 not enough. Close the connection after the answer.",
        needs: &[Capability::Chat, Capability::SlowClient],
        instances: &[
            "headers that stop",
            "headers byte by byte",
            "headers on a kept connection",
            "a body that stops",
            "a body in small pieces",
            "a body in small chunks",
            "a body of a streamed request",
        ],
        spec: || Spec {
            limits: LimitSpec {
                header_ms: 400,
                body_ms: 400,
                ..Spec::default().limits
            },
            ..Spec::solo()
        },
        run: &load_05,
    },
    CaseRow {
        id: "LOAD-07",
        why: "One client that pauses in a long answer ends a process that reads streams ahead into \
              memory.",
        shown: "The client of a stream without end stops reading. The provider counts what the gateway \
                takes until it takes no more; what lies in the buffers of the system is left out.",
        remedy: "Read the provider's next bytes when the client has taken the last ones, and bound \
                 every buffer between the two.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &["OpenAI", "Ollama"],
        spec: || {
            Spec::solo()
                .provider("p2", Protocol::OLLAMA)
                .optional_model("ollama", &["p2"])
                .model_timeouts("solo", Timeouts::PATIENT)
                .model_timeouts("ollama", Timeouts::PATIENT)
        },
        run: &load_07,
    },
    CaseRow {
        id: "LOAD-08",
        why: "A few connections that send a byte of body each second refused everybody's requests, \
              without a key.",
        shown: "As many connections are idle, within their headers, or within their body as requests \
                may be in flight. The same number of whole requests must be in flight beside them, \
                and the slow ones must be served when they end.",
        remedy: "Read the body before the permit is taken, under a bound of bytes and time.",
        needs: ADMISSION,
        instances: &[
            "connections that are idle",
            "connections that are idle after an answer",
            "headers that are not whole",
            "bodies that are not whole",
            "chunked bodies that are not whole",
        ],
        spec: || {
            let spec = limited();
            Spec {
                limits: LimitSpec {
                    header_ms: 60_000,
                    body_ms: 60_000,
                    ..spec.limits
                },
                ..spec
            }
        },
        run: &load_08,
    },
    CaseRow {
        id: "LOAD-09",
        why: "A gateway without file descriptors blamed its providers, and its breakers refused the \
              next minutes of requests to healthy ones.",
        shown: "The gateway is left one file descriptor more than it has, which the client's \
                connection takes. Each request must get an error that blames no provider. When \
                descriptors are there again, the first candidate must serve at once.",
        remedy: "Treat EMFILE, ENFILE and EADDRNOTAVAIL of a connection as the gateway's own failure: \
                 503, and nothing for the breaker.",
        needs: &[Capability::Chat, Capability::Process],
        instances: &[
            "plain",
            "streamed",
            "Ollama",
            "two candidates",
            "afterwards, plain",
            "afterwards, streamed",
            "afterwards, Ollama",
            "afterwards, the first of two candidates",
        ],
        spec: || {
            let mut spec = Spec::pair()
                .provider("p3", Protocol::OLLAMA)
                .model("solo", &["p1"])
                .optional_model("ollama", &["p3"]);
            // one failure that is blamed on a provider would open its breaker for the whole case
            spec.breaker.failure_threshold = 1;
            spec
        },
        run: &load_09,
    },
    CaseRow {
        id: "LOAD-11",
        why: "One tenant's hung requests held every permit, and all others were refused for a minute.",
        shown: "One tenant sends more requests than may be in flight, and the provider holds them. A \
                request of another tenant must be served meanwhile, plain and streamed; afterwards the \
                first tenant is served again.",
        remedy: "Keep a share of the permits for tenants that hold few.",
        needs: &[Capability::Chat, Capability::Admission, Capability::Keys],
        instances: &["plain", "streamed", "the first tenant afterwards"],
        spec: || limited().key("north", NORTH).key("south", SOUTH),
        run: &load_11,
    },
];

const NORTH: &str = "sk-tenant-north-4e1b7d90c2f84a36";
const SOUTH: &str = "sk-tenant-south-b27f60d1a95e4c83";

fn limited() -> Spec {
    let limits = LimitSpec {
        max_in_flight: LIMIT as u32,
        ..Spec::default().limits
    };
    Spec {
        limits,
        ..Spec::solo().model_timeouts("solo", Timeouts::PATIENT)
    }
}

async fn load_01(ctx: &Ctx) -> CaseResult {
    ctx.stub("p1")?.answers(reply("Paris"));
    let stream = ctx.declares(Capability::Stream);
    let plain = limit_of(ctx, LIMIT, 0);
    ctx.examine("plain requests in flight", plain).await?;
    for (name, count) in [
        ("streams past their first token in flight", 0),
        ("both in flight", LIMIT / 2),
    ] {
        if ctx.instance_if(Capability::Stream, name) {
            limit_of(ctx, count, LIMIT - count).await?;
        }
    }
    for (name, streamed, leaves) in [
        ("a plain request ends", false, false),
        ("the client of a plain request leaves", false, true),
        ("a stream ends", true, false),
        ("the client of a stream leaves", true, true),
    ] {
        if streamed && !stream {
            ctx.instance_if(Capability::Stream, name);
            continue;
        }
        let examined = one_more(ctx, streamed, leaves);
        ctx.examine(name, examined).await?;
    }
    Ok(())
}

/// What is in flight: requests that the gate of that name holds at the provider.
struct Full {
    plain: Vec<Exchange>,
    streams: Vec<StreamReply>,
}

/// Holds so many plain requests, and streams past their first token, at the gate of that name.
async fn filled(ctx: &Ctx, gate: &str, plain: usize, streams: usize) -> Result<Full, Failure> {
    let p1 = ctx.stub("p1")?;
    let text = "Paris is big.";
    if plain > 0 {
        let held = reply(text).plan(Plan::held(gate));
        p1.mount(chat().user_says(gate).streaming(false), held)
            .await;
    }
    if streams > 0 {
        let begun = [
            Step::Head,
            Step::Events(2),
            Step::Hold(gate.into()),
            Step::Rest,
        ];
        let begun = reply(text).plan(Plan::of(begun));
        p1.mount(chat().user_says(gate).streaming(true), begun)
            .await;
    }
    let sent = (0..plain).map(|_| ctx.client.send_chat(ctx.prompt("solo", gate)));
    let sent = try_join_all(sent).await?;
    let mut begun = Vec::new();
    for _ in 0..streams {
        let mut stream = ctx.client.stream(ctx.prompt("solo", gate)).await?;
        equal(
            "streams.status",
            "the status of a stream within the limit",
            200,
            stream.status,
        )?;
        stream.text_of(1).await?;
        begun.push(stream);
    }
    Ok(Full {
        plain: sent,
        streams: begun,
    })
}

impl Full {
    /// Opens the gate; everything that was held must be answered whole.
    async fn answered(self, ctx: &Ctx, gate: &str) -> CaseResult {
        ctx.gates.gate(gate).open();
        equal(
            "served.statuses",
            "the statuses of the requests within the limit",
            vec![200; self.plain.len()],
            statuses(&answers(self.plain).await?),
        )?;
        for stream in self.streams {
            let rest = stream.collect().await?;
            holds(
                "served.streams",
                rest.looks_complete(),
                "a complete stream within the limit",
                format_args!("{} [DONE] events", rest.done_count),
            )?;
        }
        Ok(())
    }
}

/// Refuses a request beyond the limit: with a status, and with Retry-After.
fn refused(status: u16, retry_after: Option<&str>) -> CaseResult {
    holds(
        "refused.status",
        matches!(status, 429 | 503),
        "a status of 429 or 503",
        status,
    )?;
    holds(
        "refused.retry_after",
        retry_after.is_some(),
        "a Retry-After header",
        "no such header",
    )
}

/// Beyond so many requests, which are the limit, further ones are refused while those are held.
async fn limit_of(ctx: &Ctx, plain: usize, streams: usize) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let gate = format!("{plain} plain, {streams} streamed");
    let before = p1.requests().len();
    let full = filled(ctx, &gate, plain, streams).await?;
    p1.in_flight_is(LIMIT).await?;
    // when
    ctx.instance("a plain request is refused");
    let beyond = (0..LIMIT).map(|_| ctx.client.chat(ctx.prompt("solo", "too many")));
    let beyond = try_join_all(beyond).await?;
    ctx.reached(State::AdmissionFull);
    // then
    for answer in &beyond {
        refused(answer.status, answer.header("retry-after"))?;
    }
    if ctx.instance_if(Capability::Stream, "a streamed request is refused") {
        let answer = ctx.client.stream(ctx.prompt("solo", "too many")).await?;
        refused(answer.status, answer.header("retry-after"))?;
    }
    equal(
        "provider.in_flight",
        "the number of requests still in flight",
        LIMIT,
        p1.in_flight(),
    )?;
    full.answered(ctx, &gate).await?;
    equal(
        "provider.requests",
        "the number of requests at the provider",
        before + LIMIT,
        p1.requests().len(),
    )?;
    free_again(ctx, "hang.served_again").await
}

/// When one of the requests that are the limit ends, one more is served while the others are held.
async fn one_more(ctx: &Ctx, streamed: bool, leaves: bool) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let how = if leaves { "leaves" } else { "ends" };
    let kind = if streamed { "stream" } else { "plain" };
    let (others, one) = (format!("others {kind} {how}"), format!("one {kind} {how}"));
    let held = held_so_far(p1) + LIMIT;
    let others_full = filled(ctx, &others, LIMIT - 1, 0).await?;
    p1.in_flight_is(LIMIT - 1).await?;
    // the one is beside the others: together they are the limit
    let (plain, streams) = if streamed { (0, 1) } else { (1, 0) };
    let mut one_full = filled(ctx, &one, plain, streams).await?;
    p1.held(held).await?;
    let beyond = ctx.client.chat(ctx.prompt("solo", "too many")).await?;
    refused(beyond.status, beyond.header("retry-after"))?;
    // when
    if leaves {
        one_full.plain.drain(..).for_each(Exchange::leave);
        one_full.streams.drain(..).for_each(StreamReply::leave);
    } else {
        one_full.answered(ctx, &one).await?;
    }
    // then
    free_again(ctx, "hang.one_served").await?;
    holds(
        "others.in_flight",
        p1.in_flight() >= LIMIT - 1,
        format!("the {} others to be held still", LIMIT - 1),
        p1.in_flight(),
    )?;
    others_full.answered(ctx, &others).await?;
    free_again(ctx, "hang.served_again").await
}

/// Waits until a request is served: a permit may be given back a moment after its client has read
/// the last byte.
async fn free_again(ctx: &Ctx, fact: &str) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("again"), reply("Paris")).await;
    let served = converge(fact, "a request that is served afterwards", || async {
        let answer = ctx.client.chat(ctx.prompt("solo", "again")).await?;
        Ok(Some(()).filter(|()| answer.status == 200))
    });
    served.await
}

async fn load_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    endings(p1).await;
    for (name, fact, stream, end) in ENDS {
        if *stream && !ctx.instance_if(Capability::Stream, name) {
            continue;
        }
        let examined = async {
            // when
            for _ in 0..2 {
                burst(ctx, p1, name, *end).await?;
                // then
                free_again(ctx, fact).await?;
            }
            Ok(())
        };
        // a permit that is lost is missing for every further way
        ctx.examine(name, examined).await?;
    }
    // as many as the limit allows are served at once, and no more
    let gate = "after";
    let held = reply("Paris").plan(Plan::held(gate));
    p1.mount(chat().user_says(gate), held).await;
    let mut full = Full {
        plain: Vec::new(),
        streams: Vec::new(),
    };
    while full.plain.len() < LIMIT {
        let count = full.plain.len() + 1;
        let what = format!("{count} requests in flight after the bursts");
        let one = guard("hang.filled", &what, held_beside(ctx, p1, gate, count));
        full.plain.push(one.await??);
        if count < LIMIT {
            // what ends beside those that are held gives back one permit and no more
            free_again(ctx, "hang.one_served").await?;
        }
    }
    let mut beyond = ctx.client.send_chat(ctx.prompt("solo", gate)).await?;
    let status = tokio::select! {
        status = beyond.next_status() => Some(status?),
        _ = p1.in_flight_is(LIMIT + 1) => None,
    };
    holds(
        "after.refused",
        matches!(status, Some(429 | 503)),
        "the limit to hold as before: a status of 429 or 503 for one request more",
        match status {
            Some(status) => format!("status {status}"),
            None => format!("{} requests in flight at the provider", LIMIT + 1),
        },
    )?;
    full.answered(ctx, gate).await
}

/// Sends requests until one is held at the gate, so that so many are in flight: a permit may be
/// given back a moment later.
async fn held_beside(ctx: &Ctx, p1: &Stub, gate: &str, count: usize) -> Result<Exchange, Failure> {
    loop {
        let mut sent = ctx.client.send_chat(ctx.prompt("solo", gate)).await?;
        tokio::select! {
            reached = p1.in_flight_is(count) => return reached.map(|()| sent),
            refused = sent.next_status() => drop(refused?),
        }
    }
}

/// A way in which requests end.
#[derive(Clone, Copy)]
enum Ending {
    Refused,
    Answered,
    Streamed,
    Failed,
    FailedStream,
    Broken,
    Left,
    LeftStream,
    NotJson,
    UnknownModel,
    HalfABody,
}

/// Each instance, the fact that it breaks, whether it is about streams, and its end.
const ENDS: &[(&str, &str, bool, Ending)] = &[
    ("answered", "hang.after_answered", false, Ending::Answered),
    (
        "streamed to their end",
        "hang.after_streamed",
        true,
        Ending::Streamed,
    ),
    ("refused", "hang.after_refused", false, Ending::Refused),
    (
        "failed by the provider",
        "hang.after_failed",
        false,
        Ending::Failed,
    ),
    (
        "streams that fail before their first token",
        "hang.after_failed_streams",
        true,
        Ending::FailedStream,
    ),
    (
        "streams that break",
        "hang.after_broken",
        true,
        Ending::Broken,
    ),
    (
        "left by their client",
        "hang.after_left",
        false,
        Ending::Left,
    ),
    (
        "streams left by their client",
        "hang.after_left_streams",
        true,
        Ending::LeftStream,
    ),
    ("not JSON", "hang.after_invalid", false, Ending::NotJson),
    (
        "an unknown model",
        "hang.after_unknown",
        false,
        Ending::UnknownModel,
    ),
    (
        "a body that is not sent whole",
        "hang.after_half",
        false,
        Ending::HalfABody,
    ),
];

/// Mounts the answers of the bursts.
async fn endings(p1: &Stub) {
    let broken = |n| reply("Paris is big.").plan(Plan::events_then(n, Step::Cut));
    for (words, answer) in [
        ("end: answered", reply("Paris")),
        ("end: failed", error(500)),
        ("end: broken", broken(2).optional()),
        ("end: empty", broken(0).optional()),
    ] {
        p1.mount(chat().user_says(words), answer).await;
    }
}

/// As many requests as the limit allows end in this way.
async fn burst(ctx: &Ctx, p1: &Stub, name: &str, end: Ending) -> CaseResult {
    let prompt = |words: &str| ctx.prompt("solo", words);
    let plain = |words: &'static str| {
        let sent = (0..LIMIT).map(move |_| ctx.client.chat(prompt(words)));
        try_join_all(sent)
    };
    let streamed = |words: &'static str| {
        let sent = (0..LIMIT).map(move |_| ctx.client.streamed(prompt(words)));
        try_join_all(sent)
    };
    match end {
        Ending::Refused => {
            let gate = format!("full {}.", p1.requests().len());
            let full = filled(ctx, &gate, LIMIT, 0).await?;
            p1.in_flight_is(LIMIT).await?;
            let beyond = (0..2 * LIMIT).map(|_| ctx.client.chat(prompt("end: answered")));
            let beyond = try_join_all(beyond).await?;
            ctx.reached(State::AdmissionFull);
            holds(
                "refused.statuses",
                beyond.iter().all(|answer| answer.status >= 400),
                "errors beyond the limit",
                json(&statuses(&beyond)),
            )?;
            full.answered(ctx, &gate).await?;
        }
        Ending::Answered => drop(plain("end: answered").await?),
        Ending::Streamed => drop(streamed("end: answered").await?),
        Ending::Failed => drop(plain("end: failed").await?),
        Ending::FailedStream => drop(streamed("end: empty").await?),
        Ending::Broken => drop(streamed("end: broken").await?),
        Ending::Left => {
            let gate = format!("left {}.", p1.requests().len());
            let held = held_so_far(p1) + LIMIT;
            let full = filled(ctx, &gate, LIMIT, 0).await?;
            p1.held(held).await?;
            drop(full);
            p1.in_flight_is(0).await?;
        }
        Ending::LeftStream => {
            let gate = format!("left {}.", p1.requests().len());
            let full = filled(ctx, &gate, 0, LIMIT).await?;
            drop(full);
            p1.in_flight_is(0).await?;
        }
        Ending::NotJson => {
            for _ in 0..LIMIT {
                let sent = ctx.client.request("POST", CHAT, &[JSON], b"{\"model\": ");
                refused_as_wrong(name, sent.await?.status)?;
            }
        }
        Ending::UnknownModel => {
            let unknown = serde_json::json!({
                "model": "gauntlet-nobody",
                "messages": [{ "role": "user", "content": "hello" }],
            });
            for _ in 0..LIMIT {
                let answer = ctx.client.chat(unknown.clone()).await?;
                refused_as_wrong(name, answer.status)?;
            }
        }
        Ending::HalfABody => {
            let body = prompt("half").to_string();
            let bytes = ctx
                .client
                .request_bytes("POST", CHAT, &[JSON], body.as_bytes());
            for _ in 0..LIMIT {
                let sent = ctx.client.send_raw(&bytes[..bytes.len() - 9]).await?;
                sent.taken().await?;
                sent.leave();
            }
        }
    }
    Ok(())
}

/// How many answers have been held at the provider.
fn held_so_far(p1: &Stub) -> usize {
    let held = |entry: &&Entry| matches!(entry.event, Event::Held { .. });
    p1.tape().iter().filter(held).count()
}

fn refused_as_wrong(name: &str, status: u16) -> CaseResult {
    holds(
        "wrong.status",
        status >= 400,
        format!("an error for a request that is wrong ({name})"),
        status,
    )
}

async fn load_04(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let mut deviations = Deviations::new();
    let part = ctx.prompt("solo", "hello").to_string();
    let streamed = part.replacen('{', "{\"stream\": true, ", 1);
    let mut chunk = format!("{:x}\r\n{{\"x\": \"", 4 * BODY).into_bytes();
    chunk.resize(2 * BODY, b'x');
    let declared = ("content-length", "67108864");
    let chunked = ("transfer-encoding", "chunked");
    for (name, fact, framing, body) in [
        (
            "a declared length",
            "declared_length.status",
            declared,
            part.as_bytes(),
        ),
        ("chunks", "chunked.status", chunked, chunk.as_slice()),
        (
            "a declared length, streamed",
            "declared_length.status",
            declared,
            streamed.as_bytes(),
        ),
    ] {
        // when
        let examined = async {
            let headers = [JSON, framing];
            let sent = ctx.client.send("POST", CHAT, &headers, body).await?;
            let answer = sent.reply().await?;
            // then
            equal(
                fact,
                "the status of a request that is over the limit before its end",
                413,
                answer.status,
            )
        };
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    for (name, fact, more, in_chunks, stream) in [
        ("exactly the limit", "at_limit.status", 0, false, false),
        (
            "exactly the limit, in chunks",
            "at_limit.status",
            0,
            true,
            false,
        ),
        (
            "a byte more than the limit",
            "one_more.status",
            1,
            false,
            false,
        ),
        (
            "a byte more than the limit, in chunks",
            "one_more.status",
            1,
            true,
            false,
        ),
        (
            "a byte more than the limit, streamed",
            "one_more.status",
            1,
            false,
            true,
        ),
    ] {
        let examined = async {
            let answer = of_length(ctx, BODY + more, in_chunks, stream).await?;
            let expected = if more == 0 { 200 } else { 413 };
            equal(
                fact,
                &format!("the status of a body of {} bytes", BODY + more),
                expected,
                answer.status,
            )
        };
        noted(&mut deviations, ctx.examine(name, examined).await)?;
    }
    deviations.note(equal(
        "provider.requests",
        "the number of requests at the provider, those of exactly the limit alone,",
        2,
        p1.requests().len(),
    ))?;
    deviations.note(equal(
        "small_body.status",
        "the status of a small body that follows",
        200,
        ctx.client.chat(ctx.prompt("solo", "hello")).await?.status,
    ))?;
    deviations.result()
}

/// Sends a request whose body has exactly this length.
async fn of_length(
    ctx: &Ctx,
    length: usize,
    in_chunks: bool,
    stream: bool,
) -> Result<Reply, Failure> {
    let mut body: Value = ctx.prompt("solo", "hello");
    body["stream"] = stream.into();
    let mut body = body.to_string().into_bytes();
    // blanks before a value are allowed
    let blanks = length.saturating_sub(body.len());
    body.splice(1..1, std::iter::repeat_n(b' ', blanks));
    if !in_chunks {
        return ctx.client.request("POST", CHAT, &[JSON], &body).await;
    }
    let mut bytes = Vec::new();
    for piece in body.chunks(10_000) {
        bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let headers = [JSON, ("transfer-encoding", "chunked")];
    ctx.client.request("POST", CHAT, &headers, &bytes).await
}

async fn load_05(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("Paris"));
    let body = ctx.prompt("solo", &"hello ".repeat(8_000)).to_string();
    let request = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], body.as_bytes());
    let streamed = body.replacen('{', "{\"stream\": true, ", 1);
    let streamed = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], streamed.as_bytes());
    let chunks: Vec<u8> = body
        .as_bytes()
        .chunks(40)
        .flat_map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
        .collect();
    let headers = [JSON, ("transfer-encoding", "chunked")];
    let chunked = ctx.client.request_bytes("POST", CHAT, &headers, &chunks);
    let head = request.len() - body.len();
    let (kept_head, kept) = kept_connection(ctx, &request).await?;
    // when
    let ends = futures::join!(
        stops(ctx, &request[..head / 2]),
        dribbles(ctx, &request, 1),
        stops_on(kept, &kept_head[..head / 2]),
        stops(ctx, &request[..head + 100]),
        dribbles(ctx, &request, head),
        dribbles(ctx, &chunked, chunked.len() - chunks.len() + 40),
        dribbles(ctx, &streamed, head),
    );
    // then
    let mut deviations = Deviations::new();
    for (name, fact, what, end) in [
        ("headers that stop", "stopped_headers", "headers", ends.0),
        ("headers byte by byte", "slow_headers", "headers", ends.1),
        (
            "headers on a kept connection",
            "kept_headers",
            "headers",
            ends.2,
        ),
        ("a body that stops", "stopped_body", "body", ends.3),
        ("a body in small pieces", "slow_body", "body", ends.4),
        ("a body in small chunks", "slow_chunks", "body", ends.5),
        (
            "a body of a streamed request",
            "slow_streamed_body",
            "body",
            ends.6,
        ),
    ] {
        let judged = async {
            let end = end.map_err(|failure| named(failure, &format!("hang.{fact}")))?;
            refused_or_closed(&format!("{fact}.end"), what, &end)
        };
        deviations.note(ctx.examine(name, judged).await)?;
    }
    deviations.note(equal(
        "provider.requests",
        "the number of requests at the provider, the kept connection's first alone,",
        1,
        p1.requests().len(),
    ))?;
    deviations.result()
}

/// The same violation by a hang under another name.
fn named(failure: Failure, name: &str) -> Failure {
    match failure {
        Failure::Violated {
            expected,
            observed,
            mode: FailureMode::Hang,
            ..
        } => Failure::Violated {
            fact: name.into(),
            expected,
            observed,
            mode: FailureMode::Hang,
        },
        other => other,
    }
}

type SlowEnd = Result<Result<Reply, Transport>, Failure>;

async fn dribbles(ctx: &Ctx, bytes: &[u8], piece: usize) -> SlowEnd {
    ctx.client
        .dribble(bytes, piece, Duration::from_millis(50))
        .await
}

/// Sends a part of a request and nothing more.
async fn stops(ctx: &Ctx, part: &[u8]) -> SlowEnd {
    let sent = ctx.client.send_raw(part).await?;
    ends(sent).await
}

async fn stops_on(mut kept: Exchange, part: &[u8]) -> SlowEnd {
    kept.write_more(part).await?;
    ends(kept).await
}

/// Reads the answer, if there is one, and waits until the connection is closed.
async fn ends(mut sent: Exchange) -> SlowEnd {
    match sent.next_status().await {
        Ok(_) => {}
        Err(
            hang @ Failure::Violated {
                mode: FailureMode::Hang,
                ..
            },
        ) => return Err(hang),
        // no answer: the connection was closed
        Err(_) => return Ok(Err(Transport::NoAnswer("end of the connection".into()))),
    };
    let answer = sent.next_reply().await?;
    sent.until_closed().await?;
    Ok(Ok(answer))
}

/// A connection on which a request was served, and the bytes of the next one.
async fn kept_connection(ctx: &Ctx, request: &[u8]) -> Result<(Vec<u8>, Exchange), Failure> {
    let small = ctx.prompt("solo", "small").to_string();
    let bytes = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], small.as_bytes());
    let mut kept = ctx.client.send_raw(&bytes).await?;
    let answer = kept.next_reply().await?;
    equal(
        "kept.status",
        "the status of the first request of a connection",
        200,
        answer.status,
    )?;
    Ok((request.to_vec(), kept))
}

async fn load_07(ctx: &Ctx) -> CaseResult {
    let openai = stops_reading(ctx, "p1", "solo");
    ctx.examine("OpenAI", openai).await?;
    if ctx.instance_if(Capability::Ollama, "Ollama") {
        stops_reading(ctx, "p2", "ollama").await?;
    }
    Ok(())
}

async fn stops_reading(ctx: &Ctx, provider: &str, alias: &str) -> CaseResult {
    // given
    let stub = ctx.stub(provider)?;
    stub.answers(match alias {
        "ollama" => large_ndjson(),
        _ => large_stream(),
    });
    let mut stream = ctx
        .client
        .with_receive_buffer(8 << 10)
        .stream(ctx.prompt(alias, "much"))
        .await?;
    // when
    stream.next().await?;
    let held = held_for(&stream, stub, AHEAD + 1).await?;
    // then
    holds(
        "provider.bytes_taken",
        held <= AHEAD,
        format!("at most {AHEAD} bytes taken ahead of the client"),
        format_args!("{held} bytes"),
    )?;
    equal(
        "provider.in_flight",
        "the number of answers that the provider is still sending",
        1,
        stub.in_flight(),
    )?;
    stream.leave();
    Ok(())
}

/// As [`large_stream`], in Ollama's records.
fn large_ndjson() -> Responder {
    let record = serde_json::json!({
        "model": "m-p2", "created_at": "2026-01-01T00:00:00Z", "done": false,
        "message": { "role": "assistant", "content": "x".repeat(64 << 10) },
    });
    endless("application/x-ndjson", format!("{record}\n"))
}

async fn load_08(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("slow"), reply("Paris")).await;
    let whole = ctx.prompt("solo", "slow").to_string();
    let bytes = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], whole.as_bytes());
    let head = bytes.len() - whole.len();
    let (first, second) = whole.split_at(whole.len() / 2);
    let chunk = format!("{:x}\r\n{first}\r\n", first.len());
    let rest = format!("{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
    let headers = [JSON, ("transfer-encoding", "chunked")];
    let chunked = ctx
        .client
        .request_bytes("POST", CHAT, &headers, chunk.as_bytes());
    for (name, fact, part, rest) in [
        ("connections that are idle", "idle", &bytes[..0], &bytes[..]),
        (
            "connections that are idle after an answer",
            "idle",
            &bytes[..],
            &bytes[..],
        ),
        (
            "headers that are not whole",
            "headers",
            &bytes[..head / 2],
            &bytes[head / 2..],
        ),
        (
            "bodies that are not whole",
            "bodies",
            &bytes[..head + 10],
            &bytes[head + 10..],
        ),
        (
            "chunked bodies that are not whole",
            "bodies",
            &chunked,
            rest.as_bytes(),
        ),
    ] {
        let answered = part.len() == bytes.len();
        let examined = beside_slow_clients(ctx, fact, part, answered, rest);
        // a permit that is taken is missing for the others
        ctx.examine(name, examined).await?;
    }
    Ok(())
}

async fn beside_slow_clients(
    ctx: &Ctx,
    fact: &str,
    part: &[u8],
    answered: bool,
    rest: &[u8],
) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let status = format!("{fact}.status");
    let mut slow = Vec::new();
    for _ in 0..LIMIT {
        let mut sent = ctx.client.send_raw(part).await?;
        if answered {
            let first = sent.next_reply().await?;
            equal(
                "first.status",
                "the status of a request before its connection is idle",
                200,
                first.status,
            )?;
        }
        sent.taken().await?;
        slow.push(sent);
    }
    // when
    for _ in 0..LIMIT {
        let answer = ctx.client.chat(ctx.prompt("solo", "slow")).await?;
        equal(
            &status,
            "the status of a whole request beside slow clients",
            200,
            answer.status,
        )?;
    }
    let gate = format!("beside {fact} {}.", p1.requests().len());
    let full = filled(ctx, &gate, LIMIT, 0).await?;
    p1.in_flight_is(LIMIT).await?;
    full.answered(ctx, &gate).await?;
    free_again(ctx, "hang.served_again").await?;
    // then
    if fact == "idle" {
        // a server may close a connection that is idle at any time
        slow.into_iter().for_each(Exchange::leave);
        return Ok(());
    }
    for mut sent in slow {
        sent.write_more(rest).await?;
        let answer = sent.next_reply().await?;
        equal(
            "slow.status",
            "the status of a slow request once it is whole",
            200,
            answer.status,
        )?;
    }
    Ok(())
}

async fn load_09(ctx: &Ctx) -> CaseResult {
    // given
    let streams = ctx.declares(Capability::Stream);
    let ollama = ctx.declares(Capability::Ollama);
    let pair = ctx.declares(Capability::Fallback);
    for (name, text) in [("p1", "one"), ("p2", "two"), ("p3", "three")] {
        // a gateway may do without the alias of a provider
        if let Some(stub) = ctx.stubs.get(name) {
            stub.answers(reply(text));
        }
    }
    let rows = [
        ("plain", "solo", false, None),
        (
            "streamed",
            "solo",
            true,
            Some((Capability::Stream, streams)),
        ),
        (
            "Ollama",
            "ollama",
            false,
            Some((Capability::Ollama, ollama)),
        ),
        (
            "two candidates",
            "pair",
            false,
            Some((Capability::Fallback, pair)),
        ),
    ];
    let mut deviations = Deviations::new();
    // when
    spare(ctx, Some(1)).await?;
    for (name, alias, stream, needed) in rows {
        if let Some((needed, false)) = needed {
            ctx.instance_if(needed, name);
            continue;
        }
        let examined = async {
            let (status, _) = asked(ctx, alias, stream).await?;
            if status == 200 {
                return Err(Failure::NotExercised {
                    why: "the gateway reached its provider without a file descriptor more".into(),
                });
            }
            // 502 and 504 speak of the server behind the gateway (RFC 9110 section 15.6)
            holds(
                "short.status",
                status >= 500 && !matches!(status, 502 | 504),
                "an error of the gateway's own: a status of 500 or more, neither 502 nor 504",
                status,
            )
        };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    spare(ctx, None).await?;
    // then
    for (name, alias, stream, text, needed) in [
        ("afterwards, plain", "solo", false, "one", None),
        (
            "afterwards, streamed",
            "solo",
            true,
            "one",
            Some((Capability::Stream, streams)),
        ),
        (
            "afterwards, Ollama",
            "ollama",
            false,
            "three",
            Some((Capability::Ollama, ollama)),
        ),
        (
            "afterwards, the first of two candidates",
            "pair",
            false,
            "one",
            Some((Capability::Fallback, pair)),
        ),
    ] {
        if let Some((needed, false)) = needed {
            ctx.instance_if(needed, name);
            continue;
        }
        let examined = async {
            let (status, seen) = asked(ctx, alias, stream).await?;
            holds(
                "after.answer",
                (status, seen.as_str()) == (200, text),
                format!("status 200 and {text:?}, the answer of the first candidate"),
                format_args!("status {status} and {seen:?}"),
            )
        };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    deviations.result()
}

/// Leaves the gateway so many file descriptors.
async fn spare(ctx: &Ctx, spare: Option<u64>) -> CaseResult {
    let limited = ctx.process()?.leave_descriptors(spare).await;
    limited.map_err(|error| match error {
        TargetError::NotSupported(why) => Failure::NotRun { why },
        error => Failure::Target {
            what: error.to_string(),
        },
    })
}

/// The status and text of an answer.
async fn asked(ctx: &Ctx, alias: &str, stream: bool) -> Result<(u16, String), Failure> {
    let prompt = ctx.prompt(alias, "hello");
    if stream {
        let answer = ctx.client.streamed(prompt).await?;
        return Ok((answer.status, answer.text));
    }
    let answer = ctx.client.chat(prompt).await?;
    Ok((answer.status, answer.content()))
}

async fn load_11(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let (north, south) = (ctx.client.with_bearer(NORTH), ctx.client.with_bearer(SOUTH));
    p1.mount(
        chat().user_says("hung"),
        reply("late").plan(Plan::held("hung")),
    )
    .await;
    p1.answers(reply("Paris is big."));
    let mut held = Vec::new();
    let mut beyond = None;
    while beyond.is_none() && held.len() < 4 * LIMIT {
        let mut sent = north.send_chat(ctx.prompt("solo", "hung")).await?;
        let refused = tokio::select! {
            reached = p1.in_flight_is(held.len() + 1) => reached.map(|()| None)?,
            status = sent.next_status() => Some(status?),
        };
        match refused {
            None => held.push(sent),
            Some(status) => beyond = Some(status),
        }
    }
    holds(
        "refused.status",
        matches!(beyond, Some(429 | 503)),
        "a status of 429 or 503 beyond the limit",
        json(&beyond),
    )?;
    ctx.reached(State::AdmissionFull);
    let mut deviations = Deviations::new();
    // when
    let plain = async {
        let answer = south.chat(ctx.prompt("solo", "hello")).await?;
        equal(
            "other.status",
            "the status of another tenant's request",
            200,
            answer.status,
        )
    };
    ctx.examine("plain", plain).await?;
    if ctx.instance_if(Capability::Stream, "streamed") {
        // the permit of the first one may be given back a moment later
        let what = "a stream of another tenant that is served";
        let streamed = converge("hang.other_stream", what, || async {
            let answer = south.streamed(ctx.prompt("solo", "hello")).await?;
            Ok(Some(answer).filter(|answer| answer.status == 200))
        });
        let streamed = streamed.await;
        deviations.note(streamed.and_then(|answer| whole(&answer, "Paris is big.")))?;
    }
    // then
    ctx.gates.gate("hung").open();
    let count = held.len();
    let statuses = statuses(&answers(held).await?);
    let afterwards = async {
        equal(
            "held.statuses",
            "the statuses of the requests that were held",
            vec![200; count],
            statuses,
        )?;
        let served = converge(
            "hang.first_again",
            "a request of the first tenant that is served",
            || async {
                let answer = north.chat(ctx.prompt("solo", "hello")).await?;
                Ok(Some(()).filter(|()| answer.status == 200))
            },
        );
        served.await
    };
    deviations.note(ctx.examine("the first tenant afterwards", afterwards).await)?;
    deviations.result()
}

/// The client must get an error, or no answer at all.
fn refused_or_closed(fact: &str, what: &str, end: &Result<Reply, Transport>) -> CaseResult {
    let (fair, seen) = match end {
        Ok(answer) => (answer.status >= 400, format!("status {}", answer.status)),
        Err(transport) => (true, transport.to_string()),
    };
    holds(
        fact,
        fair,
        format!(
            "an error or a closed connection for a client that sends its {what} too slowly or not \
             to its end"
        ),
        seen,
    )
}
