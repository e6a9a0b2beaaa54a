//! BRKR, as operators see it.

use futures::FutureExt;
use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, equal};
use gauntlet_harness::gate::converge;
use gauntlet_harness::llm::{error, reply};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::target::Capability;
use serde_json::Value;

pub(super) const CASES: &[Case] = &[Case {
    id: "BRKR-06",
    level: Level::Must,
    profiles: &[Profile::Llm, Profile::Ops],
    requirement: "its state is visible in health and metrics",
    why: "A breaker that nobody can see is an outage without a cause: everything is up, and nothing is asked.",
    shown: "Two failures open one candidate's breaker; health and metrics tell it as open, and its neighbour's as closed.",
    remedy: "Tell each breaker's state in the health document and as a gauge.",
    needs: &[Capability::Chat, Capability::Breaker, Capability::Health, Capability::Metrics],
    spec: || {
        let mut spec = Spec::pair();
        spec.breaker.failure_threshold = 2;
        spec
    },
    run: |ctx| brkr_06(ctx).boxed(),
}];

/// BRKR-06 (MUST): a breaker's state is visible.
async fn brkr_06(ctx: &Ctx) -> CaseResult {
    // given
    ctx.stub("p1")?.answers(error(500));
    ctx.stub("p2")?.answers(reply("Paris"));
    // when
    for n in 0..3 {
        equal("status", 200, ctx.client.chat(ctx.prompt("pair", &format!("capital {n}"))).await?.status)?;
    }
    // then
    converge("health tells p1's breaker as open and p2's as closed", || async {
        let health = ctx.client.get("/health").await?.json();
        Ok(Some(()).filter(|()| state(&health, "p1") == Some("open") && state(&health, "p2") == Some("closed")))
    })
    .await?;
    converge("metrics tell p1's breaker as 2 (open) and p2's as 0 (closed)", || async {
        let metrics = ctx.client.get("/metrics").await?.text();
        Ok(Some(()).filter(|()| gauge(&metrics, "p1") == Some("2") && gauge(&metrics, "p2") == Some("0")))
    })
    .await
}

fn state<'h>(health: &'h Value, provider: &str) -> Option<&'h str> {
    health["breakers"].as_array()?.iter().find(|breaker| breaker["provider"] == provider)?["state"].as_str()
}

fn gauge<'m>(metrics: &'m str, provider: &str) -> Option<&'m str> {
    let of = format!("provider=\"{provider}\"");
    metrics.lines().find(|line| line.starts_with("gauntlet_breaker_state{") && line.contains(&of))?.rsplit(' ').next()
}
