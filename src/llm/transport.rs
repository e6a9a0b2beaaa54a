//! The way to a provider: one HTTP request, its head, its body as it comes. Production uses reqwest; properties under the
//! paused clock use scripted providers. Time-outs live in `resilience`, apart from the connect time-out, which only a
//! transport can tell from the wait for an answer.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, StatusCode};

/// One request to a provider. Always a POST.
#[derive(Clone, Debug)]
pub struct UpstreamRequest {
    /// The absolute URL, from configuration alone.
    pub url: http::Uri,
    /// Headers, the provider's key among them (marked sensitive).
    pub headers: HeaderMap,
    /// The body; clones share it.
    pub body: Bytes,
    /// Until the connection must stand.
    pub connect_timeout: Duration,
}

/// The body as it comes. Dropping it closes the connection.
pub type UpstreamBody = Pin<Box<dyn Stream<Item = Result<Bytes, TransportError>> + Send>>;

/// The head of an answer, with its body to come.
pub struct UpstreamResponse {
    /// The provider's status.
    pub status: StatusCode,
    /// The provider's headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: UpstreamBody,
}

/// How transport fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nobody listens, or the name does not resolve.
    #[error("connection refused: {0}")]
    Refused(String),
    /// The connection did not stand within the connect time-out.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// Reset or closed before a status line.
    #[error("connection closed before an answer: {0}")]
    Reset(String),
    /// Reset or closed inside the body.
    #[error("connection closed inside the answer: {0}")]
    Truncated(String),
    /// Anything else that is not HTTP.
    #[error("not an HTTP answer: {0}")]
    Protocol(String),
}

/// Sends requests to one provider.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends the request and returns when the head of the answer has come. Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`TransportError`].
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError>;
}
