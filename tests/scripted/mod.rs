//! A scripted LLM and a scripted store, for the orchestrator in process: what each step's provider does is data. Time is tokio's
//! paused clock, so that a pace of 30 s costs nothing.

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
use gauntlet::orchestrator::llm::{CallFailure, Llm, ModelReply};
use gauntlet::orchestrator::outcome::Cause;
use gauntlet::orchestrator::step::{PIPELINE, Step};
use gauntlet::orchestrator::{Ask, Orchestrator, Settings};
use gauntlet::retrieval::{Retriever, RetrieverError, Search, retriever};
use gauntlet::store::{
    Document, Documents, Listing, NewDocument, Page, Passage, Queries, QueryRecord, StoreError,
};
use gauntlet::telemetry::Metrics;
use tokio::sync::{Barrier, Notify};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

pub const QUESTION: &str = "Who discovered radium, and did Marie Curie do it in 1898?";
pub const RECORD_BOUND: Duration = Duration::from_secs(25);

/// What a provider does when it is asked.
#[derive(Clone, Debug)]
pub enum Act {
    Says(String),
    Fails(Cause),
    Never,
}

/// When it does it.
#[derive(Clone, Debug, Default)]
pub enum Pace {
    #[default]
    AtOnce,
    /// On the paused clock.
    After(Duration),
    /// Once all have come.
    Rendezvous(Arc<Barrier>),
    /// Once it is told.
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

/// What everybody saw, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    StubRequest(Step),
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

    pub fn asked(&self, step: Step) -> usize {
        self.events()
            .iter()
            .filter(|event| **event == Event::StubRequest(step))
            .count()
    }

    pub fn at(&self, event: &Event) -> usize {
        self.events()
            .iter()
            .position(|seen| seen == event)
            .unwrap_or_else(|| panic!("{event:?} is not on the log: {:?}", self.events()))
    }

    async fn call<T>(&self, step: Step, call: impl Future<Output = T>) -> T {
        self.add(Event::StubRequest(step));
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

/// The LLM: its aliases are the steps' names.
pub struct Script {
    pub acts: BTreeMap<Step, (Pace, Act)>,
    pub log: Log,
    pub requests: Mutex<Vec<(ChatRequest, CallContext)>>,
}

#[async_trait]
impl Llm for Script {
    async fn complete(
        &self,
        request: ChatRequest,
        context: CallContext,
    ) -> Result<ModelReply, CallFailure> {
        let step = PIPELINE
            .steps()
            .find(|step| step.name() == request.model)
            .expect("an alias is a step's name");
        self.requests.lock().unwrap().push((request, context));
        let (pace, act) = self.acts[&step].clone();
        let answer = async {
            pace.pass().await;
            match act {
                Act::Says(text) => Ok(ModelReply {
                    text,
                    usage: Usage {
                        prompt_tokens: 10,
                        completion_tokens: 1,
                        total_tokens: 11,
                    },
                }),
                Act::Fails(cause) => Err(CallFailure {
                    cause,
                    detail: "scripted".into(),
                }),
                Act::Never => pending().await,
            }
        };
        self.log.call(step, answer).await
    }
}

/// What the store does.
#[derive(Clone, Debug)]
pub enum StoreAct {
    Works,
    Fails(StoreError),
    Never,
}

impl StoreAct {
    async fn act<T>(&self, pace: &Pace, works: impl FnOnce() -> T) -> Result<T, StoreError> {
        pace.pass().await;
        match self {
            Self::Works => Ok(works()),
            Self::Fails(error) => Err(error.clone()),
            Self::Never => pending().await,
        }
    }
}

pub struct FakeStore {
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreAct),
    pub record: (Pace, StoreAct),
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
            .call(Step::Retrieval, self.search.1.act(&self.search.0, found))
            .await
    }
}

#[async_trait]
impl Queries for FakeStore {
    async fn record_query(&self, record: QueryRecord) -> Result<(), StoreError> {
        let write = || self.records.lock().unwrap().push(record);
        self.log
            .call(Step::Record, self.record.1.act(&self.record.0, write))
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

/// A further lane.
pub struct FakeLane {
    pub name: &'static str,
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreAct),
}

#[async_trait]
impl Retriever for FakeLane {
    fn name(&self) -> &'static str {
        self.name
    }
    async fn search(&self, _: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
        Ok(self
            .search
            .1
            .act(&self.search.0, || self.passages.clone())
            .await?)
    }
}

/// A world in which everything works, to be broken before it is run.
pub struct World {
    pub acts: BTreeMap<Step, (Pace, Act)>,
    pub passages: Vec<Passage>,
    pub search: (Pace, StoreAct),
    pub record: (Pace, StoreAct),
    /// Lanes besides the keyword lane.
    pub lanes: Vec<FakeLane>,
    pub steps: BTreeMap<Step, StepConfig>,
    pub deadline: Duration,
}

impl Default for World {
    fn default() -> Self {
        let says = |step: Step, text: &str| (step, (Pace::AtOnce, Act::Says(text.to_owned())));
        Self {
            acts: BTreeMap::from([
                says(
                    Step::Entities,
                    r#"{"entities":[{"name":"radium","kind":"substance"},{"name":"Marie Curie","kind":"person"},{"name":"1898","kind":"date"}]}"#,
                ),
                says(
                    Step::FactCheck,
                    r#"{"claims":[{"claim":"The Curies discovered radium in 1898.","source":1,"verdict":"supported","quote":"discovered radium in December 1898"}]}"#,
                ),
                says(
                    Step::Synthesis,
                    r#"{"answer":"Marie and Pierre Curie discovered radium in 1898 [1]. It was isolated in 1910 [2]."}"#,
                ),
                says(
                    Step::Citation,
                    r#"{"citations":[{"sentence":1,"source":1,"quote":"discovered radium in December 1898"},{"sentence":2,"source":2,"quote":"isolated in 1910"}]}"#,
                ),
                says(
                    Step::Review,
                    r#"{"coherence":1.0,"relevance":0.9,"support":0.8}"#,
                ),
            ]),
            passages: vec![
                passage(
                    1,
                    "Marie Curie",
                    "Marie and Pierre Curie discovered radium in December 1898. They announced it on 26 December.",
                ),
                passage(
                    2,
                    "Radium",
                    "The metal was isolated in 1910 by Marie Curie and André-Louis Debierne.",
                ),
            ],
            search: (Pace::AtOnce, StoreAct::Works),
            record: (Pace::AtOnce, StoreAct::Works),
            lanes: Vec::new(),
            steps: BTreeMap::new(),
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

impl World {
    pub fn with(mut self, step: Step, act: Act) -> Self {
        self.acts.get_mut(&step).unwrap().1 = act;
        self
    }

    pub fn paced(mut self, step: Step, pace: Pace) -> Self {
        self.acts.get_mut(&step).unwrap().0 = pace;
        self
    }

    pub fn start(self) -> Running {
        let log = Log::default();
        let script = Arc::new(Script {
            acts: self.acts,
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
                .steps
                .into_iter()
                .map(|(step, bounds)| (step.name().to_owned(), bounds))
                .collect(),
            models: PIPELINE
                .steps()
                .filter(|step| *step != Step::Retrieval)
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
        let mut lanes = retriever::all(&documents);
        lanes.extend(
            self.lanes
                .into_iter()
                .map(|lane| Box::new(lane) as Box<dyn Retriever>),
        );
        let orchestrator = Orchestrator::new(
            settings,
            script.clone(),
            documents,
            store.clone(),
            Arc::new(Metrics::default()),
        )
        .with_retrievers(lanes);
        let orchestrator = Arc::new(orchestrator);
        Running {
            orchestrator,
            script,
            store,
            log,
        }
    }
}

/// A world that has been started.
pub struct Running {
    pub orchestrator: Arc<Orchestrator>,
    pub script: Arc<Script>,
    pub store: Arc<FakeStore>,
    pub log: Log,
}

impl Running {
    /// A question that comes in now.
    pub fn ask(&self) -> Ask {
        Ask {
            tenant: "acme".into(),
            question: QUESTION.into(),
            deadline: self.orchestrator.deadline(Instant::now(), None),
            request_id: "req-1".into(),
            traceparent: None,
        }
    }

    pub fn records(&self) -> Vec<QueryRecord> {
        self.store.records.lock().unwrap().clone()
    }
}
