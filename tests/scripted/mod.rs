//! A scripted LLM and a scripted store for the orchestrator in process: what the model of each
//! step and the store do is data. Time is tokio's paused clock, so that a delay of 30 s costs
//! nothing.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "shared by several test programs, each using a part"
)]

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gauntlet::config::{OrchestratorConfig, StepConfig};
use gauntlet::llm::chat::{CallContext, ChatRequest, Usage};
use gauntlet::orchestrator::cause::{StepCause, StepFailure};
use gauntlet::orchestrator::llm::{Llm, ModelReply};
use gauntlet::orchestrator::step::Step;
use gauntlet::orchestrator::{Ask, Orchestrator, QueryDocument, Settings};
use gauntlet::retrieval::{Retriever, RetrieverError, Search, retriever};
use gauntlet::store::{
    Document, Documents, Listing, NewDocument, Page, Passage, Queries, QueryRecord, StoreError,
};
use gauntlet::telemetry::Metrics;
use tokio::sync::{Barrier, Notify};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

pub const QUESTION: &str = "Who discovered radium, and was it Marie Curie in 1898?";
pub const RECORD_BOUND: Duration = Duration::from_secs(25);

/// The replies that these tests speak about. Any other agent gives the healthy answer of its row in
/// the suites.
const REPLIES: &[(&str, &str)] = &[
    (
        "entities",
        r#"{"entities":[{"name":"radium","kind":"substance"},{"name":"Marie Curie","kind":"person"},{"name":"1898","kind":"date"}]}"#,
    ),
    (
        "fact_check",
        r#"{"claims":[{"claim":"The Curies discovered radium in 1898.","source":1,"verdict":"supported","quote":"discovered radium in December 1898"}]}"#,
    ),
    (
        "synthesis",
        r#"{"answer":"Marie and Pierre Curie discovered radium in 1898 [1]. It was isolated in 1910 [2]."}"#,
    ),
    (
        "citation",
        r#"{"citations":[{"sentence":1,"source":1,"quote":"discovered radium in December 1898"},{"sentence":2,"source":2,"quote":"isolated in 1910"}]}"#,
    ),
    (
        "review",
        r#"{"coherence":1.0,"relevance":0.9,"support":0.8}"#,
    ),
];

/// Returns the step of that name.
pub fn step(name: &str) -> Step {
    Step::named(name).unwrap_or_else(|| panic!("there is no step {name:?}"))
}

/// Returns every step that asks a model, in the order of the rows.
pub fn agents() -> impl Iterator<Item = Step> {
    Step::all().filter(|step| step.def().settings.asks_model)
}

/// What the model of a step does.
#[derive(Clone, Debug)]
pub enum Behaviour {
    Replies(String),
    Fails(StepCause),
    NeverReplies,
}

/// When a model or the store does it.
#[derive(Clone, Debug, Default)]
pub enum Pace {
    #[default]
    AtOnce,
    /// On the paused clock.
    After(Duration),
    /// Once all parties have arrived.
    Rendezvous(Arc<Barrier>),
    /// Once the gate is opened.
    Gate(Arc<Notify>),
}

impl Pace {
    pub async fn pass(&self) {
        match self {
            Self::AtOnce => {}
            Self::After(delay) => {
                let _elapsed = timeout(*delay, pending::<()>()).await;
            }
            Self::Rendezvous(barrier) => {
                barrier.wait().await;
            }
            Self::Gate(gate) => gate.notified().await,
        }
    }
}

/// What models and store saw, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Called(Step),
    Answered(Step),
    Dropped(Step),
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub fn calls(&self, step: Step) -> usize {
        self.events()
            .iter()
            .filter(|event| **event == Event::Called(step))
            .count()
    }

    pub fn at(&self, event: &Event) -> usize {
        self.events()
            .iter()
            .position(|seen| seen == event)
            .unwrap_or_else(|| panic!("{event:?} is not on the log: {:?}", self.events()))
    }

    async fn call<T>(&self, step: Step, call: impl Future<Output = T>) -> T {
        self.add(Event::Called(step));
        let mut in_flight = InFlight {
            log: self.clone(),
            step,
            ended: false,
        };
        let answer = call.await;
        in_flight.ended = true;
        self.add(Event::Answered(step));
        answer
    }
}

struct InFlight {
    log: Log,
    step: Step,
    ended: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.ended {
            self.log.add(Event::Dropped(self.step));
        }
    }
}

/// The LLM. Its aliases are the names of the steps.
pub struct Script {
    pub models: BTreeMap<Step, (Pace, Behaviour)>,
    pub log: Log,
    pub requests: Mutex<Vec<(ChatRequest, CallContext)>>,
}

#[async_trait]
impl Llm for Script {
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, StepFailure> {
        let step = step(&request.model);
        self.requests.lock().unwrap().push((request, context));
        let (pace, behaviour) = self.models[&step].clone();
        let answer = async {
            pace.pass().await;
            match behaviour {
                Behaviour::Replies(text) => Ok(ModelReply {
                    text,
                    usage: Usage {
                        prompt_tokens: 10,
                        completion_tokens: 1,
                        total_tokens: 11,
                    },
                }),
                Behaviour::Fails(cause) => Err(StepFailure::new(cause, "scripted")),
                Behaviour::NeverReplies => pending().await,
            }
        };
        self.log.call(step, answer).await
    }
}

/// What the store does.
#[derive(Clone, Debug)]
pub enum StoreBehaviour {
    Works,
    Fails(StoreError),
    NeverAnswers,
}

impl StoreBehaviour {
    async fn run<T>(&self, pace: &Pace, works: impl FnOnce() -> T) -> Result<T, StoreError> {
        pace.pass().await;
        match self {
            Self::Works => Ok(works()),
            Self::Fails(error) => Err(error.clone()),
            Self::NeverAnswers => pending().await,
        }
    }
}

pub struct FakeStore {
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreBehaviour),
    pub record: (Pace, StoreBehaviour),
    pub records: Mutex<Vec<QueryRecord>>,
    pub log: Log,
}

#[async_trait]
impl Documents for FakeStore {
    async fn add_document(&self, _: &str, _: NewDocument) -> Result<Document, StoreError> {
        unscripted()
    }
    async fn document(&self, _: &str, _: Uuid) -> Result<Option<Document>, StoreError> {
        unscripted()
    }
    async fn delete_document(&self, _: &str, _: Uuid) -> Result<bool, StoreError> {
        unscripted()
    }
    async fn search(&self, _: &str, text: &str, limit: u32) -> Result<Vec<Passage>, StoreError> {
        assert_eq!(text, QUESTION, "retrieval takes the raw question");
        let found = || self.passages.iter().take(limit as usize).cloned().collect();
        self.log
            .call(step("retrieval"), self.search.1.run(&self.search.0, found))
            .await
    }
}

#[async_trait]
impl Queries for FakeStore {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        let write = || self.records.lock().unwrap().push(record);
        self.log
            .call(Step::RECORD, self.record.1.run(&self.record.0, write))
            .await
    }
    async fn query(&self, _: &str, _: Uuid) -> Result<Option<QueryRecord>, StoreError> {
        unscripted()
    }
    async fn queries(&self, _: &str, _: Listing) -> Result<Page, StoreError> {
        unscripted()
    }
}

fn unscripted<T>() -> Result<T, StoreError> {
    panic!("a query asks the store for passages and writes its record, nothing else")
}

/// A retriever besides the keyword retriever.
pub struct FakeRetriever {
    pub name: &'static str,
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreBehaviour),
}

#[async_trait]
impl Retriever for FakeRetriever {
    fn name(&self) -> &'static str {
        self.name
    }
    async fn search(&self, _: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
        Ok(self
            .search
            .1
            .run(&self.search.0, || self.passages.clone())
            .await?)
    }
}

/// A query of which everything works, to be broken before it is started.
pub struct Scenario {
    pub models: BTreeMap<Step, (Pace, Behaviour)>,
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreBehaviour),
    pub record: (Pace, StoreBehaviour),
    /// Retrievers besides the keyword retriever.
    pub retrievers: Vec<FakeRetriever>,
    pub limits: BTreeMap<Step, StepConfig>,
    pub deadline: Duration,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            models: agents()
                .map(|step| {
                    let own = REPLIES.iter().find(|(name, _)| *name == step.name());
                    let reply = own.map_or_else(
                        || gauntlet_suites::agents::healthy(step.name()).to_string(),
                        |(_, text)| (*text).to_owned(),
                    );
                    (step, (Pace::AtOnce, Behaviour::Replies(reply)))
                })
                .collect(),
            passages: vec![
                passage(
                    1,
                    "Marie Curie",
                    "Marie and Pierre Curie discovered radium in December 1898. They announced it \
                     on 26 December.",
                ),
                passage(
                    2,
                    "Radium",
                    "The metal was isolated in 1910 by Marie Curie and André-Louis Debierne.",
                ),
            ],
            search: (Pace::AtOnce, StoreBehaviour::Works),
            record: (Pace::AtOnce, StoreBehaviour::Works),
            retrievers: Vec::new(),
            limits: BTreeMap::new(),
            deadline: Duration::from_secs(60),
        }
    }
}

pub fn passage(id: u128, title: &str, text: &str) -> Passage {
    Passage {
        document: Uuid::from_u128(id),
        title: title.into(),
        text: text.into(),
        score: 1.0 / (id as f64),
    }
}

impl Scenario {
    pub fn with(mut self, step: Step, behaviour: Behaviour) -> Self {
        self.models.get_mut(&step).unwrap().1 = behaviour;
        self
    }

    pub fn paced(mut self, step: Step, pace: Pace) -> Self {
        self.models.get_mut(&step).unwrap().0 = pace;
        self
    }

    pub fn start(self) -> Simulation {
        let log = Log::default();
        let script = Arc::new(Script {
            models: self.models,
            log: log.clone(),
            requests: Mutex::default(),
        });
        let store = Arc::new(FakeStore {
            passages: self.passages,
            search: self.search,
            record: self.record,
            records: Mutex::default(),
            log: log.clone(),
        });
        let config = OrchestratorConfig {
            deadline: self.deadline,
            steps: self
                .limits
                .into_iter()
                .map(|(step, limits)| (step.name().to_owned(), limits))
                .collect(),
            models: agents()
                .map(|step| (step.name().to_owned(), step.name().to_owned()))
                .collect(),
            passages: 5,
            step_cap: None,
        };
        let settings = Settings {
            orchestrator: config,
            default_alias: None,
            record_bound: RECORD_BOUND,
        };
        let documents: Arc<dyn Documents> = store.clone();
        let mut retrievers = retriever::all(&documents);
        retrievers.extend(
            self.retrievers
                .into_iter()
                .map(|retriever| Box::new(retriever) as Box<dyn Retriever>),
        );
        let orchestrator = Orchestrator::new(
            settings,
            script.clone(),
            documents,
            store.clone(),
            Arc::new(Metrics::default()),
        )
        .with_retrievers(retrievers);
        let orchestrator = Arc::new(orchestrator);
        Simulation {
            orchestrator,
            script,
            store,
            log,
        }
    }
}

/// A scenario that has been started.
pub struct Simulation {
    pub orchestrator: Arc<Orchestrator>,
    pub script: Arc<Script>,
    pub store: Arc<FakeStore>,
    pub log: Log,
}

impl Simulation {
    /// Returns a question that arrives now.
    pub fn ask(&self) -> Ask {
        Ask {
            tenant: "acme".into(),
            question: QUESTION.into(),
            deadline: self.orchestrator.deadline(Instant::now(), None),
            request_id: "req-1".into(),
            traceparent: None,
        }
    }

    /// Asks now and waits for the document.
    pub async fn answer(&self) -> QueryDocument {
        self.orchestrator.answer(self.ask()).await
    }

    pub fn records(&self) -> Vec<QueryRecord> {
        self.store.records.lock().unwrap().clone()
    }
}
