//! Runs the gateway inside a program of your own, in front of a stubbed provider.
//!
//!     cargo run --example gateway_in_process
//!
//! The gateway is a library: it is started with a configuration and stopped in order. Here its only
//! provider is a stub that fails once, so that the answer shows a retry.

use gauntlet::Gateway;
use gauntlet::config::Config;
use gauntlet_harness::client::Client;
use gauntlet_harness::llm::{Stub, error, reply, sequence};
use gauntlet_harness::tape::Tape;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = Stub::openai().await?;
    provider.answers(sequence([error(503), reply("Paris")]));

    let config = Config::from_toml(&format!(
        r#"
        [server]
        listen = "127.0.0.1:0"

        [store]
        url = "sqlite::memory:"

        [[providers]]
        name = "stub"
        protocol = "openai"
        base_url = "{}"

        [[models]]
        alias = "chat"
        candidates = [{{ provider = "stub", model = "gpt-4o-mini" }}]
        "#,
        provider.base_url()
    ))?;
    let gateway = Gateway::start(config).await?;

    let client = Client::new(&format!("http://{}", gateway.addr), Vec::new(), Tape::new())?;
    let question = json!({"role": "user", "content": "What is the capital of France?"});
    let answer = client
        .chat(json!({"model": "chat", "messages": [question]}))
        .await?;
    let attempts = provider.requests().len();
    println!(
        "{} after {attempts} attempts: {}",
        answer.status,
        answer.json()["choices"][0]
    );

    gateway.drain().await;
    Ok(())
}
