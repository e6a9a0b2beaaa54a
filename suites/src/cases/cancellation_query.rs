//! CANC, of queries: nobody works for a question that is over.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds};
use gauntlet_harness::plan::Plan;

use super::CaseRow;
use super::support::{
    QUERIES, QUERY, STORED, does_its_part, healthy, listed, lost, patient, question, text,
};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "CANC-03",
        why: "A query is many paid calls; those of a reader who has left are paid for nobody.",
        shown: "The client leaves while entity extraction is held; its provider sees the connection close, no later agent is asked, the record says cancelled.",
        remedy: "Run a query inside the request's own future, and record it when that is dropped.",
        needs: STORED,
        spec: || patient(super::support::query()),
        run: &canc_03,
    },
    CaseRow {
        id: "CANC-04",
        why: "A time-out that answers the client but leaves the call running frees nothing: the provider goes on, and so does the bill.",
        shown: "Entity extraction never answers and has no time-out of its own; the query's deadline answers the client and closes the connection.",
        remedy: "Drop the call's future (and with it its connection) when its share of the deadline is over.",
        needs: QUERY,
        spec: || patient(super::support::query()),
        run: &canc_04,
    },
];

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
