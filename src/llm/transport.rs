//! The transport to a provider: it sends one HTTP request and returns the head of the answer with
//! the body still to come.
//!
//! Production uses hyper, and properties under the paused clock use scripted providers. Timeouts
//! live in `resilience`, except for the connect timeout, because only a transport can distinguish
//! connecting from the wait for an answer.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, StatusCode};

/// One request to a provider. It is always a POST.
#[derive(Clone, Debug)]
pub struct UpstreamRequest {
    /// The absolute URL. It comes from the configuration alone.
    pub url: http::Uri,
    /// The headers, the provider's key among them (marked sensitive).
    pub headers: HeaderMap,
    /// The body. Clones share its bytes.
    pub body: Bytes,
    /// The maximum amount of time for establishing the connection: name, TCP and TLS.
    pub connect_timeout: Duration,
}

/// The body of an answer as it arrives. Dropping it closes the connection.
pub type UpstreamBody = Pin<Box<dyn Stream<Item = Result<Bytes, TransportError>> + Send>>;

/// The head of an answer, with its body still to come.
pub struct UpstreamResponse {
    /// The status of the answer.
    pub status: StatusCode,
    /// The headers of the answer.
    pub headers: HeaderMap,
    /// The body of the answer.
    pub body: UpstreamBody,
}

/// Why a transport failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nothing listens at the address, or the name does not resolve.
    #[error("connection refused: {0}")]
    Refused(String),
    /// This machine had no file descriptor or port left for the connection.
    #[error("no connection could be made: {0}")]
    Shortage(String),
    /// The connection was not established within the connect timeout.
    #[error("no connection within the connect timeout of {0:?}")]
    ConnectTimeout(Duration),
    /// The connection was reset or closed before a status line.
    #[error("connection closed before an answer: {0}")]
    Reset(String),
    /// The connection was reset or closed inside the body.
    #[error("connection closed inside the answer: {0}")]
    Truncated(String),
    /// The answer is not valid HTTP.
    #[error("not an HTTP answer: {0}")]
    Protocol(String),
}

/// Sends requests to one provider.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends the request and returns when the head of the answer has arrived.
    ///
    /// Cancel safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// [`TransportError`] if no head arrives.
    async fn send(&self, request: UpstreamRequest) -> Result<UpstreamResponse, TransportError>;
}
