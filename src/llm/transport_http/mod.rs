//! The transport over reqwest: each provider has one client, and thereby one pool of connections.
//!
//! * It speaks HTTP/1.1 only: a connection carries one call, so that a break concerns that call
//!   alone, and no provider's limit on streams of one connection makes calls wait for each other.
//! * It follows no redirects (a provider cannot send the key elsewhere), uses no proxy from the
//!   environment, retries nothing (retries live in `resilience`), decompresses nothing, and has no
//!   timeout but the connect timeout.
//! * Each call has its own connect timeout, which covers name, TCP and TLS: a layer around
//!   reqwest's connector reads it from the task of the call. A pooled connection needs none.
//! * A pooled connection that has died is noticed when it is taken. If it dies before a byte of the
//!   request was written, hyper takes another one by itself; after that the call fails with
//!   [`TransportError::Reset`], and the policy of that cause decides.

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
    // Building fails only if reqwest has to load certificates or a resolver, and it loads neither.
    #[allow(clippy::expect_used)]
    let client = client.expect("a client with preconfigured TLS");
    Arc::new(HttpTransport {
        provider: provider.name.clone(),
        client,
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

/// The TLS configuration for `http` providers: reqwest requires one, and it trusts nothing.
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

struct HttpTransport {
    provider: String,
    client: reqwest::Client,
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError> {
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
            // The client's message leaves the reason out: a name that does not resolve, a
            // certificate that is not trusted.
            tracing::info!(provider = self.provider, %error, "the provider gave no answer");
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

/// The error of a call that failed before a status line arrived.
fn before_the_answer(error: &reqwest::Error, connect_timeout: Duration) -> TransportError {
    if chain(error).any(|source| source.is::<ConnectTimedOut>()) {
        return TransportError::ConnectTimeout(connect_timeout);
    }
    let io = io_kind(error);
    if error.is_connect() {
        return match io {
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

/// An error and its sources, the outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The kind of the innermost I/O error.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
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
    Some(io.kind())
}

/// The text of the innermost source: the outer ones repeat the URL or only state that something
/// failed.
fn reason(error: &reqwest::Error) -> String {
    chain(error)
        .last()
        .filter(|source| !source.is::<reqwest::Error>())
        .map_or_else(
            || "the request could not be sent".to_owned(),
            ToString::to_string,
        )
}

/// The connection was not established within the connect timeout.
#[derive(Debug, thiserror::Error)]
#[error("no connection in time")]
struct ConnectTimedOut;

/// Bounds each attempt to connect by [`CONNECT_TIMEOUT`].
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
        // The timeout is read on the task of the call: hyper may finish the connection on another
        // task, for the pool.
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
