//! A test of your own that stubs an LLM provider. Run it with
//! `cargo run -p gauntlet-harness --example stub_in_your_test`.
//!
//! The stub needs no gateway, no database and no Docker. `ask` stands for the client that you test.

use std::error::Error;

use gauntlet_harness::client::{Client, End};
use gauntlet_harness::llm::{Stub, chat, reply};
use gauntlet_harness::plan::{Plan, Step};
use gauntlet_harness::tape::Tape;
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let stub = Stub::openai().await?;
    println!("the client under test asks {}", stub.base_url());

    // a plain answer
    stub.answers(reply("Paris").usage(12, 1));
    assert_eq!(ask(&stub, "capital of France").await?, "Paris");
    assert_eq!(stub.requests()[0].json()["model"], "gpt-4o");

    // an exact fault: three events of the stream arrive, and then the connection is reset
    let broken = reply("Madrid is big").plan(Plan::events_then(3, Step::Reset));
    stub.mount(chat().user_says("capital of Spain"), broken)
        .await;
    let client = Client::new(&stub.root_url(), Vec::new(), Tape::new())?;
    let stream = client.streamed(prompt("capital of Spain")).await?;
    assert!(matches!(stream.end, End::Cut(_)), "the client must notice");
    println!("before the reset the client had {:?}", stream.text);

    // a proof by order instead of time: the answer waits until the test opens a gate
    let held = reply("Rome").plan(Plan::held("rome"));
    stub.mount(chat().user_says("capital of Italy"), held).await;
    let (answer, ()) = tokio::try_join!(ask(&stub, "capital of Italy"), async {
        stub.held(1).await?; // the request is in flight now
        stub.gates().gate("rome").open();
        Ok(())
    })?;
    assert_eq!(answer, "Rome");
    Ok(())
}

/// The client under test.
async fn ask(stub: &Stub, question: &str) -> Result<String, Box<dyn Error>> {
    let client = Client::new(&stub.root_url(), Vec::new(), Tape::new())?;
    Ok(client.chat(prompt(question)).await?.content())
}

fn prompt(question: &str) -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": question}]})
}
