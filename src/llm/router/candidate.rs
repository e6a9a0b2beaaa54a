//! One candidate: attempts at it, with back-off between them, until it serves, or the next one is due.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt;
use super::body_drainer::BodyDrainer;
use super::policy::{policy, was_sent};
use crate::config::{ProviderConfig, Retry, Timeouts};
use crate::llm::chat::{Answer, Attempt, AttemptError, CallContext, Candidate, ChatRequest};
use crate::llm::provider::Codec;
use crate::llm::transport::Transport;
use crate::resilience::backoff::{Backoff, Random};
use crate::resilience::breaker::Breaker;
use crate::resilience::bulkhead::Bulkhead;
use crate::resilience::deadline::SetBy;
use crate::resilience::retry_budget::RetryBudget;
use crate::telemetry::Metrics;

/// What all candidates at one provider share.
pub(super) struct Provider {
    pub(super) codec: Arc<dyn Codec>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) bulkhead: Bulkhead,
    pub(super) endings: BodyDrainer,
    budget: RetryBudget,
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
            endings: BodyDrainer::default(),
            budget: RetryBudget::new(retry.budget_ratio, retry.budget_floor),
        }
    }
}

/// A candidate of one alias, with all that guards it.
pub(super) struct CandidateState {
    pub(super) candidate: Candidate,
    pub(super) provider: Arc<Provider>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Retry,
    pub(super) random: Random,
    /// Candidates behind this one.
    pub(super) later: usize,
    /// An attempt that had less than this when the configured deadline came says nothing about the provider.
    pub(super) least_fair_time: Duration,
    pub(super) metrics: Arc<Metrics>,
}

/// One request on its way.
pub(super) struct Call<'a> {
    pub(super) request: &'a ChatRequest,
    pub(super) context: &'a CallContext,
    pub(super) deadline: Instant,
    pub(super) set_by: SetBy,
}

/// Who is asked after this candidate has failed.
pub(super) enum Next {
    /// The next candidate.
    Candidate,
    /// Nobody: the request itself was refused.
    Nobody,
}

/// Whether an attempt is the request's first at this candidate, or one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The first: adds to the provider's retry budget.
    First,
    /// A retry: the budget has been asked for it.
    Again,
}

impl CandidateState {
    /// Asks this candidate until it serves, has used up its attempts or its time, or cannot be asked. Lists each attempt.
    pub(super) async fn serve(
        self: &Arc<Self>,
        call: &Call<'_>,
        ends: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Result<Answer, Next> {
        let upstream =
            match self
                .provider
                .codec
                .encode(call.request, &self.candidate.model, call.context)
            {
                Ok(upstream) => upstream,
                Err(error) => return Err(self.list(call, error, attempts)),
            };
        let mut backoff = Backoff::new(
            self.retry.base,
            self.retry.max,
            self.retry.jitter,
            self.random,
        );
        let mut next = Next::Candidate;
        for tried in 0..self.retry.max_attempts.max(1) {
            let turn = if tried == 0 { Turn::First } else { Turn::Again };
            let error = match attempt::attempt(self, call, &upstream, ends, turn).await {
                Ok(answer) => {
                    attempts.push(Attempt {
                        candidate: self.candidate.clone(),
                        error: None,
                    });
                    return Ok(answer);
                }
                // the breaker has opened, or the queue has filled, since the last attempt: what the provider said then stands
                Err(refused) if turn == Turn::Again && !was_sent(refused.cause) => break,
                Err(error) => error,
            };
            let (may_retry, asked) = (
                policy(error.cause).retry && tried + 1 < self.retry.max_attempts,
                error.retry_after,
            );
            next = self.list(call, error, attempts);
            // another candidate serves sooner than one that wants to be left alone for so long
            let too_long = self.later > 0 && asked.is_some_and(|asked| asked > self.retry.max);
            if !may_retry || too_long || !self.wait_to_retry(backoff.next_wait(asked), ends).await {
                break;
            }
        }
        Err(next)
    }

    /// Waits before a retry. False, and at once, where the retry would come too late, to an open breaker, or beyond the budget.
    async fn wait_to_retry(&self, wait: Duration, ends: Instant) -> bool {
        let fits = wait < ends.saturating_duration_since(Instant::now());
        let will_pass = self
            .breaker
            .check()
            .err()
            .is_none_or(|refused| refused.retry_after <= wait);
        if !fits || !will_pass || !self.provider.budget.try_take() {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }

    fn list(&self, call: &Call<'_>, error: AttemptError, attempts: &mut Vec<Attempt>) -> Next {
        let next = if policy(error.cause).fall_back {
            Next::Candidate
        } else {
            Next::Nobody
        };
        tracing::info!(
            request_id = call.context.request_id,
            provider = self.candidate.provider,
            model = self.candidate.model,
            cause = ?error.cause,
            status = error.status,
            retry_after_ms = error.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            "attempt failed"
        );
        self.metrics.attempt(&self.candidate, Some(error.cause));
        attempts.push(Attempt {
            candidate: self.candidate.clone(),
            error: Some(error),
        });
        next
    }

    /// An attempt has been let through: it is about to be sent.
    pub(super) fn starts(&self, turn: Turn) {
        match turn {
            Turn::First => self.provider.budget.request(),
            Turn::Again => self.metrics.retry(&self.candidate),
        }
    }
}
