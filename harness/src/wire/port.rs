//! A port and what it does before anything is read: serve, refuse, never accept, silence.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::queues::accept_queue_holds_one;
use crate::gate;
use crate::plan::Listen;
use crate::tape::Close;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1_024;

/// How long one connection may take to appear in the accept queue while the queue is being filled.
const SETTLE: Duration = Duration::from_millis(100);

/// How many connections are tried until the accept queue is full.
const FILLERS: usize = 20;

/// A port that nobody else gets: a socket is bound to it that never listens.
pub(super) struct Port {
    _reserved: TcpSocket,
    addr: SocketAddr,
    /// The caller asked for this port by its number. Connections that have ended must not keep the
    /// next caller from it.
    fixed: bool,
}

/// What stands at the port.
pub(super) enum ListenerState {
    /// Nobody listens: connections are refused.
    Refusing,
    /// Connections are accepted and served.
    Serving(TcpListener),
    /// Connections are accepted and left alone.
    Silent(TcpListener),
    /// The accept queue is full: connections are never established.
    Full {
        _listener: TcpListener,
        _fillers: Vec<TcpStream>,
    },
}

impl Port {
    /// Takes the address; port 0 means any free port.
    pub(super) fn reserve(addr: SocketAddr) -> io::Result<Self> {
        if addr.port() != 0 {
            // SO_REUSEPORT would let two of us share the port; this bind fails for the second one
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

    /// Listens as asked. The state before it must have been dropped.
    pub(super) async fn open(&self, listen: Listen) -> io::Result<ListenerState> {
        Ok(match listen {
            Listen::Serve => ListenerState::Serving(self.listener(BACKLOG)?),
            Listen::Silence => ListenerState::Silent(self.listener(BACKLOG)?),
            Listen::Refuse => ListenerState::Refusing,
            Listen::NeverAccept => {
                // Linux establishes one connection more than the backlog says, and drops the SYNs
                // of all others
                let listener = self.listener(0)?;
                let fillers = self.fill().await?;
                ListenerState::Full {
                    _listener: listener,
                    _fillers: fillers,
                }
            }
        })
    }

    /// Connects until the accept queue is full. A connection that the listener never counts, since
    /// its last packet was lost, is replaced by another one.
    async fn fill(&self) -> io::Result<Vec<TcpStream>> {
        let mut fillers = Vec::new();
        for _ in 0..FILLERS {
            match gate::bounded(SETTLE, TcpStream::connect(self.addr)).await {
                Some(filler) => fillers.push(filler?),
                None => return Ok(fillers),
            }
            let counted = gate::poll_until(|| accept_queue_holds_one(self.addr).then_some(()));
            if gate::bounded(SETTLE, counted).await.is_some() {
                return Ok(fillers);
            }
        }
        Err(io::Error::other(format!(
            "the accept queue of {} is not full after {FILLERS} connections; \
             use `silence` where the system cannot do `never_accept`",
            self.addr
        )))
    }

    fn listener(&self, backlog: u32) -> io::Result<TcpListener> {
        let socket = socket(self.addr, self.fixed)?;
        socket.bind(self.addr)?;
        socket.listen(backlog)
    }
}

/// A socket with SO_REUSEPORT, so that a listener can be bound beside the reservation. It has
/// SO_REUSEADDR, which would let others in, only where the port is a fixed one.
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

/// Accepts the next connection; waits forever in a state that accepts none. Cancel safe.
pub(super) async fn accept(state: &ListenerState) -> TcpStream {
    let (ListenerState::Serving(listener) | ListenerState::Silent(listener)) = state else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // no file descriptor is free, or the peer left before it was accepted: the next
            // connection may succeed
            Err(error) => {
                tracing::warn!(%error, "accept");
                gate::pace(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Waits until the peer has closed, without reading anything. Cancel safe.
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
