//! Runs cases against a target and judges them.
//!
//! Each case has its own stubs, tape, database and (unless the target is shared) its own gateway; whatever happens, all of it is
//! stopped when the case ends. A case that fails is examined once more in a fresh set-up: what passes then is *flaky*.

mod examine;
mod fixture;
mod outcome;
mod replay;
mod shared;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::case::Case;
use crate::database::Database;
use crate::subject::Target;
use crate::verdict::{Failure, Level, Verdict};

pub use examine::examine;
pub use outcome::Outcome;
pub use replay::{Replay, replay};

/// A run: which cases, against what, how.
pub struct Run {
    /// The gateway.
    pub target: Arc<dyn Target>,
    /// The cases, in the order of the catalogue.
    pub cases: Vec<Case>,
    /// Where cases get their databases from; `None`: cases that need one are *not run*.
    pub database: Option<Arc<Database>>,
    /// Cases examined at once, at least 1.
    pub parallelism: usize,
    /// Each case is examined so often, at least once; verdicts that differ make it flaky.
    pub repeat: u32,
    /// Whether the first MUST that fails ends the run.
    pub fail_fast: bool,
}

/// What the observer of a run is told.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A case's set-up begins.
    Started(&'static str),
    /// A case is judged.
    Finished(&'a Outcome),
}

/// What a run comes to.
#[derive(Debug)]
pub struct RunResult {
    /// One for each case, in the order of the catalogue.
    pub outcomes: Vec<Outcome>,
    /// Why the run did not come to its end, if so.
    pub broken: Option<String>,
}

/// Told what happens while it happens; called from the task that runs.
pub type Observer<'a> = &'a (dyn Fn(Progress<'_>) + Send + Sync);

impl Run {
    /// Examines the cases until all are judged, `stop` is cancelled, or the run breaks. Dropping it stops everything.
    pub async fn execute(&self, observer: Observer<'_>, stop: &CancellationToken) -> RunResult {
        let board = Board {
            judged: Mutex::new(BTreeMap::new()),
            ended: CancellationToken::new(),
            why: Mutex::new(None),
            observer,
            fail_fast: self.fail_fast,
        };
        let mut waiting = Vec::new();
        for (index, case) in self.cases.iter().enumerate() {
            match examine::excused(self.target.as_ref(), case, self.database.as_deref()) {
                Some(verdict) => board.judge(index, Outcome::without_run(case, verdict)),
                None => waiting.push((index, *case)),
            }
        }
        tokio::select! {
            () = self.examine_all(&waiting, &board) => {}
            () = board.ended.cancelled() => {}
            () = stop.cancelled() => board.end("interrupted", true),
        }
        board.into_result(&self.cases)
    }

    async fn examine_all(&self, waiting: &[(usize, Case)], board: &Board<'_>) {
        if self.target.shared() {
            return shared::examine_groups(self, waiting, board).await;
        }
        let parallelism = if self.target.one_at_a_time() {
            1
        } else {
            self.parallelism.max(1)
        };
        stream::iter(waiting)
            .map(|(index, case)| async move {
                if board.ended.is_cancelled() {
                    return;
                }
                (board.observer)(Progress::Started(case.id));
                let mut attempts = Vec::new();
                while self.wants_another(&attempts) {
                    attempts.push(self.examine_apart(case).await);
                }
                if let Some(outcome) = judged(attempts) {
                    board.judge(*index, outcome);
                }
            })
            .buffer_unordered(parallelism)
            .collect::<()>()
            .await;
    }

    async fn examine_apart(&self, case: &Case) -> Outcome {
        let (target, examined, database) = (Arc::clone(&self.target), *case, self.database.clone());
        in_a_task(case, async move {
            examine(&target, &examined, database.as_deref()).await
        })
        .await
    }

    /// `repeat` attempts; one more for a single failed one. What the harness or the set-up did wrong is not repeated.
    fn wants_another(&self, attempts: &[Outcome]) -> bool {
        if attempts.iter().any(|outcome| {
            !matches!(
                outcome.verdict,
                Verdict::Passed
                    | Verdict::Failed {
                        failure: Failure::Violated { .. }
                    }
            )
        }) {
            return false;
        }
        let repeat = usize::try_from(self.repeat.max(1)).unwrap_or(usize::MAX);
        attempts.len() < repeat || (attempts.len() == 1 && attempts.iter().any(Outcome::failed))
    }
}

/// Examines the case in a task of its own: cases that poll busily must not take each other's turns. Dropping it aborts the task.
async fn in_a_task(
    case: &Case,
    examination: impl Future<Output = Outcome> + Send + 'static,
) -> Outcome {
    match AbortOnDropHandle::new(tokio::spawn(examination)).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let failure = Failure::Harness {
                what: format!("the examination ended by itself: {error}"),
            };
            Outcome::without_run(case, Verdict::Failed { failure })
        }
    }
}

/// One outcome of all attempts: the last if they agree, *flaky* with the first failure if they do not.
fn judged(mut attempts: Vec<Outcome>) -> Option<Outcome> {
    // an attempt whose gateway never started examined nothing
    let count = attempts.iter().map(|outcome| outcome.attempts).sum();
    let passed = attempts
        .iter()
        .any(|outcome| outcome.verdict == Verdict::Passed);
    let failed = attempts.iter().position(Outcome::failed);
    let mut outcome = match failed {
        Some(first) => attempts.swap_remove(first),
        None => attempts.pop()?,
    };
    if let (
        true,
        Verdict::Failed {
            failure: failure @ Failure::Violated { .. },
        },
    ) = (passed, &outcome.verdict)
    {
        outcome.verdict = Verdict::Flaky {
            failure: failure.clone(),
        };
    }
    outcome.attempts = count;
    Some(outcome)
}

/// Where judged cases are kept, so that an interrupted run still has them.
struct Board<'a> {
    judged: Mutex<BTreeMap<usize, Outcome>>,
    ended: CancellationToken,
    /// Why the run ended early, and whether that breaks it.
    why: Mutex<Option<(String, bool)>>,
    observer: Observer<'a>,
    fail_fast: bool,
}

impl Board<'_> {
    fn judge(&self, index: usize, mut outcome: Outcome) {
        if let Verdict::Failed {
            failure: Failure::Target { what },
        } = &outcome.verdict
        {
            self.end(what, true);
            if outcome.attempts == 0 {
                // nothing was examined: that is no verdict on the requirement
                outcome.verdict = Verdict::NotRun {
                    why: what.lines().next().unwrap_or_default().to_string(),
                };
            }
        }
        (self.observer)(Progress::Finished(&outcome));
        if self.fail_fast && outcome.level == Level::Must && outcome.failed() {
            self.end(&format!("--fail-fast: {} failed", outcome.id), false);
        }
        self.judged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(index, outcome);
    }

    fn end(&self, why: &str, breaks: bool) {
        let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some((why.to_string(), breaks));
        }
        self.ended.cancel();
    }

    fn into_result(self, cases: &[Case]) -> RunResult {
        let mut judged = self
            .judged
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let why = self
            .why
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let reason = why.as_ref().map_or("the run ended before it", |(why, _)| {
            why.lines().next().unwrap_or_default()
        });
        let outcomes = cases
            .iter()
            .enumerate()
            .map(|(index, case)| {
                judged.remove(&index).unwrap_or_else(|| {
                    Outcome::without_run(
                        case,
                        Verdict::NotRun {
                            why: format!("the run ended before it: {reason}"),
                        },
                    )
                })
            })
            .collect();
        RunResult {
            outcomes,
            broken: why.and_then(|(why, breaks)| breaks.then_some(why)),
        }
    }
}
