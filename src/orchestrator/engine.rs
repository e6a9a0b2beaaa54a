//! The orchestrator as the HTTP layer sees it: it takes a question and returns the document of the
//! query, recorded.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use super::document::{Accepted, QueryDocument};
use super::llm::Llm;
use super::pipeline::Query;
use super::record::{Ledger, Recorder, Running};
use super::step::Step;
use crate::config::{Config, OrchestratorConfig};
use crate::resilience::deadline::{self, Deadline};
use crate::retrieval::{Retriever, retriever};
use crate::store::{Documents, Queries};
use crate::telemetry::Metrics;

/// A question, with everything that its query needs to know.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The tenant that asks.
    pub tenant: String,
    /// The question; it is not empty.
    pub question: String,
    /// The instant by which the query is answered; see [`Orchestrator::deadline`].
    pub deadline: Deadline,
    /// The id of the request, sent on to every provider.
    pub request_id: String,
    /// The W3C trace context to continue, if the client sent one.
    pub traceparent: Option<HeaderValue>,
}

/// There is no model that a query could ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "queries are not configured: no model alias is configured; add [[models]], and name one per \
     agent in [orchestrator.models]"
)]
pub struct NotConfigured;

/// What the orchestrator needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The section `[orchestrator]`.
    pub orchestrator: OrchestratorConfig,
    /// The alias that agents ask which have no alias of their own.
    pub default_alias: Option<String>,
    /// The most time that writing a record may take, should the store not keep its own timeouts.
    pub record_bound: Duration,
}

impl Settings {
    /// Takes the settings out of a configuration. An agent without an alias in
    /// `[orchestrator.models]` asks the first alias that is configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            orchestrator: config.orchestrator.clone(),
            default_alias: config.models.keys().next().cloned(),
            record_bound: config.store.acquire_timeout + config.store.statement_timeout,
        }
    }
}

/// Answers queries. All requests share one orchestrator, which keeps nothing between them.
pub struct Orchestrator {
    pub(super) llm: Arc<dyn Llm>,
    pub(super) retrievers: Vec<Box<dyn Retriever>>,
    pub(super) config: OrchestratorConfig,
    default_alias: Option<String>,
    recorder: Recorder,
}

impl Orchestrator {
    /// Builds an orchestrator over the LLM path and the store, with every retriever.
    #[must_use]
    pub fn new(
        settings: Settings,
        llm: Arc<dyn Llm>,
        documents: Arc<dyn Documents>,
        queries: Arc<dyn Queries>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let retrievers = retriever::all(&documents);
        let recorder = Recorder {
            queries,
            metrics,
            tasks: TaskTracker::new(),
            bound: settings.record_bound,
        };
        Self {
            llm,
            retrievers,
            config: settings.orchestrator,
            default_alias: settings.default_alias,
            recorder,
        }
    }

    /// Replaces the retrievers; results are joined in the order given here.
    #[must_use]
    pub fn with_retrievers(self, retrievers: Vec<Box<dyn Retriever>>) -> Self {
        Self { retrievers, ..self }
    }

    /// Checks that every step that asks a model has an alias to ask.
    ///
    /// # Errors
    /// Returns [`NotConfigured`] if no model is configured at all.
    pub fn configured(&self) -> Result<(), NotConfigured> {
        let is_missing = |step: Step| step.def().settings.asks_model && self.alias(step).is_none();
        if Step::all().any(is_missing) {
            Err(NotConfigured)
        } else {
            Ok(())
        }
    }

    /// Returns the deadline of a query that arrived at `arrived`: a client can shorten the
    /// configured one, never lengthen it.
    #[must_use]
    pub fn deadline(&self, arrived: Instant, client: Option<Instant>) -> Deadline {
        deadline::request_deadline(
            arrived,
            self.config.deadline,
            client.map(Deadline::of_caller),
        )
    }

    /// Answers a question and records the query. It ends by the deadline, plus at most the store's
    /// own timeouts for the record.
    ///
    /// Cancel safe: dropping the future ends every call in flight and records the query as
    /// cancelled.
    pub async fn answer(&self, ask: Ask) -> QueryDocument {
        let id = Uuid::now_v7();
        // an error span, so that a filter of `warn` or `error` keeps its fields on the events
        // inside
        let span = tracing::error_span!("query", request_id = %ask.request_id, query_id = %id);
        self.answer_as(id, ask).instrument(span).await
    }

    async fn answer_as(&self, id: Uuid, ask: Ask) -> QueryDocument {
        let accepted = Accepted {
            id,
            tenant: ask.tenant.clone(),
            question: ask.question.clone(),
            created_at: jiff::Timestamp::now().as_microsecond(),
        };
        let ledger = Ledger::default();
        let running = Running::new(self.recorder.clone(), accepted.clone(), ledger.clone());
        let outcome = Query::new(self, &ask, id, &ledger).run().await;
        let document = QueryDocument::new(&accepted, outcome, ledger.reports());
        running.ended();
        let document = self.recorder.record(&accepted, document).await;
        let metrics = &self.recorder.metrics;
        metrics.query(document.status.name());
        for degradation in &document.degraded {
            metrics.degraded(degradation.step.name(), degradation.cause.name());
        }
        document
    }

    /// Waits until all records that are being written have been written. Call it once no request is
    /// running any more.
    pub async fn drained(&self) {
        self.recorder.tasks.close();
        self.recorder.tasks.wait().await;
    }

    /// Returns the alias that `step` asks.
    pub(super) fn alias(&self, step: Step) -> Option<&str> {
        self.config
            .models
            .get(step.name())
            .or(self.default_alias.as_ref())
            .map(String::as_str)
    }
}
