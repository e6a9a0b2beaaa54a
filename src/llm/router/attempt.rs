//! One attempt: breaker and bulkhead, then one exchange with the provider under its timeouts.
//!
//! [`Admitted`] holds what an attempt occupies (a pass of the breaker and a permit of the bulkhead)
//! and accompanies a stream to its end. If it is dropped without a result, because the client has
//! left, it returns both and counts neither as a success nor as a failure.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::Fuse;
use tokio::time::Instant;

use super::candidate::{AttemptKind, Call, CandidateState};
use super::stream;
use crate::llm::cause::{Blame, Cause};
use crate::llm::chat::{Answer, AttemptError, Completion, Mode, Usage};
use crate::llm::content::Joined;
use crate::llm::transport::{TransportError, UpstreamBody, UpstreamRequest, UpstreamResponse};
use crate::resilience::breaker::{Breaker, Pass, Refused};
use crate::resilience::bulkhead::{BulkheadError, Permit};
use crate::resilience::deadline::{self, Elapsed, SetBy};

/// The maximum size of a plain answer, in bytes.
const MAX_BODY: usize = 32 << 20;
/// The maximum number of bytes that are read of an error's body.
const MAX_ERROR_BODY: usize = 64 << 10;
/// The Retry-After of a full bulkhead, because nobody knows when a permit becomes free.
const BULKHEAD_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The Retry-After of a gateway that can make no connection, because other connections end soon.
const SHORTAGE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks the candidate once. A plain answer is complete, and a stream is at its commit point.
///
/// Cancel safe: dropping the future closes the connection and returns pass and permit.
pub(super) async fn attempt(
    candidate: &Arc<CandidateState>,
    call: &Call<'_>,
    upstream: &UpstreamRequest,
    ends: Instant,
    kind: AttemptKind,
) -> Result<Answer, AttemptError> {
    let admitted = Admitted::enter(candidate, call.set_by, ends, kind).await?;
    match exchange(candidate, call, upstream, ends, admitted.started).await {
        Ok(Exchanged::Plain(completion)) => {
            admitted.succeeded(completion.usage, completion.is_empty);
            Ok(Answer::Plain(completion))
        }
        Ok(Exchanged::Stream(opened)) => {
            Ok(Answer::Stream(opened.committed(admitted, call.deadline)))
        }
        Err(error) => {
            admitted.blame(&error);
            Err(error)
        }
    }
}

/// The result of an exchange that has not failed.
enum Exchanged {
    Plain(Completion),
    Stream(stream::Opened),
}

async fn exchange(
    candidate: &CandidateState,
    call: &Call<'_>,
    upstream: &UpstreamRequest,
    ends: Instant,
    started: Instant,
) -> Result<Exchanged, AttemptError> {
    let timeouts = candidate.timeouts;
    let head_limit = match call.request.mode {
        Mode::Plain => Limit::deadline(ends),
        Mode::Stream { .. } => Limit::earlier(
            started,
            timeouts.first_token,
            Cause::FirstTokenTimeout,
            ends,
        ),
    };
    let mut upstream = upstream.clone();
    let remaining = ends.saturating_duration_since(started);
    upstream.connect_timeout = timeouts.connect.min(remaining);
    let response = head_limit
        .bound(candidate.provider.transport.send(upstream))
        .await?
        .map_err(|error| match error {
            // The deadline was shorter than the provider's own connect timeout.
            TransportError::ConnectTimeout(_) if remaining < timeouts.connect => {
                Limit::deadline(ends).error()
            }
            error => transport_error(error),
        })?;
    if !response.status.is_success() {
        return Err(read_error(candidate, response, ends).await);
    }
    match call.request.mode {
        Mode::Plain => {
            let body = read_body(response.body, timeouts.idle, ends).await?;
            candidate
                .provider
                .codec
                .completion(&response.headers, body)
                .map(Exchanged::Plain)
        }
        Mode::Stream { .. } => {
            let decoder = candidate
                .provider
                .codec
                .decoder(call.request, &response.headers)?;
            stream::open(response.body, decoder, head_limit, timeouts.idle)
                .await
                .map(Exchanged::Stream)
        }
    }
}

/// Reads a non-2xx answer: as much of its body as arrives in time and within the size limit.
async fn read_error(
    candidate: &CandidateState,
    mut response: UpstreamResponse,
    ends: Instant,
) -> AttemptError {
    let idle = candidate.timeouts.idle;
    let mut body = BytesMut::new();
    while body.len() < MAX_ERROR_BODY {
        let limit = Limit::earlier(Instant::now(), idle, Cause::IdleTimeout, ends);
        match limit.bound(response.body.next()).await {
            Ok(Some(Ok(bytes))) => {
                body.extend_from_slice(&bytes[..bytes.len().min(MAX_ERROR_BODY - body.len())])
            }
            // The status decides the cause: a body that breaks off only carries less detail.
            Ok(Some(Err(_)) | None) | Err(_) => break,
        }
    }
    candidate
        .provider
        .codec
        .error(response.status, &response.headers, &body)
}

/// Reads a whole body, with the idle timeout between two reads and within the size limit.
async fn read_body(
    mut body: UpstreamBody,
    idle: Duration,
    ends: Instant,
) -> Result<Bytes, AttemptError> {
    let mut joined = Joined::default();
    loop {
        let limit = Limit::earlier(Instant::now(), idle, Cause::IdleTimeout, ends);
        match limit.bound(body.next()).await? {
            Some(Ok(bytes)) if joined.len() + bytes.len() > MAX_BODY => {
                return Err(AttemptError::new(
                    Cause::Oversized,
                    format!("The provider's answer is larger than {MAX_BODY} bytes."),
                ));
            }
            Some(Ok(bytes)) => joined.push(bytes),
            Some(Err(error)) => return Err(transport_error(error)),
            None => return Ok(joined.into_bytes()),
        }
    }
}

/// An instant, and the cause with which work fails that is not done by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    at: Instant,
    cause: Cause,
    /// The timeout that led to `at`; `None` for the deadline.
    timeout: Option<Duration>,
}

impl Limit {
    pub(super) fn deadline(ends: Instant) -> Self {
        Self {
            at: ends,
            cause: Cause::DeadlineExceeded,
            timeout: None,
        }
    }

    /// A limit of `timeout` after `from`, or the deadline if that is earlier.
    pub(super) fn earlier(from: Instant, timeout: Duration, cause: Cause, ends: Instant) -> Self {
        let at = deadline::saturating_add(from, timeout);
        if at < ends {
            Self {
                at,
                cause,
                timeout: Some(timeout),
            }
        } else {
            Self::deadline(ends)
        }
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Runs `work` until the limit. If the limit passes first, the work is dropped.
    pub(super) async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, AttemptError> {
        deadline::within(self.at, work)
            .await
            .map_err(|Elapsed| self.error())
    }

    /// The error of work that was not done by the limit.
    pub(super) fn error(&self) -> AttemptError {
        let ms = self.timeout.unwrap_or_default().as_millis();
        let message = match self.cause {
            Cause::FirstTokenTimeout => {
                format!("The provider sent no content within the first-token timeout of {ms} ms.")
            }
            Cause::IdleTimeout => format!(
                "The provider sent nothing for the idle timeout of {ms} ms in the middle of its \
                 answer."
            ),
            _ => {
                "The deadline of this request, or this candidate's share of it, passed before the \
                  provider had answered."
                    .to_owned()
            }
        };
        AttemptError::new(self.cause, message)
    }
}

/// An attempt that breaker and bulkhead have admitted.
pub(super) struct Admitted {
    candidate: Arc<CandidateState>,
    /// `None` once the attempt has a result.
    pass: Option<Pass>,
    _permit: Permit,
    started: Instant,
    set_by: SetBy,
}

impl Admitted {
    /// Asks the breaker, waits for a permit of the bulkhead, and asks the breaker again, because it
    /// may have opened meanwhile. A share of the requests that no later candidate can serve passes
    /// an open breaker.
    async fn enter(
        candidate: &Arc<CandidateState>,
        set_by: SetBy,
        ends: Instant,
        kind: AttemptKind,
    ) -> Result<Self, AttemptError> {
        let share = match candidate.breaker.check() {
            Ok(()) => None,
            Err(refused) => Some(
                Some(&candidate.breaker)
                    .filter(|_| candidate.later == 0 && kind == AttemptKind::Initial)
                    .and_then(Breaker::try_share)
                    .ok_or_else(|| breaker_open(refused))?,
            ),
        };
        let permit = candidate
            .provider
            .bulkhead
            .enter(ends)
            .await
            .map_err(bulkhead_full)?;
        let pass = match share {
            Some(pass) => pass,
            None => candidate.breaker.try_pass().map_err(breaker_open)?,
        };
        let started = Instant::now();
        // The permit became free when the time was over, so nothing is sent.
        if started >= ends {
            return Err(bulkhead_full(BulkheadError::TimedOut));
        }
        candidate.record_start(kind);
        Ok(Self {
            candidate: Arc::clone(candidate),
            pass: Some(pass),
            _permit: permit,
            started,
            set_by,
        })
    }

    /// Records that the stream is at its commit point. A probe has succeeded with that.
    pub(super) fn committed(&mut self) {
        if let Some(pass) = self.pass.as_mut() {
            pass.committed();
        }
    }

    /// Records that the deadline passed while the client, not the provider, was slow. It is then
    /// treated as a deadline that the caller set.
    pub(super) fn client_was_slow(&mut self) {
        self.set_by = SetBy::Caller;
    }

    /// Records that the stream ended in order, and drains the rest of its body. Without a rest the
    /// connection has been closed.
    pub(super) fn stream_succeeded(
        self,
        usage: Option<Usage>,
        is_empty: bool,
        rest: Option<Fuse<UpstreamBody>>,
    ) {
        if let Some(rest) = rest {
            self.candidate.provider.body_drainer.drain(rest);
        }
        self.succeeded(usage, is_empty);
    }

    /// Records that the attempt succeeded, and whether its answer is empty.
    fn succeeded(mut self, usage: Option<Usage>, is_empty: bool) {
        let metrics = &self.candidate.metrics;
        metrics.succeeded();
        if is_empty {
            tracing::warn!(
                provider = &*self.candidate.id.provider,
                model = &*self.candidate.id.model,
                "the provider's answer is complete and has no content"
            );
            metrics.was_empty();
        }
        if let Some(usage) = usage {
            metrics.tokens(usage.prompt_tokens, usage.completion_tokens);
        }
        if let Some(pass) = self.pass.take() {
            pass.success();
        }
    }

    /// Records that the stream broke after its commit point. No list of attempts holds this
    /// failure.
    pub(super) fn stream_failed(self, error: &AttemptError) {
        tracing::info!(cause = error.cause.name(), "stream broke");
        self.candidate.count_failure(error.cause);
        self.blame(error);
    }

    /// Counts the failure against the provider's breaker, if the policy of its cause says so.
    fn blame(mut self, error: &AttemptError) {
        let counts = match error.cause.policy().blame {
            Blame::Provider => true,
            Blame::Nobody => false,
            Blame::ProviderGivenFairTime => {
                self.set_by == SetBy::Configuration
                    && self.started.elapsed() >= self.candidate.min_fair_time
            }
        };
        match self.pass.take() {
            Some(pass) if counts => pass.failure(error.retry_after),
            _ => {}
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.pass.is_some() {
            self.candidate.metrics.cancelled();
        }
    }
}

fn breaker_open(refused: Refused) -> AttemptError {
    let message = "The provider has failed repeatedly, so its breaker is open and nothing is sent \
                   to it; try again after the time in Retry-After.";
    AttemptError {
        retry_after: Some(refused.retry_after),
        ..AttemptError::new(Cause::BreakerOpen, message)
    }
}

fn bulkhead_full(error: BulkheadError) -> AttemptError {
    let message = match error {
        BulkheadError::QueueFull => {
            "The queue of requests that wait for this provider is full; try again later."
        }
        BulkheadError::TimedOut => {
            "None of this provider's permits became free before the deadline; try again later."
        }
    };
    AttemptError {
        retry_after: Some(BULKHEAD_RETRY_AFTER),
        ..AttemptError::new(Cause::BulkheadFull, message)
    }
}

/// The error of an attempt whose transport failed, before or inside the answer.
pub(super) fn transport_error(error: TransportError) -> AttemptError {
    match error {
        TransportError::Refused(_) => {
            AttemptError::new(Cause::Refused, "The provider refused the connection.")
        }
        TransportError::Shortage(_) => AttemptError {
            retry_after: Some(SHORTAGE_RETRY_AFTER),
            ..AttemptError::new(
                Cause::Shortage,
                "The gateway has no file descriptor or port left for a connection to the provider; \
                 try again later, and raise the limit of open files (ulimit -n) if this lasts.",
            )
        },
        TransportError::ConnectTimeout(timeout) => AttemptError::new(
            Cause::ConnectTimeout,
            format!(
                "The connection to the provider was not established within the connect timeout of \
                 {} ms.",
                timeout.as_millis()
            ),
        ),
        TransportError::Reset(_) => AttemptError::new(
            Cause::Reset,
            "The provider closed the connection before it answered.",
        ),
        TransportError::Truncated(_) => AttemptError::new(
            Cause::Truncated,
            "The provider's answer ended before it was complete.",
        ),
        TransportError::Protocol(_) => AttemptError::new(
            Cause::BadResponse,
            "The provider's answer is not valid HTTP.",
        ),
    }
}
