//! A proxy in front of Postgres: it relays bytes, notes connections and statements on the tape, and
//! injects faults.
//!
//! It reads statements from the frontend's messages (PostgreSQL documentation, "Message Formats"),
//! so that a fault hits exactly one of them: the statement is held at a gate, cut, reset, or
//! executed with its reply lost. Over TLS it relays the bytes unread.

mod frontend;
mod relay;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::port::{ListenerState, Port, accept};
use crate::exercise::{Planted, PlantedFault};
use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::tape::{Entry, Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};

/// What happens when a statement arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtStatement {
    /// The statement is held at the gate of that name and relayed when the gate opens; other
    /// connections go on.
    Hold(String),
    /// Nothing is relayed on any connection, the statement included, until
    /// [`DatabaseWire::resume`].
    Stall,
    /// The connection is closed in order before the statement is relayed.
    Cut,
    /// The connection is reset before the statement is relayed.
    Reset,
    /// The statement is relayed and executed, and the connection is reset before its reply is
    /// relayed.
    LoseReply,
}

impl AtStatement {
    /// The fault in words, as reports name it.
    fn words(&self) -> &'static str {
        match self {
            Self::Hold(_) => "a hold",
            Self::Stall => "a stall",
            Self::Cut => "a cut",
            Self::Reset => "a reset",
            Self::LoseReply => "a lost reply",
        }
    }
}

/// A proxy in front of one Postgres. Dropping it closes the port and all its connections.
pub struct DatabaseWire {
    shared: Arc<Shared>,
    addr: SocketAddr,
    switches: mpsc::Sender<(Listen, oneshot::Sender<io::Result<()>>)>,
    listener: JoinHandle<()>,
}

struct Shared {
    tape: Tape,
    gates: Gates,
    upstream: String,
    stalled: watch::Sender<bool>,
    /// Increases when every connection has to be reset.
    resets: watch::Sender<u64>,
    armed: Mutex<Vec<(String, AtStatement, u64)>>,
    /// The faults that were armed, by their number.
    planted: Planted,
    faults: AtomicU64,
    /// How many bytes may still go to the client before its connection is cut; `None` when none is
    /// to be cut.
    allowance: Mutex<Option<usize>>,
    open: watch::Sender<usize>,
}

impl Shared {
    fn note(&self, what: impl Into<String>) {
        self.tape
            .record(Side::Database, Event::Database { what: what.into() });
    }

    /// Takes the fault that is armed for this statement, if there is one.
    fn fault_at(&self, statement: &str) -> Option<AtStatement> {
        let statement = statement.to_lowercase();
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = armed
            .iter()
            .position(|(text, ..)| statement.contains(text))?;
        let (_, fault, id) = armed.remove(at);
        self.planted.met(id);
        Some(fault)
    }

    async fn flowing(&self) {
        let _ = self.stalled.subscribe().wait_for(|stalled| !*stalled).await;
    }
}

impl Drop for DatabaseWire {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl std::fmt::Debug for DatabaseWire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseWire")
            .field("addr", &self.addr)
            .field("upstream", &self.shared.upstream)
            .finish_non_exhaustive()
    }
}

impl DatabaseWire {
    /// Takes a free port of 127.0.0.1 and relays from it to the Postgres at `upstream`
    /// (`host:port`).
    ///
    /// # Errors
    /// The system's error when there is no free port.
    pub async fn bind(upstream: &str, tape: Tape, gates: Gates) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tape,
            gates,
            upstream: upstream.to_string(),
            stalled: watch::Sender::new(false),
            resets: watch::Sender::new(0),
            armed: Mutex::default(),
            planted: Planted::default(),
            faults: AtomicU64::new(0),
            allowance: Mutex::default(),
            open: watch::Sender::new(0),
        });
        let port = Port::reserve(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = port.addr();
        let state = port.open(Listen::Serve).await?;
        let (switches, commands) = mpsc::channel(1);
        let listener = tokio::spawn(run(Arc::clone(&shared), port, state, commands));
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

    /// The URL of a database behind the wire, changed so that it leads through the wire. User,
    /// password, database and options stay.
    pub fn url(&self, upstream_url: &str) -> String {
        let (scheme, rest) = upstream_url
            .split_once("://")
            .unwrap_or(("postgres", upstream_url));
        let (authority, path) = rest
            .find(['/', '?'])
            .map_or((rest, ""), |at| rest.split_at(at));
        let user = authority
            .rsplit_once('@')
            .map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}://{user}{}{path}", self.addr)
    }

    /// The number of open connections now.
    pub fn connections(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// Refuses new connections; open ones go on.
    ///
    /// # Errors
    /// A harness failure if the listener has ended.
    pub async fn refuse(&self) -> CaseResult {
        self.shared.note("new connections are refused");
        self.listen(Listen::Refuse).await
    }

    /// Refuses new connections and resets open ones, as if the database were gone. Returns when
    /// they have ended.
    ///
    /// # Errors
    /// As [`DatabaseWire::refuse`].
    pub async fn gone(&self) -> CaseResult {
        self.refuse().await?;
        self.reset().await
    }

    /// Relays nothing in either direction. Connections stay open and new ones are accepted, but get
    /// no answer.
    pub fn stall(&self) {
        self.shared.note("stalled");
        self.shared.stalled.send_replace(true);
    }

    /// Ends every fault: relays what was stalled, accepts new connections, forgets armed faults.
    ///
    /// # Errors
    /// A harness failure if the port cannot be listened on again.
    pub async fn resume(&self) -> CaseResult {
        self.shared
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        *self
            .shared
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        self.listen(Listen::Serve).await?;
        self.shared.note("resumed");
        self.shared.stalled.send_replace(false);
        Ok(())
    }

    /// Resets every open connection and returns when they have ended; new ones are served.
    ///
    /// # Errors
    /// It has none today; callers chain it with [`DatabaseWire::refuse`].
    pub async fn reset(&self) -> CaseResult {
        self.shared.note("every connection is reset");
        let mut open = self.shared.open.subscribe();
        let before = self.shared.resets.borrow().wrapping_add(1);
        self.shared.resets.send_replace(before);
        let gone = async {
            let _ = open.wait_for(|open| *open == 0).await;
        };
        // a pool may connect again at once, so the count of open connections may never be 0
        let _ = gate::bounded(Duration::from_secs(2), gone).await;
        Ok(())
    }

    /// Cuts (FIN) the connection that would carry the byte after the next `bytes` bytes towards the
    /// client, right before that byte.
    pub fn cut_after(&self, bytes: usize) {
        *self
            .shared
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Arms a fault for the next statement whose text contains `text`, upper and lower case alike.
    /// The fault happens once.
    pub fn at_statement(&self, text: &str, fault: AtStatement) {
        let id = self.shared.faults.fetch_add(1, Ordering::Relaxed);
        let what = format!("{} at a statement with {text:?}", fault.words());
        self.shared.planted.plant(id, what, 1);
        self.shared
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((text.to_lowercase(), fault, id));
    }

    /// Returns the faults that were armed for statements, and whether each was met.
    pub fn faults(&self) -> Vec<PlantedFault> {
        self.shared.planted.faults("the database")
    }

    /// Waits until `count` statements whose text contains `text` have arrived, and returns their
    /// entries on the tape. A statement counts when it is to be executed, not when it is prepared.
    ///
    /// # Errors
    /// A violation by a hang that states how many came.
    pub async fn statements(&self, text: &str, count: usize) -> Result<Vec<Entry>, Failure> {
        let text = text.to_lowercase();
        let matching = |entry: &Entry| match (&entry.side, &entry.event) {
            (Side::Database, Event::Database { what }) => {
                what.starts_with("statement: ") && what.to_lowercase().contains(&text)
            }
            _ => false,
        };
        let seen = || format!("{} of {count}", self.shared.tape.select(matching).len());
        let expected = format!("{count} statements with {text:?} at the database");
        gate::guard_with(
            "hang.statements",
            &expected,
            self.shared.tape.wait_for(count, matching),
            seen,
        )
        .await
    }

    /// Waits until a statement is held at the gate of that name (see [`AtStatement::Hold`]), and
    /// returns its entry on the tape.
    ///
    /// # Errors
    /// A violation by a hang.
    pub async fn held(&self, gate: &str) -> Result<Vec<Entry>, Failure> {
        let note = format!("the statement is held at {gate}");
        let held =
            |entry: &Entry| matches!(&entry.event, Event::Database { what } if *what == note);
        gate::guard(
            "hang.statement_held",
            &format!("a statement held at {gate}"),
            self.shared.tape.wait_for(1, held),
        )
        .await
    }

    async fn listen(&self, listen: Listen) -> CaseResult {
        let (done, switched) = oneshot::channel();
        let gone = || Failure::Harness {
            what: "the listener in front of the database has ended".into(),
        };
        self.switches
            .send((listen, done))
            .await
            .map_err(|_| gone())?;
        let switched = switched.await.map_err(|_| gone())?;
        switched.map_err(|error| Failure::Harness {
            what: format!(
                "the database wire cannot listen on {} again: {error}",
                self.addr
            ),
        })
    }
}

/// Accepts until it is aborted; owns every connection.
async fn run(
    shared: Arc<Shared>,
    port: Port,
    mut state: ListenerState,
    mut switches: mpsc::Receiver<(Listen, oneshot::Sender<io::Result<()>>)>,
) {
    let mut connections = JoinSet::new();
    let mut count = 0_u64;
    loop {
        // accept and recv are cancel safe
        tokio::select! {
            biased;
            switch = switches.recv() => {
                let Some((listen, done)) = switch else { return };
                let serves = matches!(state, ListenerState::Serving(_));
                let opened = if serves && listen == Listen::Serve {
                    Ok(())
                } else {
                    drop(std::mem::replace(&mut state, ListenerState::Refusing));
                    port.open(listen).await.map(|opened| state = opened)
                };
                let _ = done.send(opened);
            }
            stream = accept(&state) => {
                count += 1;
                let life = relay::admit(Arc::clone(&shared), stream, count);
                shared.note(format!("connection {count} accepted"));
                connections.spawn(life);
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_url_leads_through_the_wire() {
        let wire = DatabaseWire::bind("127.0.0.1:5432", Tape::new(), Gates::default())
            .await
            .unwrap();
        let through = wire.url("postgres://me:p%40ss@db.example:5432/case_1?sslmode=disable");
        assert_eq!(
            through,
            format!(
                "postgres://me:p%40ss@{}/case_1?sslmode=disable",
                wire.addr()
            )
        );
        assert_eq!(
            wire.url("postgresql:///x"),
            format!("postgresql://{}/x", wire.addr())
        );
    }
}
