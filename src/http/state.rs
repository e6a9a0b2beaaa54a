//! What the handlers share.

use std::sync::Arc;

use axum::extract::FromRef;

use super::health::Health;
use crate::config::Config;
use crate::llm::router::Router;
use crate::orchestrator::{Orchestrator, Settings};
use crate::server::{Admission, Bodies, BodyBounds, Ingress, Keys, Shutdown};
use crate::store::Store;
use crate::telemetry::Metrics;

/// One gateway, as its handlers see it.
pub struct App {
    /// The configuration.
    pub config: Arc<Config>,
    /// The LLM path.
    pub router: Arc<Router>,
    /// Answers queries over the LLM path and the store.
    pub orchestrator: Orchestrator,
    /// Queries, documents and keys.
    pub store: Arc<dyn Store>,
    /// The counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Keys, permits and the state of stopping.
    pub ingress: Ingress,
    /// The probes of the dependencies.
    pub(super) health: Health,
}

/// The state of every handler.
pub type AppState = Arc<App>;

impl App {
    /// Puts a gateway together. Nothing is started.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        keys: Keys,
        router: Arc<Router>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> AppState {
        let ingress = Ingress {
            keys: Arc::new(keys),
            bodies: Bodies::new(BodyBounds {
                bytes: config.server.body_limit_bytes,
                time: config.server.body_timeout,
            }),
            admission: Admission::new(config.server.max_in_flight),
            shutdown: Shutdown::default(),
            metrics: metrics.clone(),
        };
        let orchestrator = Orchestrator::new(
            Settings::of(&config),
            router.clone(),
            store.clone(),
            store.clone(),
            metrics.clone(),
        );
        let health = Health::new(&config, store.clone(), router.clone(), ingress.clone());
        Arc::new(Self {
            config,
            router,
            orchestrator,
            store,
            metrics,
            ingress,
            health,
        })
    }
}

impl FromRef<AppState> for Health {
    fn from_ref(app: &AppState) -> Self {
        app.health.clone()
    }
}
