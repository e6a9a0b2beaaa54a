//! Runs a query: the steps in the order of the plan, each in its window, all inside one future.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::{Config, OrchestratorConfig};
use crate::llm::chat::{CallContext, Usage};
use crate::orchestrator::agents::retrieval::{self, Evidence};
use crate::orchestrator::agents::{
    Agent, Source, citation, entities, fact_check, review, synthesis,
};
use crate::orchestrator::budget::{Budget, Window};
use crate::orchestrator::document::{Accepted, QueryDocument, StepOutcome, StepReport};
use crate::orchestrator::llm::Llm;
use crate::orchestrator::outcome::{Cause, Results, StepResult, conclude, entities_or_rules};
use crate::orchestrator::record::{Ledger, Recorder, Running};
use crate::orchestrator::step::{PIPELINE, Step};
use crate::resilience::deadline::{self, Deadline, SetBy};
use crate::retrieval::{Retriever, Search, retriever};
use crate::store::{Documents, Queries};
use crate::telemetry::Metrics;

/// A question, with all that its run needs to know.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who asks.
    pub tenant: String,
    /// Not empty.
    pub question: String,
    /// By when it is answered; see [`Orchestrator::deadline`].
    pub deadline: Deadline,
    /// Sent on to every provider.
    pub request_id: String,
    /// W3C trace context to continue.
    pub traceparent: Option<HeaderValue>,
}

/// There is no model to ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "queries are not configured: no model alias is configured; add [[models]], and name one per agent in [orchestrator.models]"
)]
pub struct NotConfigured;

/// What the orchestrator needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[orchestrator]`
    pub orchestrator: OrchestratorConfig,
    /// What agents ask that have no alias of their own.
    pub default_alias: Option<String>,
    /// Until a record is given up, should the store not keep its own time-outs.
    pub record_bound: Duration,
}

impl Settings {
    /// The settings of a configuration. An agent without an alias in `[orchestrator.models]` asks the first one configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            orchestrator: config.orchestrator.clone(),
            default_alias: config.models.keys().next().cloned(),
            record_bound: config.store.acquire_timeout + config.store.statement_timeout,
        }
    }
}

/// Answers queries. Shared by all requests; keeps nothing between them.
pub struct Orchestrator {
    llm: Arc<dyn Llm>,
    lanes: Vec<Box<dyn Retriever>>,
    config: OrchestratorConfig,
    default_alias: Option<String>,
    recorder: Recorder,
}

impl Orchestrator {
    /// An orchestrator over the LLM path and the store, with every lane.
    #[must_use]
    pub fn new(
        settings: Settings,
        llm: Arc<dyn Llm>,
        documents: Arc<dyn Documents>,
        queries: Arc<dyn Queries>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let lanes = retriever::all(&documents);
        let recorder = Recorder {
            queries,
            metrics,
            tasks: TaskTracker::new(),
            bound: settings.record_bound,
        };
        Self {
            llm,
            lanes,
            config: settings.orchestrator,
            default_alias: settings.default_alias,
            recorder,
        }
    }

    /// The same over other lanes, in their declared order.
    #[must_use]
    pub fn with_retrievers(self, lanes: Vec<Box<dyn Retriever>>) -> Self {
        Self { lanes, ..self }
    }

    /// Whether every agent has a model to ask.
    ///
    /// # Errors
    /// [`NotConfigured`] if no model is configured at all.
    pub fn configured(&self) -> Result<(), NotConfigured> {
        let missing = PIPELINE
            .steps()
            .filter(|step| *step != Step::Retrieval)
            .any(|step| self.alias(step).is_none());
        if missing { Err(NotConfigured) } else { Ok(()) }
    }

    /// The deadline of a query that came in at `arrived`: a client can shorten the configured one, never lengthen it.
    #[must_use]
    pub fn deadline(&self, arrived: Instant, client: Option<Instant>) -> Deadline {
        deadline::request_deadline(
            arrived,
            self.config.deadline,
            client.map(Deadline::of_caller),
        )
    }

    /// Answers and records. Ends by the deadline, plus at most the store's own time-outs for the record.
    ///
    /// Dropping the future ends every call in flight and records the query as cancelled.
    pub async fn answer(&self, ask: Ask) -> QueryDocument {
        let created_at = jiff::Timestamp::now().as_microsecond();
        let accepted = Accepted {
            id: Uuid::now_v7(),
            tenant: ask.tenant.clone(),
            question: ask.question.clone(),
            created_at,
        };
        let ledger = Ledger::default();
        let running = Running::new(self.recorder.clone(), accepted.clone(), ledger.clone());
        let query = Query {
            orchestrator: self,
            ask: &ask,
            id: accepted.id,
            budget: Budget::new(ask.deadline.at, PIPELINE, &self.config.steps),
            ledger: &ledger,
        };
        let outcome = conclude(&ask.question, query.run().await);
        let document = QueryDocument::new(&accepted, outcome, ledger.reports());
        running.ended();
        let document = self
            .recorder
            .record(&ask.tenant, document, created_at)
            .await;
        self.recorder.metrics.query(document.status.name());
        for degradation in &document.degraded {
            self.recorder
                .metrics
                .degraded(degradation.step.name(), degradation.cause.name());
        }
        document
    }

    /// Waits for the records that are being written. Call it once no request is running any more.
    pub async fn drained(&self) {
        self.recorder.tasks.close();
        self.recorder.tasks.wait().await;
    }

    fn alias(&self, step: Step) -> Option<&str> {
        self.config
            .models
            .get(step.name())
            .or(self.default_alias.as_ref())
            .map(String::as_str)
    }
}

struct Query<'q> {
    orchestrator: &'q Orchestrator,
    ask: &'q Ask,
    id: Uuid,
    budget: Budget<'q>,
    ledger: &'q Ledger,
}

impl Query<'_> {
    async fn run(&self) -> Results {
        let question = self.ask.question.as_str();
        let (entities, retrieval) = tokio::join!(
            self.consult::<entities::Entities>(question),
            self.retrieve()
        );
        let named = entities_or_rules(question, &entities);
        let sources: &[Source] = retrieval
            .found()
            .map(|evidence| evidence.sources.as_slice())
            .unwrap_or_default();
        let fact_check = if sources.is_empty() {
            self.nothing_to_do(Step::FactCheck)
        } else {
            self.consult::<fact_check::FactCheck>(fact_check::Input {
                question,
                entities: &named,
                sources,
            })
            .await
        };
        let claims = fact_check.found().map(Vec::as_slice).unwrap_or_default();
        let synthesis = self
            .consult::<synthesis::Synthesis>(synthesis::Input {
                question,
                entities: &named,
                sources,
                claims,
            })
            .await;
        let answer = synthesis
            .found()
            .map(|answer| citation::marks(answer, sources).answer);
        let citation = match answer.as_deref().filter(|_| !sources.is_empty()) {
            Some(answer) => {
                self.consult::<citation::Citations>(citation::Input { answer, sources })
                    .await
            }
            None => self.nothing_to_do(Step::Citation),
        };
        let review = match answer.as_deref() {
            Some(answer) => {
                self.consult::<review::Review>(review::Input {
                    question,
                    answer,
                    sources,
                })
                .await
            }
            None => self.nothing_to_do(Step::Review),
        };
        Results {
            entities,
            fact_check,
            synthesis,
            citation,
            review,
            retrieval,
        }
    }

    async fn retrieve(&self) -> StepResult<Evidence> {
        let started = Instant::now();
        let orchestrator = self.orchestrator;
        let did = match self.budget.window(Step::Retrieval, started) {
            Window::Skip { .. } => StepResult::Failed(Cause::Skipped),
            Window::Until(until) => {
                let search = Search {
                    tenant: &self.ask.tenant,
                    text: &self.ask.question,
                    limit: orchestrator.config.passages,
                };
                match retrieval::retrieve(&orchestrator.lanes, search, until).await {
                    Ok(evidence) => StepResult::Done(evidence),
                    Err((cause, detail)) => {
                        self.log(Step::Retrieval, cause, &detail);
                        StepResult::Failed(cause)
                    }
                }
            }
        };
        self.report(Step::Retrieval, &did, started, Usage::default());
        did
    }

    async fn consult<A: Agent>(&self, input: A::Input<'_>) -> StepResult<A::Output> {
        let started = Instant::now();
        let mut usage = Usage::default();
        let did = match self.budget.window(A::STEP, started) {
            Window::Skip { .. } => StepResult::Failed(Cause::Skipped),
            Window::Until(until) => match self.call::<A>(input, started, until, &mut usage).await {
                Ok(output) => StepResult::Done(output),
                Err((cause, detail)) => {
                    self.log(A::STEP, cause, &detail);
                    StepResult::Failed(cause)
                }
            },
        };
        self.report(A::STEP, &did, started, usage);
        did
    }

    async fn call<A: Agent>(
        &self,
        input: A::Input<'_>,
        started: Instant,
        until: Instant,
        usage: &mut Usage,
    ) -> Result<A::Output, (Cause, String)> {
        let alias = self
            .orchestrator
            .alias(A::STEP)
            .ok_or_else(|| (Cause::Error, NotConfigured.to_string()))?;
        let request = A::prompt(input).request(A::STEP, alias);
        // a step that had its whole cap had what the configuration gives it, whatever the client wants
        let set_by = if self.budget.is_capped(A::STEP, started, until) {
            SetBy::Configuration
        } else {
            self.ask.deadline.set_by
        };
        let context = CallContext {
            request_id: self.ask.request_id.clone(),
            arrived: Instant::now(),
            deadline: Some(Deadline { at: until, set_by }),
            idempotency_key: format!("{}-{}", self.id, A::STEP.name()),
            traceparent: self.ask.traceparent.clone(),
        };
        let said = timeout_at(until, self.orchestrator.llm.complete(request, context)).await;
        let said = said.map_err(|_| {
            (
                Cause::Timeout,
                "no answer in its share of the deadline".to_owned(),
            )
        })?;
        let said = said.map_err(|failure| (failure.cause, failure.detail))?;
        *usage = said.usage;
        A::read(&said.text, input).map_err(|nonsense| (Cause::InvalidOutput, nonsense.to_string()))
    }

    fn nothing_to_do<T>(&self, step: Step) -> StepResult<T> {
        self.report(
            step,
            &StepResult::<T>::NotApplicable,
            Instant::now(),
            Usage::default(),
        );
        StepResult::NotApplicable
    }

    fn report<T>(&self, step: Step, did: &StepResult<T>, started: Instant, usage: Usage) {
        let ended = match did {
            StepResult::Done(_) => Ok(StepOutcome::Ok),
            StepResult::NotApplicable => Ok(StepOutcome::NotApplicable),
            StepResult::Failed(cause) => Err(*cause),
        };
        self.ledger
            .add(StepReport::new(step, ended, started.elapsed(), usage));
    }

    fn log(&self, step: Step, cause: Cause, detail: &str) {
        tracing::warn!(query = %self.id, request = %self.ask.request_id, step = step.name(), cause = cause.name(), detail, "a step failed");
    }
}
