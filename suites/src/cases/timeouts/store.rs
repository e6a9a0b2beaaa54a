//! TIME, of the store: a stalled database has timeouts of its own, and they are all that it costs.

use gauntlet_harness::case::{CaseResult, Ctx, equal, holds};
use gauntlet_harness::subject::Capability;

use crate::cases::CaseRow;
use crate::cases::support::{ask, healthy, lost, on_postgres, soon_without_store, until_status};

pub(in crate::cases) const CASES: &[CaseRow] = &[CaseRow {
    id: "TIME-10",
    why: "A database that accepts and never answers is worse than one that is gone: without a \
          timeout, every request waits for it.",
    shown: "Nothing is relayed to or from the database any more. A query must be answered without \
            it, a chat must not notice, and readiness must be 200 afterwards.",
    remedy: "Give every call of the database a timeout that includes the wait for a connection.",
    needs: &[
        Capability::Query,
        Capability::Store,
        Capability::Chat,
        Capability::Health,
    ],
    instances: &[],
    spec: || soon_without_store(on_postgres()),
    run: &time_10,
}];

async fn time_10(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    ctx.database_wire()?.stall();
    // when
    let (answer, chat) =
        futures::try_join!(ask(ctx), ctx.client.chat(ctx.prompt("review", "hello")))?;
    // then
    equal(
        "chat.status",
        "the status of a chat beside a stalled database",
        200,
        chat.status,
    )?;
    equal(
        "query.status",
        "the status of a query without the database",
        200,
        answer.status,
    )?;
    let lost = lost(&answer.json());
    for step in ["retrieval", "record"] {
        holds(
            "degraded.steps",
            lost.iter().any(|(lost, _)| lost == step),
            format!("{step} among the missing steps"),
            format_args!("{lost:?}"),
        )?;
    }
    ctx.database_wire()?.resume().await?;
    until_status(ctx, "hang.ready", &ctx.manifest.paths.ready, 200).await?;
    Ok(())
}
