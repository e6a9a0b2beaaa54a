//! CANC: who has left is worked for no longer.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds};
use gauntlet_harness::llm::reply;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use super::CaseRow;
use super::support::{
    QUERIES, QUERY, STORED, does_its_part, healthy, listed, lost, patient, query, question, text,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "CANC-01",
        why: "Calls whose client had gone ran on for half an hour, and were billed (https://github.com/BerriAI/litellm/issues/37140).",
        shown: "The provider holds a plain and a streamed answer; both clients leave; the provider sees both connections close. No time-out is near.",
        remedy: "Watch the client's connection while you wait for the provider, and drop the call when it closes.",
        needs: &[Capability::Chat, Capability::Stream],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &canc_01,
    },
    CaseRow {
        id: "CANC-02",
        why: "Streams went on for nobody, token by token, after their client had gone (https://github.com/BerriAI/litellm/issues/13774).",
        shown: "The client reads two pieces of text and leaves, once where the provider then is silent, once where it goes on for ever.",
        remedy: "Drop the provider's stream when a write to the client fails or its connection closes; do not read it to its end.",
        needs: &[Capability::Chat, Capability::Stream],
        spec: || Spec::solo().model_timeouts("solo", Timeouts::PATIENT),
        run: &canc_02,
    },
    CaseRow {
        id: "CANC-03",
        why: "A query is many paid calls; those of a reader who has left are paid for nobody.",
        shown: "The client leaves while entity extraction is held; its provider sees the connection close, no later agent is asked, the record says cancelled.",
        remedy: "Run a query inside the request's own future, and record it when that is dropped.",
        needs: STORED,
        spec: || patient(query()),
        run: &canc_03,
    },
    CaseRow {
        id: "CANC-04",
        why: "A time-out that answers the client but leaves the call running frees nothing: the provider goes on, and so does the bill.",
        shown: "Entity extraction never answers and has no time-out of its own; the query's deadline answers the client and closes the connection.",
        remedy: "Drop the call's future (and with it its connection) when its share of the deadline is over.",
        needs: QUERY,
        spec: || patient(query()),
        run: &canc_04,
    },
];

async fn canc_01(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("for nobody").plan(Plan::held("never")));
    let plain = ctx.client.send_chat(ctx.prompt("solo", "plain")).await?;
    let streamed = ctx
        .client
        .send_stream(ctx.prompt("solo", "streamed"))
        .await?;
    p1.held(2).await?;
    // when
    plain.leave();
    streamed.leave();
    // then
    p1.peer_closed(2).await.map(|_| ())
}

async fn canc_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    let then = |last: Step| {
        reply("")
            .tokens(["Par", "is"])
            .plan(Plan::of([Step::Head, Step::Events(3), last]))
    };
    for (n, last) in [Step::Stall, Step::RepeatForever { every_ms: 20 }]
        .into_iter()
        .enumerate()
    {
        p1.answers(then(last));
        let mut stream = ctx.client.stream(ctx.prompt("solo", "capital")).await?;
        equal(
            "stream.text",
            "the text of the stream",
            "Paris",
            stream.text_of(5).await?.as_str(),
        )?;
        // when
        stream.leave();
        // then
        p1.peer_closed(n + 1).await?;
    }
    Ok(())
}

async fn canc_03(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let entities = ctx.stub("entities")?;
    entities.answers(does_its_part("entities").plan(Plan::held("never")));
    let body = question(ctx).to_string();
    // when
    let asked = ctx
        .client
        .send(
            "POST",
            QUERIES,
            &[("content-type", "application/json")],
            body.as_bytes(),
        )
        .await?;
    entities.held(1).await?;
    asked.leave();
    // then
    entities.peer_closed(1).await?;
    let cancelled = listed(ctx, "&status=cancelled", 1).await?;
    holds(
        "record.question",
        text(&cancelled[0], "question").contains(&ctx.nonce),
        "the query whose client left in the list of cancelled ones",
        &cancelled[0],
    )?;
    equal(
        "later.calls",
        "the number of calls of a later agent after the client left",
        0,
        ctx.stub("synthesis")?.calls(&ctx.nonce).len(),
    )
}

async fn canc_04(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let entities = ctx.stub("entities")?;
    entities.answers(does_its_part("entities").plan(Plan::silent()));
    let mut question = question(ctx);
    question["deadline_ms"] = 2_500.into();
    // when
    let answer = ctx.client.post(QUERIES, question).await?;
    // then
    holds(
        "answer.status",
        [200, 503].contains(&answer.status),
        "a status of 200 or 503",
        answer.status,
    )?;
    let told = answer.json();
    let told = if answer.status == 200 {
        &told
    } else {
        &told["query"]
    };
    let entities_lost = lost(told).into_iter().find(|(step, _)| step == "entities");
    equal(
        "degraded.cause",
        "the cause by which the silent step is missing",
        Some("timeout"),
        entities_lost.as_ref().map(|(_, cause)| cause.as_str()),
    )?;
    entities.peer_closed(1).await?;
    Ok(())
}
