//! A gateway in this process, over stubs and real sockets, with the harness's own client.

use std::sync::Arc;

use gauntlet::config::{Config, StoreConfig};
use gauntlet::store::{self, KeyRecord, Store, token_hash};
use gauntlet::{Gateway, RunningGateway};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Protocol, Responder, Stub, raw};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::tape::Tape;
use serde_json::{Value, json};
use uuid::Uuid;

use super::config::{Provider, toml};

pub const CHAT: &str = "/v1/chat/completions";
pub const PROVIDER_KEY: &str = "sk-canary-provider";

/// The bytes of a completion with an odd blank, a member that nobody knows and a number with a zero
/// at its end: whoever parses and writes them again changes them.
pub const COMPLETION: &str = r#"{"id":"c", "object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"x_unknown":1.50}"#;

/// A gateway whose alias `solo` has one candidate, the stub `p1`.
pub struct TestGateway {
    pub running: RunningGateway,
    pub client: Client,
    pub stub: Stub,
    pub gates: Gates,
    pub tape: Tape,
    pub store: Arc<dyn Store>,
}

impl TestGateway {
    /// Starts a gateway over a store in memory. `sections` is further configuration.
    pub async fn start(sections: &str) -> Self {
        Self::start_over(sections, memory().await).await
    }

    /// Starts a gateway over this store.
    pub async fn start_over(sections: &str, store: Arc<dyn Store>) -> Self {
        let tape = Tape::new();
        let gates = Gates::new(tape.clone());
        let stub = stub("p1", &tape, &gates).await;
        let config = config(&[&stub], sections);
        let running = Gateway::start_with(config, store.clone()).await.unwrap();
        let client = client_of(&running, &tape);
        Self {
            running,
            client,
            stub,
            gates,
            tape,
            store,
        }
    }

    /// Reads a path to the end of its answer.
    pub async fn get(&self, path: &str) -> Reply {
        self.client.get(path).await.unwrap()
    }

    /// Sends a chat request and reads its whole answer.
    pub async fn chat(&self) -> Reply {
        self.client.chat(question()).await.unwrap()
    }

    /// Sends a chat request with these headers and reads its whole answer.
    pub async fn chat_with(&self, headers: &[(&str, &str)]) -> Reply {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let body = question().to_string();
        let answer = self.client.request("POST", CHAT, &headers, body.as_bytes());
        answer.await.unwrap()
    }
}

/// Starts a stub that speaks OpenAI's protocol.
pub async fn stub(name: &str, tape: &Tape, gates: &Gates) -> Stub {
    let stub = Stub::builder(Protocol::OPENAI).name(name);
    stub.tape(tape).gates(gates).start().await.unwrap()
}

/// The configuration of a gateway over these stubs.
pub fn config(stubs: &[&Stub], sections: &str) -> Config {
    let urls: Vec<_> = stubs.iter().map(|stub| stub.base_url()).collect();
    let providers: Vec<_> = stubs
        .iter()
        .zip(&urls)
        .map(|(stub, url)| Provider {
            name: stub.name(),
            protocol: "openai",
            base_url: url,
            api_key: Some(PROVIDER_KEY),
        })
        .collect();
    Config::from_toml(&toml(&providers, sections)).unwrap()
}

pub fn client_of(gateway: &RunningGateway, tape: &Tape) -> Client {
    Client::new(
        &format!("http://{}", gateway.addr),
        Vec::new(),
        tape.clone(),
    )
    .unwrap()
}

/// Opens a store that exists while it is open.
pub async fn memory() -> Arc<dyn Store> {
    open("sqlite::memory:").await
}

/// Opens the store of this URL, which is created where it does not exist.
pub async fn open(url: &str) -> Arc<dyn Store> {
    let defaults = Config::from_toml("").unwrap().store;
    let config = StoreConfig {
        url: url.to_owned().into(),
        ..defaults
    };
    store::open(&config).await.unwrap()
}

/// Adds a key to the store and returns its id.
pub async fn add_key(store: &dyn Store, tenant: &str, token: &str) -> Uuid {
    let key = KeyRecord {
        id: Uuid::now_v7(),
        tenant: tenant.into(),
        hash: token_hash(token),
        prefix: "gk-".into(),
        created_at: 1,
        revoked_at: None,
    };
    let id = key.id;
    store.add_key(key).await.unwrap();
    id
}

/// A chat request for the alias `solo`.
pub fn question() -> Value {
    json!({
        "model": "solo",
        "messages": [{"role": "user", "content": "Capital of France?"}],
    })
}

/// A provider's whole answer: [`COMPLETION`].
pub fn completion() -> Responder {
    raw(200, "application/json", COMPLETION)
}

/// A provider's streamed answer, one event a word, in the bytes of [`chunk`].
pub fn streamed(words: &[&str]) -> Responder {
    let end = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let mut body: String = words
        .iter()
        .map(|word| format!("data: {}\n\n", chunk(word)))
        .collect();
    body.push_str(&format!("data: {end}\n\ndata: [DONE]\n\n"));
    raw(200, "text/event-stream", body)
}

/// The same, obeying a plan.
pub fn streamed_by(words: &[&str], plan: Plan) -> Responder {
    streamed(words).plan(plan)
}

/// One chunk of a streamed answer.
pub fn chunk(text: &str) -> String {
    format!(
        r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
    )
}

/// `error.code` of an answer.
pub fn code(reply: &Reply) -> String {
    reply.error_code().unwrap_or_default()
}
