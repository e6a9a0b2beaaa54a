//! The wire in front of Postgres: relays bytes, notes connections and statements on the tape, and puts faults between them.
//!
//! Statements are read from the frontend's messages (PostgreSQL documentation, "Message Formats"), so that a fault can be put at
//! exactly one of them: held at a gate, cut, reset, or executed with its reply lost. Over TLS the bytes are relayed unread.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::listener::{Door, Port};
use crate::case::{CaseResult, Failure};
use crate::gate::{self, Gates};
use crate::plan::Listen;
use crate::tape::{Entry, Event, Side, Tape};

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
        self.tape.record(Side::Database, Event::Database { what: what.into() });
    }

    /// The fault that is armed for this statement, taken off.
    fn fault_at(&self, statement: &str) -> Option<AtStatement> {
        let statement = statement.to_lowercase();
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = armed.iter().position(|(text, _)| statement.contains(text))?;
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
        f.debug_struct("DatabaseWire").field("addr", &self.addr).field("upstream", &self.shared.upstream).finish_non_exhaustive()
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
        Ok(Self { shared, addr, doors, listener })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of the database behind the wire, led through the wire: user, password, database and options stay.
    pub fn url(&self, upstream_url: &str) -> String {
        let (scheme, rest) = upstream_url.split_once("://").unwrap_or(("postgres", upstream_url));
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
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
        self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.shared.allowance.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        *self.shared.allowance.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    /// Arms a fault for the next statement whose text contains `text` (in any case of letters); it happens once.
    pub fn at_statement(&self, text: &str, fault: AtStatement) {
        self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).push((text.to_lowercase(), fault));
    }

    /// Waits until `count` statements whose text contains `text` have arrived, and returns what the tape has about them.
    /// A statement counts when it is to be executed, not when it is prepared.
    ///
    /// # Errors
    /// A violation by a hang that says how many came.
    pub async fn statements(&self, text: &str, count: usize) -> Result<Vec<Entry>, Failure> {
        let text = text.to_lowercase();
        let matching = |entry: &Entry| match (&entry.side, &entry.event) {
            (Side::Database, Event::Database { what }) => what.starts_with("statement: ") && what.to_lowercase().contains(&text),
            _ => false,
        };
        let seen = || format!("saw {}", self.shared.tape.select(matching).len());
        let expected = format!("{count} statements with {text:?} at the database");
        gate::guard_with(&expected, self.shared.tape.wait_for(count, matching), seen).await
    }

    /// Waits until a statement is held at the gate of that name (see [`AtStatement::Hold`]), and returns what the tape has about it.
    ///
    /// # Errors
    /// A violation by a hang.
    pub async fn held(&self, gate: &str) -> Result<Vec<Entry>, Failure> {
        let held = |entry: &Entry| matches!(&entry.event, Event::Database { what } if *what == format!("the statement is held at {gate}"));
        gate::guard(&format!("a statement held at {gate}"), self.shared.tape.wait_for(1, held)).await
    }

    async fn door(&self, listen: Listen) -> CaseResult {
        let (done, switched) = oneshot::channel();
        let gone = || Failure::Harness { what: "the listener in front of the database is gone".into() };
        self.doors.send((listen, done)).await.map_err(|_| gone())?;
        let switched = switched.await.map_err(|_| gone())?;
        switched.map_err(|error| Failure::Harness { what: format!("can't listen on {} again: {error}", self.addr) })
    }
}

/// Accepts until it is aborted; owns every connection.
async fn run(shared: Arc<Shared>, port: Port, mut door: Door, mut doors: mpsc::Receiver<(Listen, oneshot::Sender<io::Result<()>>)>) {
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
                let life = admit(Arc::clone(&shared), stream, count);
                shared.note(format!("connection {count} accepted"));
                connections.spawn(life);
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// How a relayed connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// One side closed; so do we.
    Closed,
    Cut,
    Reset,
}

/// Counts the connection as open while it exists.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// The connection's life. It counts, and hears of a reset, from now on and not from when it is first polled.
fn admit(shared: Arc<Shared>, client: TcpStream, id: u64) -> impl Future<Output = ()> + Send {
    let resets = shared.resets.subscribe();
    let counted = Counted::new(shared);
    async move {
        serve(&counted.0, resets, client, id).await;
        // only now: whoever waits for the end of all connections must find this one ended
        drop(counted);
    }
}

async fn serve(shared: &Shared, mut resets: watch::Receiver<u64>, mut client: TcpStream, id: u64) {
    let _ = client.set_nodelay(true);
    let ended = tokio::select! {
        // relaying is dropped with both connections
        _ = resets.changed() => Ended::Reset,
        ended = relay(shared, &mut client) => ended,
    };
    match ended {
        Ended::Closed => {}
        Ended::Cut => {
            shared.note(format!("connection {id} is cut"));
            let _ = client.shutdown().await;
            // unread bytes of the client would turn the end into a reset
            let mut rest = [0; 1024];
            let reading = async { while matches!(client.read(&mut rest).await, Ok(n) if n > 0) {} };
            let _ = gate::bounded(Duration::from_secs(1), reading).await;
        }
        Ended::Reset => {
            shared.note(format!("connection {id} is reset"));
            let _ = client.set_zero_linger();
        }
    }
}

async fn relay(shared: &Shared, client: &mut TcpStream) -> Ended {
    shared.flowing().await;
    let mut server = match TcpStream::connect(&shared.upstream).await {
        Ok(server) => server,
        Err(error) => {
            shared.note(format!("the database behind the wire can't be reached at {}: {error}", shared.upstream));
            return Ended::Reset;
        }
    };
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let talk = Talk::default();
    tokio::select! {
        ended = to_the_server(shared, &talk, from_client, to_server) => ended,
        ended = to_the_client(shared, &talk, from_server, to_client) => ended,
    }
}

/// What both directions of a connection know.
#[derive(Default)]
struct Talk {
    /// The next byte of the server answers a request for TLS.
    asked_for_tls: AtomicBool,
    /// The connection is encrypted.
    opaque: AtomicBool,
    /// The next bytes of the server are lost.
    lose_reply: AtomicBool,
}

async fn to_the_server(shared: &Shared, talk: &Talk, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Ended {
    let mut frontend = Frontend::default();
    let mut buffer = BytesMut::new();
    loop {
        shared.flowing().await;
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => return Ended::Closed,
        }
        shared.flowing().await;
        while let Some(message) = frontend.take(&mut buffer, talk.opaque.load(Ordering::SeqCst)) {
            if message.asks_for_tls {
                talk.asked_for_tls.store(true, Ordering::SeqCst);
            }
            if let Some(statement) = &message.statement {
                shared.note(format!("statement: {}", first_words(statement)));
                match shared.fault_at(statement) {
                    None => {}
                    Some(AtStatement::Hold(name)) => {
                        let gate = shared.gates.gate(&name);
                        shared.note(format!("the statement is held at {name}"));
                        // bytes that come meanwhile stay in the socket
                        tokio::select! {
                            () = gate.wait() => {}
                            () = closed(from.as_ref()) => {
                                shared.note("the client left while its statement was held");
                                return Ended::Closed;
                            }
                        }
                    }
                    Some(AtStatement::Stall) => {
                        shared.note("stalled");
                        shared.stalled.send_replace(true);
                    }
                    Some(AtStatement::Cut) => return Ended::Cut,
                    Some(AtStatement::Reset) => return Ended::Reset,
                    Some(AtStatement::LoseReply) => talk.lose_reply.store(true, Ordering::SeqCst),
                }
            }
            // it may have stalled meanwhile, here or on another connection
            shared.flowing().await;
            if to.write_all(&message.bytes).await.is_err() {
                return Ended::Closed;
            }
        }
    }
}

/// Waits until the client has closed, without reading.
async fn closed(stream: &TcpStream) {
    super::listener::left(stream).await;
}

async fn to_the_client(shared: &Shared, talk: &Talk, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Ended {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        shared.flowing().await;
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => return Ended::Closed,
        }
        shared.flowing().await;
        if talk.lose_reply.load(Ordering::SeqCst) {
            return Ended::Reset;
        }
        if talk.asked_for_tls.swap(false, Ordering::SeqCst) && buffer.first() == Some(&b'S') {
            shared.note("encrypted: statements can't be seen");
            talk.opaque.store(true, Ordering::SeqCst);
        }
        let (bytes, cut) = within_allowance(shared, &mut buffer);
        if to.write_all(&bytes).await.is_err() {
            return Ended::Closed;
        }
        if cut {
            return Ended::Cut;
        }
    }
}

/// What may be relayed of the buffer, and whether the connection is to be cut after it.
fn within_allowance(shared: &Shared, buffer: &mut BytesMut) -> (BytesMut, bool) {
    let mut allowance = shared.allowance.lock().unwrap_or_else(PoisonError::into_inner);
    match *allowance {
        Some(left) if left < buffer.len() => {
            *allowance = None;
            (buffer.split_to(left), true)
        }
        Some(left) => {
            *allowance = Some(left - buffer.len());
            (buffer.split(), false)
        }
        None => (buffer.split(), false),
    }
}

/// One message of the client, as it came.
struct Message {
    bytes: BytesMut,
    asks_for_tls: bool,
    /// The text of the statement that it makes the server execute.
    statement: Option<String>,
}

/// Takes the client's messages off its bytes.
#[derive(Default)]
struct Frontend {
    started: bool,
    prepared: HashMap<String, String>,
}

const TLS_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

impl Frontend {
    /// The next whole message; everything there is once the bytes can't be read.
    fn take(&mut self, buffer: &mut BytesMut, opaque: bool) -> Option<Message> {
        let plain = |bytes| Some(Message { bytes, asks_for_tls: false, statement: None });
        if opaque {
            return if buffer.is_empty() { None } else { plain(buffer.split()) };
        }
        if !self.started {
            let length = length_at(buffer, 0)?;
            if buffer.len() < length.max(8) {
                return None;
            }
            let code = (&buffer[4..8]).get_u32();
            self.started = code != TLS_REQUEST && code != GSS_REQUEST;
            return Some(Message { bytes: buffer.split_to(length.max(8)), asks_for_tls: !self.started, statement: None });
        }
        let length = 1 + length_at(buffer, 1)?;
        if buffer.len() < length {
            return None;
        }
        let bytes = buffer.split_to(length);
        let statement = self.statement(bytes[0], bytes.get(5..).unwrap_or_default());
        Some(Message { bytes, asks_for_tls: false, statement })
    }

    /// Query carries its text; Parse names one for later; Bind makes a named one be executed.
    fn statement(&mut self, kind: u8, payload: &[u8]) -> Option<String> {
        let mut texts = payload.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        match kind {
            b'Q' => texts.next(),
            b'P' => {
                let (name, text) = (texts.next()?, texts.next()?);
                self.prepared.insert(name, text);
                None
            }
            b'B' => self.prepared.get(&texts.nth(1)?).cloned(),
            _ => None,
        }
    }
}

fn length_at(buffer: &BytesMut, at: usize) -> Option<usize> {
    let mut bytes = buffer.get(at..at + 4)?;
    usize::try_from(bytes.get_u32()).ok()
}

/// The statement in one line, cut where it gets long.
fn first_words(statement: &str) -> String {
    let line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn statements_are_seen_when_they_are_executed_however_the_bytes_are_split() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&8_u32.to_be_bytes());
        bytes.extend_from_slice(&TLS_REQUEST.to_be_bytes());
        bytes.extend_from_slice(&9_u32.to_be_bytes());
        bytes.extend_from_slice(&196_608_u32.to_be_bytes());
        bytes.push(0);
        bytes.extend(message(b'P', b"s1\0select  1\0\0\0"));
        bytes.extend(message(b'S', b""));
        bytes.extend(message(b'B', b"\0s1\0\0\0\0\0\0\0"));
        bytes.extend(message(b'Q', b"COMMIT\0"));
        for step in 1..bytes.len() {
            let mut frontend = Frontend::default();
            let mut buffer = BytesMut::new();
            let (mut relayed, mut statements) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(message) = frontend.take(&mut buffer, false) {
                    relayed.extend_from_slice(&message.bytes);
                    statements.extend(message.statement);
                }
            }
            assert_eq!(relayed, bytes);
            assert_eq!(statements, ["select  1", "COMMIT"]);
        }
    }

    #[tokio::test]
    async fn a_url_is_led_through_the_wire() {
        let wire = DatabaseWire::bind("127.0.0.1:5432", Tape::new(), Gates::default()).await.unwrap();
        let through = wire.url("postgres://me:p%40ss@db.example:5432/case_1?sslmode=disable");
        assert_eq!(through, format!("postgres://me:p%40ss@{}/case_1?sslmode=disable", wire.addr()));
        assert_eq!(wire.url("postgresql:///x"), format!("postgresql://{}/x", wire.addr()));
    }
}
