//! Runs cases against a target and judges them.
//!
//! Each case has its own stubs, tape and database, and its own gateway unless the target is shared.
//! All of it is stopped when the case ends, however it ends. A case that fails is examined once
//! more with everything set up afresh; if it passes then, its verdict is *flaky*.
//!
//! Before a gateway is judged, healthy requests go through it to the stubs (the preflight). A
//! gateway that does not pass them on is not wired as the cases assume: the run ends without a
//! verdict. A case whose own gateway does not start is *not run*, and the run goes on.

mod examine;
mod fixture;
mod outcome;
mod preflight;
mod replay;
mod scratch;
mod shared;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::case::Case;
use crate::database::Database;
use crate::gate::hang_guard;
use crate::subject::Target;
use crate::verdict::{Failure, FailureMode, Level, Verdict};

use preflight::Preflight;

pub use examine::examine;
pub use outcome::{Outcome, Setup};
pub use replay::{Replay, replay};

/// A run: the cases, the target, and how they are examined.
pub struct Run {
    /// The gateway under test.
    pub target: Arc<dyn Target>,
    /// The cases, in the order of the catalogue.
    pub cases: Vec<Case>,
    /// The source of the databases of cases; with `None`, cases that need one are *not run*.
    pub database: Option<Arc<Database>>,
    /// How many cases are examined at the same time; 0 counts as 1.
    pub parallelism: usize,
    /// How often each case is examined; 0 counts as 1. Verdicts that differ make the case flaky.
    pub repeat: u32,
    /// Whether the run ends at the first MUST that fails.
    pub fail_fast: bool,
    /// Whether healthy requests go through the gateway before it is judged. If one of them fails,
    /// the run ends without a verdict.
    pub preflight: bool,
}

/// What happens in a run.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The set-up of a case begins.
    Started(&'static str),
    /// A case has its verdict.
    Finished(&'a Outcome),
}

/// The result of a run.
#[derive(Debug)]
pub struct RunResult {
    /// One outcome for each case, in the order of the catalogue.
    pub outcomes: Vec<Outcome>,
    /// Why the run could not be finished; `None` if it was.
    pub broken: Option<String>,
}

/// Called with everything that happens, while it happens, from the task of the run.
pub type Observer<'a> = &'a (dyn Fn(Progress<'_>) + Send + Sync);

impl Run {
    /// Examines the cases until all are judged, `stop` is cancelled, or the run cannot go on.
    /// Dropping the future stops everything that was started.
    pub async fn execute(&self, observer: Observer<'_>, stop: &CancellationToken) -> RunResult {
        let board = Board {
            judged: Mutex::new(BTreeMap::new()),
            ended: CancellationToken::new(),
            why: Mutex::new(None),
            wired: AtomicBool::new(false),
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
            () = stop.cancelled() => board.end("it was interrupted", true),
        }
        board.into_result(&self.cases)
    }

    async fn examine_all(&self, waiting: &[(usize, Case)], board: &Board<'_>) {
        if self.target.shared() {
            return shared::examine_groups(self, waiting, board).await;
        }
        if self.preflight
            && let Err(why) = self.preflight(waiting).await
        {
            return board.end(&why, true);
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

    /// Starts a gateway for the preflight alone, and sends healthy requests through it.
    ///
    /// # Errors
    /// Why the run cannot begin, and what to do.
    async fn preflight(&self, waiting: &[(usize, Case)]) -> Result<(), String> {
        let cases = waiting.iter().map(|(_, case)| case);
        let preflight = match Preflight::prepare(&self.target, cases).await {
            Ok(Some(preflight)) => preflight,
            Ok(None) => return Ok(()),
            Err(Failure::Target { what }) => return Err(what),
            Err(failure) => return Err(failure.to_string()),
        };
        let running = match self.target.start(preflight.fixture().deployment()).await {
            Ok(running) => running,
            Err(error) => {
                let folder = preflight.keep().await;
                return Err(not_started(&error.to_string(), &folder));
            }
        };
        let checked = preflight.check(&running, self.target.manifest(), &[]).await;
        drop(running);
        preflight.close().await;
        checked
    }

    async fn examine_apart(&self, case: &Case) -> Outcome {
        let (target, examined, database) = (Arc::clone(&self.target), *case, self.database.clone());
        in_a_task(case, async move {
            examine(&target, &examined, database.as_deref()).await
        })
        .await
    }

    /// Returns whether a case needs another examination: it has fewer than `repeat`, or its only
    /// one failed. A failure of the harness or of the set-up is not repeated, and neither is a hang
    /// in which nothing happened: the guard has proved it, and takes its time for each proof. One
    /// that was not exercised is examined once more, unless it took long: a busy machine may have
    /// kept its fault from being met.
    fn wants_another(&self, attempts: &[Outcome]) -> bool {
        let (idle, attempts): (Vec<&Outcome>, Vec<&Outcome>) =
            attempts.iter().partition(|outcome| is_idle(outcome));
        match (idle.as_slice(), attempts.is_empty()) {
            ([], _) | ([_], false) => {}
            ([only], true) => {
                return u128::from(only.duration_ms) < hang_guard().as_millis() / 2;
            }
            _ => return false,
        }
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
        let once_failed = attempts.len() == 1 && attempts.iter().any(|outcome| outcome.failed());
        attempts.len() < repeat || (once_failed && !attempts.iter().any(|outcome| hung(outcome)))
    }
}

/// Returns whether the examination was not exercised, and so shows nothing.
fn is_idle(outcome: &Outcome) -> bool {
    matches!(outcome.verdict, Verdict::NotExercised { .. })
}

/// Returns whether the examination proves a hang: it ended at the hang guard, and nothing at all
/// happened for half of it. A gateway that was merely slow is examined once more.
fn hung(outcome: &Outcome) -> bool {
    let Some(Failure::Violated {
        mode: FailureMode::Hang,
        ..
    }) = outcome.failure()
    else {
        return false;
    };
    let times = outcome.tape.iter().map(|entry| entry.at_us);
    let end = times.clone().max().unwrap_or_default();
    // the tape is older than the examination, and the stubs write on it when they are closed
    let began = end.saturating_sub(outcome.duration_ms * 1_000);
    let mut last = began;
    let mut longest = 0;
    for at in times.filter(|at| *at >= began) {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    u128::from(longest) >= hang_guard().as_micros() / 2
}

/// Returns the message of a gateway that does not start; `folder` is kept for the user. A folder in
/// which nothing was rendered is not named.
fn not_started(why: &str, folder: &Path) -> String {
    let rendered = std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    if !rendered {
        // an empty folder is of no use to anybody
        let _ = std::fs::remove_dir(folder);
        return why.to_string();
    }
    let (first, rest) = why.split_once('\n').unwrap_or((why, ""));
    let first = first.trim_end_matches(':');
    let rest = if rest.is_empty() {
        String::new()
    } else {
        format!(":\n{rest}")
    };
    format!(
        "{first} (what was rendered for it is kept in {}){rest}",
        folder.display()
    )
}

/// Runs the examination in a task of its own, so that a case that polls busily does not slow down
/// the others. Dropping the future aborts the task.
async fn in_a_task(
    case: &Case,
    examination: impl Future<Output = Outcome> + Send + 'static,
) -> Outcome {
    match AbortOnDropHandle::new(tokio::spawn(examination)).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let failure = Failure::Harness {
                what: format!("the task of the examination ended early: {error}"),
            };
            Outcome::without_run(case, Verdict::Failed { failure })
        }
    }
}

/// Makes one outcome of all examinations of a case: the last one if they agree, otherwise *flaky*
/// with the first failure.
fn judged(mut attempts: Vec<Outcome>) -> Option<Outcome> {
    // an examination whose gateway never started counts as none
    let count = attempts.iter().map(|outcome| outcome.attempts).sum();
    if !attempts.iter().all(is_idle) {
        attempts.retain(|outcome| !is_idle(outcome));
    }
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

/// Keeps the outcomes of judged cases, so that an interrupted run still has them.
struct Board<'a> {
    judged: Mutex<BTreeMap<usize, Outcome>>,
    ended: CancellationToken,
    /// Why the run ended early, and whether it thereby failed.
    why: Mutex<Option<(String, bool)>>,
    /// Whether a gateway that several cases share has started, and has passed its preflight.
    wired: AtomicBool,
    observer: Observer<'a>,
    fail_fast: bool,
}

impl Board<'_> {
    fn judge(&self, index: usize, mut outcome: Outcome) {
        if let Verdict::Failed {
            failure: Failure::Target { what },
        } = &outcome.verdict
        {
            if outcome.attempts > 0 {
                self.end(what, true);
            } else {
                // nothing was examined, so there is no verdict on the requirement; other cases may
                // have a gateway that starts
                outcome.verdict = Verdict::NotRun { why: what.clone() };
            }
        }
        (self.observer)(Progress::Finished(&outcome));
        if self.fail_fast && outcome.level == Level::Must && outcome.failed() {
            self.end(
                &format!("{} failed, and --fail-fast was given", outcome.id),
                false,
            );
        }
        self.judged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(index, outcome);
    }

    fn end(&self, why: &str, breaks: bool) {
        self.keep(why, breaks);
        self.ended.cancel();
    }

    /// Ends the run because the gateway of a group of cases does not start, or fails its preflight;
    /// once another group's gateway has passed, the run goes on and fails at its end.
    fn end_unless_wired(&self, why: &str) {
        self.keep(why, true);
        if !self.wired.load(Ordering::Relaxed) {
            self.ended.cancel();
        }
    }

    fn keep(&self, why: &str, breaks: bool) {
        let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some((why.to_string(), breaks));
        }
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
        let reason = why.as_ref().map_or("for an unknown reason", |(why, _)| {
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
                            why: format!("the run ended before this case: {reason}"),
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
