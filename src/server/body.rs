//! Request bodies: [`Bodies`] reads them, and extractors hand them to the routes. The media type is
//! checked first, then the size, before and while the body is read, and the whole body has to come
//! within a time.
//!
//! `http_body_util::Limited` counts the bytes. tower-http's `RequestBodyLimitLayer` is built on the
//! same type, but it answers an announced length over the limit with a plain text of its own; this
//! gateway owes its clients the error document, so that one comparison stays here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// What a request body may cost.
#[derive(Clone, Copy, Debug)]
pub struct BodyBounds {
    /// The largest body, in bytes.
    pub bytes: u64,
    /// The most time from the head of the request to the last byte of its body.
    pub time: Duration,
}

/// The bytes of a JSON body, not yet parsed.
#[derive(Clone)]
pub struct Payload(pub Bytes);

/// A JSON body, parsed into a `T`.
pub struct Json<T>(pub T);

/// Why a request body is refused.
#[derive(Debug)]
pub enum BodyError {
    /// The body is larger than the limit.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The body was not complete in time.
    Timeout {
        /// The time that it had.
        after: Duration,
    },
    /// The connection broke, or the framing was wrong, before the body's end.
    Broken,
    /// The `Content-Type` names something else than JSON.
    MediaType {
        /// The media type that it names.
        got: String,
    },
    /// The body is in a content coding, such as gzip.
    Coding {
        /// The coding that `Content-Encoding` names.
        got: String,
    },
    /// The bodies of all requests that are being read are larger than their common bound.
    TooManyBytes {
        /// The bound in bytes.
        limit: u64,
    },
    /// The body is not JSON, or lacks the members that the endpoint asks for.
    Shape {
        /// What serde_json says about it.
        reason: String,
    },
}

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = BodyError;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, BodyError> {
        // Every route that takes a body is one whose requests `Bodies` reads.
        request.extensions_mut().remove().ok_or(BodyError::Broken)
    }
}

/// Checks what the head announces.
fn check(request: &Request, bounds: BodyBounds) -> Result<(), BodyError> {
    media_type(request.headers())?;
    coding(request.headers())?;
    if request.body().size_hint().lower() > bounds.bytes {
        return Err(BodyError::TooLarge {
            limit: bounds.bytes,
        });
    }
    Ok(())
}

/// Reads a body to its end within its bounds.
async fn collect(body: Counted<'_>, bounds: BodyBounds) -> Result<Bytes, BodyError> {
    let limit = usize::try_from(bounds.bytes).unwrap_or(usize::MAX);
    let reading = Limited::new(body, limit).collect();
    match timeout(bounds.time, reading).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge {
            limit: bounds.bytes,
        }),
        Ok(Err(error)) => Err(match error.downcast_ref::<TooManyBytes>() {
            Some(TooManyBytes { limit }) => BodyError::TooManyBytes { limit: *limit },
            None => BodyError::Broken,
        }),
        Err(_) => Err(BodyError::Timeout { after: bounds.time }),
    }
}

/// Reads the bodies of requests before they are admitted. A client that sends its body slowly
/// thereby takes no permit from others, and all bodies that are being read share a bound of bytes.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct Bodies {
    bounds: BodyBounds,
    limit: u64,
    read: Arc<AtomicU64>,
}

impl Bodies {
    /// Creates the reader. Four bodies of the largest size, or 256 MiB if that is more, may be
    /// read at the same time.
    #[must_use]
    pub fn new(bounds: BodyBounds) -> Self {
        Self {
            bounds,
            limit: bounds.bytes.saturating_mul(4).max(256 << 20),
            read: Arc::default(),
        }
    }

    /// Reads the body of a POST to its end, and returns the request with its [`Payload`].
    ///
    /// Cancel safe in the sense that a dropped call gives back what it has taken of the bound.
    ///
    /// # Errors
    /// [`BodyError`] where the body is refused.
    pub async fn read(&self, request: Request) -> Result<Request, BodyError> {
        if request.method() != Method::POST {
            return Ok(request);
        }
        check(&request, self.bounds)?;
        let (mut head, body) = request.into_parts();
        let counted = Counted {
            body,
            bodies: self,
            taken: 0,
        };
        let whole = collect(counted, self.bounds).await?;
        head.extensions.insert(Payload(whole));
        Ok(Request::from_parts(head, Body::empty()))
    }
}

/// All bodies that are being read are larger than their common bound.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} bytes of bodies are being read")]
struct TooManyBytes {
    limit: u64,
}

/// A body whose bytes count towards the common bound until it has been read.
struct Counted<'a> {
    body: Body,
    bodies: &'a Bodies,
    taken: u64,
}

impl HttpBody for Counted<'_> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.taken += bytes;
        let all = self.bodies.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let limit = self.bodies.limit;
        Poll::Ready(Some(if all > limit {
            Err(TooManyBytes { limit }.into())
        } else {
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.bodies.read.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = BodyError;

    async fn from_request(request: Request, state: &S) -> Result<Self, BodyError> {
        let Payload(bytes) = Payload::from_request(request, state).await?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| BodyError::Shape {
                reason: error.to_string(),
            })
    }
}

/// Accepts JSON media types. A body without a `Content-Type` is read as JSON.
fn media_type(headers: &HeaderMap) -> Result<(), BodyError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value.to_str().unwrap_or_default().split(';').next();
    let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        Ok(())
    } else {
        Err(BodyError::MediaType { got: essence })
    }
}

/// Accepts no content coding: a body is read as it is.
fn coding(headers: &HeaderMap) -> Result<(), BodyError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(BodyError::Coding {
                got: String::from_utf8_lossy(coding.as_bytes()).into_owned(),
            })
        }
        _ => Ok(()),
    }
}
