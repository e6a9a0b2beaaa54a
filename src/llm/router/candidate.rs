//! One candidate: attempts at it, with backoff between them, until it serves the request or the
//! router continues with the next candidate.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::attempt;
use super::body_drainer::BodyDrainer;
use crate::config::{ProviderConfig, Retry, Timeouts};
use crate::llm::cause::Cause;
use crate::llm::chat::{Answer, Attempt, AttemptError, CallContext, Candidate, ChatRequest};
use crate::llm::provider::Codec;
use crate::llm::transport::Transport;
use crate::resilience::backoff::{Backoff, Random};
use crate::resilience::breaker::Breaker;
use crate::resilience::bulkhead::Bulkhead;
use crate::resilience::deadline::SetBy;
use crate::resilience::retry_budget::RetryBudget;
use crate::telemetry::CandidateMetrics;

/// What all candidates at one provider share.
pub(super) struct Provider {
    pub(super) codec: Arc<dyn Codec>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) bulkhead: Bulkhead,
    pub(super) body_drainer: BodyDrainer,
    retry_budget: RetryBudget,
}

impl Provider {
    pub(super) fn new(
        config: &ProviderConfig,
        codec: Arc<dyn Codec>,
        transport: Arc<dyn Transport>,
        retry: Retry,
    ) -> Self {
        Self {
            codec,
            transport,
            bulkhead: Bulkhead::new(config.max_in_flight, config.queue),
            body_drainer: BodyDrainer::default(),
            retry_budget: RetryBudget::new(retry.budget_ratio, retry.budget_floor),
        }
    }
}

/// A candidate of one alias, with the mechanisms that guard it.
pub(super) struct CandidateState {
    pub(super) id: Candidate,
    pub(super) provider: Arc<Provider>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Retry,
    pub(super) random: Random,
    /// The number of candidates that follow this one in the alias.
    pub(super) later: usize,
    /// The time that makes the end of the configured deadline the provider's failure: an attempt
    /// that had less time proves nothing about the provider.
    pub(super) min_fair_time: Duration,
    pub(super) metrics: CandidateMetrics,
}

/// One request on its way through the router.
pub(super) struct Call<'a> {
    pub(super) request: &'a ChatRequest,
    pub(super) context: &'a CallContext,
    pub(super) deadline: Instant,
    pub(super) set_by: SetBy,
}

/// What the router does after a candidate has failed.
pub(super) enum Next {
    /// The router asks the next candidate.
    Candidate,
    /// The router asks nobody else, because the provider refused the request itself.
    Nobody,
}

/// Whether an attempt is the request's first at this candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptKind {
    /// The first attempt. It adds to the provider's retry budget.
    Initial,
    /// A retry. The retry budget has permitted it.
    Retry,
}

impl CandidateState {
    /// Makes attempts at this candidate until it serves the request, has used up its attempts or
    /// its time, or refuses. Appends each attempt to `attempts`.
    ///
    /// Cancel safe: dropping the future ends the attempt that is under way and starts none.
    pub(super) async fn serve(
        self: &Arc<Self>,
        call: &Call<'_>,
        ends: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Result<Answer, Next> {
        let upstream = match self
            .provider
            .codec
            .encode(call.request, &self.id.model, call.context)
        {
            Ok(upstream) => upstream,
            Err(error) => {
                let span = self.span(attempts);
                return Err(span.in_scope(|| self.record_failure(error, attempts)));
            }
        };
        let mut backoff = Backoff::new(
            self.retry.base,
            self.retry.max,
            self.retry.jitter,
            self.random,
        );
        let mut next = Next::Candidate;
        for tried in 0..self.retry.max_attempts.max(1) {
            let kind = if tried == 0 {
                AttemptKind::Initial
            } else {
                AttemptKind::Retry
            };
            let span = self.span(attempts);
            let result = attempt::attempt(self, call, &upstream, ends, kind)
                .instrument(span.clone())
                .await;
            let error = match result {
                Ok(answer) => {
                    attempts.push(Attempt {
                        candidate: self.id.clone(),
                        error: None,
                    });
                    return Ok(answer);
                }
                // Since the last attempt the breaker has opened or the queue has filled: the
                // failure that the provider reported stands.
                Err(error) if kind == AttemptKind::Retry && !error.cause.was_sent() => break,
                Err(error) => error,
            };
            let may_retry = error.cause.policy().retry
                && !error.no_retry
                && tried + 1 < self.retry.max_attempts;
            let retry_after = error.retry_after;
            next = span.in_scope(|| self.record_failure(error, attempts));
            // Another candidate answers sooner than one that asks for a longer wait than the
            // longest backoff.
            let too_long = self.later > 0 && retry_after.is_some_and(|wait| wait > self.retry.max);
            if !may_retry || too_long {
                break;
            }
            if !self
                .wait_to_retry(backoff.next_wait(retry_after), ends)
                .await
            {
                break;
            }
        }
        Err(next)
    }

    /// Waits before a retry. Returns false at once if the retry would come after the candidate's
    /// share of the deadline, while the breaker is open, or beyond the retry budget.
    async fn wait_to_retry(&self, wait: Duration, ends: Instant) -> bool {
        let fits = wait < ends.saturating_duration_since(Instant::now());
        let will_pass = self
            .breaker
            .check()
            .err()
            .is_none_or(|refused| refused.retry_after <= wait);
        if !fits || !will_pass || !self.provider.retry_budget.try_take() {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }

    /// The span of the next attempt. `attempt` counts the attempts of the request from 1.
    fn span(&self, attempts: &[Attempt]) -> tracing::Span {
        tracing::info_span!(
            "attempt",
            provider = &*self.id.provider,
            model = &*self.id.model,
            attempt = attempts.len() + 1,
        )
    }

    fn record_failure(&self, error: AttemptError, attempts: &mut Vec<Attempt>) -> Next {
        let next = if error.cause.policy().fall_back {
            Next::Candidate
        } else {
            Next::Nobody
        };
        tracing::info!(
            cause = error.cause.name(),
            status = error.status,
            retry_after_ms = error
                .retry_after
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            "attempt failed"
        );
        self.count_failure(error.cause);
        attempts.push(Attempt {
            candidate: self.id.clone(),
            error: Some(error),
        });
        next
    }

    /// Counts a failed attempt in the metrics: as refused if nothing was sent.
    pub(super) fn count_failure(&self, cause: Cause) {
        if !cause.was_sent() {
            return self.metrics.not_sent(cause.name());
        }
        self.metrics.failed(cause.name());
        if cause.is_timeout() {
            self.metrics.timed_out(cause.name());
        }
    }

    /// Records that an attempt is about to be sent.
    pub(super) fn record_start(&self, kind: AttemptKind) {
        match kind {
            AttemptKind::Initial => self.provider.retry_budget.request(),
            AttemptKind::Retry => self.metrics.retried(),
        }
    }
}
