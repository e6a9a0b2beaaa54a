//! The transport over hyper: each provider has one client, and thereby one pool of connections.
//!
//! * It speaks HTTP/1.1 only: a connection carries one call, so that a break concerns that call
//!   alone, and no provider's limit on streams of one connection makes calls wait for each other.
//! * It follows no redirects (a provider cannot send the key elsewhere), uses no proxy from the
//!   environment, retries nothing but a call on a dead pooled connection (retries live in
//!   `resilience`), decompresses nothing, and has no timeout but the connect timeout.
//! * Each call has its own connect timeout, which covers name, TCP and TLS: the connector reads it
//!   from the task of the call. A pooled connection needs none.
//! * A provider may close a connection at any time while nothing runs on it, also in the moment in
//!   which the next request is on its way (RFC 9112 section 9.3.1). That says nothing about the
//!   provider. A call on a connection that had served before, and that ended without one byte of
//!   the answer, is therefore sent once more at once, on a connection that is made for it; nobody
//!   outside this module notices. If a new connection ends like that the call fails with
//!   [`TransportError::Reset`], and the policy of that cause decides.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::Service;

use crate::config::ProviderConfig;
use crate::llm::transport::{Transport, TransportError, UpstreamRequest, UpstreamResponse};

/// The maximum amount of time for which an unused connection stays in the pool.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// The amount of silence after which the kernel probes whether the peer is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// The connect timeout of the call that this task makes.
    static CONNECT_TIMEOUT: Duration;
}

/// Creates the transport to this provider. It is created once at start; connections are made when
/// they are needed.
pub fn http_transport(provider: &ProviderConfig) -> Arc<dyn Transport> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    let connector = Connector(
        HttpsConnectorBuilder::new()
            .with_tls_config(tls_for(&provider.base_url))
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp),
    );
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE);
    let pooled = builder.build(connector.clone());
    let fresh = builder.pool_max_idle_per_host(0).build(connector);
    Arc::new(HttpTransport {
        provider: provider.name.clone(),
        pooled,
        fresh,
    })
}

/// The TLS configuration for connections to `url`.
pub fn tls_for(url: &http::Uri) -> ClientConfig {
    if url.scheme() == Some(&http::uri::Scheme::HTTPS) {
        SYSTEM_ROOTS.clone()
    } else {
        NO_ROOTS.clone()
    }
}

/// The TLS configuration for `https` providers: it trusts the system's roots, or Mozilla's if the
/// system has none (a container without certificates).
static SYSTEM_ROOTS: LazyLock<ClientConfig> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of the system cannot be read and is left out");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::info!("the system has no root certificates, so Mozilla's are trusted");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    tls_config(roots)
});

/// The TLS configuration for `http` providers: a client requires one, and it trusts nothing.
static NO_ROOTS: LazyLock<ClientConfig> = LazyLock::new(|| tls_config(RootCertStore::empty()));

fn tls_config(roots: RootCertStore) -> ClientConfig {
    // The call checks that the provider has cipher suites of both versions, and ring has them.
    #[allow(clippy::expect_used)]
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

type HttpClient = Client<Connector, Full<Bytes>>;

struct HttpTransport {
    provider: String,
    pooled: HttpClient,
    /// Makes a new connection for each call.
    fresh: HttpClient,
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError> {
        let (first, connection) = outgoing(&request);
        let mut answer = CONNECT_TIMEOUT
            .scope(request.connect_timeout, self.pooled.request(first))
            .await;
        if let Some(connection) = use_of(&connection) {
            match &answer {
                Ok(_) => connection.served.store(true, Ordering::Relaxed),
                Err(error) if !error.is_connect() && connection.died_unused() => {
                    tracing::debug!(
                        provider = self.provider,
                        "a pooled connection was closed, so the request is sent on a new one"
                    );
                    let (outgoing, _) = outgoing(&request);
                    answer = CONNECT_TIMEOUT
                        .scope(request.connect_timeout, self.fresh.request(outgoing))
                        .await;
                }
                Err(_) => {}
            }
        }
        let answer = answer.map_err(|error| {
            let error = before_the_answer(&error, request.connect_timeout);
            // The client's message leaves the reason out: a name that does not resolve, a
            // certificate that is not trusted.
            tracing::info!(provider = self.provider, %error, "the provider gave no answer");
            error
        })?;
        let (parts, body) = answer.into_parts();
        let body = http_body_util::BodyDataStream::<Incoming>::new(body)
            .map(|read| read.map_err(|error| inside_the_answer(&error)));
        Ok(UpstreamResponse {
            status: parts.status,
            headers: parts.headers,
            body: Box::pin(body),
        })
    }
}

/// The request as hyper sends it, and a view of the connection on which it is sent.
fn outgoing(request: &UpstreamRequest) -> (http::Request<Full<Bytes>>, CaptureConnection) {
    let mut outgoing = http::Request::new(Full::new(request.body.clone()));
    *outgoing.method_mut() = http::Method::POST;
    *outgoing.uri_mut() = request.url.clone();
    *outgoing.headers_mut() = request.headers.clone();
    let connection = capture_connection(&mut outgoing);
    (outgoing, connection)
}

/// What has happened on the connection of a call; `None` if there was no connection.
fn use_of(connection: &CaptureConnection) -> Option<Arc<Use>> {
    let mut extras = http::Extensions::new();
    connection
        .connection_metadata()
        .as_ref()?
        .get_extras(&mut extras);
    extras.remove()
}

/// What has happened on one connection.
#[derive(Debug, Default)]
struct Use {
    /// Whether it has served a call.
    served: AtomicBool,
    /// Whether a byte was read after the last attempt to write.
    answered: AtomicBool,
}

impl Use {
    /// Whether a connection that had served before ended without a byte of the answer.
    fn died_unused(&self) -> bool {
        self.served.load(Ordering::Relaxed) && !self.answered.load(Ordering::Relaxed)
    }
}

/// The error of a call that failed before a status line arrived.
fn before_the_answer(error: &legacy::Error, connect_timeout: Duration) -> TransportError {
    if chain(error).any(|source| source.is::<ConnectTimedOut>()) {
        return TransportError::ConnectTimeout(connect_timeout);
    }
    let io = io_error(error);
    if error.is_connect() {
        if io.is_some_and(is_shortage) {
            return TransportError::Shortage(reason(error));
        }
        return match io.map(io::Error::kind) {
            // The peer accepted the connection and closed it during the TLS handshake.
            Some(
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe,
            ) => TransportError::Reset(reason(error)),
            Some(io::ErrorKind::TimedOut) => TransportError::ConnectTimeout(connect_timeout),
            // The certificate is not trusted, or the peer does not speak TLS.
            Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
                TransportError::Protocol(reason(error))
            }
            _ => TransportError::Refused(reason(error)),
        };
    }
    if let Some(hyper) = chain(error).find_map(|source| source.downcast_ref::<hyper::Error>())
        && (hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed())
    {
        return TransportError::Reset(reason(error));
    }
    match io {
        Some(_) => TransportError::Reset(reason(error)),
        None => TransportError::Protocol(reason(error)),
    }
}

/// The error of a call that failed after the head had arrived: the answer is incomplete. A broken
/// chunk size is not valid HTTP.
fn inside_the_answer(error: &hyper::Error) -> TransportError {
    let parse = chain(error)
        .find_map(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_parse);
    let invalid = matches!(
        io_error(error).map(io::Error::kind),
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
    );
    if parse || invalid {
        TransportError::Protocol(reason(error))
    } else {
        TransportError::Truncated(reason(error))
    }
}

/// An error and its sources, the outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The innermost I/O error.
fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut io = chain(error)
        .filter_map(|source| source.downcast_ref::<io::Error>())
        .last()?;
    // The source of an I/O error that wraps another is the source of the inner one, not the inner
    // one.
    while let Some(inner) = io
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<io::Error>())
    {
        io = inner;
    }
    Some(io)
}

/// Whether this machine, not the provider, kept the connection from being made: the process has no
/// file descriptor left (EMFILE, ENFILE), or the machine no port (EADDRNOTAVAIL).
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL)
    )
}

/// The text of the innermost source: the outer ones repeat the URL or only state that something
/// failed.
fn reason(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .last()
        .filter(|source| !source.is::<legacy::Error>())
        .map_or_else(
            || "the request could not be sent".to_owned(),
            ToString::to_string,
        )
}

/// The connection was not established within the connect timeout.
#[derive(Debug, thiserror::Error)]
#[error("no connection in time")]
struct ConnectTimedOut;

/// Makes connections: each attempt is bounded by [`CONNECT_TIMEOUT`].
#[derive(Clone)]
struct Connector(HttpsConnector<HttpConnector>);

type BoxError = Box<dyn Error + Send + Sync>;
type Io = <HttpsConnector<HttpConnector> as Service<http::Uri>>::Response;

impl Service<http::Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, target: http::Uri) -> Self::Future {
        let connecting = self.0.call(target);
        // The timeout is read on the task of the call: hyper may finish the connection on another
        // task, for the pool.
        let timeout = CONNECT_TIMEOUT.try_with(|timeout| *timeout).ok();
        Box::pin(async move {
            let io = match timeout {
                Some(timeout) => tokio::time::timeout(timeout, connecting)
                    .await
                    .map_err(|_| ConnectTimedOut)??,
                None => connecting.await?,
            };
            Ok(TokioIo::new(Watched {
                io: TokioIo::new(io),
                seen: Arc::default(),
            }))
        })
    }
}

/// A connection that notes what happens on it.
struct Watched {
    io: TokioIo<Io>,
    seen: Arc<Use>,
}

impl Connection for Watched {
    fn connected(&self) -> Connected {
        self.io.connected().extra(Arc::clone(&self.seen))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.seen.answered.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.seen.answered.store(false, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.seen.answered.store(false, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
