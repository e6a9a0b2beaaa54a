//! The router: an alias becomes ordered candidates, each tried under one deadline, until one is known to be good.

use std::sync::Arc;

use crate::config::{Config, ProviderConfig};
use crate::llm::chat::{CallContext, Candidate, ChatRequest, LlmFailure, Served};
use crate::llm::transport::Transport;
use crate::telemetry::{BreakerState, Metrics};

/// Why the router gives no answer.
#[derive(Debug)]
pub enum RouterError {
    /// No alias of that name is configured.
    UnknownModel(String),
    /// Every candidate failed.
    Failed(LlmFailure),
}

/// One candidate's breaker, for health.
#[derive(Clone, Debug)]
pub struct CandidateHealth {
    /// Whose.
    pub candidate: Candidate,
    /// Its breaker.
    pub breaker: BreakerState,
}

/// Routes chat requests. Shared by all requests.
pub struct Router {}

impl Router {
    /// A router over the configured aliases; `transport` makes the way to each provider.
    pub fn new(_config: &Config, _transport: impl Fn(&ProviderConfig) -> Arc<dyn Transport>, _metrics: Arc<Metrics>) -> Self {
        Self {}
    }

    /// Serves the request by the first candidate that is known to be good, under one deadline.
    ///
    /// Cancel safe: dropping the future closes the connection to the provider, and starts nothing new.
    ///
    /// # Errors
    /// See [`RouterError`].
    pub async fn chat(&self, request: ChatRequest, _context: CallContext) -> Result<Served, RouterError> {
        Err(RouterError::UnknownModel(request.model))
    }

    /// The configured aliases, in their order.
    pub fn aliases(&self) -> Vec<String> {
        Vec::new()
    }

    /// Every candidate with its breaker's state.
    pub fn health(&self) -> Vec<CandidateHealth> {
        Vec::new()
    }
}
