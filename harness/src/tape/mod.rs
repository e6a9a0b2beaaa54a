//! The tape: one ordered log of what client, stubs, gates and database saw during one case.
//!
//! The order is one process-wide atomic sequence and never a clock: `a.seq < b.seq` means that a
//! was seen before b. Times are kept only for the picture in the report and for lower bounds. A
//! request is in flight at a provider from [`Event::RequestRead`] to just before its last byte is
//! written.

mod data;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::Instant;

pub use self::data::{Budget, Data, MOST_KEPT};
use crate::plan::Listen;

static SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// Who saw an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "who", content = "name")]
pub enum Side {
    /// The harness's client, with the label of the exchange (`"a"`, `"b"`, …).
    Client(String),
    /// A stubbed provider, with its name.
    Provider(String),
    /// The database, as the wire in front of it or the harness's own session sees it.
    Database,
    /// A gate or a rendezvous, with its name.
    Gate(String),
    /// The process of the gateway under test.
    Target,
}

/// How a peer ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Close {
    /// An orderly end (FIN).
    Fin,
    /// A reset (RST).
    Reset,
}

/// What was seen.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// Client: the request is about to be written. `path` is without the path of the gateway's base
    /// URL, and `headers` are all that are written. `dribbled` is present if the bytes of the whole
    /// request go out in pieces with pauses.
    ClientSent {
        method: String,
        path: String,
        headers: Vec<(String, String)>,
        body: Data,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dribbled: Option<Dribble>,
    },
    /// Client: status and headers have come.
    ClientStatus {
        status: u16,
        headers: Vec<(String, String)>,
    },
    /// Client: the n-th event of a stream (from 1) has come; `name` is its name (`event:`), `data`
    /// its data with the lines joined, and `text` the content delta in the data.
    ClientChunk {
        n: usize,
        text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        data: Data,
    },
    /// Client: the answer is complete (body read to its end). `body` is the body; of a stream it
    /// has only what came after the last event.
    ClientAnswered { status: u16, body: Data },
    /// Client: the exchange failed in transport. `body` is the part of the body that had come; of
    /// a stream it has only what came after the last event.
    ClientFailed { error: String, body: Data },
    /// Client: the client itself closed the connection.
    ClientLeft,
    /// Provider: from now on the port does this with new connections. A tape without this entry is
    /// that of a provider that serves.
    Listening { how: Listen },
    /// Provider: a connection was accepted.
    Accepted { connection: u64 },
    /// Provider: a request was read whole.
    RequestRead {
        connection: u64,
        request: u64,
        method: String,
        path: String,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// Provider: an answer has been chosen, and `actions` is everything that will be done to send
    /// it, to the byte. The entries that follow show how far the sending came.
    Planned { request: u64, actions: Vec<Action> },
    /// Provider: the answer waits at a gate or a rendezvous.
    Held { request: u64, gate: String },
    /// Provider: status and headers were written.
    HeadSent { request: u64, status: u16 },
    /// Provider: the n-th event (from 1) of the answer was written.
    EventSent { request: u64, n: usize },
    /// Provider: the planned fault of this name happened.
    Fault { request: Option<u64>, fault: String },
    /// Provider: the last byte of the answer was written.
    AnswerSent { request: u64 },
    /// Provider: the gateway closed the connection while the request was in flight or idle.
    PeerClosed {
        connection: u64,
        request: Option<u64>,
        how: Close,
    },
    /// Provider: a request came that nothing in the case answers. It is always an error of the case
    /// or of the gateway.
    Unmatched { request: u64, reason: String },
    /// Gate: opened by the case.
    Opened,
    /// Gate: all participants of the rendezvous have met.
    Met { count: usize },
    /// Database: a statement came, a fault happened, or another fact, in words.
    Database { what: String },
    /// Target: its process was started, became ready, was signalled, exited, or died.
    Target { what: String },
    /// The case itself makes a remark for the reader of the report.
    Note { text: String },
}

/// One action of sending an answer: a plan together with the bytes of the answer, so that a
/// program which knows neither plans nor protocols can send the same.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Writes these bytes. They are the head of the answer if it is the first such action; `event`
    /// is the number of the event (from 1) that they end, if they end one.
    Send {
        bytes: Data,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event: Option<usize>,
    },
    /// Writes these pieces in order, with a pause of `every_ms` milliseconds between them.
    Drip { pieces: Vec<Data>, every_ms: u64 },
    /// Writes an event after each pause of `every_ms` milliseconds until the peer leaves: `before`,
    /// then the number of the event and `after` if there is an `after`. The numbers go up from
    /// `from`. Where `chunked` is true, each event is a chunk of its own.
    Repeat {
        before: Data,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Data>,
        from: usize,
        every_ms: u64,
        chunked: bool,
    },
    /// Waits until the case opens the gate of that name.
    Hold { gate: String },
    /// Waits until `count` answers, of any provider, wait at the rendezvous of that name.
    Meet { rendezvous: String, count: usize },
    /// Waits until the case has acknowledged the n-th event of this answer at the interlock.
    Acknowledged { interlock: String, event: usize },
    /// Waits `ms` milliseconds.
    Pause { ms: u64 },
    /// Waits until the peer has read everything that was written.
    Drain,
    /// Writes nothing more and keeps the connection open until the peer closes it.
    Stall,
    /// Closes the connection in order (FIN), although the answer is not complete.
    Cut,
    /// Resets the connection (RST) after the peer has read everything that was written.
    Reset,
    /// Closes the connection in order (FIN), as the head of the complete answer announces it. An
    /// answer without this, a cut, a reset or a stall keeps the connection for the next request.
    Close,
}

impl Action {
    /// The bytes that are written, in their order.
    pub fn texts(&self) -> Vec<&Data> {
        match self {
            Self::Send { bytes, .. } => vec![bytes],
            Self::Drip { pieces, .. } => pieces.iter().collect(),
            Self::Repeat { before, after, .. } => std::iter::once(before).chain(after).collect(),
            _ => Vec::new(),
        }
    }

    /// The bytes that are written, in their order, for a report that shortens or masks them.
    pub fn texts_mut(&mut self) -> Vec<&mut Data> {
        match self {
            Self::Send { bytes, .. } => vec![bytes],
            Self::Drip { pieces, .. } => pieces.iter_mut().collect(),
            Self::Repeat { before, after, .. } => std::iter::once(before).chain(after).collect(),
            _ => Vec::new(),
        }
    }
}

/// How a client dribbles: pieces of `piece` bytes, one each `every_ms` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dribble {
    /// The size of a piece, in bytes.
    pub piece: usize,
    /// The pause after each piece, in milliseconds.
    pub every_ms: u64,
}

/// One line of the tape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the process-wide order.
    pub seq: u64,
    /// Time since the tape was made, in microseconds; for pictures and lower bounds only.
    pub at_us: u64,
    /// Who saw it.
    pub side: Side,
    /// What was seen.
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// The time since the tape was made.
    pub fn at(&self) -> Duration {
        Duration::from_micros(self.at_us)
    }
}

/// A shared, append-only log; clones write to the same log.
#[derive(Clone, Debug)]
pub struct Tape {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    most: usize,
    log: Mutex<Log>,
    length: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Entry>,
    /// How many have been dropped from the front.
    forgotten: usize,
}

impl Default for Tape {
    fn default() -> Self {
        Self::new()
    }
}

impl Tape {
    /// Makes an empty tape that keeps everything; its clock starts now.
    pub fn new() -> Self {
        Self::keeping(usize::MAX)
    }

    /// Makes an empty tape that keeps the last `most` entries, for stubs that stay up; with 0 it
    /// keeps nothing.
    pub fn keeping(most: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                start: Instant::now(),
                most,
                log: Mutex::default(),
                length: watch::Sender::new(0),
            }),
        }
    }

    /// Whether the tape keeps nothing, so that nobody needs to make entries.
    pub fn is_off(&self) -> bool {
        self.shared.most == 0
    }

    /// Appends an event and returns its position in the order.
    pub fn record(&self, side: Side, event: Event) -> u64 {
        if self.is_off() {
            return SEQUENCE.fetch_add(1, Ordering::SeqCst);
        }
        let (length, seq) = {
            let mut log = self.lock();
            let seq = SEQUENCE.fetch_add(1, Ordering::SeqCst);
            let at_us = u64::try_from(self.shared.start.elapsed().as_micros()).unwrap_or(u64::MAX);
            if log.entries.len() >= self.shared.most {
                log.entries.pop_front();
                log.forgotten += 1;
            }
            log.entries.push_back(Entry {
                seq,
                at_us,
                side,
                event,
            });
            (log.forgotten + log.entries.len(), seq)
        };
        self.shared.length.send_replace(length);
        seq
    }

    /// A copy of everything recorded so far, in order.
    pub fn entries(&self) -> Vec<Entry> {
        self.select(|_| true)
    }

    /// The entries that `matching` accepts, in order.
    pub fn select(&self, mut matching: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        self.lock()
            .entries
            .iter()
            .filter(|entry| matching(entry))
            .cloned()
            .collect()
    }

    /// The first entry that `matching` accepts, if it has been recorded.
    pub fn first(&self, mut matching: impl FnMut(&Entry) -> bool) -> Option<Entry> {
        self.lock()
            .entries
            .iter()
            .find(|entry| matching(entry))
            .cloned()
    }

    /// Waits until `count` entries that `matching` accepts have been recorded, and returns them.
    ///
    /// It waits forever, so callers add a hang guard. Cancel safe.
    pub async fn wait_for(
        &self,
        count: usize,
        mut matching: impl FnMut(&Entry) -> bool,
    ) -> Vec<Entry> {
        let mut length = self.shared.length.subscribe();
        let mut found = Vec::new();
        let mut next = 0;
        loop {
            length.borrow_and_update();
            self.collect_from(&mut next, &mut found, &mut matching);
            // unconstrained: a busy neighbour in the same task must not delay this wait
            if found.len() >= count || unconstrained(length.changed()).await.is_err() {
                return found;
            }
        }
    }

    /// Adds the matching entries from the `next`-th on, and moves `next` behind the last entry.
    fn collect_from(
        &self,
        next: &mut usize,
        found: &mut Vec<Entry>,
        matching: &mut impl FnMut(&Entry) -> bool,
    ) {
        let log = self.lock();
        let from = next.saturating_sub(log.forgotten);
        found.extend(
            log.entries
                .iter()
                .skip(from)
                .filter(|entry| matching(entry))
                .cloned(),
        );
        *next = log.forgotten + log.entries.len();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.shared
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(n: usize) -> Event {
        Event::Note {
            text: n.to_string(),
        }
    }

    #[tokio::test]
    async fn waiting_finds_what_was_there_and_what_comes_once_each() {
        let tape = Tape::new();
        tape.record(Side::Target, note(1));
        let (found, ()) = tokio::join!(tape.wait_for(3, |_| true), async {
            tape.record(Side::Target, note(2));
            tokio::task::yield_now().await;
            tape.record(Side::Target, note(3));
        });
        assert_eq!(found, tape.entries());
        assert!(found.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    }

    #[tokio::test]
    async fn a_tape_that_forgets_keeps_the_last() {
        let tape = Tape::keeping(2);
        for n in 0..5 {
            tape.record(Side::Target, note(n));
        }
        assert_eq!(
            tape.entries()
                .iter()
                .map(|entry| entry.event.clone())
                .collect::<Vec<_>>(),
            [note(3), note(4)]
        );
        assert_eq!(tape.wait_for(2, |_| true).await.len(), 2);
        let off = Tape::keeping(0);
        off.record(Side::Target, note(0));
        assert!(off.is_off() && off.entries().is_empty());
    }
}
