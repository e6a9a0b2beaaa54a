//! Recording: each accepted query once, at its end, whatever the end is. The write is a task of the gateway's own, so that a client who
//! leaves can neither tear it nor prevent it; the tasks are waited for when the gateway drains.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::orchestrator::agents::retrieval;
use crate::orchestrator::document::{Accepted, QueryDocument, StepReport};
use crate::orchestrator::outcome::{Cause, Status};
use crate::orchestrator::step::Step;
use crate::store::{Queries, QueryRecord};
use crate::telemetry::Metrics;

/// Writes records.
#[derive(Clone)]
pub(super) struct Recorder {
    pub queries: Arc<dyn Queries>,
    pub metrics: Arc<Metrics>,
    pub tasks: TaskTracker,
    /// The store bounds itself; this bounds a store that does not.
    pub bound: Duration,
}

impl Recorder {
    /// Writes the record and returns the document that is true of it.
    pub async fn record(
        &self,
        tenant: &str,
        document: QueryDocument,
        created_at: i64,
    ) -> QueryDocument {
        let record = record_of(tenant, &document, created_at);
        let written = self.tasks.spawn(write(self.clone(), record)).await;
        match written.unwrap_or(Err(Cause::Error)) {
            Ok(()) => document,
            Err(cause) => document.unrecorded(cause),
        }
    }
}

async fn write(recorder: Recorder, record: QueryRecord) -> Result<(), Cause> {
    let id = record.id;
    let (cause, error) = match timeout(recorder.bound, recorder.queries.record_query(record)).await
    {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => (retrieval::cause(&error), error.to_string()),
        Err(_) => (
            Cause::Timeout,
            format!("no answer within {:?}", recorder.bound),
        ),
    };
    tracing::error!(query = %id, cause = cause.name(), error, "a query was not recorded");
    Err(cause)
}

fn record_of(tenant: &str, document: &QueryDocument, created_at: i64) -> QueryRecord {
    QueryRecord {
        id: document.id,
        tenant: tenant.to_owned(),
        status: document.status.name().to_owned(),
        created_at,
        document: document.to_json(),
    }
}

/// The steps that have ended, in the order of the plan.
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

/// Held while a query runs. Dropped before [`Running::ended`], it records the query as cancelled; as failed, if a bug ends it.
pub(super) struct Running {
    recorder: Recorder,
    accepted: Option<Accepted>,
    ledger: Ledger,
    runtime: Handle,
}

impl Running {
    /// Must be called inside the runtime.
    pub fn new(recorder: Recorder, accepted: Accepted, ledger: Ledger) -> Self {
        Self {
            recorder,
            accepted: Some(accepted),
            ledger,
            runtime: Handle::current(),
        }
    }

    /// The query has an outcome, which its caller records.
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
        let record = record_of(&accepted.tenant, &document, accepted.created_at);
        self.recorder.metrics.query(status.name());
        tracing::info!(query = %accepted.id, status = status.name(), "no outcome: the client left, the gateway stops, or a step panicked");
        let recorder = self.recorder.clone();
        self.recorder.tasks.spawn_on(
            async move {
                // `write` has logged a failure, and nobody is left to be told
                let _ = write(recorder, record).await;
            },
            &self.runtime,
        );
    }
}
