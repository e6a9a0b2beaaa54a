//! Runs one query: the steps phase by phase, each within its window, all inside one future.

use futures::future::{BoxFuture, join_all};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use uuid::Uuid;

use super::agents::{Agent, Prompt};
use super::budget::{Budget, Window};
use super::cause::{StepCause, StepFailure};
use super::document::StepReport;
use super::engine::{Ask, NotConfigured, Orchestrator};
use super::llm::ModelReply;
use super::outcome::{Draft, Ended, Findings, Outcome, StepResult};
use super::record::Ledger;
use super::step::{Step, StepDef, StepRow};
use crate::llm::chat::{CallContext, Usage};
use crate::resilience::deadline::{Deadline, SetBy};
use crate::retrieval::{Retriever, Search};

/// Runs a step on what the earlier phases found. Cancel safe: dropping the future drops the step's
/// calls.
pub(super) type RunStep = for<'a> fn(&'a StepRun<'a>, &'a Findings) -> BoxFuture<'a, Ended>;

/// One query.
pub(super) struct Query<'q> {
    orchestrator: &'q Orchestrator,
    ask: &'q Ask,
    id: Uuid,
    budget: Budget<'q>,
    ledger: &'q Ledger,
}

impl<'q> Query<'q> {
    /// Prepares a query; nothing runs yet.
    pub fn new(orchestrator: &'q Orchestrator, ask: &'q Ask, id: Uuid, ledger: &'q Ledger) -> Self {
        Self {
            orchestrator,
            ask,
            id,
            budget: Budget::new(ask.deadline.at, &orchestrator.config.steps),
            ledger,
        }
    }

    /// Runs every phase and concludes. Results are merged in the order of the rows, whichever step
    /// ended first.
    pub async fn run(&self) -> Outcome {
        let mut draft = Draft::new(&self.ask.question);
        for steps in Step::phases() {
            let ended = join_all(steps.iter().map(|step| {
                let span = tracing::error_span!("step", step = step.name());
                self.step(*step, draft.findings()).instrument(span)
            }))
            .await;
            for (step, ended) in steps.into_iter().zip(ended.into_iter().flatten()) {
                draft.merge(step, ended);
            }
        }
        draft.conclude()
    }

    /// Runs one step and reports it; `None` for a step without a row, which is in no phase.
    async fn step(&self, step: Step, findings: &Findings) -> Option<Ended> {
        let run = StepRun {
            query: self,
            step,
            started: Instant::now(),
        };
        let ended = (step.row()?.run)(&run, findings).await;
        self.ledger
            .add(StepReport::new(step, &ended, run.started.elapsed()));
        Some(ended)
    }
}

/// What a running step can use.
pub(super) struct StepRun<'a> {
    query: &'a Query<'a>,
    step: Step,
    started: Instant,
}

impl StepRun<'_> {
    /// Returns the instant at which the step has to have ended.
    ///
    /// # Errors
    /// Returns [`StepCause::Skipped`] if less time is left than the step needs.
    pub fn until(&self) -> Result<Instant, StepFailure> {
        match self.query.budget.window(self.step, self.started) {
            Window::Until(until) => Ok(until),
            Window::Skip { left, minimum } => Err(StepFailure::new(
                StepCause::Skipped,
                format!("{left:?} is left for the step, which needs {minimum:?}"),
            )),
        }
    }

    /// Returns what the retrievers look for.
    pub fn search(&self) -> Search<'_> {
        Search {
            tenant: &self.query.ask.tenant,
            text: &self.query.ask.question,
            limit: self.query.orchestrator.config.passages,
        }
    }

    /// Returns the retrievers, in their declared order.
    pub fn retrievers(&self) -> &[Box<dyn Retriever>] {
        &self.query.orchestrator.retrievers
    }

    /// Sends a prompt to the alias of the step and waits for the reply until `until`.
    ///
    /// Cancel safe: dropping the future ends the call.
    ///
    /// # Errors
    /// Returns why no model replied.
    async fn ask(&self, prompt: &Prompt, until: Instant) -> Result<ModelReply, StepFailure> {
        let Query {
            orchestrator,
            ask,
            id,
            budget,
            ..
        } = self.query;
        let alias = orchestrator
            .alias(self.step)
            .ok_or_else(|| StepFailure::new(StepCause::Error, NotConfigured.to_string()))?;
        // a step that had its whole cap had what the configuration gives it, however short the
        // client's deadline is
        let set_by = if budget.is_capped(self.step, self.started, until) {
            SetBy::Configuration
        } else {
            ask.deadline.set_by
        };
        let context = CallContext {
            request_id: ask.request_id.clone(),
            arrived: Instant::now(),
            deadline: Some(Deadline { at: until, set_by }),
            idempotency_key: format!("{id}-{}", self.step.name()),
            traceparent: ask.traceparent.clone(),
        };
        let request = prompt.request(self.step.name(), alias);
        timeout_at(until, orchestrator.llm.complete(request, context))
            .await
            .unwrap_or_else(|_| {
                Err(StepFailure::new(
                    StepCause::Timeout,
                    "no model replied within the step's share of the deadline",
                ))
            })
    }
}

impl StepRow {
    /// Builds the row of an agent.
    pub(super) const fn agent<A: Agent>() -> Self {
        Self::new(A::DEF, run_agent::<A>)
    }

    /// Builds the row of a step that is no agent.
    pub(super) const fn new(def: StepDef, run: RunStep) -> Self {
        Self { def, run }
    }
}

/// Turns the result of a step's own work into a [`StepResult`]; a failure is logged here.
pub(super) fn settle<T>(result: Result<T, StepFailure>) -> StepResult<T> {
    match result {
        Ok(output) => StepResult::Done(output),
        Err(StepFailure { cause, detail }) => {
            tracing::warn!(cause = cause.name(), detail, "a step has no result");
            StepResult::Failed(cause)
        }
    }
}

fn run_agent<'a, A: Agent>(run: &'a StepRun<'a>, findings: &'a Findings) -> BoxFuture<'a, Ended> {
    Box::pin(async move {
        let mut usage = Usage::default();
        let result = match A::prompt(findings) {
            Some(prompt) => settle(consult::<A>(run, &prompt, findings, &mut usage).await),
            None => StepResult::NotApplicable,
        };
        Ended::new(result, A::merge).using(usage)
    })
}

/// Asks the model of an agent and reads its reply; a reply that cannot be read is paid for like any
/// other.
async fn consult<A: Agent>(
    run: &StepRun<'_>,
    prompt: &Prompt,
    findings: &Findings,
    usage: &mut Usage,
) -> Result<A::Output, StepFailure> {
    let until = run.until()?;
    let reply = run.ask(prompt, until).await?;
    *usage = reply.usage;
    A::read(&reply.text, findings)
        .map_err(|invalid| StepFailure::new(StepCause::InvalidOutput, invalid.to_string()))
}
