//! HLTH: health answers truly, at once, and at little cost.

use futures::future::try_join_all;
use gauntlet_harness::case::{CaseResult, Ctx, equal, holds};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{Responder, openai, raw};
use gauntlet_harness::plan::{Listen, Plan};
use gauntlet_harness::spec::{DatabaseNeed, Protocol, Spec};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use super::CaseRow;
use super::support::{text, until_status};

const STORED: &[Capability] = &[Capability::Health, Capability::Store];

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "HLTH-01",
        why: "A liveness probe that asks the database restarts every replica when the database is \
              slow, and makes the outage complete.",
        shown: "The case asks for liveness while the provider refuses connections, while the database \
                stalls, and while it is gone.",
        remedy: "Let liveness show that the process answers, and nothing else.",
        needs: &[Capability::Liveness, Capability::Store],
        instances: &[],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::solo()
        },
        run: &hlth_01,
    },
    CaseRow {
        id: "HLTH-02",
        why: "While its database was gone, a proxy was reported as ready, and it never recovered by \
              itself (https://github.com/BerriAI/litellm/issues/38121).",
        shown: "The case asks for readiness before the database goes, until the status is 503, and \
                after its return, until the status is 200.",
        remedy: "Ask the store in the readiness probe, within a timeout.",
        needs: &[Capability::Readiness, Capability::Store],
        instances: &[],
        spec: || Spec {
            database: DatabaseNeed::Postgres,
            ..Spec::solo()
        },
        run: &hlth_02,
    },
    CaseRow {
        id: "HLTH-03",
        why: "Probes one after the other add up their timeouts: the page that shows what hangs, \
              hangs.",
        shown: "Two providers answer their probes only together, and a third never does. The document \
                must show both as up and the third as down.",
        remedy: "Probe all dependencies at once, each within its own timeout.",
        needs: STORED,
        instances: &[],
        spec: || Spec {
            database: DatabaseNeed::Any,
            ..Spec::pair()
                .provider("p3", Protocol::OPENAI)
                .model("third", &["p3"])
        },
        run: &hlth_03,
    },
    CaseRow {
        id: "HLTH-04",
        why: "Every replica, balancer and dashboard asks for health; if each call is a call of each \
              provider, the watching is the load.",
        shown: "64 calls ask for the detailed health at once. The provider counts its probes.",
        remedy: "Share the probe that is under way, and send its result again for a moment.",
        needs: &[Capability::Health],
        instances: &[],
        spec: Spec::solo,
        run: &hlth_04,
    },
];

async fn hlth_01(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.listen(Listen::Refuse).await?;
    let wire = ctx.database_wire()?;
    // when
    let without_provider = ctx.client.get(&ctx.manifest.paths.live).await?;
    wire.stall();
    let stalled = ctx.client.get(&ctx.manifest.paths.live).await?;
    wire.resume().await?;
    wire.gone().await?;
    let gone = ctx.client.get(&ctx.manifest.paths.live).await?;
    // then
    for (what, answer) in [
        ("without the provider", without_provider),
        ("with a stalled database", stalled),
        ("without the database", gone),
    ] {
        equal(
            "liveness.status",
            &format!("the status of liveness {what}"),
            200,
            answer.status,
        )?;
    }
    Ok(())
}

async fn hlth_02(ctx: &Ctx) -> CaseResult {
    // given
    until_status(ctx, "hang.ready", &ctx.manifest.paths.ready, 200).await?;
    // when
    ctx.database_wire()?.gone().await?;
    // then
    until_status(ctx, "hang.unready", &ctx.manifest.paths.ready, 503).await?;
    // when
    ctx.database_wire()?.resume().await?;
    // then
    until_status(ctx, "hang.ready", &ctx.manifest.paths.ready, 200).await?;
    Ok(())
}

async fn hlth_03(ctx: &Ctx) -> CaseResult {
    // given
    for name in ["p1", "p2"] {
        ctx.stub(name)?
            .mount(openai::models(), models().plan(Plan::met("probes", 2)))
            .await;
    }
    ctx.stub("p3")?
        .mount(openai::models(), models().plan(Plan::silent()))
        .await;
    // when
    let shown = converge(
        "hang.states",
        "a health document that shows p1, p2 and the store as up and p3 as down",
        || async {
            let health = ctx.client.get(&ctx.manifest.paths.health).await?.json();
            let up = ["store", "p1", "p2", "p3"].map(|name| state(&health, name));
            Ok(Some(health).filter(|_| up == [Some(true), Some(true), Some(true), Some(false)]))
        },
    );
    // then
    let met = ctx.gates.rendezvous("probes", 2);
    let (health, ()) = futures::try_join!(shown, met.met())?;
    equal(
        "health.status",
        "the status of the health document",
        "degraded",
        text(&health, "status"),
    )
}

async fn hlth_04(ctx: &Ctx) -> CaseResult {
    // given
    const STORM: usize = 64;
    // when
    let answers =
        try_join_all((0..STORM).map(|_| ctx.client.get(&ctx.manifest.paths.health))).await?;
    // then
    equal(
        "health.statuses",
        "the statuses of the health calls",
        vec![200; STORM],
        answers.iter().map(|health| health.status).collect(),
    )?;
    let probes = ctx.stub("p1")?.all_requests().len();
    holds(
        "provider.probes",
        (1..=STORM / 4).contains(&probes),
        format!(
            "from 1 to {} probes of the provider for {STORM} calls",
            STORM / 4
        ),
        probes,
    )
}

fn models() -> Responder {
    raw(200, "application/json", r#"{"object":"list","data":[]}"#)
}

/// Whether the document shows the dependency of that name as up.
fn state(health: &Value, name: &str) -> Option<bool> {
    health["dependencies"]
        .as_array()?
        .iter()
        .find(|dependency| dependency["name"] == name)?["up"]
        .as_bool()
}
