//! One connection from accept to close: requests are read one after the other, each is answered as
//! its plan says, and the peer is watched all the while.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::play::{self, Ended};
use super::{HARNESS_STATUS, Request, Shared, message};
use crate::gate;
use crate::tape::{Close, Event};
use crate::wire::queues::{Drained, drain};

static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// How many bytes of a next request are read while a request is being answered; further ones stay
/// in the socket.
const MOST_AHEAD: usize = 1 << 20;

/// The largest body of a request, in bytes. Larger ones are refused: a gateway that never ends its
/// request must not take the harness's memory.
const MOST_BODY: usize = 64 << 20;

/// How long a peer may take to close after we have closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Counts the connection as open while it exists. It is made when the connection is accepted, not
/// when its task is first polled: a switch between the two would miss the connection.
pub(super) struct OpenConnection {
    shared: Arc<Shared>,
    generation: u64,
    retire: watch::Receiver<()>,
}

impl OpenConnection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let mut generation = 0;
        shared.load.send_modify(|load| {
            load.open += 1;
            load.fresh += 1;
            generation = load.generation;
        });
        let retire = shared.retire.subscribe();
        Self {
            shared,
            generation,
            retire,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until this connection has to close as soon as it is idle. Cancel safe.
    pub(super) async fn retired(&mut self) {
        // the sender lives as long as the wire
        let _ = self.retire.changed().await;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.shared.load.send_modify(|load| {
            load.open -= 1;
            load.fresh -= usize::from(load.generation == self.generation);
        });
    }
}

/// Lists the addresses of a connection while it exists.
struct Listed<'a> {
    shared: &'a Shared,
    id: u64,
}

impl<'a> Listed<'a> {
    fn new(shared: &'a Shared, stream: &TcpStream, id: u64) -> Self {
        if let (Ok(ours), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) {
            shared.addresses().insert(id, (ours, peer));
        }
        Self { shared, id }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.shared.addresses().remove(&self.id);
    }
}

/// Counts the request as in flight until [`InFlight::end`], or until it is dropped.
pub(super) struct InFlight<'a> {
    shared: &'a Shared,
    counts: bool,
    ended: bool,
}

impl<'a> InFlight<'a> {
    fn new(shared: &'a Shared, counts: bool) -> Self {
        shared.load.send_modify(|load| {
            load.busy += 1;
            if counts {
                load.in_flight += 1;
                load.high_water = load.high_water.max(load.in_flight);
            }
        });
        Self {
            shared,
            counts,
            ended: false,
        }
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ended
    }

    /// Ends it: the last byte is about to be written.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.shared.load.send_modify(|load| {
                load.busy -= 1;
                load.in_flight -= usize::from(self.counts);
            });
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What happens to the connection after an answer.
enum Next {
    KeepAlive,
    Close,
    Gone,
    Reset,
}

/// Why no request was read.
enum NoRequest {
    Left(Close),
    Malformed(message::Malformed),
    /// A body of more than [`MOST_BODY`].
    TooLarge,
}

/// Serves the connection to its end.
pub(super) async fn serve(mut open: OpenConnection, mut stream: TcpStream, id: u64) {
    let shared = Arc::clone(open.shared());
    let _ = stream.set_nodelay(true);
    let listed = Listed::new(&shared, &stream, id);
    let mut buffer = BytesMut::with_capacity(8 * 1024);
    let mut reused = false;
    let next = loop {
        let (mut read, mut write) = stream.split();
        // a half-read request is dropped with the connection: it has not been answered yet
        let request = tokio::select! {
            biased;
            () = open.retired() => break Next::Close,
            request = read_request(&mut read, &mut write, &mut buffer, id) => request,
        };
        let request = request.map(|request| Request {
            reused: std::mem::replace(&mut reused, true),
            ..request
        });
        match request {
            Err(NoRequest::Left(how)) => {
                shared.record(Event::PeerClosed {
                    connection: id,
                    request: None,
                    how,
                });
                break Next::Gone;
            }
            Err(NoRequest::Malformed(error)) => {
                shared.record(Event::Fault {
                    request: None,
                    fault: format!("the peer's bytes are {error}"),
                });
                break Next::Close;
            }
            Err(NoRequest::TooLarge) => {
                let what = format!(
                    "the body of a request is larger than {} MiB and was refused; send a smaller one",
                    MOST_BODY >> 20
                );
                refuse(&mut write, &what).await;
                shared.record(Event::Fault {
                    request: None,
                    fault: what,
                });
                break Next::Close;
            }
            Ok(request) if shared.source.is_foreign(&request) => {
                refuse(&mut write, "the request belongs to another case").await;
                break Next::Gone;
            }
            Ok(request) => match exchange(&shared, read, write, &mut buffer, &request).await {
                Next::KeepAlive => {}
                next => break next,
            },
        }
    };
    match next {
        Next::Close => farewell(&shared, &mut stream, id).await,
        Next::Reset => {
            let _ = stream.set_zero_linger();
        }
        Next::KeepAlive | Next::Gone => {}
    }
    drop(listed);
    drop(stream);
    drop(open);
}

/// Refuses a request with the harness's own status, which no provider gives.
async fn refuse(write: &mut WriteHalf<'_>, what: &str) {
    let text = format!("gauntlet: {what}\n");
    let head = format!(
        "HTTP/1.1 {HARNESS_STATUS} Unknown\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n",
        text.len()
    );
    // a peer that has left meanwhile is noticed by the farewell
    let _ = write
        .write_all(format!("{head}connection: close\r\n\r\n{text}").as_bytes())
        .await;
}

/// Closes in order: sends our FIN and waits a bounded time for the peer's, so that no unread byte
/// makes the system send a reset.
async fn farewell(shared: &Shared, stream: &mut TcpStream, id: u64) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = [0; 1024];
    let left = async {
        loop {
            match stream.read(&mut rest).await {
                Ok(0) => return Close::Fin,
                Ok(_) => {}
                Err(error) => return how(&error),
            }
        }
    };
    if let Some(how) = gate::bounded(FAREWELL, left).await {
        shared.record(Event::PeerClosed {
            connection: id,
            request: None,
            how,
        });
    }
}

async fn read_request(
    read: &mut ReadHalf<'_>,
    write: &mut WriteHalf<'_>,
    buffer: &mut BytesMut,
    connection: u64,
) -> Result<Request, NoRequest> {
    let head = loop {
        if let Some(head) = message::take_request(buffer).map_err(NoRequest::Malformed)? {
            break head;
        }
        fill(read, buffer).await?;
    };
    let mut body = message::Body::of_request(&head.headers).map_err(NoRequest::Malformed)?;
    if body
        .content_length()
        .is_some_and(|length| length > MOST_BODY as u64)
    {
        return Err(NoRequest::TooLarge);
    }
    if !body.is_done()
        && message::header(&head.headers, "expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    {
        // a peer that has left meanwhile is noticed by the next read
        let _ = write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
    }
    let mut whole = BytesMut::new();
    loop {
        whole.extend_from_slice(&body.take(buffer).map_err(NoRequest::Malformed)?);
        if whole.len() > MOST_BODY {
            return Err(NoRequest::TooLarge);
        }
        if body.is_done() {
            break;
        }
        fill(read, buffer).await?;
    }
    let id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    Ok(Request {
        connection,
        id,
        reused: false,
        method: head.method,
        path: head.target,
        headers: head.headers,
        body: whole.freeze(),
    })
}

async fn fill(read: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> Result<(), NoRequest> {
    match read.read_buf(buffer).await {
        Ok(0) => Err(NoRequest::Left(Close::Fin)),
        Ok(_) => Ok(()),
        Err(error) => Err(NoRequest::Left(how(&error))),
    }
}

async fn exchange(
    shared: &Shared,
    mut read: ReadHalf<'_>,
    mut write: WriteHalf<'_>,
    buffer: &mut BytesMut,
    request: &Request,
) -> Next {
    let mut flight = InFlight::new(shared, shared.source.counts(request));
    if !shared.tape.is_off() {
        shared.record(Event::RequestRead {
            connection: request.connection,
            request: request.id,
            method: request.method.clone(),
            path: request.path.clone(),
            headers: request.headers.clone(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
        });
    }
    let answering = async {
        let answer = shared.source.answer(request).await;
        if let Some(reason) = &answer.unmatched {
            shared.record(Event::Unmatched {
                request: request.id,
                reason: reason.clone(),
            });
        }
        let ended = play::play(shared, request, &answer, &mut write, &mut flight).await;
        if matches!(ended, Ended::Reset) {
            let name = match drain(write.as_ref()).await {
                Drained::Read => "reset",
                Drained::Unseen => {
                    "reset (not faithful here: the system does not show what the peer has read)"
                }
            };
            shared.record(Event::Fault {
                request: Some(request.id),
                fault: name.into(),
            });
        }
        ended
    };
    // either branch may be dropped: an answer that nobody waits for is not sent further, and a
    // watch that saw nothing has only moved early bytes of a next request into the buffer
    let ended = tokio::select! {
        biased;
        how = peer_left(&mut read, buffer) => Err(how),
        ended = answering => Ok(ended),
    };
    let gone = |how| {
        shared.record(Event::PeerClosed {
            connection: request.connection,
            request: Some(request.id),
            how,
        });
        Next::Gone
    };
    match ended {
        Err(how) => gone(how),
        Ok(Ended::Broken(error)) => gone(how(&error)),
        Ok(Ended::Reset) => Next::Reset,
        Ok(Ended::Cut) => Next::Close,
        Ok(Ended::Complete) if request.wants_close() => Next::Close,
        Ok(Ended::Complete) => Next::KeepAlive,
    }
}

/// Waits until the peer has closed; keeps what it sends meanwhile for the next request. Cancel
/// safe.
async fn peer_left(read: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> Close {
    loop {
        if buffer.len() >= MOST_AHEAD {
            return std::future::pending().await;
        }
        match read.read_buf(buffer).await {
            Ok(0) => return Close::Fin,
            Ok(_) => {}
            Err(error) => return how(&error),
        }
    }
}

/// Whether the peer is still there. The system itself is asked, so that a close counts that no task
/// has noticed yet.
pub(super) fn still_there(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::<u8>::uninit()];
    match SockRef::from(stream).peek(&mut byte) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

fn how(error: &io::Error) -> Close {
    match error.kind() {
        io::ErrorKind::ConnectionReset => Close::Reset,
        // a write after the peer's FIN has been answered with an RST
        _ => Close::Fin,
    }
}
