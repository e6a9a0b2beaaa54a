//! TIME: every wait has an end, and an end that is the gateway's own.

use futures::FutureExt;
use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, equal};
use gauntlet_harness::llm::reply;
use gauntlet_harness::plan::Plan;
use gauntlet_harness::spec::Spec;
use gauntlet_harness::target::Capability;

pub(super) const CASES: &[Case] = &[Case {
    id: "TIME-02",
    level: Level::Must,
    profiles: &[Profile::Llm],
    requirement: "a provider that accepts and never answers: 504 while the stub still holds the request",
    why: "A provider that hangs must not hang its callers: their own time-outs are longer, and their users have left by then.",
    shown: "The provider holds its answer at a gate that is opened only after the client has had its own.",
    remedy: "Give each attempt a time-out until its first byte, and answer 504 when it passes.",
    needs: &[Capability::Chat],
    spec: Spec::solo,
    run: |ctx| time_02(ctx).boxed(),
}];

/// TIME-02 (MUST): a provider that accepts and never answers is given up while it still holds the request.
async fn time_02(ctx: &Ctx) -> CaseResult {
    // given
    let p1 = ctx.stub("p1")?;
    p1.answers(reply("too late").plan(Plan::held("late")));
    // when
    let answer = ctx.client.chat(ctx.prompt("solo", "hello")).await?;
    // then
    let held = p1.seen(1).await?;
    ctx.gates.gate("late").open();
    equal("requests at the provider", 1, held.len())?;
    equal("status", 504, answer.status)
}
