//! The router: a model alias names ordered candidates, and each is tried under one deadline until
//! one of them is known to be good.
//!
//! [`Router::chat`] asks the candidates one after the other, `candidate` makes the attempts at one
//! of them with backoff, `attempt` guards one attempt by breaker, bulkhead and timeouts, and
//! `stream` holds the commit point. [`Cause::policy`] decides what follows from a failure, and
//! `final_error` decides which cause the client receives.
//!
//! The router queues nothing and spawns no task for a request: dropping the future, or the stream,
//! ends everything that runs for it. One bounded task per body reads what a provider sends behind
//! the end of its stream (`body_drainer`), so that the connection can be used again.

mod attempt;
mod body_drainer;
mod candidate;
mod final_error;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;
use tokio::time::Instant;
use tracing::Instrument;

use self::candidate::{Call, CandidateState, Next, Provider};
use crate::config::{Config, ModelConfig, ProviderConfig};
use crate::llm::cause::Cause;
use crate::llm::chat::{CallContext, Candidate, ChatRequest, LlmFailure, Served};
use crate::llm::provider::{self, Codec};
use crate::llm::transport::Transport;
use crate::resilience::backoff::Random;
use crate::resilience::breaker::{Breaker, BreakerSettings, BreakerState};
use crate::resilience::deadline::{self, Deadline};
use crate::telemetry::{AliasMetrics, CandidateMetrics, Metrics};

/// Why the router gives no answer.
#[derive(Debug)]
pub enum RouterError {
    /// No model alias of this name is configured.
    UnknownModel(String),
    /// Every candidate of the alias failed.
    Failed(LlmFailure),
}

/// The breaker state of one candidate, for the health document.
#[derive(Clone, Debug)]
pub struct CandidateHealth {
    /// The candidate that the breaker guards.
    pub candidate: Candidate,
    /// The state in which the next attempt would find the breaker.
    pub breaker: BreakerState,
}

/// Routes chat requests to providers. All requests of a gateway share one router.
pub struct Router {
    routes: IndexMap<String, Route>,
    guards: IndexMap<Candidate, Guard>,
}

/// A model alias, ready to be tried.
struct Route {
    model: ModelConfig,
    candidates: Vec<Arc<CandidateState>>,
    metrics: AliasMetrics,
}

/// What all aliases with the same candidate share.
struct Guard {
    breaker: Arc<Breaker>,
    metrics: CandidateMetrics,
}

impl Router {
    /// Creates a router over the configured aliases; `transport` makes the transport to a provider.
    ///
    /// A candidate whose provider is not configured is left out. The configuration refuses such a
    /// candidate before.
    pub fn new(
        config: &Config,
        transport: impl Fn(&ProviderConfig) -> Arc<dyn Transport>,
        metrics: &Metrics,
    ) -> Self {
        Self::with_parts(config, transport, provider::codec, rand::random, metrics)
    }

    /// Creates a router with the caller's own codecs and source of jitter, so that a test can be
    /// repeated exactly.
    pub fn with_parts(
        config: &Config,
        transport: impl Fn(&ProviderConfig) -> Arc<dyn Transport>,
        codec: impl Fn(&ProviderConfig) -> Arc<dyn Codec>,
        random: Random,
        metrics: &Metrics,
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
        let mut guards: IndexMap<Candidate, Guard> = IndexMap::new();
        let mut routes = IndexMap::new();
        for (alias, model) in &config.models {
            let mut candidates = Vec::with_capacity(model.candidates.len());
            for (position, configured) in model.candidates.iter().enumerate() {
                let Some(provider) = providers.get(configured.provider.as_str()) else {
                    continue;
                };
                let id = Candidate {
                    provider: configured.provider.as_str().into(),
                    model: configured.model.as_str().into(),
                };
                let guard = guards
                    .entry(id.clone())
                    .or_insert_with(|| Guard::new(config, &id, metrics));
                let later = model.candidates.len() - 1 - position;
                candidates.push(Arc::new(CandidateState {
                    min_fair_time: configured.timeouts.first_token.min(deadline::share_of(
                        model.total,
                        model.reserve,
                        later,
                    )),
                    provider: Arc::clone(provider),
                    breaker: Arc::clone(&guard.breaker),
                    timeouts: configured.timeouts,
                    retry: config.retry,
                    random,
                    later,
                    metrics: guard.metrics.clone(),
                    id,
                }));
            }
            let route = Route {
                model: model.clone(),
                candidates,
                metrics: metrics.alias(alias),
            };
            routes.insert(alias.clone(), route);
        }
        Self { routes, guards }
    }

    /// Serves the request by the first candidate that is known to be good, under one deadline. A
    /// stream is returned at its commit point, when its first real content has arrived.
    ///
    /// Cancel safe: dropping the future closes the connection to the provider and starts nothing.
    ///
    /// # Errors
    /// [`RouterError::UnknownModel`] if no such alias is configured, and [`RouterError::Failed`] if
    /// no candidate served the request before the deadline.
    pub async fn chat(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<Served, RouterError> {
        let Some(route) = self.routes.get(&request.model) else {
            return Err(RouterError::UnknownModel(request.model));
        };
        let span = tracing::info_span!(
            "request",
            request_id = context.request_id,
            model = request.model
        );
        route.serve(&request, &context).instrument(span).await
    }

    /// The configured model aliases, in their order.
    pub fn aliases(&self) -> Vec<String> {
        self.routes.keys().cloned().collect()
    }

    /// Every candidate with the state of its breaker.
    pub fn health(&self) -> Vec<CandidateHealth> {
        self.guards
            .iter()
            .map(|(candidate, guard)| CandidateHealth {
                candidate: candidate.clone(),
                breaker: guard.breaker.state(),
            })
            .collect()
    }

    /// Writes the state of every breaker to the metrics. A breaker becomes half-open by time alone,
    /// so this is called before each scrape.
    pub fn update_metrics(&self) {
        for guard in self.guards.values() {
            guard.metrics.breaker(guard.breaker.state().level());
        }
    }
}

impl Route {
    async fn serve(
        &self,
        request: &ChatRequest,
        context: &CallContext,
    ) -> Result<Served, RouterError> {
        let Deadline {
            at: deadline,
            set_by,
        } = deadline::request_deadline(context.arrived, self.model.total, context.deadline);
        let call = Call {
            request,
            context,
            deadline,
            set_by,
        };
        let mut attempts = Vec::new();
        for (position, candidate) in self.candidates.iter().enumerate() {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            if position > 0 {
                self.metrics.fell_back();
            }
            let ends = deadline::candidate_deadline(
                now,
                deadline,
                self.model.reserve,
                self.candidates.len() - 1 - position,
            );
            match candidate.serve(&call, ends, &mut attempts).await {
                Ok(answer) => {
                    return Ok(Served {
                        answer,
                        by: candidate.id.clone(),
                        attempts,
                    });
                }
                Err(Next::Candidate) => {}
                Err(Next::Nobody) => break,
            }
        }
        Err(RouterError::Failed(final_error::failure(attempts)))
    }
}

impl Guard {
    fn new(config: &Config, candidate: &Candidate, metrics: &Metrics) -> Self {
        let metrics = metrics.candidate(
            Arc::clone(&candidate.provider),
            Arc::clone(&candidate.model),
        );
        for cause in Cause::ALL.iter().filter(|cause| cause.is_timeout()) {
            metrics.register_timeout(cause.name());
        }
        metrics.register_not_sent(Cause::BreakerOpen.name());
        let candidate = candidate.clone();
        let settings = BreakerSettings {
            failure_rate: config.breaker.failure_rate,
            window: config.breaker.window,
            minimum_attempts: config.breaker.minimum_attempts,
            failure_threshold: config.breaker.failure_threshold,
            cool_down: config.breaker.cool_down,
            cool_down_max: config.breaker.cool_down_max,
            half_open_probes: config.breaker.half_open_probes,
            open_share: config.breaker.open_share,
        };
        let breaker = Breaker::new(
            settings,
            Box::new(move |state| {
                tracing::info!(
                    provider = &*candidate.provider,
                    model = &*candidate.model,
                    state = state.name(),
                    "breaker changed its state"
                )
            }),
        );
        Self { breaker, metrics }
    }
}
