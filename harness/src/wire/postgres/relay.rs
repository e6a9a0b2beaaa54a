//! One relayed connection from accept to close: bytes go both ways, with the faults between them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::frontend::{Frontend, first_words};
use super::{AtStatement, Shared};
use crate::gate;
use crate::wire::port;

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

/// Serves the connection to its end. The connection counts, and a reset reaches it, from this call
/// on and not from the first poll.
pub(super) fn admit(
    shared: Arc<Shared>,
    client: TcpStream,
    id: u64,
) -> impl Future<Output = ()> + Send {
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
            // bytes of the client that nobody has read would make the system send a reset
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
            shared.note(format!(
                "the database behind the wire cannot be reached at {}: {error}",
                shared.upstream
            ));
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

/// Reads what comes next, while the wire flows; `false` when the peer has closed.
async fn more(shared: &Shared, from: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> bool {
    shared.flowing().await;
    let came = matches!(from.read_buf(buffer).await, Ok(n) if n > 0);
    shared.flowing().await;
    came
}

async fn to_the_server(
    shared: &Shared,
    talk: &Talk,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Ended {
    let mut frontend = Frontend::default();
    let mut buffer = BytesMut::new();
    loop {
        if !more(shared, &mut from, &mut buffer).await {
            return Ended::Closed;
        }
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
    port::left(stream).await;
}

async fn to_the_client(
    shared: &Shared,
    talk: &Talk,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Ended {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        if !more(shared, &mut from, &mut buffer).await {
            return Ended::Closed;
        }
        if talk.lose_reply.load(Ordering::SeqCst) {
            return Ended::Reset;
        }
        if talk.asked_for_tls.swap(false, Ordering::SeqCst) && buffer.first() == Some(&b'S') {
            shared.note("encrypted: the statements are not visible");
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
    let mut allowance = shared
        .allowance
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
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
