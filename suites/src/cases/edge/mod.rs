//! EDGE: HTTP itself, towards clients and towards providers.

pub(super) mod coded;
pub(super) mod codings;
pub(super) mod heads;
pub(super) mod messages;

use gauntlet_harness::case::Ctx;
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// The aliases `solo`, of a provider with OpenAI's protocol, and `ollama`, of one with Ollama's.
fn both_protocols() -> Spec {
    Spec::solo()
        .provider("p2", Protocol::OLLAMA)
        .optional_model("ollama", &["p2"])
        .model_timeouts("solo", Timeouts::PATIENT)
        .model_timeouts("ollama", Timeouts::PATIENT)
}

/// The bytes of a chat request with this body, whose `Host` is replaced by these lines, each with
/// its line end, and whose minor version is this one.
fn with_hosts(ctx: &Ctx, body: &serde_json::Value, minor: u8, hosts: &str) -> Vec<u8> {
    let body = body.to_string();
    let bytes = ctx
        .client
        .request_bytes("POST", CHAT, &[JSON], body.as_bytes());
    let host = format!("host: {}\r\n", ctx.client.authority());
    let text = String::from_utf8_lossy(&bytes).replacen(&host, hosts, 1);
    text.replacen("HTTP/1.1\r\n", &format!("HTTP/1.{minor}\r\n"), 1)
        .into_bytes()
}
