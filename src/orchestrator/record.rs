//! Recording: each accepted query is recorded once, at its end, whatever the end is. The write is a
//! task of the gateway's own, so that a client who leaves can neither tear nor prevent it. The
//! gateway waits for these tasks when it drains.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use super::cause::StepCause;
use super::document::{Accepted, QueryDocument, StepReport};
use super::outcome::Status;
use super::step::{Phase, Policy, Step, StepDef};
use crate::config::kinds::StepSettings;
use crate::store::{Queries, QueryRecord};
use crate::telemetry::Metrics;

/// The description of the step that writes the record. It has no row, because it runs after the
/// outcome.
pub(super) const DEF: StepDef = StepDef {
    settings: StepSettings {
        name: "record",
        cap: Duration::ZERO,
        minimum: Duration::ZERO,
        asks_model: false,
    },
    description: "Records the query; it runs after the outcome and has no time limits of its own.",
    phase: Phase::Record,
    policy: Policy::Degrade,
    weight: 0,
    effect: NOT_RECORDED,
    unanswered: NOT_RECORDED,
};

const NOT_RECORDED: &str =
    "The query could not be recorded: it may not be found again under its id.";

/// Writes records.
#[derive(Clone)]
pub(super) struct Recorder {
    pub queries: Arc<dyn Queries>,
    pub metrics: Arc<Metrics>,
    pub tasks: TaskTracker,
    /// The store keeps its own timeouts; this bounds a store that does not.
    pub bound: Duration,
}

impl Recorder {
    /// Writes the record and returns the document as it is true afterwards: recorded, or degraded
    /// because it is not.
    ///
    /// Cancel safe: dropping the future does not end the write.
    pub async fn record(&self, accepted: &Accepted, document: QueryDocument) -> QueryDocument {
        let record = record_of(accepted, &document);
        let write = write(self.clone(), record).in_current_span();
        match self.tasks.spawn(write).await {
            Ok(Ok(())) => document,
            Ok(Err(cause)) => document.unrecorded(cause),
            Err(_panicked) => document.unrecorded(StepCause::Error),
        }
    }
}

async fn write(recorder: Recorder, record: QueryRecord) -> Result<(), StepCause> {
    let (cause, error) = match timeout(recorder.bound, recorder.queries.record_query(record)).await
    {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => (StepCause::from(&error), error.to_string()),
        Err(_) => (
            StepCause::Timeout,
            format!("the store gave no answer within {:?}", recorder.bound),
        ),
    };
    tracing::error!(
        step = Step::RECORD.name(),
        cause = cause.name(),
        error,
        "a query was not recorded"
    );
    Err(cause)
}

fn record_of(accepted: &Accepted, document: &QueryDocument) -> QueryRecord {
    QueryRecord {
        id: accepted.id,
        tenant: accepted.tenant.clone(),
        status: document.status.name().to_owned(),
        created_at: accepted.created_at,
        document: document.to_json(),
    }
}

/// The reports of the steps that have ended, in the order of the rows.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<BTreeMap<Step, StepReport>>>);

impl Ledger {
    pub fn add(&self, report: StepReport) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(report.step, report);
    }

    pub fn reports(&self) -> Vec<StepReport> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .copied()
            .collect()
    }
}

/// The guard of a running query. Dropped before [`Running::ended`], it records the query: as
/// cancelled, or as failed if a panic ends it.
pub(super) struct Running {
    recorder: Recorder,
    accepted: Option<Accepted>,
    ledger: Ledger,
    runtime: Handle,
    span: Span,
}

impl Running {
    /// Starts to guard a query. The caller is inside the runtime.
    pub fn new(recorder: Recorder, accepted: Accepted, ledger: Ledger) -> Self {
        Self {
            recorder,
            accepted: Some(accepted),
            ledger,
            runtime: Handle::current(),
            span: Span::current(),
        }
    }

    /// Ends the guard: the query has an outcome, which the caller records.
    pub fn ended(mut self) {
        self.accepted = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(accepted) = self.accepted.take() else {
            return;
        };
        let status = if std::thread::panicking() {
            Status::Failed
        } else {
            Status::Cancelled
        };
        let document = QueryDocument::unanswered(&accepted, status, self.ledger.reports());
        let record = record_of(&accepted, &document);
        self.recorder.metrics.query(status.name());
        self.span.in_scope(|| {
            tracing::info!(
                status = status.name(),
                "a query has no outcome: the client left, the gateway stops, or a step panicked"
            );
        });
        let recorder = self.recorder.clone();
        let write = async move {
            // `write` logs a failure, and no client is left who could be informed
            let _ = write(recorder, record).await;
        };
        self.recorder
            .tasks
            .spawn_on(write.instrument(self.span.clone()), &self.runtime);
    }
}
