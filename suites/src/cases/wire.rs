//! WIRE: what passes through a gateway arrives as it was sent.

use futures::FutureExt;
use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, equal, lied};
use gauntlet_harness::llm::{chat, reply, tool_call};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::target::Capability;
use serde_json::json;

pub(super) const CASES: &[Case] = &[Case {
    id: "WIRE-01",
    level: Level::Must,
    profiles: &[Profile::Llm],
    requirement: "a completion: content, finish_reason, tool calls and usage arrive as the provider sent them",
    why: "What a gateway rebuilds from parts it can lose: tool calls that vanish, a usage of zero that nobody bills.",
    shown: "The provider answers one prompt with text and one with a tool call; the client compares every field with what was sent.",
    remedy: "Forward the provider's answer instead of building a new one, or map every field of it.",
    needs: &[Capability::Chat, Capability::Tools],
    spec: Spec::solo,
    run: |ctx| wire_01(ctx).boxed(),
}];

/// WIRE-01 (MUST): content, finish_reason, tool calls and usage of a completion arrive as the provider sent them.
async fn wire_01(ctx: &Ctx) -> CaseResult {
    // given
    let arguments = json!({"city": "Zürich", "days": 3});
    let p1 = ctx.stub("p1")?;
    p1.mount(chat().user_says("capital"), reply("Paris, 東京 and \"Bern\".").usage(12, 7)).await;
    p1.mount(chat().user_says("weather"), tool_call("weather", arguments.clone()).usage(21, 9)).await;
    // when
    let text = ctx.client.chat(ctx.prompt("solo", "capital")).await?;
    let mut asks_tool = ctx.prompt("solo", "weather");
    asks_tool["tools"] = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    let tool = ctx.client.chat(asks_tool).await?;
    // then
    equal("status", 200, text.status)?;
    equal("content", "Paris, 東京 and \"Bern\".", &text.content()).map_err(lied)?;
    equal("finish_reason", &json!("stop"), &text.json()["choices"][0]["finish_reason"]).map_err(lied)?;
    equal("usage.prompt_tokens", &json!(12), &text.json()["usage"]["prompt_tokens"]).map_err(lied)?;
    equal("usage.completion_tokens", &json!(7), &text.json()["usage"]["completion_tokens"]).map_err(lied)?;
    equal("status", 200, tool.status)?;
    let choice = &tool.json()["choices"][0];
    equal("finish_reason", &json!("tool_calls"), &choice["finish_reason"]).map_err(lied)?;
    let call = &choice["message"]["tool_calls"][0]["function"];
    equal("the tool's name", &json!("weather"), &call["name"]).map_err(lied)?;
    let received = serde_json::from_str(call["arguments"].as_str().unwrap_or_default()).unwrap_or_default();
    equal("the tool's arguments", &arguments, &received).map_err(lied)
}
