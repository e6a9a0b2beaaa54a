//! What surrounds every request: its id, its deadline, its place in a trace, its counter and log line, and the net under
//! panics. The outermost middleware; nothing else sets these.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use uuid::Uuid;

use super::admission::InFlight;
use super::error::ApiError;
use super::router::ROUTES;
use super::state::AppState;
use crate::llm::chat::{CallContext, InvalidRequest};
use crate::resilience::deadline::Deadline;
use crate::telemetry::Metrics;

/// The request id, accepted, returned, logged and sent on.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's own deadline in milliseconds; it can only shorten the configured one.
pub const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The same for every attempt of a request.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The status in metrics and logs of a request whose client left before the end.
const CLIENT_LEFT: u16 = 499;

/// What a handler knows of the request besides its body. An extension of every request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's id if it was sane, else ours.
    pub request_id: Arc<str>,
    /// W3C trace context, if the client sent a valid one.
    pub traceparent: Option<HeaderValue>,
    /// When its head had been read: every deadline runs from here.
    pub arrived: Instant,
    /// The client's deadline, if it gave one.
    pub deadline: Option<Instant>,
    /// The client's idempotency key, or one of ours.
    pub idempotency_key: Arc<str>,
}

impl RequestContext {
    /// What the LLM path needs of it.
    pub fn call(&self) -> CallContext {
        CallContext {
            request_id: self.request_id.to_string(),
            arrived: self.arrived,
            deadline: self.deadline.map(Deadline::of_caller),
            idempotency_key: self.idempotency_key.to_string(),
            traceparent: self.traceparent.clone(),
        }
    }

    fn read(headers: &HeaderMap) -> (Self, Result<(), ApiError>) {
        let request_id = sane(headers, &REQUEST_ID, 128)
            .unwrap_or_else(|| Uuid::now_v7().simple().to_string().into());
        let idempotency_key = sane(headers, &IDEMPOTENCY_KEY, 255)
            .unwrap_or_else(|| Uuid::new_v4().simple().to_string().into());
        let arrived = Instant::now();
        let (deadline, checked) = match deadline(headers, arrived) {
            Ok(deadline) => (deadline, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let traceparent = headers
            .get(TRACEPARENT)
            .filter(|value| is_traceparent(value.as_bytes()))
            .cloned();
        (
            Self {
                request_id,
                traceparent,
                arrived,
                deadline,
                idempotency_key,
            },
            checked,
        )
    }
}

/// The outermost middleware.
pub async fn surround(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let (context, checked) = RequestContext::read(request.headers());
    let request_id = context.request_id.clone();
    let mut record = Record::new(&app, &request, request_id.clone());
    request.extensions_mut().insert(context);
    let outcome = match checked {
        Ok(()) => AssertUnwindSafe(next.run(request))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| ApiError::Internal.into_response()),
        Err(error) => error.into_response(),
    };
    let (mut head, body) = outcome.into_parts();
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        head.headers.insert(REQUEST_ID, value);
    }
    if app.shutdown.is_draining() {
        head.headers
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = head.status.as_u16();
    record.in_flight = head.extensions.remove::<InFlight>();
    Response::from_parts(head, Body::new(Recorded { body, record }))
}

/// Counts and logs a request once: when its body has ended, or when it is dropped before.
struct Record {
    metrics: Arc<Metrics>,
    request_id: Arc<str>,
    method: Method,
    route: &'static str,
    started: Instant,
    status: u16,
    complete: bool,
    in_flight: Option<InFlight>,
}

impl Record {
    fn new(app: &AppState, request: &Request, request_id: Arc<str>) -> Self {
        let matched = request
            .extensions()
            .get::<MatchedPath>()
            .map(MatchedPath::as_str);
        let route = matched
            .and_then(|path| ROUTES.into_iter().find(|route| *route == path))
            .unwrap_or("other");
        Self {
            metrics: app.metrics.clone(),
            request_id,
            method: request.method().clone(),
            route,
            started: Instant::now(),
            status: CLIENT_LEFT,
            complete: false,
            in_flight: None,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = if self.complete || self.method == Method::HEAD {
            self.status
        } else {
            CLIENT_LEFT
        };
        self.metrics.request(self.route, status);
        drop(self.in_flight.take());
        let elapsed_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            request_id = &*self.request_id,
            method = self.method.as_str(),
            route = self.route,
            status,
            elapsed_us,
            "request"
        );
    }
}

/// A body that tells its record when it has ended.
struct Recorded {
    body: Body,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            self.record.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.record.complete |= self.body.is_end_stream();
    }
}

/// A header's value if it is visible ASCII within the bound.
fn sane(headers: &HeaderMap, name: &HeaderName, longest: usize) -> Option<Arc<str>> {
    let value = headers.get(name)?.to_str().ok()?;
    (!value.is_empty()
        && value.len() <= longest
        && value.bytes().all(|byte| byte.is_ascii_graphic()))
    .then(|| value.into())
}

fn deadline(headers: &HeaderMap, arrived: Instant) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else {
        return Ok(None);
    };
    let millis = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|millis| *millis > 0);
    let Some(millis) = millis else {
        return Err(ApiError::Invalid(InvalidRequest {
            message: format!(
                "the header x-request-timeout-ms is {value:?}: write whole milliseconds, 1 or more"
            ),
            param: Some(REQUEST_TIMEOUT.as_str().into()),
        }));
    };
    // a deadline too far away to be told is none
    Ok(arrived.checked_add(Duration::from_millis(millis)))
}

/// `version-traceid-parentid-flags` as W3C Trace Context (section 3.2) has it; all-zero ids are invalid.
fn is_traceparent(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
    match parts.as_slice() {
        [version, trace, parent, flags, rest @ ..] => {
            hex(version, 2)
                && *version != "ff"
                && (rest.is_empty() || *version != "00")
                && hex(trace, 32)
                && nonzero(trace)
                && hex(parent, 16)
                && nonzero(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}
