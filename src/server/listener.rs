//! The listener and its connections. Small writes are sent at once (TCP_NODELAY), a client that is
//! slow to send its headers is disconnected, and a refused body does not cost the client its
//! answer. Every connection is a task that the gateway waits for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::write_timeout::WriteTimeout;

/// The pause after an accept that failed for want of file descriptors: connections that close in
/// the meantime give some back.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// The most bytes of a refused body that are still read after the answer. Closing a connection with
/// unread bytes resets it, and the client may lose the answer (RFC 9112 section 9.6).
const LINGER_BYTES: u64 = 1 << 20;
/// The most time for which a refused body is still read after the answer.
const LINGER: Duration = Duration::from_secs(2);

/// How long a slow client may hold a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// The most time until the headers of the next request are complete.
    pub headers: Duration,
    /// The most time in which a client takes neither 64 KiB of its response nor everything that
    /// waits to be sent.
    pub writes: Duration,
}

/// The connections of clients, which are bounded: each takes a file descriptor.
pub struct Connections {
    permits: Arc<Semaphore>,
    /// What ends each connection that is open, the oldest first.
    open: Open,
    number: u64,
}

type Open = Arc<Mutex<BTreeMap<u64, CancellationToken>>>;

/// The claim of one connection. Dropping it makes room for another.
struct Held {
    number: u64,
    open: Open,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// Creates the bound.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit as usize)),
            open: Open::default(),
            number: 0,
        }
    }

    /// Waits until there is room for one more connection, and returns its claim and what ends it.
    /// Where there is none, the oldest connections are asked to end, one after the other: one
    /// without a request ends at once, any other after its response.
    ///
    /// Cancel safe.
    async fn enter(&mut self, finish: &CancellationToken) -> Option<(Held, CancellationToken)> {
        let permit = loop {
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                break permit;
            }
            let oldest = lock(&self.open).pop_first();
            if let Some((_, end)) = oldest {
                end.cancel();
            }
            let freed = timeout(ACCEPT_AGAIN, self.permits.clone().acquire_owned());
            if let Ok(permit) = freed.await {
                break permit.ok()?;
            }
        };
        self.number += 1;
        let end = finish.child_token();
        lock(&self.open).insert(self.number, end.clone());
        let held = Held {
            number: self.number,
            open: self.open.clone(),
            _permit: permit,
        };
        Some((held, end))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
    }
}

fn lock(open: &Open) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections until `stop` is cancelled, each as a task of `tasks`. When `finish` is
/// cancelled, each connection ends after the response that it is sending.
pub async fn accept(
    listener: TcpListener,
    service: Router,
    timeouts: ConnectionTimeouts,
    mut connections: Connections,
    stop: CancellationToken,
    finish: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        // a connection that is accepted while `stop` wins is not lost: accept is cancel safe
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let entered = tokio::select! {
                    entered = connections.enter(&finish) => entered,
                    () = stop.cancelled() => return,
                };
                let Some((held, end)) = entered else { return };
                let serving = serve(stream, peer, service.clone(), timeouts, end);
                drop(tasks.spawn(async move {
                    serving.await;
                    drop(held);
                }));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "the listener cannot accept a connection: trying again");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    service: Router,
    timeouts: ConnectionTimeouts,
    finish: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the system refuses TCP_NODELAY");
    }
    let mut io = TokioIo::new(WriteTimeout::new(stream, timeouts.writes));
    let answered = {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let service = service.clone();
            async move {
                Ok::<Response, Infallible>(
                    service
                        .oneshot(request.map(Body::new))
                        .await
                        .unwrap_or_else(|never| match never {}),
                )
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeouts.headers)
            .serve_connection(&mut io, service);
        let mut connection = pin!(connection);
        let (mut finishing, mut finished) = (pin!(finish.cancelled()), false);
        poll_fn(|context| {
            if !finished && finishing.as_mut().poll(context).is_ready() {
                finished = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await
    };
    match answered {
        Ok(()) => linger(io.into_inner().into_inner()).await,
        Err(error) => tracing::debug!(%peer, %error, "the connection ended with an error"),
    }
}

/// Reads for a while what the client still sends. Our side of the connection is closed already.
async fn linger(mut stream: TcpStream) {
    let drained = async {
        let (mut left, mut buffer) = (LINGER_BYTES, [0; 8 * 1024]);
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read as u64),
            }
        }
    };
    // a client that sends still more may lose its answer
    let _ = timeout(LINGER, drained).await;
}

/// Returns whether the client closed its connection before it was accepted.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::ConnectionAborted | K::ConnectionReset
    )
}
