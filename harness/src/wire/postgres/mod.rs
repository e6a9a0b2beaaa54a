//! The wire in front of Postgres: relays bytes, notes connections and statements on the tape, and puts faults between them.
//!
//! Statements are read from the frontend's messages (PostgreSQL documentation, "Message Formats"), so that a fault can be put at
//! exactly one of them: held at a gate, cut, reset, or executed with its reply lost. Over TLS the bytes are relayed unread.

mod frontend;
mod relay;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::listener::{Door, Port};
use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::tape::{Entry, Event, Side, Tape};
use crate::verdict::{CaseResult, Failure};

/// What happens when a statement arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtStatement {
    /// It is held at the gate of that name and relayed when the gate opens; other connections go on.
    Hold(String),
    /// Nothing is relayed any more on any connection, the statement included, until [`DatabaseWire::resume`].
    Stall,
    /// The connection is closed in order before the statement is relayed.
    Cut,
    /// The connection is reset before the statement is relayed.
    Reset,
    /// The statement is relayed and executed; the connection is reset instead of relaying the reply.
    LoseReply,
}

/// A proxy in front of one Postgres. Dropping it closes the port and all its connections.
pub struct DatabaseWire {
    shared: Arc<Shared>,
    addr: SocketAddr,
    doors: mpsc::Sender<(Listen, oneshot::Sender<io::Result<()>>)>,
    listener: JoinHandle<()>,
}

struct Shared {
    tape: Tape,
    gates: Gates,
    upstream: String,
    stalled: watch::Sender<bool>,
    /// Counts up when every connection has to be reset.
    resets: watch::Sender<u64>,
    armed: Mutex<Vec<(String, AtStatement)>>,
    /// Bytes that may still go to the client before the connection is cut; `None` when nothing is to be cut.
    allowance: Mutex<Option<usize>>,
    open: watch::Sender<usize>,
}

impl Shared {
    fn note(&self, what: impl Into<String>) {
        self.tape
            .record(Side::Database, Event::Database { what: what.into() });
    }

    /// The fault that is armed for this statement, taken off.
    fn fault_at(&self, statement: &str) -> Option<AtStatement> {
        let statement = statement.to_lowercase();
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = armed
            .iter()
            .position(|(text, _)| statement.contains(text))?;
        Some(armed.remove(at).1)
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
    /// Relays from a port of its own to the Postgres at `upstream` (`host:port`).
    ///
    /// # Errors
    /// The system's, when there is no port.
    pub async fn bind(upstream: &str, tape: Tape, gates: Gates) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tape,
            gates,
            upstream: upstream.to_string(),
            stalled: watch::Sender::new(false),
            resets: watch::Sender::new(0),
            armed: Mutex::default(),
            allowance: Mutex::default(),
            open: watch::Sender::new(0),
        });
        let port = Port::reserve(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = port.addr();
        let door = port.open(Listen::Serve).await?;
        let (doors, commands) = mpsc::channel(1);
        let listener = tokio::spawn(run(Arc::clone(&shared), port, door, commands));
        Ok(Self {
            shared,
            addr,
            doors,
            listener,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of the database behind the wire, led through the wire: user, password, database and options stay.
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

    /// Connections that stand now.
    pub fn connections(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// New connections are refused; those that stand go on.
    ///
    /// # Errors
    /// A harness failure if the listener is gone.
    pub async fn refuse(&self) -> CaseResult {
        self.shared.note("new connections are refused");
        self.door(Listen::Refuse).await
    }

    /// New connections are refused and those that stand are reset: the database is gone. Returns when they are.
    ///
    /// # Errors
    /// As [`DatabaseWire::refuse`].
    pub async fn gone(&self) -> CaseResult {
        self.refuse().await?;
        self.reset().await
    }

    /// Nothing is relayed any more, either way; connections stay up and new ones stand, but get no answer.
    pub fn stall(&self) {
        self.shared.note("stalled");
        self.shared.stalled.send_replace(true);
    }

    /// Everything is as it should be again: what was stalled is relayed, new connections stand, armed faults are forgotten.
    ///
    /// # Errors
    /// A harness failure if the port can't be listened on again.
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
        self.door(Listen::Serve).await?;
        self.shared.note("resumed");
        self.shared.stalled.send_replace(false);
        Ok(())
    }

    /// Resets every connection that stands, and returns when they are gone; new ones are served.
    ///
    /// # Errors
    /// A harness failure if they do not go.
    pub async fn reset(&self) -> CaseResult {
        self.shared.note("every connection is reset");
        let mut open = self.shared.open.subscribe();
        let before = self.shared.resets.borrow().wrapping_add(1);
        self.shared.resets.send_replace(before);
        let gone = async {
            let _ = open.wait_for(|open| *open == 0).await;
        };
        // a pool may connect again at once, so none standing is not owed for ever
        let _ = gate::bounded(Duration::from_secs(2), gone).await;
        Ok(())
    }

    /// Cuts (FIN) the connection that would carry byte n + 1 towards the client from now on, right after byte n.
    pub fn cut_after(&self, bytes: usize) {
        *self
            .shared
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Arms a fault for the next statement whose text contains `text` (in any case of letters); it happens once.
    pub fn at_statement(&self, text: &str, fault: AtStatement) {
        self.shared
            .armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((text.to_lowercase(), fault));
    }

    /// Waits until `count` statements whose text contains `text` have arrived, and returns what the tape has about them.
    /// A statement counts when it is to be executed, not when it is prepared.
    ///
    /// # Errors
    /// A violation by a hang that says how many came.
    pub async fn statements(&self, text: &str, count: usize) -> Result<Vec<Entry>, Failure> {
        let text = text.to_lowercase();
        let matching = |entry: &Entry| match (&entry.side, &entry.event) {
            (Side::Database, Event::Database { what }) => {
                what.starts_with("statement: ") && what.to_lowercase().contains(&text)
            }
            _ => false,
        };
        let seen = || format!("saw {}", self.shared.tape.select(matching).len());
        let expected = format!("{count} statements with {text:?} at the database");
        gate::guard_with(
            "hang.statements",
            &expected,
            self.shared.tape.wait_for(count, matching),
            seen,
        )
        .await
    }

    /// Waits until a statement is held at the gate of that name (see [`AtStatement::Hold`]), and returns what the tape has about it.
    ///
    /// # Errors
    /// A violation by a hang.
    pub async fn held(&self, gate: &str) -> Result<Vec<Entry>, Failure> {
        let held = |entry: &Entry| matches!(&entry.event, Event::Database { what } if *what == format!("the statement is held at {gate}"));
        gate::guard(
            "hang.statement_held",
            &format!("a statement held at {gate}"),
            self.shared.tape.wait_for(1, held),
        )
        .await
    }

    async fn door(&self, listen: Listen) -> CaseResult {
        let (done, switched) = oneshot::channel();
        let gone = || Failure::Harness {
            what: "the listener in front of the database is gone".into(),
        };
        self.doors.send((listen, done)).await.map_err(|_| gone())?;
        let switched = switched.await.map_err(|_| gone())?;
        switched.map_err(|error| Failure::Harness {
            what: format!("can't listen on {} again: {error}", self.addr),
        })
    }
}

/// Accepts until it is aborted; owns every connection.
async fn run(
    shared: Arc<Shared>,
    port: Port,
    mut door: Door,
    mut doors: mpsc::Receiver<(Listen, oneshot::Sender<io::Result<()>>)>,
) {
    let mut connections = JoinSet::new();
    let mut count = 0_u64;
    loop {
        // accept and recv are cancel safe
        tokio::select! {
            biased;
            command = doors.recv() => {
                let Some((listen, done)) = command else { return };
                let opened = if matches!(door, Door::Serving(_)) && listen == Listen::Serve {
                    Ok(())
                } else {
                    drop(std::mem::replace(&mut door, Door::Shut));
                    port.open(listen).await.map(|opened| door = opened)
                };
                let _ = done.send(opened);
            }
            stream = super::listener::accept(&door) => {
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
    async fn a_url_is_led_through_the_wire() {
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
