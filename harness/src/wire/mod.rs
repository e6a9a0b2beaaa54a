//! The wire: a fault-injecting HTTP/1.1 listener in front of whatever says the answers, on raw TCP.
//!
//! *What* is answered comes from a [`Source`]; *how* its bytes flow is a [`Plan`] that the wire obeys to the byte: holds,
//! pieces, cuts, resets, wrong lengths, dripping. It reads while it writes, so that a peer that leaves is seen at once and
//! the rest is not sent. Causes go to the tape before their effects: an event is recorded just before its bytes are written.
//!
//! On which platform a fault is faithful: everything on Linux with the peer on the same machine. A reset needs the peer's
//! receive queue to be visible in `/proc/net/tcp` (not so across network namespaces: the fault's name then says so);
//! [`Listen::NeverAccept`] rests on Linux's accept queue.

mod connection;
pub mod control;
mod drain;
mod events;
mod head;
pub mod http1;
mod listener;
mod play;
#[cfg(feature = "postgres")]
pub mod postgres;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::gate::{self, Gates};
use crate::plan::{Listen, Plan};
use crate::tape::{Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};

/// A header with this name marks a request that the wire passes on, so that a responder knows that its plan will be obeyed. Its value is
/// the request's number on the tape.
pub const WIRE_MARK: &str = "x-gauntlet-wire";
/// The header that carries a plan from a responder to the wire, as JSON; the wire takes it off.
pub const PLAN_HEADER: &str = "x-gauntlet-plan";
/// The header that says that nothing matched, and why; the wire takes it off.
pub const UNMATCHED_HEADER: &str = "x-gauntlet-unmatched";
/// The status of answers that no provider gives: an unmatched request, or a plan that was about to be flattened.
pub const HARNESS_STATUS: u16 = 599;

/// A request, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which connection it came on.
    pub connection: u64,
    /// Unique in the process.
    pub id: u64,
    /// As sent.
    pub method: String,
    /// Path and query, as sent.
    pub path: String,
    /// In the order and spelling of the sender.
    pub headers: Vec<(String, String)>,
    /// Unchunked.
    pub body: Bytes,
}

impl Request {
    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        http1::header(&self.headers, name)
    }
}

/// What is answered, and how its bytes flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Without those that tell the length: the plan's framing does.
    pub headers: Vec<(String, String)>,
    /// The whole body, unframed.
    pub body: Bytes,
    /// How it flows.
    pub plan: Plan,
    /// Why this is no answer of the case's: nothing matched.
    pub unmatched: Option<String>,
}

impl Answer {
    /// An answer that flows all at once.
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type".to_string(), content_type.to_string())];
        Self {
            status,
            headers,
            body: body.into(),
            plan: Plan::default(),
            unmatched: None,
        }
    }

    /// The answer to a request that nothing in the case answers: the harness's own status and a text, never a provider's 404.
    pub fn unmatched(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let text = format!("gauntlet: no stub answers this request: {reason}\n");
        Self {
            unmatched: Some(reason),
            ..Self::new(HARNESS_STATUS, "text/plain; charset=utf-8", text)
        }
    }

    /// The same, flowing like this.
    #[must_use]
    pub fn with_plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }
}

/// Says the answers.
#[async_trait]
pub trait Source: Send + Sync {
    /// The answer to a request. Dropped if the peer leaves.
    async fn answer(&self, request: &Request) -> Answer;

    /// Whether the request counts as a call for [`Wire::in_flight`] and [`Wire::high_water`]; a gateway's probe of the list of
    /// models, say, does not.
    fn counts(&self, request: &Request) -> bool {
        let _ = request;
        true
    }
}

/// What is under way at a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    /// Connections that stand, silent ones included.
    open: usize,
    /// Those of them that were accepted since the last switch.
    fresh: usize,
    /// Counts the switches.
    turn: u64,
    /// Requests, calls or not, between read whole and last byte.
    busy: usize,
    /// Calls between read whole and last byte.
    in_flight: usize,
    /// The most of them ever.
    high_water: usize,
}

/// What listener and connections of a wire share.
struct Shared {
    name: String,
    tape: Tape,
    gates: Gates,
    source: Arc<dyn Source>,
    load: watch::Sender<Load>,
    /// Says when idle connections have to go.
    turn_out: watch::Sender<()>,
    /// Bytes of answers that the system has taken.
    sent: AtomicU64,
}

impl Shared {
    fn new(name: &str, tape: Tape, gates: Gates, source: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_string(),
            tape,
            gates,
            source,
            load: watch::Sender::new(Load::default()),
            turn_out: watch::Sender::new(()),
            sent: AtomicU64::new(0),
        })
    }

    fn record(&self, event: Event) {
        self.tape.record(Side::Provider(self.name.clone()), event);
    }
}

/// A listening stub. Dropping it closes the port and all its connections.
pub struct Wire {
    shared: Arc<Shared>,
    addr: SocketAddr,
    modes: mpsc::Sender<(Listen, oneshot::Sender<std::io::Result<()>>)>,
    listener: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("name", &self.shared.name)
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// Takes a port of 127.0.0.1 and behaves there as `listen` says.
    ///
    /// # Errors
    /// The system's, when there is no port.
    pub async fn bind(
        name: &str,
        tape: Tape,
        gates: Gates,
        source: Arc<dyn Source>,
        listen: Listen,
    ) -> std::io::Result<Self> {
        Self::bind_at(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            name,
            tape,
            gates,
            source,
            listen,
        )
        .await
    }

    /// The same on this address.
    ///
    /// # Errors
    /// The system's, when the address is taken or not ours.
    pub async fn bind_at(
        addr: SocketAddr,
        name: &str,
        tape: Tape,
        gates: Gates,
        source: Arc<dyn Source>,
        listen: Listen,
    ) -> std::io::Result<Self> {
        let shared = Shared::new(name, tape, gates, source);
        let port = listener::Port::reserve(addr)?;
        let addr = port.addr();
        let door = port.open(listen).await?;
        let (modes, commands) = mpsc::channel(1);
        let listener = tokio::spawn(listener::run(Arc::clone(&shared), port, door, commands));
        Ok(Self {
            shared,
            addr,
            modes,
            listener,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`.
    pub fn root_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Behaves like this from now on, on the same port. Connections without a request in flight are closed first (and
    /// awaited), so that the next request meets the new behaviour; requests in flight end as planned, then their connection
    /// closes.
    ///
    /// # Errors
    /// A harness failure if the port can't be listened on again; *not run* where the platform can't behave so.
    pub async fn listen(&self, listen: Listen) -> CaseResult {
        if listen == Listen::NeverAccept && !cfg!(target_os = "linux") {
            return Err(Failure::NotRun {
                why: "a port whose connections never stand rests on Linux's accept queue".into(),
            });
        }
        let serving = listen == Listen::Serve;
        let (done, switched) = oneshot::channel();
        let gone = || Failure::Harness {
            what: format!("the listener of {} is gone", self.shared.name),
        };
        self.modes.send((listen, done)).await.map_err(|_| gone())?;
        switched
            .await
            .map_err(|_| gone())?
            .map_err(|error| Failure::Harness {
                what: format!(
                    "{} can't listen on {} again: {error}",
                    self.shared.name, self.addr
                ),
            })?;
        if !serving {
            let mut load = self.shared.load.subscribe();
            let idle_gone = load.wait_for(|load| load.open - load.fresh <= load.busy);
            // every connection gives its peer a bounded time, so this is a bound on ours; what it leaves is closed by force
            let _ = gate::bounded(Duration::from_secs(5), idle_gone).await;
        }
        Ok(())
    }

    /// Calls in flight now.
    pub fn in_flight(&self) -> usize {
        self.shared.load.borrow().in_flight
    }

    /// The most calls that were ever in flight together, exactly.
    pub fn high_water(&self) -> usize {
        self.shared.load.borrow().high_water
    }

    /// Bytes of answers, heads and framing included, that have gone out so far. Up to some MiB of them may lie in the system's
    /// buffers on both sides: bounds on what a gateway takes need room for that.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until [`Wire::sent_bytes`] has stopped growing, and returns it: the answer is out, or the gateway takes no more.
    ///
    /// # Errors
    /// A violation by a hang if it never stops.
    pub async fn sent_settles(&self) -> Result<u64, Failure> {
        let expected = format!("the gateway takes no more from {}", self.shared.name);
        gate::guard(
            "hang.sent_bytes",
            &expected,
            gate::settled(|| self.sent_bytes()),
        )
        .await
    }

    /// Connections that stand now.
    pub fn connections(&self) -> usize {
        self.shared.load.borrow().open
    }

    /// Waits until exactly `count` calls are in flight.
    ///
    /// # Errors
    /// A violation by a hang that says how many there were instead.
    pub async fn in_flight_is(&self, count: usize) -> CaseResult {
        let mut load = self.shared.load.subscribe();
        let reached = async {
            let _ = load.wait_for(|load| load.in_flight == count).await;
        };
        let expected = format!("{count} requests in flight at {}", self.shared.name);
        gate::guard_with("hang.in_flight", &expected, reached, || {
            format!("saw {} in flight", self.in_flight())
        })
        .await
    }
}
