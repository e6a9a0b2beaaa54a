//! An HTTP/1.1 listener on raw TCP that stands in front of a source of answers and injects faults.
//!
//! A [`Source`] decides *what* is answered; the answer's [`Plan`](crate::plan::Plan) decides *how*
//! its bytes flow, and the wire obeys it to the byte: holds, pieces, cuts, resets, wrong lengths,
//! dripping. The wire reads while it writes, so that it notices at once when the peer leaves, and
//! stops sending. Causes are on the tape before their effects: an event is recorded just before its
//! bytes are written.
//!
//! Every fault is faithful on Linux with the peer on the same machine. A reset needs to see the
//! peer's receive queue in `/proc/net/tcp`; across network namespaces it cannot, and the name of
//! the fault on the tape states that. [`Listen::NeverAccept`] depends on Linux's accept queue.

mod answer;
mod connection;
pub(super) mod control;
mod listener;
pub(crate) mod message;
mod play;
mod progress;
mod script;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use answer::Answer;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::tape::{Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};
use crate::wire::port::Port;
use crate::wire::queues::between;

/// The header that marks a request which the wire passes on, so that a responder knows that its
/// plan will be obeyed. Its value is the request's number on the tape.
pub const WIRE_MARK: &str = "x-gauntlet-wire";
/// The header in which the wire passes on that the connection of a request had carried a request
/// before.
pub(crate) const REUSE_MARK: &str = "x-gauntlet-reused";
/// The header that carries a plan from a responder to the wire, as JSON; the wire removes it.
pub const PLAN_HEADER: &str = "x-gauntlet-plan";
/// The header that carries the number of a planted fault from a responder to the wire; the wire
/// removes it.
pub(crate) const FAULT_HEADER: &str = "x-gauntlet-fault";
/// The header that states that nothing matched, and why; the wire removes it.
pub const UNMATCHED_HEADER: &str = "x-gauntlet-unmatched";
/// The status of the harness's own answers, which no provider gives: to a request that nothing
/// matches, or instead of a plan that nobody would obey.
pub const HARNESS_STATUS: u16 = 599;

/// A request, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number of the connection that carried it, unique in the process.
    pub connection: u64,
    /// The number of the request, unique in the process.
    pub id: u64,
    /// Whether its connection had carried a request before.
    pub reused: bool,
    /// The method as the sender wrote it.
    pub method: String,
    /// Path and query as the sender wrote them.
    pub path: String,
    /// Names and values in the order and spelling of the sender.
    pub headers: Vec<(String, String)>,
    /// The whole body without its framing.
    pub body: Bytes,
}

impl Request {
    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }

    /// Whether the sender wants the connection closed after the answer.
    fn wants_close(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.to_ascii_lowercase().contains("close"))
    }
}

/// Decides what is answered.
#[async_trait]
pub trait Source: Send + Sync {
    /// The answer to a request. The future is dropped if the peer leaves.
    async fn answer(&self, request: &Request) -> Answer;

    /// Whether the request counts as a call for [`Wire::in_flight`] and [`Wire::high_water`]. A
    /// gateway's probe of the list of models, for example, does not.
    fn counts(&self, request: &Request) -> bool {
        let _ = request;
        true
    }

    /// Whether the request is none of the case's: somebody who still knows an earlier owner of the
    /// port sent it. It is refused, and the tape does not have it.
    fn is_foreign(&self, request: &Request) -> bool {
        let _ = request;
        false
    }

    /// Called when the bytes of an answer have come to its fault; `fault` is
    /// [`Answer::fault`].
    fn met(&self, fault: u64) {
        let _ = fault;
    }
}

/// What is under way at a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    /// Open connections, silent ones included.
    open: usize,
    /// Those of them that were accepted since the last switch.
    fresh: usize,
    /// The number of switches so far.
    generation: u64,
    /// Requests, calls or not, between read whole and last byte.
    busy: usize,
    /// Calls between read whole and last byte.
    in_flight: usize,
    /// The largest number of calls that were ever in flight together.
    high_water: usize,
}

/// What the listener and the connections of a wire share.
struct Shared {
    name: String,
    tape: Tape,
    gates: Gates,
    source: Arc<dyn Source>,
    load: watch::Sender<Load>,
    /// Changes when idle connections have to close.
    retire: watch::Sender<()>,
    /// The number of bytes of answers that the system has taken.
    sent: AtomicU64,
    /// Our address and the peer's of each connection that is being served.
    addresses: Mutex<BTreeMap<u64, (SocketAddr, SocketAddr)>>,
}

impl Shared {
    fn new(name: &str, tape: Tape, gates: Gates, source: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_string(),
            tape,
            gates,
            source,
            load: watch::Sender::new(Load::default()),
            retire: watch::Sender::new(()),
            sent: AtomicU64::new(0),
            addresses: Mutex::default(),
        })
    }

    fn addresses(&self) -> MutexGuard<'_, BTreeMap<u64, (SocketAddr, SocketAddr)>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: Event) {
        self.tape.record(Side::Provider(self.name.clone()), event);
    }
}

/// A listener with faults. Dropping it closes the port and all its connections.
pub struct Wire {
    shared: Arc<Shared>,
    addr: SocketAddr,
    switches: mpsc::Sender<listener::Switch>,
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
    /// Takes a free port of 127.0.0.1 and listens there as `listen` asks.
    ///
    /// # Errors
    /// The system's error when there is no free port.
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

    /// Takes this address and listens there as `listen` asks; port 0 means any free port.
    ///
    /// # Errors
    /// The system's error when the address is taken or belongs to another machine.
    pub async fn bind_at(
        addr: SocketAddr,
        name: &str,
        tape: Tape,
        gates: Gates,
        source: Arc<dyn Source>,
        listen: Listen,
    ) -> std::io::Result<Self> {
        let shared = Shared::new(name, tape, gates, source);
        let port = Port::reserve(addr)?;
        let addr = port.addr();
        if listen != Listen::Serve {
            shared.record(Event::Listening {
                how: listen.clone(),
            });
        }
        let state = port.open(listen).await?;
        let (switches, commands) = mpsc::channel(1);
        let listener = tokio::spawn(listener::run(Arc::clone(&shared), port, state, commands));
        Ok(Self {
            shared,
            addr,
            switches,
            listener,
        })
    }

    /// The address at which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The root of its URLs: `http://127.0.0.1:PORT`.
    pub fn root_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Changes what happens on the same port from now on. Connections without a request in flight
    /// are closed first, and waited for, so that the next request meets the new behaviour; requests
    /// in flight end as planned, and then their connection closes.
    ///
    /// # Errors
    /// A harness failure if the port cannot be listened on again; *not run* where the platform
    /// cannot behave as asked.
    pub async fn listen(&self, listen: Listen) -> CaseResult {
        if listen == Listen::NeverAccept && !cfg!(target_os = "linux") {
            return Err(Failure::NotRun {
                why: "a port that never accepts depends on Linux's accept queue; run this on Linux"
                    .into(),
            });
        }
        let serving = listen == Listen::Serve;
        let (done, switched) = oneshot::channel();
        let gone = || Failure::Harness {
            what: format!("the listener of {} has ended", self.shared.name),
        };
        self.switches
            .send((listen, done))
            .await
            .map_err(|_| gone())?;
        switched
            .await
            .map_err(|_| gone())?
            .map_err(|error| Failure::Harness {
                what: format!(
                    "{} cannot listen on {} again: {error}",
                    self.shared.name, self.addr
                ),
            })?;
        if !serving {
            let mut load = self.shared.load.subscribe();
            let idle_gone = load.wait_for(|load| load.open - load.fresh <= load.busy);
            // every connection waits a bounded time for its peer's FIN, so this wait is bounded too
            let _ = gate::bounded(Duration::from_secs(5), idle_gone).await;
        }
        Ok(())
    }

    /// The number of calls in flight now.
    pub fn in_flight(&self) -> usize {
        self.shared.load.borrow().in_flight
    }

    /// The exact largest number of calls that were ever in flight together.
    pub fn high_water(&self) -> usize {
        self.shared.load.borrow().high_water
    }

    /// The number of bytes of answers, heads and framing included, that have gone out so far. Some
    /// MiB of them may lie in the system's buffers on both sides: a bound on what a gateway takes
    /// needs room for that.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The number of bytes of answers that lie in the buffers of the system, sent and not yet read
    /// by their peers; `None` where the system does not show them.
    pub fn in_buffers(&self) -> Option<u64> {
        let addresses: Vec<_> = self.shared.addresses().values().copied().collect();
        addresses
            .into_iter()
            .map(|(ours, peer)| between(ours, peer))
            .sum()
    }

    /// Waits until [`Wire::sent_bytes`] has stopped growing, and returns it: the whole answer is
    /// out, or the gateway takes no more.
    ///
    /// # Errors
    /// A violation by a hang if it never stops growing.
    pub async fn sent_settles(&self) -> Result<u64, Failure> {
        let expected = format!("the gateway takes no more from {}", self.shared.name);
        gate::guard(
            "hang.sent_bytes",
            &expected,
            gate::settled(|| self.sent_bytes()),
        )
        .await
    }

    /// The number of open connections now.
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
            format!("{} in flight", self.in_flight())
        })
        .await
    }
}
