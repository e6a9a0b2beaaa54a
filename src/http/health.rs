//! Whether the process lives, whether it can take work, and what each dependency does. All dependencies are probed together,
//! each with its own time-out; the result of a probe is told again for a moment, so that a storm of health calls costs each
//! dependency a bounded number of probes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use http::StatusCode;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::state::AppState;
use crate::config::{Config, ProviderConfig};
use crate::llm::provider::probe::ProviderProbe;
use crate::store::StoreHealth;

/// Every dependency with its probe.
pub struct Health {
    store: Probe,
    providers: Vec<Probe>,
}

/// What a probe found.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Finding {
    /// `store`, or the provider's name.
    name: String,
    /// `postgres`, `sqlite`, `openai`, `ollama`.
    kind: &'static str,
    /// Whether it answered.
    up: bool,
    /// Until it answered, or was given up.
    latency_ms: u64,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One candidate's breaker.
#[derive(Serialize, ToSchema)]
struct BreakerEntry {
    provider: String,
    model: String,
    #[schema(value_type = String)]
    state: crate::resilience::breaker::BreakerState,
}

/// The detailed health document.
#[derive(Serialize, ToSchema)]
pub(super) struct Report {
    /// `ok`; `degraded`: some provider is down or a breaker is not closed; `unavailable`: no work is taken, or none can be recorded.
    status: &'static str,
    /// The gateway's version.
    version: &'static str,
    /// Whether it is shutting down.
    draining: bool,
    /// Requests in flight.
    in_flight: u64,
    /// The store first, then the providers in their order.
    dependencies: Vec<Finding>,
    /// Every candidate's breaker.
    breakers: Vec<BreakerEntry>,
}

/// The short documents.
#[derive(Serialize, ToSchema)]
pub(super) struct Brief {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The process lives: always 200.
#[utoipa::path(get, path = "/health/live", tag = "operation", responses((status = 200, body = Brief)))]
pub(super) async fn live() -> Response {
    Json(Brief {
        status: "live",
        reason: None,
    })
    .into_response()
}

/// Whether work is taken: 503 while draining or without the store.
#[utoipa::path(get, path = "/health/ready", tag = "operation", responses((status = 200, body = Brief), (status = 503, body = Brief)))]
pub(super) async fn ready(State(app): State<AppState>) -> Response {
    let reason = if app.shutdown.is_draining() {
        Some("shutting down".to_owned())
    } else {
        let store = app.health.store.look().await;
        store.error.map(|error| format!("store: {error}"))
    };
    match reason {
        None => Json(Brief {
            status: "ready",
            reason: None,
        })
        .into_response(),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(Brief {
                status: "not_ready",
                reason: Some(reason),
            }),
        )
            .into_response(),
    }
}

/// What each dependency does; 503 if no work is taken or none can be recorded.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, body = Report), (status = 503, body = Report)))]
pub(super) async fn all(State(app): State<AppState>) -> Response {
    let dependencies = join_all(
        std::iter::once(&app.health.store)
            .chain(&app.health.providers)
            .map(Probe::look),
    )
    .await;
    let breakers: Vec<_> = app
        .router
        .health()
        .into_iter()
        .map(|candidate| BreakerEntry {
            provider: candidate.candidate.provider,
            model: candidate.candidate.model,
            state: candidate.breaker,
        })
        .collect();
    let draining = app.shutdown.is_draining();
    let store_up = dependencies.first().is_some_and(|store| store.up);
    let whole = dependencies.iter().all(|dependency| dependency.up)
        && breakers
            .iter()
            .all(|entry| entry.state == crate::resilience::breaker::BreakerState::Closed);
    let status = if draining || !store_up {
        "unavailable"
    } else if whole {
        "ok"
    } else {
        "degraded"
    };
    let code = if status == "unavailable" {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let report = Report {
        status,
        version: env!("CARGO_PKG_VERSION"),
        draining,
        in_flight: app.admission.in_flight(),
        dependencies,
        breakers,
    };
    (code, Json(report)).into_response()
}

impl Health {
    /// The probes of the store and of every provider.
    pub(super) fn new(config: &Config, store: Arc<dyn StoreHealth>) -> Self {
        let (bound, fresh) = (config.server.health_timeout, config.server.health_cache);
        let kind = store.kind();
        let ping = move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|error| store_reason(&error)) }.boxed()
        };
        let providers = config
            .providers
            .values()
            .map(|provider| {
                Probe::new(
                    provider.name.clone(),
                    provider.protocol,
                    bound,
                    fresh,
                    provider_probe(provider),
                )
            })
            .collect();
        Self {
            store: Probe::new("store".into(), kind, bound, fresh, ping),
            providers,
        }
    }
}

/// One dependency: at most one probe of it is under way, and its result is told again while it is fresh.
struct Probe {
    name: String,
    kind: &'static str,
    bound: Duration,
    fresh: Duration,
    ask: Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    last: Mutex<Option<(Instant, Shared<BoxFuture<'static, Finding>>)>>,
}

impl Probe {
    fn new(
        name: String,
        kind: &'static str,
        bound: Duration,
        fresh: Duration,
        ask: impl Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            kind,
            bound,
            fresh,
            ask: Box::new(ask),
            last: Mutex::new(None),
        }
    }

    /// The fresh result, or that of the probe under way, or that of a new one. Cancel safe: a probe is a task, so that it ends, and gives
    /// back what it holds, even when everybody who waited for it has left.
    async fn look(&self) -> Finding {
        let finding = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some((started, finding))
                    if started.elapsed()
                        < self.fresh.max(if finding.peek().is_none() {
                            self.bound
                        } else {
                            Duration::ZERO
                        }) =>
                {
                    finding.clone()
                }
                _ => {
                    let finding = self.start();
                    *last = Some((Instant::now(), finding.clone()));
                    finding
                }
            }
        };
        finding.await
    }

    fn start(&self) -> Shared<BoxFuture<'static, Finding>> {
        let (name, kind, bound, asked) = (self.name.clone(), self.kind, self.bound, (self.ask)());
        let lost = Finding {
            name: name.clone(),
            kind,
            up: false,
            latency_ms: 0,
            error: Some("its probe failed".into()),
        };
        let probing = tokio::spawn(async move {
            let started = Instant::now();
            let error = match timeout(bound, asked).await {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(reason),
                Err(_) => Some(format!("no answer within {} ms", bound.as_millis())),
            };
            let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Finding {
                name,
                kind,
                up: error.is_none(),
                latency_ms,
                error,
            }
        });
        async move { probing.await.unwrap_or(lost) }
            .boxed()
            .shared()
    }
}

/// The probe of a provider, as its protocol prescribes.
fn provider_probe(
    provider: &ProviderConfig,
) -> impl Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static {
    let probe = ProviderProbe::new(provider);
    move || {
        let probe = probe.clone();
        async move { probe?.check().await }.boxed()
    }
}

/// The kind of trouble; the database's own words are for the log.
fn store_reason(error: &crate::store::StoreError) -> String {
    use crate::store::StoreError as E;
    match error {
        E::Unavailable(_) => "it cannot be reached",
        E::PoolExhausted(_) => "no connection became free in time",
        E::Timeout(_) => "it did not answer in time",
        E::NotWritable(_) => "it takes no writes",
        E::Rejected(_) | E::Failed(_) => "it failed",
    }
    .to_owned()
}
