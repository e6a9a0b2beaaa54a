//! TIME, of the store: a stalled database has timeouts of its own, and they are all that it costs.

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use gauntlet_harness::case::{CaseResult, Ctx, Deviations, equal, holds};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use crate::cases::CaseRow;
use crate::cases::support::{
    DOCUMENTS, QUERIES, ask, complete, document, does_its_part, healthy, known, lost, noted,
    on_postgres, refused, soon_without_store, together, until_status,
};

/// The number of connections in the gateway's pool.
const POOL: u32 = 4;
/// An id that no document has.
const UNKNOWN: &str = "019abcde-0000-7000-8000-000000000001";

pub(in crate::cases) const CASES: &[CaseRow] = &[CaseRow {
    id: "TIME-10",
    why: "A database that accepts and never answers is worse than one that is gone: without a \
          timeout, every request waits for it.",
    shown: "Nothing is relayed to or from the database any more, from the beginning or when only the \
            record is missing. Queries must be answered without it, documents and listings with an \
            error, a chat must not notice, and afterwards all is as before.",
    remedy: "Give every call of the database a timeout that includes the wait for a connection.",
    needs: &[
        Capability::Query,
        Capability::Store,
        Capability::Chat,
        Capability::Health,
    ],
    instances: &[
        "a query",
        "more queries than the pool has connections",
        "a chat",
        "a streamed chat",
        "a document that is handed in",
        "a document that is read",
        "a listing",
        "a query whose record is stalled",
        "afterwards",
    ],
    spec: || soon_without_store(on_postgres()),
    run: &time_10,
}];

async fn time_10(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    known(ctx).await?;
    let review = ctx.stub("review")?;
    let wire = ctx.database_wire()?;
    let mut deviations = Deviations::new();
    wire.stall();
    // when
    let chat = async {
        let answer = ctx.client.chat(ctx.prompt("review", "hello")).await?;
        equal(
            "chat.status",
            "the status of a chat beside a stalled database",
            200,
            answer.status,
        )
    };
    let streamed = async {
        let stream = ctx.client.streamed(ctx.prompt("review", "hello")).await?;
        holds(
            "chat.complete",
            stream.looks_complete(),
            "a complete stream beside a stalled database",
            format_args!("status {}", stream.status),
        )
    };
    let refused_by = |method: &'static str, path: String, body: Value| async move {
        let body = match method {
            "GET" => Vec::new(),
            _ => body.to_string().into_bytes(),
        };
        let json = [("content-type", "application/json")];
        let answer = ctx.client.request(method, &path, &json, &body).await?;
        refused(answer.status)
    };
    let crowd = async {
        let queries = (0..2 * POOL).map(|_| without_store(ctx, &["retrieval", "record"]));
        try_join_all(queries).await.map(drop)
    };
    let at_once: Vec<(&str, BoxFuture<'_, CaseResult>)> = vec![
        (
            "a query",
            without_store(ctx, &["retrieval", "record"]).boxed(),
        ),
        ("more queries than the pool has connections", crowd.boxed()),
        ("a chat", chat.boxed()),
        ("a streamed chat", streamed.boxed()),
        (
            "a document that is handed in",
            refused_by("POST", DOCUMENTS.into(), document()).boxed(),
        ),
        (
            "a document that is read",
            refused_by("GET", format!("{DOCUMENTS}/{UNKNOWN}"), Value::Null).boxed(),
        ),
        (
            "a listing",
            refused_by("GET", QUERIES.into(), Value::Null).boxed(),
        ),
    ];
    together(ctx, &mut deviations, at_once).await?;
    back(ctx).await?;
    // and when only the record is missing
    review.answers(does_its_part("review").plan(Plan::held("until stalled")));
    let stalled = async {
        review.held(1).await?;
        ctx.database_wire()?.stall();
        ctx.gates.gate("until stalled").open();
        Ok(())
    };
    let late = async {
        let late = without_store(ctx, &["record"]);
        futures::try_join!(late, stalled).map(drop)
    };
    let late = ctx.examine("a query whose record is stalled", late).await;
    noted(&mut deviations, late)?;
    // then
    review.answers(does_its_part("review"));
    back(ctx).await?;
    let afterwards = async { complete(ctx).await.map(drop) };
    noted(&mut deviations, ctx.examine("afterwards", afterwards).await)?;
    deviations.result()
}

/// Lets the database answer again, and waits until the gateway is ready.
async fn back(ctx: &Ctx) -> CaseResult {
    ctx.database_wire()?.resume().await?;
    until_status(ctx, "hang.ready", &ctx.manifest.paths.ready, 200)
        .await
        .map(drop)
}

/// A query must be answered, and what the database would have given must be missing.
async fn without_store(ctx: &Ctx, missing: &[&str]) -> CaseResult {
    let answer = ask(ctx).await?;
    equal(
        "query.status",
        "the status of a query without the database",
        200,
        answer.status,
    )?;
    let lost = lost(&answer.json());
    for step in missing {
        holds(
            "degraded.steps",
            lost.iter().any(|(lost, _)| lost == step),
            format!("{step} among the missing steps"),
            format_args!("{lost:?}"),
        )?;
    }
    Ok(())
}
