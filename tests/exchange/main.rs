//! SNAP-01: the exchange between client, gateway and providers, word for word.
//!
//! Each scenario is one transcript in the order of the tape. A real gateway runs in front of stubs
//! on real sockets, and every step is caused by the one before it, so that the order is always the
//! same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod scene;
mod transcript;

use gauntlet_harness::llm::{Responder, error, raw, reply, tool_call};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::spec::Protocol;
use rstest::rstest;
use scene::{Scene, key_of};
use serde_json::{Value, json};

fn prompt(stream: bool) -> Value {
    json!({
        "model": "solo",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which city is the capital of France?"}],
        "temperature": 0.2,
        "max_tokens": 20,
        "stop": ["\n\n"],
        "stream": stream,
    })
}

fn paris() -> Responder {
    reply("").tokens(["Par", "is"])
}

/// The provider sends each event after the client has read the one before.
fn interlocked() -> Plan {
    Plan::of([Step::Head, Step::Interlock("read".into())])
}

#[tokio::test]
async fn snap_01_openai_plain() {
    let mut scene = Scene::start(1, [(Protocol::OPENAI, vec![paris().usage(12, 2)])]).await;
    let mut prompt = prompt(false);
    prompt["x_field_of_tomorrow"] = json!({"kept": [1.5, null]});
    // The client's ids are sent to the provider; its key and its cookie are not.
    scene.send_with("x-request-id", "order-7");
    scene.send_with("idempotency-key", "order-7-first");
    scene.send_with(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    );
    scene.ask(prompt).await.answered().await;
    scene.snapshot("SNAP-01__exchange__openai_plain");
}

#[tokio::test]
async fn snap_01_openai_stream() {
    let mut scene = Scene::start(
        1,
        [(
            Protocol::OPENAI,
            vec![paris().usage(12, 2).plan(interlocked())],
        )],
    )
    .await;
    let mut prompt = prompt(true);
    prompt["stream_options"] = json!({"include_usage": true});
    scene.ask(prompt).await.read_in_step("read", |n| n).await;
    scene.snapshot("SNAP-01__exchange__openai_stream");
}

#[tokio::test]
async fn snap_01_ollama_plain() {
    let mut scene = Scene::start(1, [(Protocol::OLLAMA, vec![paris().usage(12, 2)])]).await;
    scene.ask(prompt(false)).await.answered().await;
    scene.snapshot("SNAP-01__exchange__ollama_plain");
}

#[tokio::test]
async fn snap_01_ollama_stream() {
    // Ollama's first record holds role and text, which are two events for the client.
    let mut scene = Scene::start(
        1,
        [(
            Protocol::OLLAMA,
            vec![paris().usage(12, 2).plan(interlocked())],
        )],
    )
    .await;
    let mut prompt = prompt(true);
    prompt["stream_options"] = json!({"include_usage": true});
    scene
        .ask(prompt)
        .await
        .read_in_step("read", |n| n - 1)
        .await;
    scene.snapshot("SNAP-01__exchange__ollama_stream");
}

/// The request holds an earlier tool call with its result, and the answer holds a new call.
#[rstest]
#[case("SNAP-01__exchange__ollama_tools", false)]
#[case("SNAP-01__exchange__ollama_tools_stream", true)]
#[tokio::test]
async fn snap_01_ollama_tools(#[case] name: &str, #[case] stream: bool) {
    let mut scene = Scene::start(
        1,
        [(
            Protocol::OLLAMA,
            vec![tool_call("weather", json!({"city": "Paris", "days": 2}))],
        )],
    )
    .await;
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "capital", "arguments": "{\"country\":\"France\"}"}});
    let tool = |name: &str, parameter: &str| {
        let parameters = json!({"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]});
        json!({"type": "function", "function": {"name": name, "description": "Returns it.", "parameters": parameters}})
    };
    let prompt = json!({
        "model": "solo",
        "messages": [
            {"role": "user", "content": "How is the weather in the capital of France?"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Paris"},
        ],
        "tools": [tool("capital", "country"), tool("weather", "city")],
        "stream": stream,
    });
    let asked = scene.ask(prompt).await;
    if stream {
        asked.read_to_its_end().await;
    } else {
        asked.answered().await;
    }
    scene.snapshot(name);
}

#[tokio::test]
async fn retry_07_every_attempt_has_the_same_body_and_key() {
    let answers = vec![error(503), reply("").plan(Plan::of([Step::Reset])), paris()];
    let mut scene = Scene::start(3, [(Protocol::OPENAI, answers)]).await;
    scene.ask(prompt(false)).await.answered().await;
    scene.snapshot("RETRY-07__exchange__same_body_and_key");
}

#[tokio::test]
async fn fall_03_a_stream_falls_back_before_its_first_token() {
    let first = reply("never read").plan(Plan::events_then(1, Step::Cut));
    let mut scene = Scene::start(
        1,
        [
            (Protocol::OPENAI, vec![first]),
            (Protocol::OPENAI, vec![paris()]),
        ],
    )
    .await;
    scene.ask(prompt(true)).await.read_to_its_end().await;
    scene.snapshot("FALL-03__exchange__stream_falls_back");
}

#[tokio::test]
async fn fall_08_the_error_lists_every_attempt() {
    let echoes_its_key =
        error(401).message(&format!("Incorrect API key provided: {}.", key_of("p2")));
    let page = raw(200, "text/html", "<html><body>It works!</body></html>");
    let mut scene = Scene::start(
        1,
        [
            (Protocol::OPENAI, vec![error(503).retry_after(7)]),
            (Protocol::OPENAI, vec![echoes_its_key]),
            (Protocol::OPENAI, Vec::new()),
            (Protocol::OLLAMA, vec![page]),
        ],
    )
    .await;
    scene.ask(prompt(false)).await.answered().await;
    scene.snapshot("FALL-08__exchange__all_candidates_failed");
}

#[tokio::test]
async fn strm_02_a_reset_after_text() {
    let plan = Plan::of([
        Step::Head,
        Step::Events(3),
        Step::Hold("read".into()),
        Step::Reset,
    ]);
    let mut scene = Scene::start(
        3,
        [
            (Protocol::OPENAI, vec![paris().plan(plan)]),
            (Protocol::OPENAI, vec![reply("never asked")]),
        ],
    )
    .await;
    let mut asked = scene.ask(prompt(true)).await;
    asked.read_text("Paris").await;
    asked.open("read");
    asked.read_to_its_end().await;
    scene.snapshot("STRM-02__exchange__reset_after_text");
}

#[tokio::test]
async fn canc_02_the_client_leaves_mid_stream() {
    let plan = Plan::events_then(3, Step::Stall);
    let mut scene = Scene::start(
        3,
        [
            (Protocol::OPENAI, vec![paris().plan(plan)]),
            (Protocol::OPENAI, vec![reply("never asked")]),
        ],
    )
    .await;
    let mut asked = scene.ask(prompt(true)).await;
    asked.read_text("Paris").await;
    asked.leave().await;
    scene.snapshot("CANC-02__exchange__client_leaves");
}
