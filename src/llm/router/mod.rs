//! The router: an alias becomes ordered candidates, each tried under one deadline, until one is known to be good.
//!
//! Candidates one after the other ([`Router::chat`]), attempts at one of them with back-off (`candidate`), one attempt with
//! its breaker, bulkhead and time-outs (`attempt`), and the stream with its commit point (`stream`). What a failure leads to
//! is decided in one table (`policy`), and the cause that the client is told in one function (`verdict`).
//! Nothing is queued, and no task runs for a request: dropping the future, or the stream, ends everything that does. One task reads
//! what a provider sends behind the end of its stream (`endings`), bounded, so that the connection can be used again.

mod attempt;
mod body_drainer;
mod candidate;
mod final_error;
mod policy;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;
use tokio::time::Instant;

use self::candidate::{Call, CandidateState, Next, Provider};
use crate::config::{Config, ModelConfig, ProviderConfig};
use crate::llm::chat::{CallContext, Candidate, ChatRequest, LlmFailure, Served};
use crate::llm::provider::{self, Codec};
use crate::llm::transport::Transport;
use crate::resilience::backoff::Random;
use crate::resilience::breaker::Breaker;
use crate::resilience::deadline::{self, Deadline};
use crate::telemetry::{BreakerState, Metrics};

pub use self::policy::{Blame, Policy, policy};

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
pub struct Router {
    routes: IndexMap<String, Route>,
    breakers: IndexMap<Candidate, Arc<Breaker>>,
    metrics: Arc<Metrics>,
}

/// An alias, ready to be tried.
struct Route {
    model: ModelConfig,
    lanes: Vec<Arc<CandidateState>>,
}

impl Router {
    /// A router over the configured aliases; `transport` makes the way to each provider.
    ///
    /// Candidates whose provider is not configured are left out: `config` refuses them before.
    pub fn new(
        config: &Config,
        transport: impl Fn(&ProviderConfig) -> Arc<dyn Transport>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::with_parts(config, transport, provider::codec, rand::random, metrics)
    }

    /// The same with protocols and randomness (of the back-off's jitter) of the caller's own: a test that can be repeated needs both.
    pub fn with_parts(
        config: &Config,
        transport: impl Fn(&ProviderConfig) -> Arc<dyn Transport>,
        codec: impl Fn(&ProviderConfig) -> Arc<dyn Codec>,
        random: Random,
        metrics: Arc<Metrics>,
    ) -> Self {
        let providers: HashMap<&str, Arc<Provider>> = config
            .providers
            .values()
            .map(|provider| {
                (
                    provider.name.as_str(),
                    Arc::new(Provider::new(
                        provider,
                        codec(provider),
                        transport(provider),
                        config.retry,
                    )),
                )
            })
            .collect();
        let mut breakers: IndexMap<Candidate, Arc<Breaker>> = IndexMap::new();
        let mut routes = IndexMap::new();
        for (alias, model) in &config.models {
            let mut lanes = Vec::with_capacity(model.candidates.len());
            for (position, configured) in model.candidates.iter().enumerate() {
                let Some(provider) = providers.get(configured.provider.as_str()) else {
                    continue;
                };
                let candidate = Candidate {
                    provider: configured.provider.clone(),
                    model: configured.model.clone(),
                };
                let breaker = breakers
                    .entry(candidate.clone())
                    .or_insert_with(|| logged_breaker(config, &candidate));
                let later = model.candidates.len() - 1 - position;
                lanes.push(Arc::new(CandidateState {
                    least_fair_time: configured.timeouts.first_token.min(deadline::share_of(
                        model.total,
                        model.reserve,
                        later,
                    )),
                    provider: Arc::clone(provider),
                    breaker: Arc::clone(breaker),
                    timeouts: configured.timeouts,
                    retry: config.retry,
                    random,
                    later,
                    metrics: Arc::clone(&metrics),
                    candidate,
                }));
            }
            routes.insert(
                alias.clone(),
                Route {
                    model: model.clone(),
                    lanes,
                },
            );
        }
        Self {
            routes,
            breakers,
            metrics,
        }
    }

    /// Serves the request by the first candidate that is known to be good, under one deadline: a stream is handed out
    /// at its commit point, when its first real content has come.
    ///
    /// Cancel safe: dropping the future closes the connection to the provider, and starts nothing new.
    ///
    /// # Errors
    /// See [`RouterError`].
    pub async fn chat(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<Served, RouterError> {
        let Some(route) = self.routes.get(&request.model) else {
            return Err(RouterError::UnknownModel(request.model));
        };
        let Deadline {
            at: deadline,
            set_by,
        } = deadline::request_deadline(context.arrived, route.model.total, context.deadline);
        let call = Call {
            request: &request,
            context: &context,
            deadline,
            set_by,
        };
        let mut attempts = Vec::new();
        for (position, lane) in route.lanes.iter().enumerate() {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            if position > 0 {
                self.metrics.fallback(&route.model.alias);
            }
            let ends = deadline::candidate_deadline(
                now,
                deadline,
                route.model.reserve,
                route.lanes.len() - 1 - position,
            );
            match lane.serve(&call, ends, &mut attempts).await {
                Ok(answer) => {
                    return Ok(Served {
                        answer,
                        by: lane.candidate.clone(),
                        attempts,
                    });
                }
                Err(Next::Candidate) => {}
                Err(Next::Nobody) => break,
            }
        }
        Err(RouterError::Failed(final_error::failure(attempts)))
    }

    /// The configured aliases, in their order.
    pub fn aliases(&self) -> Vec<String> {
        self.routes.keys().cloned().collect()
    }

    /// Every candidate with its breaker's state.
    pub fn health(&self) -> Vec<CandidateHealth> {
        self.breakers
            .iter()
            .map(|(candidate, breaker)| CandidateHealth {
                candidate: candidate.clone(),
                breaker: breaker.state(),
            })
            .collect()
    }
}

fn logged_breaker(config: &Config, candidate: &Candidate) -> Arc<Breaker> {
    let candidate = candidate.clone();
    Breaker::new(
        config.breaker,
        Box::new(move |state| {
            tracing::info!(
                provider = candidate.provider,
                model = candidate.model,
                ?state,
                "breaker"
            )
        }),
    )
}
