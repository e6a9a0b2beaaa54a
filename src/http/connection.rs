//! The listener and its connections: small writes go out at once, slow headers are closed by a time-out, and a refused body
//! does not cost the client its answer. Every connection is a tracked task.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::write_timeout::WriteTimeout;

/// After an accept that failed for want of file descriptors, others may be closed meanwhile.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// What is still read, and for how long, of a body that was refused: closing on unread bytes would reset the connection, and
/// the client might lose the answer (RFC 9112 section 9.6).
const LINGER_BYTES: u64 = 1 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// What a slow client is given.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// Until its next headers are whole.
    pub headers: Duration,
    /// Without taking 64 KiB of its answer, or all that waits for it.
    pub writes: Duration,
}

/// Accepts connections until `stop`, each as a task of `tasks`; `finish` then lets each end after the response it is at.
pub async fn accept(
    listener: TcpListener,
    service: Router,
    patience: ConnectionTimeouts,
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
            Ok((stream, peer)) => drop(tasks.spawn(serve(
                stream,
                peer,
                service.clone(),
                patience,
                finish.clone(),
            ))),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted: trying again");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    service: Router,
    patience: ConnectionTimeouts,
    finish: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY is not taken");
    }
    let mut io = TokioIo::new(WriteTimeout::new(stream, patience.writes));
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
            .header_read_timeout(patience.headers)
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
        Err(error) => tracing::debug!(%peer, %error, "connection ended"),
    }
}

/// Reads on for a moment what the client still sends. Our side is closed already.
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
    // whatever is left after that is the client's loss
    let _ = timeout(LINGER, drained).await;
}

/// The client went away between its connection and our accept.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::ConnectionAborted | K::ConnectionReset
    )
}
