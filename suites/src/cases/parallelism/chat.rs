//! PARA, of chats: requests run together, and one delays no other.

use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, State, equal, holds, silent};
use gauntlet_harness::client::{Reply, Transcript};
use gauntlet_harness::gate::{guard, settled};
use gauntlet_harness::llm::{chat, echo, raw, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use crate::cases::CaseRow;
use crate::cases::support::{answers, large_stream, reports_error, silent_if, statuses, taken};

/// A provider's concurrency limit.
const LIMIT: usize = 4;

pub(in crate::cases) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "PARA-01",
        why: "A gateway with a hidden lock, a small pool or one connection serialises its users, and \
              no benchmark with one client shows it.",
        shown: "The provider answers nobody until 64 requests have arrived together.",
        remedy: "Remove or configure the limit: the connection pool, the number of workers, HTTP/2 \
                 streams, or a lock that is held over a call.",
        needs: &[Capability::Chat],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &para_01,
    },
    CaseRow {
        id: "PARA-02",
        why: "A provider that held its connections emptied a pool that all models shared \
              (https://github.com/tensorzero/tensorzero/issues/6328).",
        shown: "One provider holds 32 requests. 32 requests to another provider must all be answered \
                while it still holds them.",
        remedy: "Give each provider its own pool and its own queue.",
        needs: &[Capability::Chat],
        instances: &[],
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
        shown: "A client stops reading a stream of 48 MiB. Other streams must reach their end, and the \
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
                together, and never five.",
        remedy: "Keep one count of the requests in flight at a provider, from the first byte of a \
                 request to the last byte of its answer.",
        needs: &[Capability::Chat, Capability::Bulkhead],
        instances: &[],
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
        shown: "Of 200 requests the provider holds at least 64. Liveness and, where it is declared, \
                readiness must answer while it does.",
        remedy: "Answer health before any limit, pool or queue that requests pass through.",
        needs: &[Capability::Chat, Capability::Liveness],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &para_08,
    },
    CaseRow {
        id: "PARA-09",
        why: "An answer to another user's question is the one failure that no retry and no apology \
              mends.",
        shown: "48 clients, half of them streaming, ask different questions. The provider answers all \
                at once, each with its own words, in pieces that cut events.",
        remedy: "Keep nothing of a request outside its own task: no shared buffer, and no cache whose \
                 key is less than the whole request.",
        needs: &[Capability::Chat, Capability::Stream],
        instances: &[],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &para_09,
    },
];

async fn para_01(ctx: &Ctx) -> CaseResult {
    // given
    const TOGETHER: usize = 64;
    ctx.stub("p1")?
        .answers(reply("all here").plan(Plan::met("everybody", TOGETHER)));
    // when
    let asked =
        try_join_all((0..TOGETHER).map(|_| ctx.client.send_chat(ctx.prompt("solo", "hello"))))
            .await?;
    // then
    ctx.gates.rendezvous("everybody", TOGETHER).met().await?;
    equal(
        "answers.statuses",
        "the statuses",
        vec![200; TOGETHER],
        statuses(&answers(asked).await?),
    )
}

async fn para_02(ctx: &Ctx) -> CaseResult {
    // given
    const EACH: usize = 32;
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("late").plan(Plan::held("stall")));
    ctx.stub("p2")?.answers(reply("Paris"));
    let stalled =
        try_join_all((0..EACH).map(|_| ctx.client.send_chat(ctx.prompt("stalled", "hello"))))
            .await?;
    p1.in_flight_is(EACH).await?;
    // when
    let others =
        try_join_all((0..EACH).map(|_| ctx.client.chat(ctx.prompt("other", "hello")))).await?;
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
    )?;
    ctx.gates.gate("stall").open();
    equal(
        "stalled.statuses",
        "the statuses of the stalled model, once its provider answers,",
        vec![200; EACH],
        statuses(&answers(stalled).await?),
    )
}

async fn para_03(ctx: &Ctx) -> CaseResult {
    // given
    const OTHERS: usize = 8;
    let p1 = ctx.stub("p1")?;
    let (large, events) = large_stream();
    p1.mount(
        chat().user_says("large"),
        raw(200, "text/event-stream", large),
    )
    .await;
    p1.mount(chat().user_says("small"), reply("Paris is big."))
        .await;
    let reader = ctx.client.with_receive_buffer(8 << 10).labelled("slow");
    let mut slow = reader.stream(ctx.prompt("solo", "large")).await?;
    slow.next().await?;
    // when
    let taken = taken(p1).await?;
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
        taken < events / 2,
        "less than half of the stream that nobody reads to be taken from the provider",
        format_args!("{taken} of {events} bytes"),
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
    p1.answers(reply("Paris").plan(Plan::held("full")));
    ctx.stub("p2")?.answers(reply("Bern"));
    // when
    let asked =
        try_join_all((0..3 * LIMIT).map(|_| ctx.client.send_chat(ctx.prompt("solo", "hello"))))
            .await?;
    p1.held(LIMIT).await?;
    equal(
        "other.status",
        "the status of a request to another provider",
        200,
        ctx.client.chat(ctx.prompt("other", "hello")).await?.status,
    )?;
    let held = guard(
        "hang.settled",
        "a number of requests at the provider that no longer changes",
        settled(|| p1.in_flight()),
    )
    .await?;
    // then
    equal(
        "provider.in_flight",
        "the number of requests at the provider while it is full",
        LIMIT,
        held,
    )?;
    ctx.reached(State::BulkheadFull);
    ctx.gates.gate("full").open();
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
    )?;
    equal(
        "provider.high_water",
        "the highest number of requests at the provider together",
        LIMIT,
        p1.high_water(),
    )
}

async fn para_08(ctx: &Ctx) -> CaseResult {
    // given
    const STALLED: usize = 200;
    // what PARA-01 asks for; a gateway may let the others wait for a connection
    const HELD: usize = 64;
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("late").plan(Plan::held("stall")));
    let stalled =
        try_join_all((0..STALLED).map(|_| ctx.client.send_chat(ctx.prompt("solo", "hello"))))
            .await?;
    p1.held(HELD).await?;
    // when
    let paths = &ctx.manifest.paths;
    let live = ctx.client.get(&paths.live).await?;
    let ready = match ctx.declares(Capability::Readiness) {
        true => Some(ctx.client.get(&paths.ready).await?),
        false => None,
    };
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
    ctx.gates.gate("stall").open();
    equal(
        "answers.statuses",
        "the statuses, once the provider answers,",
        vec![200; STALLED],
        statuses(&answers(stalled).await?),
    )
}

async fn para_09(ctx: &Ctx) -> CaseResult {
    // given
    const EACH: usize = 24;
    let all = Step::Meet {
        name: "everybody".into(),
        count: 2 * EACH,
    };
    ctx.stub("p1")?.answers(echo().plan(Plan::of([
        all,
        Step::Head,
        Step::Drip {
            bytes: 60,
            every_ms: 5,
        },
    ])));
    let words = |n: usize| format!("my own words {n}.");
    // when
    let plain = try_join_all((0..EACH).map(|n| ctx.client.chat(ctx.prompt("solo", &words(n)))));
    let streams = try_join_all(
        (EACH..2 * EACH)
            .map(|n| async move { ctx.client.streamed(ctx.prompt("solo", &words(n))).await }),
    );
    let (plain, streams) = futures::try_join!(plain, streams)?;
    // then
    let of_plain = |reply: &Reply| (reply.content(), reply.status < 400);
    let of_stream = |stream: &Transcript| (stream.text.clone(), !reports_error(stream));
    let texts = plain
        .iter()
        .map(of_plain)
        .chain(streams.iter().map(of_stream));
    for (n, (text, looks_right)) in texts.enumerate() {
        let answer = |n| format!("{} [{}]", words(n), ctx.nonce);
        let foreign = (0..2 * EACH).any(|other| other != n && text == answer(other));
        holds(
            "answer.foreign",
            !foreign,
            format!("the answer to prompt {n}"),
            format_args!("the answer to another prompt: {text:?}"),
        )
        .map_err(silent)?;
        equal("answer.own", "the answer to the prompt", answer(n), text)
            .map_err(silent_if(looks_right))?;
    }
    Ok(())
}
