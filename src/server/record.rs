//! Counts and logs each request once: when its body has ended, or when it is dropped before that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use http::{HeaderValue, Method, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use super::admission::InFlight;
use super::request_context::REQUEST_ID;
use crate::telemetry::Metrics;

/// The status in metrics and logs of a request whose client left before the end.
const CLIENT_LEFT: u16 = 499;
/// The route in metrics and logs of a request that no route takes.
const NO_ROUTE: &str = "other";

/// What is known of a request until it ends.
pub(super) struct Record {
    metrics: Arc<Metrics>,
    request_id: Option<HeaderValue>,
    method: Method,
    route: Option<MatchedPath>,
    started: Instant,
    status: u16,
    complete: bool,
    in_flight: Option<InFlight>,
}

impl Record {
    pub(super) fn new(metrics: Arc<Metrics>, request: &Request) -> Self {
        Self {
            metrics,
            request_id: request.headers().get(REQUEST_ID).cloned(),
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            started: Instant::now(),
            status: CLIENT_LEFT,
            complete: false,
            in_flight: None,
        }
    }

    /// Notes the status of the answer, and holds the request's permit to the end of its body.
    pub(super) fn answered(&mut self, status: StatusCode, in_flight: Option<InFlight>) {
        self.status = status.as_u16();
        self.in_flight = in_flight;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = if self.complete || self.method == Method::HEAD {
            self.status
        } else {
            CLIENT_LEFT
        };
        let route = self.route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
        self.metrics.request(route, status);
        drop(self.in_flight.take());
        let request_id = self.request_id.as_ref().and_then(|id| id.to_str().ok());
        let elapsed_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            request_id,
            method = shown(&self.method),
            route,
            status,
            elapsed_us,
            "request"
        );
    }
}

/// The start of a method, which a client may make as long as a head can be.
fn shown(method: &Method) -> &str {
    const SHOWN: usize = 32;
    let method = method.as_str();
    method.get(..SHOWN).unwrap_or(method)
}

/// A response body that completes its record when it has ended.
pub(super) struct Recorded {
    body: Body,
    record: Record,
}

impl Recorded {
    pub(super) fn new(body: Body, record: Record) -> Self {
        Self { body, record }
    }
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
