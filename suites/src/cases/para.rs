//! PARA: what is asked together is done together, and nobody waits for a stranger.

use futures::FutureExt;
use futures::future::try_join_all;
use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, equal};
use gauntlet_harness::llm::reply;
use gauntlet_harness::plan::Plan;
use gauntlet_harness::spec::Spec;
use gauntlet_harness::target::Capability;

pub(super) const CASES: &[Case] = &[Case {
    id: "PARA-01",
    level: Level::Must,
    profiles: &[Profile::Llm],
    requirement: "64 requests are at the provider at the same time (rendezvous)",
    why: "A gateway with a hidden lock, a small pool or one connection serialises its users, and no benchmark of one client shows it.",
    shown: "The provider answers nobody until 64 requests are there together.",
    remedy: "Remove the limit, or configure it: connection pool, worker count, HTTP/2 streams, a lock held over a call.",
    needs: &[Capability::Chat],
    spec: Spec::solo,
    run: |ctx| para_01(ctx).boxed(),
}];

/// PARA-01 (MUST): 64 requests are at the provider at the same time.
async fn para_01(ctx: &Ctx) -> CaseResult {
    // given
    const TOGETHER: usize = 64;
    ctx.stub("p1")?.answers(reply("all here").plan(Plan::met("everybody", TOGETHER)));
    // when
    let asked = (0..TOGETHER).map(|_| ctx.client.chat(ctx.prompt("solo", "hello")));
    let met = ctx.gates.rendezvous("everybody", TOGETHER);
    let (answers, ()) = futures::try_join!(try_join_all(asked), met.met())?;
    // then
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    equal("statuses", vec![200; TOGETHER], statuses)
}
