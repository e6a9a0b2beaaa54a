//! What a provider says: matchers and responders for each protocol, on wiremock or in process, behind the wire.
//!
//! A case reads given, when, then:
//!
//! ```no_run
//! # use gauntlet_harness::{case::{CaseResult, Ctx, Failure, FailureMode}, llm::*, plan::*, tape::Event};
//! # use serde_json::json;
//! /// TIME-02 (MUST): a provider that accepts and never answers is given up while it still holds the request.
//! async fn time_02(ctx: &Ctx) -> CaseResult {
//!     // given
//!     let p1 = ctx.stub("p1")?;
//!     p1.answers(reply("too late").plan(Plan::held("never")));
//!     // when
//!     let prompt = json!({"model": ctx.model("solo"), "messages": [{"role": "user", "content": ctx.nonce}]});
//!     let answer = ctx.client.chat(prompt).await?;
//!     // then
//!     if answer.status != 504 {
//!         return Err(Failure::Violated { fact: "answer.status".into(), expected: "504".into(), observed: answer.status.to_string(), mode: FailureMode::Visible });
//!     }
//!     p1.peer_closed(1).await?; // guarded: the gateway let go of the provider
//!     ctx.gates.gate("never").open(); // only now
//!     Ok(())
//! }
//! ```
//!
//! The same matchers and responders work on a wiremock server of one's own, as far as they have no plan:
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use gauntlet_harness::llm::{error, openai, reply, sequence};
//! let server = wiremock::MockServer::start().await;
//! wiremock::Mock::given(openai::chat().model("gpt-4o").user_says("capital"))
//!     .respond_with(sequence([error(503).retry_after(1), reply("Paris").usage(12, 1)]))
//!     .mount(&server)
//!     .await;
//! # });
//! ```

pub mod fixture;
mod matcher;
pub mod ollama;
pub mod openai;
mod request;
mod responder;
mod sequence;
mod source;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use matcher::{Matcher, anything, chat};
pub use request::StubRequest;
pub use responder::{
    Responder, echo, error, in_turn, raw, reply, sequence, tool_call, vectors, with,
};
pub use source::{ScriptSource, WiremockSource};

use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::spec::{Protocol, ProviderSpec};
use crate::tape::{Entry, Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};
use crate::wire::http::message;
use crate::wire::{Answer, Request, Source, Wire};

/// How often, and how long between, a fixed address is asked for again before it counts as taken.
const RELEASE_TRIES: u32 = 100;
const RELEASE_GAP: Duration = Duration::from_millis(10);

/// A stubbed provider: what it says, behind the wire. Clones are the same stub; the last one dropped closes the port.
#[derive(Clone)]
pub struct Stub {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    protocol: Protocol,
    /// None at a fixed address.
    namespace: Option<String>,
    tape: Tape,
    voice: AnswerSource,
    wire: Wire,
}

/// Who says the answers.
#[derive(Clone)]
enum AnswerSource {
    Wiremock(Arc<WiremockSource>),
    Script(Arc<ScriptSource>),
}

impl std::fmt::Debug for Stub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stub")
            .field("name", &self.inner.name)
            .field("url", &self.base_url())
            .finish_non_exhaustive()
    }
}

/// A request that a stub received, from the tape.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRequest {
    /// Its place in the order of the tape: when it had been read whole.
    pub seq: u64,
    /// Unique in the process; [`Event`]s of its answer carry it.
    pub request: u64,
    /// The connection it came on.
    pub connection: u64,
    /// As sent.
    pub method: String,
    /// The path without the case's namespace.
    pub path: String,
    /// In the order and spelling of the sender.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl ReceivedRequest {
    /// The body; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }
}

impl Stub {
    /// Starts a stub with a wiremock server behind its wire. It answers lists of models and versions; everything else is an
    /// error until the case says what is answered.
    ///
    /// # Errors
    /// A harness failure if there is no port.
    pub async fn start(
        provider: &ProviderSpec,
        namespace: &str,
        tape: Tape,
        gates: Gates,
    ) -> Result<Self, Failure> {
        let source = WiremockSource::start(provider.protocol)
            .await
            .map_err(|error| no_port(&provider.name, &error))?;
        Self::behind_the_wire(
            AnswerSource::Wiremock(Arc::new(source)),
            provider,
            namespace,
            tape,
            gates,
        )
        .await
    }

    /// The same at a fixed address and without a namespace, for a gateway that somebody else has pointed there.
    ///
    /// # Errors
    /// A harness failure if the address is not free.
    pub async fn start_at(
        addr: SocketAddr,
        provider: &ProviderSpec,
        tape: Tape,
        gates: Gates,
    ) -> Result<Self, Failure> {
        let source = WiremockSource::start(provider.protocol)
            .await
            .map_err(|error| no_port(&provider.name, &error))?;
        let voice = AnswerSource::Wiremock(Arc::new(source));
        let namespaced: Arc<dyn Source> = Arc::new(Namespaced {
            prefix: "/".into(),
            voice: voice.clone(),
        });
        // the case before may still be letting go of the port
        let mut wire = Wire::bind_at(
            addr,
            &provider.name,
            tape.clone(),
            gates.clone(),
            Arc::clone(&namespaced),
            Listen::Serve,
        )
        .await;
        for _ in 0..RELEASE_TRIES {
            if !matches!(&wire, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse) {
                break;
            }
            gate::pace(RELEASE_GAP).await;
            wire = Wire::bind_at(
                addr,
                &provider.name,
                tape.clone(),
                gates.clone(),
                Arc::clone(&namespaced),
                Listen::Serve,
            )
            .await;
        }
        let wire = wire.map_err(|error| no_port(&provider.name, &error))?;
        let inner = Inner {
            name: provider.name.clone(),
            protocol: provider.protocol,
            namespace: None,
            tape,
            voice,
            wire,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The same without a server behind the wire: answers in process, keeps nothing. For load, soaks and properties.
    ///
    /// # Errors
    /// As [`Stub::start`].
    pub async fn in_process(
        provider: &ProviderSpec,
        namespace: &str,
        tape: Tape,
        gates: Gates,
    ) -> Result<Self, Failure> {
        let source = Arc::new(ScriptSource::new(provider.protocol));
        Self::behind_the_wire(
            AnswerSource::Script(source),
            provider,
            namespace,
            tape,
            gates,
        )
        .await
    }

    async fn behind_the_wire(
        voice: AnswerSource,
        provider: &ProviderSpec,
        namespace: &str,
        tape: Tape,
        gates: Gates,
    ) -> Result<Self, Failure> {
        let source: Arc<dyn Source> = Arc::new(Namespaced {
            prefix: format!("/t/{namespace}/"),
            voice: voice.clone(),
        });
        let wire = Wire::bind(&provider.name, tape.clone(), gates, source, Listen::Serve)
            .await
            .map_err(|error| no_port(&provider.name, &error))?;
        let inner = Inner {
            name: provider.name.clone(),
            protocol: provider.protocol,
            namespace: Some(namespace.to_string()),
            tape,
            voice,
            wire,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The provider's name in the specification.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The base URL as the protocol wants it: `…/t/CASE/v1` for OpenAI, `…/t/CASE` for Ollama.
    pub fn base_url(&self) -> String {
        let root = match &self.inner.namespace {
            Some(namespace) => format!("{}/t/{namespace}", self.inner.wire.root_url()),
            None => self.inner.wire.root_url(),
        };
        match self.inner.protocol {
            Protocol::OpenAi => format!("{root}/v1"),
            Protocol::Ollama => root,
        }
    }

    /// What is answered to every chat request that no mounted rule matches; replaces the answer given before.
    pub fn answers(&self, responder: Responder) {
        match &self.inner.voice {
            AnswerSource::Wiremock(source) => source.fallback().answers(responder),
            AnswerSource::Script(source) => source.answers(responder),
        }
    }

    /// What is answered to requests that match; the rule mounted first wins, and any rule wins over [`Stub::answers`].
    pub async fn mount(&self, matcher: Matcher, responder: Responder) {
        match &self.inner.voice {
            AnswerSource::Wiremock(source) => source.mount(matcher, responder).await,
            AnswerSource::Script(source) => source.rule(matcher, responder),
        }
    }

    /// Behaves like this from now on, on the same port; see [`Wire::listen`].
    ///
    /// # Errors
    /// A harness failure if the port can't be listened on again.
    pub async fn listen(&self, listen: Listen) -> CaseResult {
        self.inner.wire.listen(listen).await
    }

    /// The wire in front of it.
    pub fn wire(&self) -> &Wire {
        &self.inner.wire
    }

    /// Every request for a model's words or vectors so far, in order.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        calls_at(&self.inner.name, &self.inner.tape)
    }

    /// Every request so far, probes included, in order.
    pub fn all_requests(&self) -> Vec<ReceivedRequest> {
        requests_at(&self.inner.name, &self.inner.tape)
    }

    /// The calls whose body contains the nonce, in order.
    pub fn calls(&self, nonce: &str) -> Vec<ReceivedRequest> {
        self.requests()
            .into_iter()
            .filter(|request| request.body.contains(nonce))
            .collect()
    }

    /// Waits until `count` calls have come, and returns all there are.
    ///
    /// # Errors
    /// A violation by a hang that says how many came.
    pub async fn seen(&self, count: usize) -> Result<Vec<ReceivedRequest>, Failure> {
        let come = self.inner.tape.wait_for(count, |entry| self.is_call(entry));
        let expected = format!("{count} requests at {}", self.inner.name);
        gate::guard_with("hang.requests", &expected, come, || {
            format!("saw {} of {count}", self.requests().len())
        })
        .await?;
        Ok(self.requests())
    }

    /// Waits until the gateway has closed `count` connections of this stub whose request was still in flight, and returns what
    /// the tape has about them.
    ///
    /// # Errors
    /// A violation by a hang that says how many were closed.
    pub async fn peer_closed(&self, count: usize) -> Result<Vec<Entry>, Failure> {
        let closed = |entry: &Entry| {
            self.is_mine(entry)
                && matches!(
                    entry.event,
                    Event::PeerClosed {
                        request: Some(_),
                        ..
                    }
                )
        };
        let expected = format!(
            "the gateway closes {count} connections to {} with a request in flight",
            self.inner.name
        );
        let seen = || format!("saw {} of {count}", self.inner.tape.select(closed).len());
        gate::guard_with(
            "hang.peer_closed",
            &expected,
            self.inner.tape.wait_for(count, closed),
            seen,
        )
        .await
    }

    /// Waits until `count` answers have been held at a gate or rendezvous.
    ///
    /// # Errors
    /// A violation by a hang that says how many are.
    pub async fn held(&self, count: usize) -> Result<Vec<Entry>, Failure> {
        let held = |entry: &Entry| self.is_mine(entry) && matches!(entry.event, Event::Held { .. });
        let expected = format!("{count} answers held at {}", self.inner.name);
        let seen = || format!("saw {} of {count}", self.inner.tape.select(held).len());
        gate::guard_with(
            "hang.held",
            &expected,
            self.inner.tape.wait_for(count, held),
            seen,
        )
        .await
    }

    /// Calls in flight now: read whole, and the last byte of the answer not yet written.
    pub fn in_flight(&self) -> usize {
        self.inner.wire.in_flight()
    }

    /// The most calls that were ever in flight together, exactly.
    pub fn high_water(&self) -> usize {
        self.inner.wire.high_water()
    }

    /// Waits until the gateway takes no more of what is answered (all is out, or it stopped reading), and returns how many bytes
    /// have gone out so far; see [`Wire::sent_bytes`].
    ///
    /// # Errors
    /// A violation by a hang if it never stops.
    pub async fn sent_settles(&self) -> Result<u64, Failure> {
        self.inner.wire.sent_settles().await
    }

    /// Waits until exactly `count` calls are in flight.
    ///
    /// # Errors
    /// A violation by a hang that says how many there were instead.
    pub async fn in_flight_is(&self, count: usize) -> CaseResult {
        self.inner.wire.in_flight_is(count).await
    }

    /// What the tape has of this stub, in order.
    pub fn tape(&self) -> Vec<Entry> {
        self.inner.tape.select(|entry| self.is_mine(entry))
    }

    fn is_mine(&self, entry: &Entry) -> bool {
        matches!(&entry.side, Side::Provider(name) if *name == self.inner.name)
    }

    fn is_call(&self, entry: &Entry) -> bool {
        self.is_mine(entry)
            && matches!(&entry.event, Event::RequestRead { method, path, .. } if is_call(method, path))
    }
}

/// Every request for a model's words or vectors that the tape has of the stub of that name, in order.
pub(crate) fn calls_at(name: &str, tape: &Tape) -> Vec<ReceivedRequest> {
    requests_at(name, tape)
        .into_iter()
        .filter(|request| is_call(&request.method, &request.path))
        .collect()
}

fn requests_at(name: &str, tape: &Tape) -> Vec<ReceivedRequest> {
    let its_request = |entry: &Entry| {
        matches!(&entry.side, Side::Provider(side) if side == name)
            && matches!(entry.event, Event::RequestRead { .. })
    };
    tape.select(its_request)
        .into_iter()
        .filter_map(received)
        .collect()
}

/// Answers requests below the namespace only.
struct Namespaced {
    prefix: String,
    voice: AnswerSource,
}

impl Namespaced {
    fn source(&self) -> &dyn Source {
        match &self.voice {
            AnswerSource::Wiremock(source) => source.as_ref(),
            AnswerSource::Script(source) => source.as_ref(),
        }
    }
}

#[async_trait]
impl Source for Namespaced {
    async fn answer(&self, request: &Request) -> Answer {
        if !request.path.starts_with(&self.prefix) {
            return Answer::unmatched(format!(
                "{} {} is not below {}",
                request.method, request.path, self.prefix
            ));
        }
        self.source().answer(request).await
    }

    fn counts(&self, request: &Request) -> bool {
        self.source().counts(request)
    }
}

fn received(entry: Entry) -> Option<ReceivedRequest> {
    let seq = entry.seq;
    let Event::RequestRead {
        connection,
        request,
        method,
        path,
        headers,
        body,
    } = entry.event
    else {
        return None;
    };
    Some(ReceivedRequest {
        seq,
        request,
        connection,
        method,
        path: request::without_namespace(&path).to_string(),
        headers,
        body,
    })
}

fn is_call(method: &str, path: &str) -> bool {
    request::is_call(method, path.split('?').next().unwrap_or_default())
}

fn no_port(name: &str, error: &std::io::Error) -> Failure {
    Failure::Harness {
        what: format!("no port for the stub {name}: {error}"),
    }
}
