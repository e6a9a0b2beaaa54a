//! PARA, of chats: requests run together, and one delays no other.

use futures::FutureExt;
use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, State, equal, holds, silent};
use gauntlet_harness::client::{Exchange, Reply, Transcript};
use gauntlet_harness::gate::{guard, settled};
use gauntlet_harness::llm::{Responder, Stub, chat, error, raw, reply, with};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use gauntlet_harness::tape::Event;
use serde_json::json;

use crate::cases::CaseRow;
use crate::cases::support::{
    TOO_MANY, answers, applies, ended, held_for, is_streamed, large_stream, marked, noted, parsed,
    renamed, reports_error, silent_if, statuses, text, until_asked, with_tools,
};

/// A provider's concurrency limit.
const LIMIT: usize = 4;

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "PARA-01",
        why: "A gateway with a hidden lock, a small pool or one connection serialises its users, and \
              no benchmark with one client shows it.",
        shown: "The provider answers nobody until 64 requests have arrived together; for streams, until \
                64 of them have sent their beginning.",
        remedy: "Remove or configure the limit: the connection pool, the number of workers, HTTP/2 \
                 streams, or a lock that is held over a call.",
        needs: &[Capability::Chat],
        instances: &["plain", "streamed", "Ollama, plain", "Ollama, streamed"],
        spec: two_protocols,
        run: &para_01,
    },
    CaseRow {
        id: "PARA-02",
        why: "A provider that held its connections emptied a pool that all models shared \
              (https://github.com/tensorzero/tensorzero/issues/6328).",
        shown: "One provider holds 32 requests, or 32 streams after their first text. 32 requests to \
                another provider, plain and streamed, must all be answered while it still holds them.",
        remedy: "Give each provider its own pool and its own queue.",
        needs: &[Capability::Chat],
        instances: &[
            "plain, beside plain requests",
            "streamed, beside plain requests",
            "plain, beside streamed requests",
            "streamed, beside streamed requests",
        ],
        spec: || {
            let spec = Spec::pair()
                .model("stalled", &["p1"])
                .model("other", &["p2"]);
            spec.model_timeouts("stalled", Timeouts::PATIENT)
                .model_timeouts("other", Timeouts::PATIENT)
        },
        run: &para_02,
    },
    CaseRow {
        id: "PARA-03",
        why: "Other clients must not feel a client on a bad connection: neither through a lock nor \
              through memory that fills up.",
        shown: "A client stops reading a stream without end. Other streams must reach their end, and the \
                gateway must stop taking bytes of the large one.",
        remedy: "Write to each client from a task of its own, and read from the provider only what the \
                 client takes.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &para_03,
    },
    CaseRow {
        id: "PARA-07",
        why: "A limit that each worker kept for itself was exceeded \
              (https://github.com/BerriAI/litellm/issues/16011).",
        shown: "Twelve requests arrive at once for a provider that takes four. Four must be there \
                together, and never five: plain, streamed to the last event, and again after a request \
                has ended in each other way.",
        remedy: "Keep one count of the requests in flight at a provider, from the first byte of a \
                 request to the last byte of its answer.",
        needs: &[Capability::Chat, Capability::Bulkhead],
        instances: &[
            "plain",
            "streamed",
            "after status 503",
            "after a reset",
            "after an answer that cannot be read",
            "after a cut",
            "after a streamed cut",
            "after a streamed error event",
            "after a plain client that left",
            "after a streamed client that left",
        ],
        spec: || {
            let mut spec = Spec::solo()
                .model_timeouts("solo", Timeouts::PATIENT)
                .provider("p2", Protocol::OPENAI)
                .model("other", &["p2"]);
            spec.providers[0].max_in_flight = u32::try_from(LIMIT).ok();
            spec
        },
        run: &para_07,
    },
    CaseRow {
        id: "PARA-08",
        why: "A health check that waits behind requests makes the orchestrator kill the process with \
              all of them.",
        shown: "Of 200 requests the provider holds at least 64, and of 200 streams the end. Liveness and, \
                where they are declared, readiness, health and metrics must answer while it does.",
        remedy: "Answer health before any limit, pool or queue that requests pass through.",
        needs: &[Capability::Chat, Capability::Liveness],
        instances: &["plain", "streamed"],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &para_08,
    },
    CaseRow {
        id: "PARA-09",
        why: "An answer to another user's question is the one failure that no retry and no apology \
              mends.",
        shown: "48 clients, half of them streaming, ask different questions of a provider, and as many \
                ask one that speaks Ollama's API. Each provider answers all at once, each with its own \
                words and a tool call, in pieces that cut events.",
        remedy: "Keep nothing of a request outside its own task: no shared buffer, and no cache whose \
                 key is less than the whole request.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &["plain", "streamed", "Ollama, plain", "Ollama, streamed"],
        spec: two_protocols,
        run: &para_09,
    },
];

/// The aliases `solo` and `local`, whose provider speaks Ollama's API, with no timeout near.
fn two_protocols() -> Spec {
    Spec::solo()
        .provider("p3", Protocol::OLLAMA)
        .optional_model("local", &["p3"])
        .model_timeouts("solo", Timeouts::PATIENT)
        .model_timeouts("local", Timeouts::PATIENT)
}

async fn para_01(ctx: &Ctx) -> CaseResult {
    // given
    const TOGETHER: usize = 64;
    let mut deviations = Deviations::new();
    for (name, alias, provider) in [
        ("plain", "solo", "p1"),
        ("streamed", "solo", "p1"),
        ("Ollama, plain", "local", "p3"),
        ("Ollama, streamed", "local", "p3"),
    ] {
        if !applies(ctx, name) {
            continue;
        }
        let meet = Step::Meet {
            name: name.into(),
            count: TOGETHER,
        };
        let plan = match is_streamed(name) {
            true => Plan::of([Step::Head, Step::Events(2), meet, Step::Rest]),
            false => Plan::of([meet, Step::Head, Step::Rest]),
        };
        ctx.stub(provider)?
            .answers(reply("all of them are here").plan(plan));
        let met = async {
            // when
            let body = ctx.prompt(alias, "hello");
            let asked = (0..TOGETHER).map(|_| match is_streamed(name) {
                true => ctx.client.send_stream(body.clone()).boxed(),
                false => ctx.client.send_chat(body.clone()).boxed(),
            });
            let asked = try_join_all(asked).await?;
            // then
            ctx.gates.rendezvous(name, TOGETHER).met().await?;
            equal(
                "answers.statuses",
                "the statuses",
                vec![200; TOGETHER],
                statuses(&answers(asked).await?),
            )
        };
        noted(&mut deviations, ctx.examine(name, met.boxed()).await)?;
    }
    deviations.result()
}

async fn para_02(ctx: &Ctx) -> CaseResult {
    // given
    const EACH: usize = 32;
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("Paris"));
    let mut deviations = Deviations::new();
    for beside in ["plain", "streamed"] {
        let streams = is_streamed(beside);
        if streams && !ctx.declares(Capability::Stream) {
            for asked in ["plain", "streamed"] {
                ctx.instance_if(
                    Capability::Stream,
                    &format!("{asked}, beside streamed requests"),
                );
            }
            continue;
        }
        let hold = Step::Hold(beside.into());
        p1.answers(reply("so late").plan(match streams {
            true => Plan::of([Step::Head, Step::Events(2), hold, Step::Rest]),
            false => Plan::of([hold, Step::Head, Step::Rest]),
        }));
        let stalled = (0..EACH).map(|_| asked(ctx, "stalled", streams));
        let stalled = try_join_all(stalled).await?;
        p1.in_flight_is(EACH).await?;
        for kind in ["plain", "streamed"] {
            let name = format!("{kind}, beside {beside} requests");
            if !applies(ctx, &name) {
                continue;
            }
            let served = async {
                // when
                let others = (0..EACH).map(|_| asked(ctx, "other", is_streamed(kind)));
                let others = answers(try_join_all(others).await?).await?;
                // then
                equal(
                    "stalled.in_flight",
                    "the number of requests that the stalled provider still holds",
                    EACH,
                    p1.in_flight(),
                )?;
                equal(
                    "other.statuses",
                    "the statuses of the other model",
                    vec![200; EACH],
                    statuses(&others),
                )
            };
            noted(&mut deviations, ctx.examine(&name, served.boxed()).await)?;
        }
        ctx.gates.gate(beside).open();
        noted(
            &mut deviations,
            equal(
                "stalled.statuses",
                "the statuses of the stalled model, once its provider answers,",
                vec![200; EACH],
                statuses(&answers(stalled).await?),
            ),
        )?;
    }
    deviations.result()
}

/// Sends one request to the alias, streamed or not.
async fn asked(ctx: &Ctx, alias: &str, streamed: bool) -> Result<Exchange, Failure> {
    let body = ctx.prompt(alias, "hello");
    match streamed {
        true => ctx.client.send_stream(body).await,
        false => ctx.client.send_chat(body).await,
    }
}

async fn para_03(ctx: &Ctx) -> CaseResult {
    // given
    const OTHERS: usize = 8;
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("large"), large_stream()).await;
    p1.mount(chat().user_says("small"), reply("Paris is big."))
        .await;
    let reader = ctx.client.with_receive_buffer(8 << 10).labelled("slow");
    let mut slow = reader.stream(ctx.prompt("solo", "large")).await?;
    slow.next().await?;
    // when
    let taken = held_for(&slow, p1, TOO_MANY).await?;
    let small = (0..OTHERS).map(|_| ctx.client.streamed(ctx.prompt("solo", "small")));
    let others = try_join_all(small).await?;
    // then
    let complete = others
        .iter()
        .filter(|stream| stream.looks_complete() && stream.text == "Paris is big.")
        .count();
    equal(
        "others.complete",
        "the number of complete streams beside the slow one",
        OTHERS,
        complete,
    )?;
    holds(
        "provider.bytes_taken",
        taken < TOO_MANY,
        format!("less than {TOO_MANY} bytes of the stream that nobody reads in the gateway"),
        format_args!("{taken} bytes"),
    )?;
    equal(
        "provider.in_flight",
        "the number of answers that the provider is still sending",
        1,
        p1.in_flight(),
    )?;
    slow.leave();
    Ok(())
}

async fn para_07(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    ctx.stub("p2")?.answers(reply("Bern"));
    let mut deviations = Deviations::new();
    for name in ["plain", "streamed"] {
        if applies(ctx, name) {
            let filled = filled(ctx, name, is_streamed(name), true);
            noted(&mut deviations, ctx.examine(name, filled.boxed()).await)?;
        }
    }
    // a provider whose limit is not kept says nothing about what gives a permit back
    deviations.result()?;
    for (name, answer) in endings() {
        if !applies(ctx, name) {
            continue;
        }
        let again = async {
            until_asked(ctx, "solo", p1).await?;
            ended_in_another_way(ctx, name, answer).await?;
            until_asked(ctx, "solo", p1).await?;
            let filled = filled(ctx, name, false, false).boxed().await;
            filled.map_err(|failure| renamed(failure, "hang.held", "hang.held_again"))
        };
        // a permit that is lost is lost for all that follows
        ctx.examine(name, again.boxed()).await?;
    }
    equal(
        "provider.high_water",
        "the highest number of requests at the provider together",
        LIMIT,
        p1.high_water(),
    )
}

/// The ways in which a request ends other than well, and the answer of the provider in each.
fn endings() -> [(&'static str, Responder); 8] {
    let left = || Step::Hold("left".into());
    let paris = || reply("").tokens(["Par", "is"]);
    [
        ("after status 503", error(503)),
        ("after a reset", reply("lost").plan(Plan::of([Step::Reset]))),
        (
            "after an answer that cannot be read",
            raw(200, "application/json", "{\"choices\": [{"),
        ),
        (
            "after a cut",
            reply("lost").plan(Plan::of([Step::Head, Step::Bytes(20), Step::Cut])),
        ),
        (
            "after a streamed cut",
            paris().plan(Plan::events_then(2, Step::Cut)),
        ),
        (
            "after a streamed error event",
            paris().then_error(500, "the model has crashed"),
        ),
        (
            "after a plain client that left",
            paris().plan(Plan::of([left(), Step::Head, Step::Rest])),
        ),
        (
            "after a streamed client that left",
            paris().plan(Plan::of([Step::Head, Step::Events(2), left(), Step::Rest])),
        ),
    ]
}

/// Makes one request that ends in this way.
async fn ended_in_another_way(ctx: &Ctx, name: &str, answer: Responder) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says(&marked(name)), answer).await;
    let body = ctx.prompt("solo", &marked(name));
    if !name.ends_with("left") {
        return ended(&ctx.client, body, is_streamed(name)).await;
    }
    let gate = ctx.gates.gate("left");
    let held_before = held_so_far(p1);
    if is_streamed(name) {
        let mut stream = ctx.client.stream(body).await?;
        stream.text_of(3).await?;
        p1.held(held_before + 1).await?;
        stream.leave();
    } else {
        let asked = ctx.client.send_chat(body).await?;
        p1.held(held_before + 1).await?;
        asked.leave();
    }
    // a gateway that does not notice its client gets the answer (CANC-01 is about that)
    gate.open();
    p1.in_flight_is(0).await?;
    gate.close();
    Ok(())
}

/// Sends more requests than the provider takes: as many as it takes must be there together, and
/// never more. All of them are answered or refused in the end.
async fn filled(ctx: &Ctx, name: &str, streams: bool, at_rest: bool) -> CaseResult {
    let p1 = ctx.stub("p1")?;
    let gate = format!("full, {name}");
    let hold = Step::Hold(gate.clone());
    p1.answers(reply("Paris is big").plan(match streams {
        // a stream has its permit to the last event
        true => Plan::of([Step::Head, Step::Events(2), hold, Step::Rest]),
        false => Plan::of([hold, Step::Head, Step::Rest]),
    }));
    let held_before = held_so_far(p1);
    // when
    let asked = (0..3 * LIMIT).map(|_| asked(ctx, "solo", streams));
    let asked = try_join_all(asked).await?;
    p1.held(held_before + LIMIT).await?;
    equal(
        "other.status",
        "the status of a request to another provider",
        200,
        ctx.client.chat(ctx.prompt("other", "hello")).await?.status,
    )?;
    let held = match at_rest {
        true => {
            guard(
                "hang.settled",
                "a number of requests at the provider that no longer changes",
                settled(|| p1.in_flight()),
            )
            .await?
        }
        false => p1.in_flight(),
    };
    // then
    equal(
        "provider.in_flight",
        "the number of requests at the provider while it is full",
        LIMIT,
        held,
    )?;
    ctx.reached(State::BulkheadFull);
    ctx.gates.gate(&gate).open();
    let seen = statuses(&answers(asked).await?);
    // a request beyond the limit may wait or be refused
    holds(
        "answers.statuses",
        seen.iter().all(|status| matches!(status, 200 | 429 | 503)),
        "statuses of 200, 429 or 503",
        format_args!("{seen:?}"),
    )?;
    holds(
        "answers.served",
        seen.iter().filter(|status| **status == 200).count() >= LIMIT,
        format!("at least {LIMIT} answers"),
        format_args!("{seen:?}"),
    )
}

/// How many answers the stub has held so far.
fn held_so_far(stub: &Stub) -> usize {
    let tape = stub.tape();
    let held = tape
        .iter()
        .filter(|entry| matches!(entry.event, Event::Held { .. }));
    held.count()
}

async fn para_08(ctx: &Ctx) -> CaseResult {
    // given
    const STALLED: usize = 200;
    // what PARA-01 asks for; a gateway may let the others wait for a connection
    const HELD: usize = 64;
    let p1 = ctx.stub("p1")?;
    let mut deviations = Deviations::new();
    for name in ["plain", "streamed"] {
        if !applies(ctx, name) {
            continue;
        }
        let streams = is_streamed(name);
        let hold = Step::Hold(name.into());
        p1.answers(reply("late").plan(match streams {
            true => Plan::of([Step::Head, Step::Events(2), hold, Step::Rest]),
            false => Plan::of([hold, Step::Head, Step::Rest]),
        }));
        let held_before = held_so_far(p1);
        let answering = async {
            let stalled = (0..STALLED).map(|_| asked(ctx, "solo", streams));
            let stalled = try_join_all(stalled).await?;
            p1.held(held_before + HELD).await?;
            // when
            let paths = &ctx.manifest.paths;
            let live = ctx.client.get(&paths.live).await?;
            let ready = match ctx.declares(Capability::Readiness) {
                true => Some(ctx.client.get(&paths.ready).await?),
                false => None,
            };
            let others = [
                (Capability::Health, &paths.health),
                (Capability::Metrics, &paths.metrics),
            ];
            for (_, path) in others.iter().filter(|(needed, _)| ctx.declares(*needed)) {
                ctx.client.get(path).await?;
            }
            // then
            equal(
                "liveness.status",
                "the status of liveness",
                200,
                live.status,
            )?;
            if let Some(ready) = ready {
                equal(
                    "readiness.status",
                    "the status of readiness",
                    200,
                    ready.status,
                )?;
            }
            holds(
                "provider.in_flight",
                p1.in_flight() >= HELD,
                format!("at least {HELD} requests that the provider still holds"),
                p1.in_flight(),
            )?;
            ctx.gates.gate(name).open();
            equal(
                "answers.statuses",
                "the statuses, once the provider answers,",
                vec![200; STALLED],
                statuses(&answers(stalled).await?),
            )
        };
        let examined = ctx.examine(name, answering.boxed()).await;
        ctx.gates.gate(name).open();
        noted(&mut deviations, examined)?;
    }
    deviations.result()
}

async fn para_09(ctx: &Ctx) -> CaseResult {
    // given
    const EACH: usize = 24;
    let words = |n: usize| format!("my own words {n}.");
    let mut deviations = Deviations::new();
    let mut kinds = vec![("plain", "streamed", "solo", "p1")];
    let of_ollama = ("Ollama, plain", "Ollama, streamed", "local", "p3");
    if [of_ollama.0, of_ollama.1]
        .iter()
        .all(|name| applies(ctx, name))
    {
        kinds.push(of_ollama);
    } else {
        ctx.instance_if(Capability::Ollama, of_ollama.1);
    }
    for (plain, streamed, alias, provider) in kinds {
        let all = Step::Meet {
            name: plain.into(),
            count: 2 * EACH,
        };
        // each answer has its words, and a tool call with them
        let own = with(|asked| {
            let text = asked.user_text();
            reply(&text).tool_call("look", json!({"up": text}))
        });
        ctx.stub(provider)?.answers(own_in_pieces(own, all));
        // when
        let body = |n: usize| with_tools(ctx.prompt(alias, &words(n)));
        let plains = try_join_all((0..EACH).map(|n| ctx.client.chat(body(n))));
        let streams = (EACH..2 * EACH).map(|n| ctx.client.streamed(body(n)));
        let (plains, streams) = futures::try_join!(plains, try_join_all(streams))?;
        // then
        let answer = |n| format!("{} [{}]", words(n), ctx.nonce);
        let seen = plains
            .iter()
            .map(OwnWords::of_reply)
            .chain(streams.iter().map(OwnWords::of_stream));
        for (n, seen) in seen.enumerate() {
            let name = if n < EACH { plain } else { streamed };
            let right = async {
                let foreign = (0..2 * EACH)
                    .filter(|other| *other != n)
                    .map(answer)
                    .any(|other| seen.text == other || seen.tool == other);
                holds(
                    "answer.foreign",
                    !foreign,
                    format!("the answer to prompt {n}"),
                    format_args!("a part of the answer to another prompt: {seen:?}"),
                )
                .map_err(silent)?;
                equal(
                    "answer.own",
                    "the answer to the prompt",
                    answer(n),
                    seen.text.clone(),
                )
                .map_err(silent_if(seen.looks_right))?;
                equal(
                    "answer.own",
                    "the arguments of the tool call",
                    answer(n),
                    seen.tool.clone(),
                )
                .map_err(silent_if(seen.looks_right))
            };
            noted(&mut deviations, ctx.examine(name, right).await)?;
        }
    }
    deviations.result()
}

/// The answer, once all have come, in pieces that cut events.
fn own_in_pieces(own: Responder, all: Step) -> Responder {
    own.plan(Plan::of([
        all,
        Step::Head,
        Step::Drip {
            bytes: 160,
            every_ms: 5,
        },
    ]))
}

/// What a client reads of an answer that repeats its prompt in the text and in a tool call.
#[derive(Debug)]
struct OwnWords {
    text: String,
    tool: String,
    looks_right: bool,
}

impl OwnWords {
    fn of_reply(reply: &Reply) -> Self {
        let arguments =
            &reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
        Self {
            text: reply.content(),
            tool: text(&parsed(arguments), "up").to_owned(),
            looks_right: reply.status < 400,
        }
    }

    fn of_stream(stream: &Transcript) -> Self {
        let arguments = stream.tool_calls.first();
        let arguments = arguments
            .map(|call| call.arguments.clone())
            .unwrap_or_default();
        Self {
            text: stream.text.clone(),
            tool: text(&parsed(&arguments.into()), "up").to_owned(),
            looks_right: !reports_error(stream),
        }
    }
}
