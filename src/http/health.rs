//! `/health`: whether the process lives, whether it can take work, and the state of each
//! dependency. All dependencies are probed at the same time, each with a timeout. The result of a
//! probe is reused for `server.health_cache_ms`, so that many health calls cost each dependency one
//! probe.

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

use crate::config::{Config, ProviderConfig};
use crate::llm::provider::probe::ProviderProbe;
use crate::llm::router::Router;
use crate::resilience::breaker::BreakerState;
use crate::server::Ingress;
use crate::store::{StoreError, StoreHealth};

/// The probes of every dependency, and what else the health documents show. Clones share the
/// probes.
#[derive(Clone)]
pub(super) struct Health {
    store: Arc<Probe>,
    providers: Arc<[Probe]>,
    router: Arc<Router>,
    ingress: Ingress,
}

/// The state of one dependency.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Finding {
    /// `store`, or the provider's name.
    name: String,
    /// The kind of the store (`postgres`, `sqlite`), or the protocol of the provider.
    kind: &'static str,
    /// Whether the dependency answered the probe.
    up: bool,
    /// The time until the probe was answered or timed out, in milliseconds.
    latency_ms: u64,
    /// Why the dependency is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What the dependency does not do although it is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// The breaker of one candidate.
#[derive(Serialize, ToSchema)]
struct BreakerEntry {
    /// The provider's configured name.
    provider: String,
    /// The model's name at the provider.
    model: String,
    /// `closed`, `open` or `half_open`.
    #[schema(value_type = String)]
    state: BreakerState,
}

/// The detailed health document.
#[derive(Serialize, ToSchema)]
pub(super) struct Report {
    /// `ok`; `degraded` where a provider is down or a breaker is not closed; `unavailable` where
    /// the gateway takes no work or cannot record any.
    status: &'static str,
    /// The gateway's version.
    version: &'static str,
    /// Whether the gateway is shutting down.
    draining: bool,
    /// The number of requests in flight.
    in_flight: u64,
    /// The store, then the providers in the order of the configuration.
    dependencies: Vec<Finding>,
    /// The breaker of every candidate.
    breakers: Vec<BreakerEntry>,
}

/// The short health document.
#[derive(Serialize, ToSchema)]
pub(super) struct Brief {
    /// `live`, `ready` or `not_ready`.
    status: &'static str,
    /// Why the gateway is not ready, or what it cannot do although it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Answers while the process lives.
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "getLiveness",
    tag = "operation",
    responses((status = 200, description = "The process lives.", body = Brief))
)]
pub(super) async fn live() -> Response {
    Json(Brief {
        status: "live",
        reason: None,
    })
    .into_response()
}

/// Answers whether the gateway takes work.
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "getReadiness",
    tag = "operation",
    responses(
        (status = 200, description = "The gateway takes work.", body = Brief),
        (
            status = 503,
            description = "The gateway takes no work: it is shutting down, or its database is \
                           unavailable.",
            body = Brief
        ),
    )
)]
pub(super) async fn ready(State(health): State<Health>) -> Response {
    let (is_ready, reason) = if health.ingress.shutdown.is_draining() {
        (false, Some("shutting down".to_owned()))
    } else {
        // A store that takes no writes serves chats, searches and queries, which say that they are
        // not recorded: the gateway stays ready, and the reason shows it.
        let store = health.store.look().await;
        let reason = store.error.or(store.warning);
        (store.up, reason.map(|reason| format!("store: {reason}")))
    };
    let (code, status) = if is_ready {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    };
    (code, Json(Brief { status, reason })).into_response()
}

/// Returns the state of the gateway and of each dependency.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "getHealth",
    tag = "operation",
    responses(
        (status = 200, description = "The gateway takes work and can record it.", body = Report),
        (
            status = 503,
            description = "The gateway takes no work, or cannot record any.",
            body = Report
        ),
    )
)]
pub(super) async fn all(State(health): State<Health>) -> Response {
    let probes = std::iter::once(&*health.store).chain(&*health.providers);
    let dependencies = join_all(probes.map(Probe::look)).await;
    let breakers: Vec<_> = health
        .router
        .health()
        .into_iter()
        .map(|known| BreakerEntry {
            provider: known.candidate.provider.to_string(),
            model: known.candidate.model.to_string(),
            state: known.breaker,
        })
        .collect();
    let draining = health.ingress.shutdown.is_draining();
    let store_up = dependencies.first().is_some_and(|store| store.up);
    let all_up = dependencies
        .iter()
        .all(|dependency| dependency.up && dependency.warning.is_none());
    let all_closed = breakers
        .iter()
        .all(|entry| entry.state == BreakerState::Closed);
    let (code, status) = match () {
        () if draining || !store_up => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        () if all_up && all_closed => (StatusCode::OK, "ok"),
        () => (StatusCode::OK, "degraded"),
    };
    let report = Report {
        status,
        version: env!("CARGO_PKG_VERSION"),
        draining,
        in_flight: health.ingress.admission.in_flight(),
        dependencies,
        breakers,
    };
    (code, Json(report)).into_response()
}

impl Health {
    /// Makes the probes of the store and of every provider.
    pub(super) fn new(
        config: &Config,
        store: Arc<dyn StoreHealth>,
        router: Arc<Router>,
        ingress: Ingress,
    ) -> Self {
        let (bound, fresh) = (config.server.health_timeout, config.server.health_cache);
        let kind = store.kind();
        let ping = move || {
            let store = store.clone();
            async move {
                match store.ping().await {
                    Ok(()) => Ok(None),
                    Err(error @ StoreError::NotWritable(_)) => Ok(Some(store_reason(&error))),
                    Err(error) => Err(store_reason(&error)),
                }
            }
            .boxed()
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
            store: Arc::new(Probe::new("store".into(), kind, bound, fresh, ping)),
            providers,
            router,
            ingress,
        }
    }
}

/// The answer of a dependency. What it does not do although it answers is a warning.
type Asked = BoxFuture<'static, Result<Option<String>, String>>;

/// Probes one dependency. At most one probe is under way at a time, and its result is reused while
/// it is fresh.
struct Probe {
    name: String,
    kind: &'static str,
    bound: Duration,
    fresh: Duration,
    ask: Box<dyn Fn() -> Asked + Send + Sync>,
    last: Mutex<Option<(Instant, Shared<BoxFuture<'static, Finding>>)>>,
}

impl Probe {
    fn new(
        name: String,
        kind: &'static str,
        bound: Duration,
        fresh: Duration,
        ask: impl Fn() -> Asked + Send + Sync + 'static,
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

    /// Returns the fresh result, or waits for the probe under way, or for a new one.
    ///
    /// Cancel safe: a probe is a task of its own. It ends, and releases its connection, even when
    /// every caller that waited for it was dropped.
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
        let failed = Finding {
            name: name.clone(),
            kind,
            up: false,
            latency_ms: 0,
            error: Some("the probe failed: this is a bug".into()),
            warning: None,
        };
        let probing = tokio::spawn(async move {
            let started = Instant::now();
            let (error, warning) = match timeout(bound, asked).await {
                Ok(Ok(warning)) => (None, warning),
                Ok(Err(reason)) => (Some(reason), None),
                Err(_) => (
                    Some(format!("no answer within {} ms", bound.as_millis())),
                    None,
                ),
            };
            let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Finding {
                name,
                kind,
                up: error.is_none(),
                latency_ms,
                error,
                warning,
            }
        });
        async move { probing.await.unwrap_or(failed) }
            .boxed()
            .shared()
    }
}

/// The probe of a provider, as its protocol prescribes.
fn provider_probe(provider: &ProviderConfig) -> impl Fn() -> Asked + Send + Sync + 'static {
    let probe = ProviderProbe::new(provider);
    move || {
        let probe = probe.clone();
        async move { probe?.check().await.map(|()| None) }.boxed()
    }
}

/// Why the store is not up, in words of ours: the database's own are for the log.
fn store_reason(error: &StoreError) -> String {
    use crate::store::StoreError as E;
    match error {
        E::Unavailable(_) => "it cannot be reached",
        E::PoolExhausted(_) => "no connection became free in time",
        E::Timeout(_) => "it gave no answer in time",
        E::NotWritable(_) => "it takes no writes",
        E::Rejected(_) | E::Failed(_) => "it failed",
    }
    .to_owned()
}
