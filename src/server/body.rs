//! Request bodies as extractors. The media type is checked first, then the size, before and while
//! the body is read, and the whole body has to come within a time.
//!
//! `http_body_util::Limited` counts the bytes. tower-http's `RequestBodyLimitLayer` is built on the
//! same type, but it answers an announced length over the limit with a plain text of its own; this
//! gateway owes its clients the error document, so that one comparison stays here.

use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{FromRef, FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
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
    /// The body is not JSON, or lacks the members that the endpoint asks for.
    Shape {
        /// What serde_json says about it.
        reason: String,
    },
}

impl<S> FromRequest<S> for Payload
where
    S: Send + Sync,
    BodyBounds: FromRef<S>,
{
    type Rejection = BodyError;

    async fn from_request(request: Request, state: &S) -> Result<Self, BodyError> {
        let bounds = BodyBounds::from_ref(state);
        media_type(request.headers())?;
        let too_large = BodyError::TooLarge {
            limit: bounds.bytes,
        };
        if request.body().size_hint().lower() > bounds.bytes {
            return Err(too_large);
        }
        let limit = usize::try_from(bounds.bytes).unwrap_or(usize::MAX);
        let reading = Limited::new(request.into_body(), limit).collect();
        match timeout(bounds.time, reading).await {
            Ok(Ok(collected)) => Ok(Self(collected.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
            Ok(Err(_)) => Err(BodyError::Broken),
            Err(_) => Err(BodyError::Timeout { after: bounds.time }),
        }
    }
}

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
    BodyBounds: FromRef<S>,
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
