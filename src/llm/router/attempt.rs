//! One attempt: breaker and bulkhead, then one exchange with the provider under its time-outs.
//!
//! What an attempt holds (its breaker's pass, its place in the bulkhead) is in [`Admitted`], which goes along with a stream to
//! its end. Dropped without a verdict, because the client has left, it gives everything back and counts for nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::Fuse;
use tokio::time::Instant;

use super::candidate::{Call, CandidateState, Turn};
use super::policy::{Blame, policy};
use super::stream;
use crate::llm::chat::{Answer, AttemptError, Cause, Completion, Mode, Usage};
use crate::llm::content::Joined;
use crate::llm::transport::{TransportError, UpstreamBody, UpstreamRequest, UpstreamResponse};
use crate::resilience::breaker::{Pass, Refused};
use crate::resilience::bulkhead::{BulkheadError, Permit};
use crate::resilience::deadline::{self, Elapsed, SetBy};

/// The largest plain answer.
const LARGEST_BODY: usize = 32 << 20;
/// As much of an error's body is read, and not more.
const LARGEST_ERROR: usize = 64 << 10;
/// What is told to those who find no place: how soon one comes free is not known.
const WORTH_ASKING_AGAIN: Duration = Duration::from_secs(1);

/// Asks the candidate once. A plain answer is whole, a stream is past its commit point.
pub(super) async fn attempt(
    lane: &Arc<CandidateState>,
    call: &Call<'_>,
    upstream: &UpstreamRequest,
    ends: Instant,
    turn: Turn,
) -> Result<Answer, AttemptError> {
    let admitted = Admitted::enter(lane, call.set_by, ends, turn).await?;
    match exchange(lane, call, upstream, ends, admitted.started).await {
        Ok(Exchanged::Plain(completion)) => {
            admitted.served(completion.usage);
            Ok(Answer::Plain(completion))
        }
        Ok(Exchanged::Stream(opened)) => Ok(Answer::Stream(opened.committed(admitted, call))),
        Err(error) => {
            admitted.blame(&error);
            Err(error)
        }
    }
}

/// What an exchange came to.
enum Exchanged {
    Plain(Completion),
    Stream(stream::Opened),
}

async fn exchange(
    lane: &CandidateState,
    call: &Call<'_>,
    upstream: &UpstreamRequest,
    ends: Instant,
    started: Instant,
) -> Result<Exchanged, AttemptError> {
    let head_by = match call.request.mode {
        Mode::Plain => Limit::deadline(ends),
        Mode::Stream { .. } => Limit::earlier(
            started,
            lane.timeouts.first_token,
            Cause::FirstTokenTimeout,
            ends,
        ),
    };
    let mut upstream = upstream.clone();
    let left = ends.saturating_duration_since(started);
    upstream.connect_timeout = lane.timeouts.connect.min(left);
    let response = head_by
        .keep(lane.provider.transport.send(upstream))
        .await?
        .map_err(|broken| match broken {
            // the deadline cut the connect time-out short: that is not the provider's own
            TransportError::ConnectTimeout(_) if left < lane.timeouts.connect => {
                Limit::deadline(ends).passed()
            }
            broken => transport_error(broken),
        })?;
    if !response.status.is_success() {
        return Err(refusal(lane, response, ends).await);
    }
    match call.request.mode {
        Mode::Plain => {
            let body = whole(response.body, lane.timeouts.idle, ends).await?;
            lane.provider
                .codec
                .completion(&response.headers, body)
                .map(Exchanged::Plain)
        }
        Mode::Stream { .. } => {
            let decoder = lane
                .provider
                .codec
                .decoder(call.request, &response.headers)?;
            stream::open(response.body, decoder, head_by, lane.timeouts.idle)
                .await
                .map(Exchanged::Stream)
        }
    }
}

/// Reads a non-2xx answer: as much of its body as comes in time, and within the bound.
async fn refusal(
    lane: &CandidateState,
    mut response: UpstreamResponse,
    ends: Instant,
) -> AttemptError {
    let mut body = BytesMut::new();
    while body.len() < LARGEST_ERROR {
        let limit = Limit::earlier(Instant::now(), lane.timeouts.idle, Cause::IdleTimeout, ends);
        match limit.keep(response.body.next()).await {
            Ok(Some(Ok(bytes))) => {
                body.extend_from_slice(&bytes[..bytes.len().min(LARGEST_ERROR - body.len())])
            }
            // the status is what counts: a body that breaks off only says less
            Ok(Some(Err(_)) | None) | Err(_) => break,
        }
    }
    lane.provider
        .codec
        .error(response.status, &response.headers, &body)
}

/// Reads a whole body, each read within `idle`, all within the bound.
async fn whole(
    mut body: UpstreamBody,
    idle: Duration,
    ends: Instant,
) -> Result<Bytes, AttemptError> {
    let mut joined = Joined::default();
    loop {
        let limit = Limit::earlier(Instant::now(), idle, Cause::IdleTimeout, ends);
        match limit.keep(body.next()).await? {
            Some(Ok(bytes)) if joined.len() + bytes.len() > LARGEST_BODY => {
                return Err(AttemptError::new(
                    Cause::Oversized,
                    format!("The provider's answer is larger than {LARGEST_BODY} bytes."),
                ));
            }
            Some(Ok(bytes)) => joined.push(bytes),
            Some(Err(broken)) => return Err(transport_error(broken)),
            None => return Ok(joined.into_bytes()),
        }
    }
}

/// A point in time, and what it means when it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    at: Instant,
    cause: Cause,
    allowed: Option<Duration>,
}

impl Limit {
    pub(super) fn deadline(ends: Instant) -> Self {
        Self {
            at: ends,
            cause: Cause::DeadlineExceeded,
            allowed: None,
        }
    }

    /// `allowed` from `from`, unless the deadline comes first.
    pub(super) fn earlier(from: Instant, allowed: Duration, cause: Cause, ends: Instant) -> Self {
        let at = deadline::saturating_add(from, allowed);
        if at < ends {
            Self {
                at,
                cause,
                allowed: Some(allowed),
            }
        } else {
            Self::deadline(ends)
        }
    }

    /// The point in time.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Runs `work` up to the limit; on its passing the work is dropped.
    pub(super) async fn keep<T>(&self, work: impl Future<Output = T>) -> Result<T, AttemptError> {
        deadline::within(self.at, work)
            .await
            .map_err(|Elapsed| self.passed())
    }

    /// The error of a limit that has passed.
    pub(super) fn passed(&self) -> AttemptError {
        let allowed = self.allowed.unwrap_or_default().as_millis();
        let message = match self.cause {
            Cause::FirstTokenTimeout => {
                format!("No content came from the provider within {allowed} ms.")
            }
            Cause::IdleTimeout => {
                format!("The provider was silent for {allowed} ms in the middle of its answer.")
            }
            _ => "The time for this request, or this candidate's share of it, is over.".to_owned(),
        };
        AttemptError::new(self.cause, message)
    }
}

/// An attempt that has been let through: its pass and its place, and what its end is counted on.
pub(super) struct Admitted {
    lane: Arc<CandidateState>,
    /// `None` once there is a verdict.
    pass: Option<Pass>,
    _place: Permit,
    started: Instant,
    set_by: SetBy,
}

impl Admitted {
    /// Breaker, then bulkhead, then the breaker again (it may have opened while this one waited).
    async fn enter(
        lane: &Arc<CandidateState>,
        set_by: SetBy,
        ends: Instant,
        turn: Turn,
    ) -> Result<Self, AttemptError> {
        lane.breaker.check().map_err(breaker_open)?;
        let place = lane
            .provider
            .bulkhead
            .enter(ends)
            .await
            .map_err(bulkhead_full)?;
        let pass = lane.breaker.try_pass().map_err(breaker_open)?;
        let started = Instant::now();
        // a place that came free at the last moment: nothing is sent any more
        if started >= ends {
            return Err(bulkhead_full(BulkheadError::TimedOut));
        }
        lane.starts(turn);
        Ok(Self {
            lane: Arc::clone(lane),
            pass: Some(pass),
            _place: place,
            started,
            set_by,
        })
    }

    /// The stream is at its commit point: as a probe it has succeeded.
    pub(super) fn committed(&mut self) {
        if let Some(pass) = self.pass.as_mut() {
            pass.committed();
        }
    }

    /// The deadline passed while nobody waited for the provider: as if its client had set it.
    pub(super) fn client_was_slow(&mut self) {
        self.set_by = SetBy::Caller;
    }

    /// The stream has ended in order; its body may have some bytes left.
    pub(super) fn succeeded(self, usage: Option<Usage>, body: Fuse<UpstreamBody>) {
        self.lane.provider.endings.read(body);
        self.served(usage);
    }

    /// The provider has served.
    fn served(mut self, usage: Option<Usage>) {
        self.lane.metrics.attempt(&self.lane.candidate, None);
        if let Some(usage) = usage {
            self.lane.metrics.tokens(&self.lane.candidate, usage);
        }
        if let Some(pass) = self.pass.take() {
            pass.success();
        }
    }

    /// The stream broke after its commit point: nobody else lists this attempt.
    pub(super) fn broke(self, request_id: &str, error: &AttemptError) {
        tracing::info!(request_id, provider = self.lane.candidate.provider, model = self.lane.candidate.model, cause = ?error.cause, "stream broke");
        self.lane
            .metrics
            .attempt(&self.lane.candidate, Some(error.cause));
        self.blame(error);
    }

    /// Counts the failure against whom it concerns.
    fn blame(mut self, error: &AttemptError) {
        let providers = match policy(error.cause).blame {
            Blame::Provider => true,
            Blame::Nobody => false,
            Blame::ProviderGivenFairTime => {
                self.set_by == SetBy::Configuration
                    && self.started.elapsed() >= self.lane.least_fair_time
            }
        };
        match self.pass.take() {
            Some(pass) if providers => pass.failure(error.retry_after),
            _ => {}
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.pass.is_some() {
            self.lane.metrics.attempt_cancelled(&self.lane.candidate);
        }
    }
}

fn breaker_open(refused: Refused) -> AttemptError {
    let message = "The provider has failed repeatedly and is left alone for a while.";
    AttemptError {
        retry_after: Some(refused.retry_after),
        ..AttemptError::new(Cause::BreakerOpen, message)
    }
}

fn bulkhead_full(why: BulkheadError) -> AttemptError {
    let message = match why {
        BulkheadError::QueueFull => "Too many requests wait for this provider.",
        BulkheadError::TimedOut => "No place came free at this provider in time.",
    };
    AttemptError {
        retry_after: Some(WORTH_ASKING_AGAIN),
        ..AttemptError::new(Cause::BulkheadFull, message)
    }
}

/// The failure of the transport, before or inside an answer.
pub(super) fn transport_error(broken: TransportError) -> AttemptError {
    match broken {
        TransportError::Refused(_) => {
            AttemptError::new(Cause::Refused, "The provider refused the connection.")
        }
        TransportError::ConnectTimeout(after) => AttemptError::new(
            Cause::ConnectTimeout,
            format!(
                "No connection to the provider stood within {} ms.",
                after.as_millis()
            ),
        ),
        TransportError::Reset(_) => AttemptError::new(
            Cause::Reset,
            "The provider closed the connection before it answered.",
        ),
        TransportError::Truncated(_) => AttemptError::new(
            Cause::Truncated,
            "The provider's answer ended in the middle.",
        ),
        TransportError::Protocol(_) => AttemptError::new(
            Cause::BadResponse,
            "The provider's answer is not valid HTTP.",
        ),
    }
}
