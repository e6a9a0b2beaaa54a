//! A stubbed provider: a source of answers behind the wire, and what it has received.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::matcher::Matcher;
use super::protocol::{self, Protocol};
use super::request;
use super::responder::Responder;
use super::source::{ScriptSource, WiremockSource};
use crate::exercise::{Planted, PlantedFault};
use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::tape::{Entry, Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};
use crate::wire::http::message;
use crate::wire::{Answer, Request, Source, Wire};

/// How often a fixed address is tried again before it counts as taken.
const RELEASE_TRIES: u32 = 100;

/// The pause between two of these tries.
const RELEASE_GAP: Duration = Duration::from_millis(10);

/// A stubbed provider. Clones are the same stub; dropping the last one closes the port.
#[derive(Clone)]
pub struct Stub {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    protocol: Protocol,
    namespace: Option<String>,
    tape: Tape,
    gates: Gates,
    answers: AnswerSource,
    planted: Planted,
    wire: Wire,
}

/// Where the answers come from.
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

/// What a stub is started with; see [`Stub::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder starts nothing until `start` is called"]
pub struct StubBuilder {
    protocol: Protocol,
    name: String,
    namespace: Option<String>,
    at: SocketAddr,
    tape: Tape,
    gates: Option<Gates>,
    wiremock: bool,
}

impl StubBuilder {
    /// Sets the name of the stub on the tape; it is the protocol's name by default.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Puts `/t/NAMESPACE` before every path, so that requests of another case are refused.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Listens at this address instead of a free port of 127.0.0.1.
    pub fn at(mut self, at: SocketAddr) -> Self {
        self.at = at;
        self
    }

    /// Records on this tape instead of one of its own.
    pub fn tape(mut self, tape: &Tape) -> Self {
        self.tape = tape.clone();
        self
    }

    /// Waits at these gates instead of gates of its own.
    pub fn gates(mut self, gates: &Gates) -> Self {
        self.gates = Some(gates.clone());
        self
    }

    /// Takes the answers from a wiremock server behind the wire instead of rules in process.
    pub fn wiremock(mut self) -> Self {
        self.wiremock = true;
        self
    }

    /// Starts the stub. It answers the probes of its protocol; every other request is an error
    /// until [`Stub::answers`] or [`Stub::mount`] is called.
    ///
    /// # Errors
    /// A harness failure if there is no free port, or the address is taken.
    pub async fn start(self) -> Result<Stub, Failure> {
        let no_port = |error: std::io::Error| Failure::Harness {
            what: format!("the stub {} has no port: {error}", self.name),
        };
        let answers = if self.wiremock {
            let source = WiremockSource::start(self.protocol)
                .await
                .map_err(no_port)?;
            AnswerSource::Wiremock(Arc::new(source))
        } else {
            AnswerSource::Script(Arc::new(ScriptSource::new(self.protocol)))
        };
        let prefix = match &self.namespace {
            Some(namespace) => format!("/t/{namespace}/"),
            None => "/".into(),
        };
        let planted = Planted::default();
        let source: Arc<dyn Source> = Arc::new(Namespaced {
            prefix,
            answers: answers.clone(),
            planted: planted.clone(),
        });
        let gates = self.gates.unwrap_or_else(|| Gates::new(self.tape.clone()));
        let bind = || {
            let (tape, gates, source) = (self.tape.clone(), gates.clone(), Arc::clone(&source));
            Wire::bind_at(self.at, &self.name, tape, gates, source, Listen::Serve)
        };
        // the case before may still be releasing a fixed address
        let mut wire = bind().await;
        for _ in 0..RELEASE_TRIES {
            if !matches!(&wire, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse) {
                break;
            }
            gate::pace(RELEASE_GAP).await;
            wire = bind().await;
        }
        let wire = wire.map_err(no_port)?;
        Ok(Stub {
            inner: Arc::new(Inner {
                name: self.name,
                protocol: self.protocol,
                namespace: self.namespace,
                tape: self.tape,
                gates,
                answers,
                planted,
                wire,
            }),
        })
    }
}

/// A request that a stub received, from the tape.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRequest {
    /// The position on the tape at which it had been read whole.
    pub seq: u64,
    /// The number of the request, unique in the process; [`Event`]s of its answer carry it.
    pub request: u64,
    /// The number of the connection that carried it.
    pub connection: u64,
    /// The method as the sender wrote it.
    pub method: String,
    /// The path without the case's namespace.
    pub path: String,
    /// Names and values in the order and spelling of the sender.
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
    /// Starts a stub that speaks OpenAI's protocol, with a free port, a tape and gates of its own.
    ///
    /// ```
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    /// # runtime.block_on(async {
    /// use gauntlet_harness::llm::{Stub, reply};
    /// let stub = Stub::openai().await?;
    /// stub.answers(reply("Paris"));
    /// // point the client under test at stub.base_url(), and look at stub.requests() afterwards
    /// # Ok::<(), gauntlet_harness::verdict::Failure>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// A harness failure if there is no free port.
    pub async fn openai() -> Result<Self, Failure> {
        Self::builder(Protocol::OPENAI).start().await
    }

    /// Starts a stub that speaks Ollama's protocol, with a free port, a tape and gates of its own.
    ///
    /// # Errors
    /// A harness failure if there is no free port.
    pub async fn ollama() -> Result<Self, Failure> {
        Self::builder(Protocol::OLLAMA).start().await
    }

    /// Begins a stub of this protocol. What is not set is the stub's own: a free port of 127.0.0.1,
    /// a tape, gates, and rules in process.
    pub fn builder(protocol: Protocol) -> StubBuilder {
        StubBuilder {
            protocol,
            name: protocol.name().into(),
            namespace: None,
            at: SocketAddr::from(([127, 0, 0, 1], 0)),
            tape: Tape::new(),
            gates: None,
            wiremock: false,
        }
    }

    /// The name of the stub on the tape.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The base URL that a client of the protocol is configured with, such as
    /// `http://127.0.0.1:4711/v1`.
    pub fn base_url(&self) -> String {
        format!("{}{}", self.root_url(), self.inner.protocol.base_path())
    }

    /// The root of its URLs, with the namespace but without what the protocol adds.
    pub fn root_url(&self) -> String {
        match &self.inner.namespace {
            Some(namespace) => format!("{}/t/{namespace}", self.inner.wire.root_url()),
            None => self.inner.wire.root_url(),
        }
    }

    /// The gates, rendezvous and interlocks at which its answers wait.
    pub fn gates(&self) -> &Gates {
        &self.inner.gates
    }

    /// Sets what is answered to every chat request that no mounted rule matches; replaces the
    /// answer before.
    pub fn answers(&self, responder: Responder) {
        responder.plant(&self.inner.planted);
        match &self.inner.answers {
            AnswerSource::Wiremock(source) => source.fallback().answers(responder),
            AnswerSource::Script(source) => source.answers(responder),
        }
    }

    /// Sets what is answered to requests that match. The rule that was mounted first wins, and any
    /// rule wins over [`Stub::answers`].
    pub async fn mount(&self, matcher: Matcher, responder: Responder) {
        responder.plant(&self.inner.planted);
        match &self.inner.answers {
            AnswerSource::Wiremock(source) => source.mount(matcher, responder).await,
            AnswerSource::Script(source) => source.rule(matcher, responder),
        }
    }

    /// The faulty answers that it was given so far, and how often each was met: the gateway was
    /// sent the bytes of the answer up to its fault.
    pub fn faults(&self) -> Vec<PlantedFault> {
        self.inner.planted.faults(&self.inner.name)
    }

    /// Changes what happens at its port from now on; see [`Wire::listen`].
    ///
    /// # Errors
    /// A harness failure if the port cannot be listened on again.
    pub async fn listen(&self, listen: Listen) -> CaseResult {
        self.inner.wire.listen(listen).await
    }

    /// The wire in front of it.
    pub fn wire(&self) -> &Wire {
        &self.inner.wire
    }

    /// Every request so far that makes a model work, in order.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        calls_at(&self.inner.name, &self.inner.tape)
    }

    /// Every request so far, probes included, in order.
    pub fn all_requests(&self) -> Vec<ReceivedRequest> {
        requests_at(&self.inner.name, &self.inner.tape)
    }

    /// The requests of [`Stub::requests`] whose body contains the nonce, in order.
    pub fn calls(&self, nonce: &str) -> Vec<ReceivedRequest> {
        self.requests()
            .into_iter()
            .filter(|request| request.body.contains(nonce))
            .collect()
    }

    /// Waits until `count` calls have come, and returns all there are. Cancel safe.
    ///
    /// # Errors
    /// A violation by a hang that states how many came.
    pub async fn seen(&self, count: usize) -> Result<Vec<ReceivedRequest>, Failure> {
        let come = self.inner.tape.wait_for(count, |entry| self.is_call(entry));
        let expected = format!("{} at {}", counted(count, "request"), self.inner.name);
        gate::guard_with("hang.requests", &expected, come, || {
            format!("{} of {count}", self.requests().len())
        })
        .await?;
        Ok(self.requests())
    }

    /// Waits until the gateway has closed `count` connections of this stub whose request was still
    /// in flight, and returns their entries on the tape. Cancel safe.
    ///
    /// # Errors
    /// A violation by a hang that states how many were closed.
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
            "the gateway to close {} to {} with a request in flight",
            counted(count, "connection"),
            self.inner.name
        );
        let seen = || format!("{} of {count}", self.inner.tape.select(closed).len());
        let come = self.inner.tape.wait_for(count, closed);
        gate::guard_with("hang.peer_closed", &expected, come, seen).await
    }

    /// Waits until `count` answers have been held at a gate or rendezvous, and returns their
    /// entries on the tape. Cancel safe.
    ///
    /// # Errors
    /// A violation by a hang that states how many have been held.
    pub async fn held(&self, count: usize) -> Result<Vec<Entry>, Failure> {
        let held = |entry: &Entry| self.is_mine(entry) && matches!(entry.event, Event::Held { .. });
        let expected = format!(
            "{} to be held at {}",
            counted(count, "answer"),
            self.inner.name
        );
        let seen = || format!("{} of {count}", self.inner.tape.select(held).len());
        let come = self.inner.tape.wait_for(count, held);
        gate::guard_with("hang.held", &expected, come, seen).await
    }

    /// The number of calls in flight now: read whole, and the last byte of the answer not yet
    /// written.
    pub fn in_flight(&self) -> usize {
        self.inner.wire.in_flight()
    }

    /// The exact largest number of calls that were ever in flight together.
    pub fn high_water(&self) -> usize {
        self.inner.wire.high_water()
    }

    /// Waits until the gateway takes no more of what is answered, since all is out or it has
    /// stopped reading, and returns the number of bytes sent so far; see [`Wire::sent_bytes`].
    ///
    /// # Errors
    /// A violation by a hang if it never stops.
    pub async fn sent_settles(&self) -> Result<u64, Failure> {
        self.inner.wire.sent_settles().await
    }

    /// The number of bytes of its answers that the gateway has not read yet; `None` where the
    /// system does not show its buffers. See [`Wire::in_buffers`].
    pub fn in_buffers(&self) -> Option<u64> {
        self.inner.wire.in_buffers()
    }

    /// Waits until exactly `count` calls are in flight.
    ///
    /// # Errors
    /// A violation by a hang that states how many there were instead.
    pub async fn in_flight_is(&self, count: usize) -> CaseResult {
        self.inner.wire.in_flight_is(count).await
    }

    /// The entries of this stub on the tape, in order.
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

/// `1 connection`, `2 connections`.
fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Every request that makes a model work which the tape has of the stub of that name, in order.
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

/// Passes requests below the namespace on, and refuses all others.
struct Namespaced {
    prefix: String,
    answers: AnswerSource,
    planted: Planted,
}

impl Namespaced {
    fn source(&self) -> &dyn Source {
        match &self.answers {
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

    /// A case's requests have its namespace or none.
    fn is_foreign(&self, request: &Request) -> bool {
        request.path.starts_with("/t/")
            && self.prefix.starts_with("/t/")
            && !request.path.starts_with(&self.prefix)
    }

    fn met(&self, fault: u64) {
        self.planted.met(fault);
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
    protocol::is_call(method, path.split('?').next().unwrap_or_default())
}
