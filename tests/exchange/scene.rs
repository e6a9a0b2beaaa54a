//! One scenario: a gateway over stubs that record their answers, and one client that records what
//! it received.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use gauntlet::config::Config;
use gauntlet::{Gateway, RunningGateway};
use gauntlet_harness::client::{Client, Exchange, StreamEvent, StreamReply};
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Responder, Stub, with};
use gauntlet_harness::plan::Listen;
use gauntlet_harness::spec::Protocol;
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::Answer;
use serde_json::Value;

use super::support::config::{self, auth_key};
use super::transcript;

const PATH: &str = "/v1/chat/completions";
pub const CLIENT_KEY: &str = "sk-canary-client-5d0c7be19a";
pub const CLIENT_COOKIE: &str = "canary-cookie-81f2ac";

pub fn key_of(provider: &str) -> String {
    format!("sk-canary-provider-{provider}-7f3a91c5")
}

pub struct Scene {
    pub gateway: RunningGateway,
    pub tape: Tape,
    pub providers: Vec<Provider>,
    pub seen: Seen,
    client: Client,
    gates: Gates,
}

pub struct Provider {
    pub stub: Stub,
    pub protocol: Protocol,
    /// Whether its port accepts connections.
    pub listens: bool,
    /// The answers that it has sent, in the order of the requests.
    pub answers_sent: Arc<Mutex<Vec<Answer>>>,
}

/// What the client has written and read.
#[derive(Default)]
pub struct Seen {
    pub sent: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub events: Vec<StreamEvent>,
    /// The body of an answer that is not a stream.
    pub body: Option<String>,
}

/// A request that is under way.
pub struct PendingRequest<'a> {
    exchange: Option<Exchange>,
    stream: Option<StreamReply>,
    scene: &'a mut Scene,
}

impl Scene {
    /// Starts a gateway whose alias `solo` has these candidates, named `p1`, `p2` and so on. Each
    /// sends its answers in order; a candidate without answers refuses connections.
    pub async fn start(
        attempts: u32,
        candidates: impl IntoIterator<Item = (Protocol, Vec<Responder>)>,
    ) -> Self {
        let tape = Tape::new();
        let gates = Gates::new(tape.clone());
        let mut providers = Vec::new();
        for (at, (protocol, answers)) in candidates.into_iter().enumerate() {
            providers.push(
                Provider::start(&format!("p{}", at + 1), protocol, answers, &tape, &gates).await,
            );
        }
        let config = Config::from_toml(&configuration(attempts, &providers)).unwrap();
        let gateway = Gateway::start(config).await.unwrap();
        let headers = vec![
            ("authorization".into(), format!("Bearer {CLIENT_KEY}")),
            ("cookie".into(), format!("session={CLIENT_COOKIE}")),
        ];
        let client =
            Client::new(&format!("http://{}", gateway.addr), headers, tape.clone()).unwrap();
        Self {
            gateway,
            tape,
            providers,
            seen: Seen::default(),
            client,
            gates,
        }
    }

    /// Makes the client send this header as well.
    pub fn send_with(&mut self, name: &str, value: &str) {
        self.client = self.client.with_header(name, value);
    }

    pub async fn ask(&mut self, prompt: Value) -> PendingRequest<'_> {
        let (headers, body) = ([("content-type", "application/json")], prompt.to_string());
        self.seen.sent = self
            .client
            .request_bytes("POST", PATH, &headers, body.as_bytes());
        let exchange = self
            .client
            .send("POST", PATH, &headers, body.as_bytes())
            .await
            .unwrap();
        PendingRequest {
            exchange: Some(exchange),
            stream: None,
            scene: self,
        }
    }

    /// Compares the transcript with the snapshot, and asserts that every secret went to its owner
    /// only.
    pub fn snapshot(&self, name: &str) {
        let transcript = transcript::of(self);
        let keys = self
            .providers
            .iter()
            .map(|provider| key_of(provider.stub.name()));
        for secret in keys.chain([CLIENT_KEY.to_owned(), CLIENT_COOKIE.to_owned()]) {
            assert!(
                !transcript.contains(&secret),
                "{secret} appears outside of its owner's messages:\n{transcript}"
            );
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, transcript));
    }
}

impl Provider {
    async fn start(
        name: &str,
        protocol: Protocol,
        answers: Vec<Responder>,
        tape: &Tape,
        gates: &Gates,
    ) -> Self {
        let stub = Stub::builder(protocol)
            .name(name)
            .namespace("exchange")
            .tape(tape)
            .gates(gates)
            .start()
            .await
            .unwrap();
        let answers_sent = Arc::new(Mutex::new(Vec::new()));
        let listens = !answers.is_empty();
        if listens {
            let (answers_sent, next) = (Arc::clone(&answers_sent), AtomicUsize::new(0));
            stub.answers(with(move |asked| {
                let answer = answers
                    .get(next.fetch_add(1, Ordering::SeqCst))
                    .expect("the gateway sends more requests than the scenario has answers")
                    .clone();
                answers_sent.lock().unwrap().push(answer.render(asked));
                answer
            }));
        } else {
            stub.listen(Listen::Refuse).await.unwrap();
        }
        Self {
            stub,
            protocol,
            listens,
            answers_sent,
        }
    }
}

impl PendingRequest<'_> {
    /// Reads an answer that is not a stream.
    pub async fn answered(mut self) {
        let reply = self.exchange.take().unwrap().reply().await.unwrap();
        self.scene.seen.body = Some(reply.text());
        self.scene.seen.headers = reply.headers;
    }

    /// Reads the stream to its end.
    pub async fn read_to_its_end(mut self) {
        while self.next().await.is_some() {}
    }

    /// Reads the stream to its end. The provider sends its next event after the client has read all
    /// that resulted from the one before. `read` maps the number of an event that the client has
    /// read to the number of the provider's events which that completes.
    pub async fn read_in_step(mut self, interlock: &str, read: impl Fn(usize) -> usize) {
        let interlock = self.scene.gates.interlock(interlock);
        // The gateway waits for text before it sends the role.
        interlock.ack(read(1));
        while let Some(event) = self.next().await {
            interlock.ack(read(event.n));
        }
    }

    /// Reads until the text so far is this one.
    pub async fn read_text(&mut self, text: &str) {
        let mut read = String::new();
        while read != text {
            read.push_str(&self.next().await.expect("more text").delta_text);
        }
    }

    pub fn open(&self, gate: &str) {
        self.scene.gates.gate(gate).open();
    }

    /// The client leaves, and this returns after the provider has seen the gateway close the
    /// connection.
    pub async fn leave(mut self) {
        self.stream.take().unwrap().leave();
        self.scene.providers[0].stub.peer_closed(1).await.unwrap();
    }

    async fn next(&mut self) -> Option<StreamEvent> {
        if let Some(exchange) = self.exchange.take() {
            let stream = exchange.stream().await.unwrap();
            self.scene.seen.headers.clone_from(&stream.headers);
            self.stream = Some(stream);
        }
        let event = self.stream.as_mut().unwrap().next().await.unwrap();
        self.scene.seen.events.extend(event.clone());
        event
    }
}

fn configuration(attempts: u32, providers: &[Provider]) -> String {
    let key = auth_key("t", CLIENT_KEY);
    let sections = format!("{key}[retry]\nmax_attempts = {attempts}\nbase_ms = 1\nmax_ms = 1\n");
    let all: Vec<_> = providers
        .iter()
        .map(|Provider { stub, protocol, .. }| {
            let key = key_of(stub.name());
            (stub, protocol.to_string(), stub.base_url(), key)
        })
        .collect();
    let providers: Vec<_> = all
        .iter()
        .map(|(stub, protocol, base_url, key)| config::Provider {
            name: stub.name(),
            protocol,
            base_url,
            api_key: Some(key),
        })
        .collect();
    config::toml(&providers, &sections)
}
