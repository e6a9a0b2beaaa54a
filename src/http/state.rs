//! What handlers share.

use std::sync::Arc;

use super::admission::Admission;
use super::auth::Keys;
use super::health::Health;
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::llm::router::Router;
use crate::orchestrator::{Orchestrator, Settings};
use crate::store::Store;
use crate::telemetry::Metrics;

/// One gateway, as its handlers see it.
pub struct App {
    /// What was configured.
    pub config: Arc<Config>,
    /// The LLM path.
    pub router: Arc<Router>,
    /// Answers queries over the two.
    pub orchestrator: Orchestrator,
    /// Queries, documents and keys.
    pub store: Arc<dyn Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who may ask.
    pub keys: Keys,
    /// How many at once.
    pub admission: Admission,
    /// What the dependencies do.
    pub health: Health,
    /// Whether the gateway drains, or cuts.
    pub shutdown: Shutdown,
}

/// The state of every handler.
pub type AppState = Arc<App>;

impl App {
    /// Puts a gateway together; nothing is started.
    pub fn new(
        config: Arc<Config>,
        keys: Keys,
        router: Arc<Router>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> AppState {
        Arc::new(Self {
            keys,
            admission: Admission::new(config.server.max_in_flight),
            orchestrator: Orchestrator::new(
                Settings::of(&config),
                router.clone(),
                store.clone(),
                store.clone(),
                metrics.clone(),
            ),
            health: Health::new(&config, store.clone()),
            shutdown: Shutdown::default(),
            config,
            router,
            store,
            metrics,
        })
    }
}
