//! Transport over reqwest: one client, and so one pool of kept connections, a provider.
//!
//! * HTTP/1.1 alone: a connection carries one call, so that a cut is that call's, and no provider's limit on streams of one
//!   connection can make calls wait for each other.
//! * No redirects (a provider cannot send our key elsewhere), no proxy from the environment, no retries (they live in
//!   `resilience`), no decompression, no time-out but the connect time-out.
//! * The connect time-out is each call's own, over name, TCP and TLS: a layer around reqwest's connector reads it from the call's
//!   task. A connection taken from the pool has none.
//! * A kept connection that has died is seen when it is taken. If it dies before a byte of the request was written, hyper takes
//!   another by itself; once a byte was written the call fails with [`TransportError::Reset`], and the retry layer decides.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use rustls::{ClientConfig, RootCertStore};
use tower::{Layer, Service};

use crate::config::ProviderConfig;
use crate::llm::transport::{Transport, TransportError, UpstreamRequest, UpstreamResponse};

/// How long a connection is kept without use.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Until the kernel asks a silent peer whether it is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// The connect time-out of the call that this task makes.
    static CONNECT_TIMEOUT: Duration;
}

/// The way to this provider over HTTP. Made once at start; connections are made when they are needed.
pub fn http_transport(provider: &ProviderConfig) -> Arc<dyn Transport> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls_for(&provider.base_url))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .pool_idle_timeout(POOL_IDLE)
        .connector_layer(ConnectTimeoutLayer)
        .build();
    // fails only where reqwest would have to load certificates or a resolver by itself, and it has to load neither
    #[allow(clippy::expect_used)]
    let client = client.expect("a client with preconfigured TLS");
    Arc::new(HttpTransport {
        provider: provider.name.clone(),
        client,
    })
}

/// What TLS trusts on the way to `url`.
pub fn tls_for(url: &http::Uri) -> ClientConfig {
    if url.scheme() == Some(&http::uri::Scheme::HTTPS) {
        SYSTEM_ROOTS.clone()
    } else {
        NO_ROOTS.clone()
    }
}

/// TLS for `https` providers: the system's roots, or Mozilla's where the system has none (a container without certificates).
static SYSTEM_ROOTS: LazyLock<ClientConfig> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::info!("the system has no root certificates: Mozilla's are used");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    tls_config(roots)
});

/// TLS for `http` providers: reqwest wants one, and nothing is trusted.
static NO_ROOTS: LazyLock<ClientConfig> = LazyLock::new(|| tls_config(RootCertStore::empty()));

fn tls_config(roots: RootCertStore) -> ClientConfig {
    // ring has the cipher suites of both versions, the only thing that is checked here
    #[allow(clippy::expect_used)]
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

struct HttpTransport {
    provider: String,
    client: reqwest::Client,
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError> {
        let request_id = request.headers.get("x-request-id").cloned();
        let mut head = http::Request::new(request.body);
        *head.method_mut() = http::Method::POST;
        *head.uri_mut() = request.url;
        *head.headers_mut() = request.headers;
        let outgoing = reqwest::Request::try_from(head)
            .map_err(|error| TransportError::Protocol(reason(&error)))?;
        let answer = CONNECT_TIMEOUT
            .scope(request.connect_timeout, self.client.execute(outgoing))
            .await;
        let answer = answer.map_err(|error| {
            let error = before_the_answer(&error, request.connect_timeout);
            // what clients are told leaves the reason out: a name that does not resolve, a certificate that is not trusted
            tracing::info!(request_id = request_id.as_ref().and_then(|id| id.to_str().ok()), provider = self.provider, %error, "no answer");
            error
        })?;
        let status = answer.status();
        let answer: http::Response<reqwest::Body> = answer.into();
        let (parts, body) = answer.into_parts();
        let body = http_body_util::BodyDataStream::new(body)
            .map(|read| read.map_err(|error| inside_the_answer(&error)));
        Ok(UpstreamResponse {
            status,
            headers: parts.headers,
            body: Box::pin(body),
        })
    }
}

/// What went wrong before a status line had come.
fn before_the_answer(error: &reqwest::Error, connect_timeout: Duration) -> TransportError {
    if chain(error).any(|source| source.is::<ConnectTimedOut>()) {
        return TransportError::ConnectTimeout(connect_timeout);
    }
    let io = io_kind(error);
    if error.is_connect() {
        return match io {
            // the peer took the connection and left during the TLS handshake
            Some(
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe,
            ) => TransportError::Reset(reason(error)),
            Some(io::ErrorKind::TimedOut) => TransportError::ConnectTimeout(connect_timeout),
            // a certificate that is not trusted, or no TLS at all
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

/// What went wrong after the head had come: whatever it is, the answer is not whole. Broken chunk sizes are no HTTP.
fn inside_the_answer(error: &reqwest::Error) -> TransportError {
    let parse = chain(error)
        .find_map(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_parse);
    let invalid = matches!(
        io_kind(error),
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
    );
    if parse || invalid {
        TransportError::Protocol(reason(error))
    } else {
        TransportError::Truncated(reason(error))
    }
}

/// An error and its sources.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The innermost I/O error's kind.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut io = chain(error)
        .filter_map(|source| source.downcast_ref::<io::Error>())
        .last()?;
    // an I/O error inside another is not its source, which is the inner one's
    while let Some(inner) = io
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<io::Error>())
    {
        io = inner;
    }
    Some(io.kind())
}

/// The innermost cause: the outer ones repeat the URL, or say only that something failed.
fn reason(error: &reqwest::Error) -> String {
    chain(error)
        .last()
        .filter(|source| !source.is::<reqwest::Error>())
        .map_or_else(
            || "the request could not be sent".to_owned(),
            ToString::to_string,
        )
}

/// The connection did not stand in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection in time")]
struct ConnectTimedOut;

/// Bounds each connection attempt by [`CONNECT_TIMEOUT`].
#[derive(Clone)]
struct ConnectTimeoutLayer;

impl<S> Layer<S> for ConnectTimeoutLayer {
    type Service = ConnectTimeout<S>;

    fn layer(&self, inner: S) -> ConnectTimeout<S> {
        ConnectTimeout { inner }
    }
}

#[derive(Clone)]
struct ConnectTimeout<S> {
    inner: S,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, R> Service<R> for ConnectTimeout<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.inner.call(target);
        // read here, on the task of the call: hyper may finish the connection on another one, for the pool
        match CONNECT_TIMEOUT.try_with(|timeout| *timeout) {
            Ok(timeout) => Box::pin(async move {
                match tokio::time::timeout(timeout, connecting).await {
                    Ok(connected) => connected,
                    Err(_) => Err(ConnectTimedOut.into()),
                }
            }),
            Err(_) => Box::pin(connecting),
        }
    }
}

#[cfg(test)]
mod tests;
