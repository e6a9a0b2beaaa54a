//! The port of a wire and what happens there before anything is read: serve, refuse, never accept, silence.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Shared;
use super::connection::{self, Open};
use super::drain::accept_queue_holds_one;
use crate::gate;
use crate::plan::Listen;
use crate::tape::{Close, Event};

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1_024;

/// How long a filler's connection gets to be counted, and how many are tried, until the accept queue is full.
const SETTLE: Duration = Duration::from_millis(100);
const FILLERS: usize = 20;

/// A port that nobody else gets: a socket that is bound to it and never listens.
pub(super) struct Port {
    _reserved: TcpSocket,
    addr: SocketAddr,
    /// StubRequest for by its number: whoever asks for it next must not be kept waiting by connections that have ended.
    fixed: bool,
}

/// What stands at the port.
pub(super) enum Door {
    /// Nobody listens.
    Shut,
    /// Connections are accepted and served.
    Serving(TcpListener),
    /// Connections are accepted and left alone.
    Silent(TcpListener),
    /// The accept queue is full: connections never stand.
    Full {
        _listener: TcpListener,
        _fillers: Vec<TcpStream>,
    },
}

impl Port {
    /// Takes the address; port 0 means any free port.
    pub(super) fn reserve(addr: SocketAddr) -> io::Result<Self> {
        if addr.port() != 0 {
            // two of us would share a port by SO_REUSEPORT: whoever comes second has to be told
            drop(std::net::TcpListener::bind(addr)?);
        }
        let fixed = addr.port() != 0;
        let socket = socket(addr, fixed)?;
        socket.bind(addr)?;
        let addr = socket.local_addr()?;
        Ok(Self {
            _reserved: socket,
            addr,
            fixed,
        })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Opens the door; whatever stood there before must have been dropped.
    pub(super) async fn open(&self, listen: Listen) -> io::Result<Door> {
        Ok(match listen {
            Listen::Serve => Door::Serving(self.listener(BACKLOG)?),
            Listen::Silence => Door::Silent(self.listener(BACKLOG)?),
            Listen::Refuse => Door::Shut,
            Listen::NeverAccept => {
                // Linux lets one more connection stand than the backlog says, and drops the SYNs of the others
                let listener = self.listener(0)?;
                let fillers = self.fill().await?;
                Door::Full {
                    _listener: listener,
                    _fillers: fillers,
                }
            }
        })
    }

    /// Connects until the accept queue is full; a connection that the listener never counts (its last packet was lost) is made up for.
    async fn fill(&self) -> io::Result<Vec<TcpStream>> {
        let mut fillers = Vec::new();
        for _ in 0..FILLERS {
            match gate::bounded(SETTLE, TcpStream::connect(self.addr)).await {
                Some(filler) => fillers.push(filler?),
                None => return Ok(fillers),
            }
            if gate::bounded(
                SETTLE,
                gate::poll_until(|| accept_queue_holds_one(self.addr).then_some(())),
            )
            .await
            .is_some()
            {
                return Ok(fillers);
            }
        }
        Err(io::Error::other(format!(
            "the accept queue of {} does not fill up",
            self.addr
        )))
    }

    fn listener(&self, backlog: u32) -> io::Result<TcpListener> {
        let socket = socket(self.addr, self.fixed)?;
        socket.bind(self.addr)?;
        socket.listen(backlog)
    }
}

/// With SO_REUSEPORT, so that a listener can be put beside the reservation; without SO_REUSEADDR, which would let others in,
/// unless the port is a fixed one.
fn socket(addr: SocketAddr, fixed: bool) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(fixed)?;
    Ok(socket)
}

/// Accepts until it is aborted; owns every connection, so that they end with it.
pub(super) async fn run(
    shared: Arc<Shared>,
    port: Port,
    mut door: Door,
    mut commands: mpsc::Receiver<(Listen, oneshot::Sender<io::Result<()>>)>,
) {
    let mut connections = JoinSet::new();
    loop {
        // accept and recv are cancel safe: what one branch drops is still there the next time
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Some((listen, done)) = command else { return };
                // two listeners at one port would share the connections: the old one goes first
                drop(std::mem::replace(&mut door, Door::Shut));
                turn_out(&shared);
                let opened = port.open(listen).await.map(|opened| door = opened);
                let _ = done.send(opened);
            }
            stream = accept(&door) => {
                let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
                let open = Open::new(Arc::clone(&shared));
                shared.record(Event::Accepted { connection: id });
                if matches!(door, Door::Silent(_)) {
                    connections.spawn(leave_alone(open, stream, id));
                } else {
                    connections.spawn(connection::serve(open, stream, id));
                }
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    shared.record(Event::Fault { request: None, fault: format!("the wire itself failed: {error}") });
                }
            }
        }
    }
}

/// What has been accepted until now and is idle has to go.
fn turn_out(shared: &Shared) {
    shared.load.send_modify(|load| {
        load.turn += 1;
        load.fresh = 0;
    });
    shared.turn_out.send_replace(());
}

pub(super) async fn accept(door: &Door) -> TcpStream {
    let (Door::Serving(listener) | Door::Silent(listener)) = door else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // out of file descriptors, or a peer that left before it was accepted: the next one may do
            Err(error) => {
                tracing::warn!(%error, "accept");
                gate::pace(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Neither reads nor writes; ends when the peer leaves or the behaviour changes.
async fn leave_alone(mut open: Open, stream: TcpStream, id: u64) {
    let how = tokio::select! {
        how = left(&stream) => Some(how),
        () = open.turned_out() => None,
    };
    if let Some(how) = how {
        open.shared().record(Event::PeerClosed {
            connection: id,
            request: None,
            how,
        });
    }
    // the count goes last: whoever waits for it must find the connection ended
    drop(stream);
    drop(open);
}

/// Waits until the peer has closed, without reading: the system's readiness tells.
pub(super) async fn left(stream: &TcpStream) -> Close {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => break,
            Ok(_) => gate::pace(Duration::from_millis(5)).await,
            Err(_) => return Close::Reset,
        }
    }
    match SockRef::from(stream).take_error() {
        Ok(None) => Close::Fin,
        _ => Close::Reset,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use async_trait::async_trait;

    use super::*;
    use crate::gate::{Gates, guard};
    use crate::tape::Tape;
    use crate::wire::{Answer, Request, Source};

    struct Nothing;

    #[async_trait]
    impl Source for Nothing {
        async fn answer(&self, _: &Request) -> Answer {
            Answer::new(200, "text/plain", "")
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_just_accepted_does_not_escape_a_switch() {
        let shared = Shared::new("p1", Tape::new(), Gates::default(), Arc::new(Nothing));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = leave_alone(Open::new(Arc::clone(&shared)), stream, 1);
        assert_eq!(
            (shared.load.borrow().open, shared.load.borrow().fresh),
            (1, 1)
        );
        turn_out(&shared);
        assert_eq!(
            (shared.load.borrow().open, shared.load.borrow().fresh),
            (1, 0)
        );
        // polled for the first time only now
        guard("hang.connection", "the end of the connection", accepted)
            .await
            .unwrap();
        assert_eq!(shared.load.borrow().open, 0);
    }
}
