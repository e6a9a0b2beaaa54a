//! CANC: who has left is worked for no longer.

use gauntlet_harness::case::{CaseResult, Ctx, equal};
use gauntlet_harness::llm::reply;
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::{Spec, Timeouts};
use gauntlet_harness::subject::Capability;

use super::CaseRow;

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
