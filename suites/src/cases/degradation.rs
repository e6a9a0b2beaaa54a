//! DEGR: a failure costs the answer something, never the answer itself, and the answer reports it.

use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, State, equal, holds, silent};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{error, reply};
use gauntlet_harness::plan::{Listen, Plan};
use gauntlet_harness::spec::Timeouts;
use gauntlet_harness::subject::Capability;

use super::CaseRow;
use super::support::{
    ANSWER, PASSAGE, QUERIES, STORED, ask, asked_for, complete, degraded, does_its_part, healthy,
    known, lost, number, on_postgres, past_the_bench, query, soon_without_store, statuses, text,
    until_status, with_spare,
};
use crate::agents;

/// The causes by which a step of the store may be missing.
const STORE_CAUSES: &[&str] = &["store_unavailable", "store_busy", "timeout", "error"];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "DEGR-01",
        why: "If a helper's failure fails the whole query, the least important model becomes the \
              weakest link.",
        shown: "Entity extraction never answers, then gives an invalid output, then answers with \
                errors; then its breaker is open. Each query must be answered, and must give the cause \
                for which it lacks entities.",
        remedy: "Replace the step by rules, carry its cause to the outcome, and go on.",
        needs: &[Capability::Query, Capability::Store, Capability::Breaker],
        instances: &[],
        spec: || {
            let mut spec = query().model_timeouts(
                "entities",
                Timeouts {
                    total_ms: Some(1_000),
                    ..Timeouts::default()
                },
            );
            spec.breaker.failure_threshold = 2;
            spec
        },
        run: &degr_01,
    },
    CaseRow {
        id: "DEGR-03",
        why: "Readers believe an answer from the model's memory that looks as sure as one from \
              documents.",
        shown: "The table of passages is locked, so that no search ends. The answer must have no \
                source, report that, and have a lower confidence than the answer before.",
        remedy: "Bound the search, go on without sources, and take their share out of the confidence.",
        needs: STORED,
        instances: &[],
        spec: on_postgres,
        run: &degr_03,
    },
    CaseRow {
        id: "DEGR-04",
        why: "\"Verified\" as a default is worse than no check at all: the reader stops looking.",
        shown: "The client asks the same question with a fact check that works, that fails, and that \
                gives an invalid output.",
        remedy: "Mark an answer as verified only if a check was made of every claim.",
        needs: STORED,
        instances: &[],
        spec: query,
        run: &degr_04,
    },
    CaseRow {
        id: "DEGR-05",
        why: "The evidence was found and paid for; \"try again later\" throws it away.",
        shown: "Both candidates of synthesis fail. The answer must quote the passage.",
        remedy: "Quote the best passages where no model can write an answer from them.",
        needs: &[Capability::Query, Capability::Store, Capability::Fallback],
        instances: &[],
        spec: with_spare,
        run: &degr_05,
    },
    CaseRow {
        id: "DEGR-06",
        why: "What comes after the answer cannot unmake it, and what was not checked must not pass \
              as checked.",
        shown: "Each agent that runs after the answer fails once. Each answer must stand and name the \
                step that it lacks.",
        remedy: "Make these steps optional, and report their loss.",
        needs: STORED,
        instances: &[],
        spec: query,
        run: &degr_06,
    },
    CaseRow {
        id: "DEGR-07",
        why: "Every dashboard counts a 200 without an answer as a success, and nobody can look into \
              a failure without a record.",
        shown: "No document is stored and every model fails. The answer must be 503 in the usual \
                envelope with the query beside it, and the same document must be found under its id.",
        remedy: "Answer 503 when there is no answer, and record failures like answers.",
        needs: STORED,
        instances: &[],
        spec: query,
        run: &degr_07,
    },
    CaseRow {
        id: "DEGR-08",
        why: "A gateway that needs its database for every answer makes the database's outage \
              everybody's (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "Every connection to the database is reset, and new ones are refused. The models alone \
                must answer the query, and readiness must be 503.",
        remedy: "Answer without the record, report that there is none, and let readiness show it.",
        needs: &[Capability::Query, Capability::Store, Capability::Health],
        instances: &[],
        spec: || soon_without_store(on_postgres()),
        run: &degr_08,
    },
    CaseRow {
        id: "DEGR-11",
        why: "A proxy that had lost its database stayed broken after the database was back, until \
              somebody restarted it (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "Every model fails for a chat and, where the target declares them, for a query; then \
                every model answers, and the next query and chat must be answered. A provider restarts \
                after four requests that it had together; the next four must be answered.",
        remedy: "Let no part of the gateway remember a failure for longer than a breaker's cool-down.",
        needs: &[Capability::Chat],
        instances: &[],
        spec: query,
        run: &degr_11,
    },
];

async fn degr_01(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let entities = ctx.stub("entities")?;
    // the breaker opens at the second error in a row; an invalid output is no failure of the
    // provider's
    let (silence, invalid) = (
        reply("late").plan(Plan::silent()),
        reply("I found Marie Curie."),
    );
    let failures = [
        (silence, "timeout"),
        (invalid, "invalid_output"),
        (error(500), "error"),
        (error(503), "error"),
    ];
    for (failure, cause) in failures {
        // when
        entities.answers(failure);
        // then
        degraded(ctx, "entities", &[cause]).await?;
    }
    let asked = entities.requests().len();
    entities.answers(does_its_part("entities"));
    degraded(ctx, "entities", &["breaker_open"]).await?;
    equal(
        "provider.calls",
        "the number of calls of the provider whose breaker is open",
        asked,
        entities.requests().len(),
    )?;
    ctx.reached(State::BreakerOpen);
    Ok(())
}

async fn degr_03(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let before = complete(ctx).await?;
    let locked = ctx.database()?.lock("passages").await?;
    // when
    let answer = degraded(ctx, "retrieval", STORE_CAUSES)
        .await
        .map_err(silent)?;
    locked.release().await?;
    // then
    equal(
        "answer.sources",
        "the number of sources",
        Some(0),
        answer["sources"].as_array().map(Vec::len),
    )
    .map_err(silent)?;
    let (sure, less) = (number(&before, "confidence"), number(&answer, "confidence"));
    holds(
        "answer.confidence",
        less < sure,
        format!("a confidence below {sure}"),
        less,
    )
    .map_err(silent)
}

async fn degr_04(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    equal(
        "verified.with_check",
        "the field verified with a fact check that works",
        Some(true),
        complete(ctx).await?["verified"].as_bool(),
    )?;
    for (failure, cause) in [
        (error(500), "error"),
        (reply("All true."), "invalid_output"),
    ] {
        // when
        ctx.stub("fact_check")?.answers(failure);
        let answer = degraded(ctx, "fact_check", &[cause]).await?;
        // then
        equal(
            "verified.without_check",
            "the field verified without a fact check",
            Some(false),
            answer["verified"].as_bool(),
        )
        .map_err(silent)?;
    }
    Ok(())
}

async fn degr_05(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    ctx.stub("synthesis")?.answers(error(500));
    ctx.stub("spare")?.answers(error(503));
    // when
    let answer = degraded(ctx, "synthesis", &["error"]).await?;
    // then
    holds(
        "answer.quotation",
        text(&answer, "answer").contains(PASSAGE),
        format!("an answer that quotes {PASSAGE:?}"),
        text(&answer, "answer"),
    )?;
    for asked in ["synthesis", "spare"] {
        asked_for(ctx, "provider.calls", ctx.stub(asked)?, &ctx.nonce)?;
    }
    Ok(())
}

async fn degr_06(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    for agent in agents::after_answer() {
        let step = agent.name;
        ctx.stub(step)?.answers(error(500));
        // when
        let answer = degraded(ctx, step, &["error"]).await?;
        ctx.stub(step)?.answers(does_its_part(step));
        // then
        holds(
            "answer.text",
            text(&answer, "answer").contains(ANSWER),
            format!("the answer {ANSWER:?}"),
            text(&answer, "answer"),
        )?;
    }
    Ok(())
}

async fn degr_07(ctx: &Ctx) -> CaseResult {
    // given
    for stub in ctx.stubs.values() {
        // what comes after a step that failed need not be asked
        stub.answers(error(500).optional());
    }
    // when
    let answer = ask(ctx).await?;
    // then
    equal(
        "answer.status",
        "the status of a query of which nothing came",
        503,
        answer.status,
    )
    .map_err(silent)?;
    holds(
        "answer.envelope",
        answer.error_type().is_some(),
        "an error in the usual envelope",
        answer.text(),
    )?;
    let query = &answer.json()["query"];
    equal(
        "query.status",
        "the status of the query",
        "failed",
        text(query, "status"),
    )?;
    equal(
        "query.confidence",
        "the confidence",
        Some(0.0),
        query["confidence"].as_f64(),
    )?;
    let read = ctx
        .client
        .get(&format!("{QUERIES}/{}", text(query, "id")))
        .await?;
    equal(
        "record.status",
        "the status of the record",
        200,
        read.status,
    )?;
    equal("record.document", "the record", query, &read.json())
}

async fn degr_08(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    ctx.database_wire()?.gone().await?;
    // when
    let answer = ask(ctx).await?;
    // then
    let query = answer.json();
    equal(
        "answer.status",
        "the status of a query without the database",
        200,
        answer.status,
    )?;
    equal(
        "query.recorded",
        "the field recorded",
        Some(false),
        query["recorded"].as_bool(),
    )
    .map_err(silent)?;
    equal(
        "query.status",
        "the status of the query",
        "degraded",
        text(&query, "status"),
    )
    .map_err(silent)?;
    let steps: Vec<String> = lost(&query).into_iter().map(|(step, _)| step).collect();
    equal(
        "query.degraded",
        "the list of steps that are missing",
        vec!["retrieval".to_owned(), "record".to_owned()],
        steps,
    )
    .map_err(silent)?;
    until_status(ctx, "hang.unready", &ctx.manifest.paths.ready, 503).await?;
    Ok(())
}

async fn degr_11(ctx: &Ctx) -> CaseResult {
    let queries = STORED.iter().all(|capability| ctx.declares(*capability));
    // given
    if queries {
        known(ctx).await?;
    }
    for (name, stub) in &ctx.stubs {
        // an agent need not be asked: the facts show that query and chat met the fault
        let fault = error(503);
        stub.answers(match name.as_str() {
            "review" => fault,
            _ => fault.optional(),
        });
    }
    if queries {
        let faulted = ask(ctx).await?;
        holds(
            "fault.met_by_query",
            faulted.json()["degraded"] != serde_json::json!([]),
            "a query that misses something because of the fault",
            faulted.text(),
        )?;
    }
    let chat = ctx.client.chat(ctx.prompt("review", "hello")).await?;
    holds(
        "fault.met_by_chat",
        chat.status >= 500,
        "a chat that fails because of the fault",
        chat.status,
    )?;
    // when
    healthy(ctx)?;
    // then
    if queries {
        complete(ctx).await?;
    }
    served(ctx, "hang.chat").await?;
    restarted(ctx).await
}

/// Sends chats until one is served: a gateway may leave a provider alone for a while after a
/// failure, but not forever.
async fn served(ctx: &Ctx, fact: &str) -> CaseResult {
    let served = converge(fact, "a chat that is served again", || async {
        let answer = ctx.client.chat(ctx.prompt("review", "hello again")).await?;
        Ok(Some(()).filter(|()| answer.status == 200))
    });
    past_the_bench(ctx, served).await
}

/// Restarts a provider that has answered four requests together, so that each connection that a
/// gateway has pooled is dead.
async fn restarted(ctx: &Ctx) -> CaseResult {
    const TOGETHER: usize = 4;
    // given
    let review = ctx.stub("review")?;
    let together = async || {
        try_join_all((0..TOGETHER).map(|_| ctx.client.chat(ctx.prompt("review", "hello")))).await
    };
    review.answers(reply("hello").plan(Plan::met("together", TOGETHER)));
    equal(
        "before_restart.statuses",
        "the statuses before the provider's restart",
        vec![200; TOGETHER],
        statuses(&together().await?),
    )?;
    // nobody asks meanwhile: a gateway may leave a provider alone for a while after a failure
    review.listen(Listen::Refuse).await?;
    // when
    review.listen(Listen::Serve).await?;
    // then
    equal(
        "after_restart.statuses",
        "the statuses after the provider's restart",
        vec![200; TOGETHER],
        statuses(&together().await?),
    )
}
