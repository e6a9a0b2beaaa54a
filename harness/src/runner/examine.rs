//! The examination of one case: the set-up, the case itself, the checks after it, and the clean-up.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::fixture::CaseFixture;
use super::{Outcome, Setup, not_started};
use crate::case::{Case, Ctx, Starter};
use crate::client::Client;
use crate::database::{Database, Kind};
use crate::exercise::{Instances, PlantedFault, Reached, lacking};
use crate::gate::{bounded, hang_guard};
use crate::spec::DatabaseNeed;
use crate::subject::{
    Capability, Manifest, RunningTarget, Target, TargetError, fitted, without_colours,
};
use crate::tape::{Event, Tape};
use crate::verdict::{Failure, FailureMode, Verdict};

/// The longest time between the closing of a process's sockets and the news of its end.
pub(super) const DYING: Duration = Duration::from_millis(500);

/// Examines one case once; everything is set up for it alone, and stopped afterwards.
///
/// Whatever goes wrong is part of the outcome. Dropping the future stops everything.
pub async fn examine(
    target: &Arc<dyn Target>,
    case: &Case,
    database: Option<&Database>,
) -> Outcome {
    if let Some(verdict) = excused(target.as_ref(), case, database) {
        return Outcome::without_run(case, verdict);
    }
    let began = Instant::now();
    let mut fixture = match CaseFixture::prepare(target, case.id, (case.spec)(), database).await {
        Ok(fixture) => fixture,
        Err(failure) => return failed(case, failure, began, &Tape::new()),
    };
    let deployment = fixture.deployment();
    let outcome = match target.start(deployment.clone()).await {
        Ok(running) => {
            let starter = Starter {
                target: Arc::clone(target),
                deployment,
                started: AtomicU32::new(0),
            };
            run(
                &mut fixture,
                case,
                target.manifest(),
                running,
                Some(starter),
                began,
            )
            .await
        }
        Err(TargetError::NotSupported(why)) => {
            let failure = Failure::NotRun { why };
            failed(case, failure, began, &fixture.tape)
        }
        Err(error) => {
            let tape = fixture.tape.clone();
            let folder = fixture.keep().await;
            let what = not_started(&error.to_string(), &folder);
            return failed(case, Failure::Target { what }, began, &tape);
        }
    };
    fixture.close().await;
    outcome
}

/// Returns the verdict of a case that is not examined at all; `None` for one that is.
pub(super) fn excused(
    target: &dyn Target,
    case: &Case,
    database: Option<&Database>,
) -> Option<Verdict> {
    let manifest = target.manifest();
    if let Some(missing) = case
        .needs
        .iter()
        .find(|need| !manifest.capabilities.contains(need))
    {
        let why = target
            .why_not(*missing)
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        return Some(Verdict::NotSupported {
            capability: format!("the target does not declare `{missing}`{why}"),
        });
    }
    let spec = fitted(target, (case.spec)());
    if let Err(why) = target.accepts(&spec) {
        return Some(Verdict::NotSupported { capability: why });
    }
    match (spec.database, database) {
        (DatabaseNeed::None, _) => None,
        (_, None) => Some(Verdict::NotRun {
            why: "the case needs a database, and this run has none".into(),
        }),
        (DatabaseNeed::Any, Some(_)) => None,
        (DatabaseNeed::Postgres, Some(database)) if database.kind() == Kind::Postgres => None,
        (DatabaseNeed::Postgres, Some(_)) => Some(Verdict::NotRun {
            why: "the case needs Postgres, and this run has SQLite".into(),
        }),
    }
}

/// Runs the case on a gateway that is ready, and checks what it left behind.
pub(super) async fn run(
    fixture: &mut CaseFixture,
    case: &Case,
    manifest: &Manifest,
    running: RunningTarget,
    starter: Option<Starter>,
    began: Instant,
) -> Outcome {
    let tape = fixture.tape.clone();
    let client = match Client::of(&running, tape.clone()) {
        Ok(client) => client,
        Err(failure) => return failed(case, failure, began, &tape),
    };
    let setup = Setup {
        spec: fixture.spec.clone(),
        base_url: running.base_url.clone(),
        model_prefix: running.model_prefix.clone(),
        upstreams: fixture.endpoints(""),
        rendered: Arc::clone(&running.rendered),
        gateway: 0,
    };
    let log = Log::from_now(&running, fixture);
    let target = Arc::new(running);
    let ctx = Ctx {
        client,
        target: Arc::clone(&target),
        manifest: Arc::new(manifest.clone()),
        spec: fixture.spec.clone(),
        tape: tape.clone(),
        stubs: std::mem::take(&mut fixture.stubs),
        gates: fixture.gates.clone(),
        database: fixture.database.take(),
        database_wire: fixture.wire.take(),
        starter,
        states: Reached::default(),
        instances: Instances::default(),
        nonce: fixture.nonce.clone(),
    };
    // every wait in a case has the hang guard; this bound is for a case that forgot it
    let bound = hang_guard() * 4;
    let result = bounded(
        bound,
        AssertUnwindSafe(case.run.examine(&ctx)).catch_unwind(),
    )
    .await;
    let mut verdict = match result {
        Some(Ok(Ok(()))) => Verdict::Passed,
        Some(Ok(Err(failure))) => verdict_of(failure),
        Some(Err(panic)) => Verdict::Failed {
            failure: Failure::Harness {
                what: format!("the case panicked: {}", message(panic.as_ref())),
            },
        },
        None => Verdict::Failed {
            failure: Failure::Harness {
                what: format!(
                    "the case took longer than {} s, and none of its waits had a hang guard",
                    bound.as_secs()
                ),
            },
        },
    };
    verdict = with_unmatched(verdict, &tape);
    let wire = ctx.database_wire.as_ref();
    let faults: Vec<PlantedFault> = ctx
        .stubs
        .values()
        .flat_map(|stub| stub.faults())
        .chain(wire.map(|wire| wire.faults()).unwrap_or_default())
        .collect();
    let states = ctx.states.with_tape(&tape.entries());
    if verdict == Verdict::Passed {
        let missing = ctx.instances.missing(case.instances);
        if let Some(name) = ctx.instances.unlisted(case.instances) {
            verdict = verdict_of(Failure::Harness {
                what: format!("the case examined \"{name}\", which is none of its instances"),
            });
        } else if let Some(why) = lacking(&faults, case.reaches, &states, &missing) {
            verdict = Verdict::NotExercised { why };
        }
    }
    let ended = died(&target, case, &tape, &verdict).await;
    let log_tail = log.of_case(&target);
    if let Some(what) = ended {
        verdict = Verdict::Failed {
            failure: Failure::Target {
                what: format!("{what}; its last lines:\n{log_tail}"),
            },
        };
    }
    let instances = ctx.instances.examined(case.instances);
    // what the clean-up does is no evidence
    let seen = tape.entries();
    ctx.gates.open_all();
    let Ctx {
        database,
        stubs,
        client,
        target: handle,
        ..
    } = ctx;
    drop((client, handle, target));
    fixture.database = database;
    drop(stubs);
    let outcome = Outcome::without_run(case, verdict);
    Outcome {
        duration_ms: milliseconds(began),
        attempts: 1,
        tape: seen,
        log_tail,
        faults,
        states: states.into_iter().collect(),
        instances,
        setup: Some(setup),
        ..outcome
    }
}

/// The part of a gateway's output that belongs to a case.
struct Log {
    /// How many bytes a gateway that several cases share had written before the case.
    before: usize,
    /// Texts that occur in no other case.
    marks: Vec<String>,
}

impl Log {
    /// The most lines of the case that are shown, and the most of them that have its marks.
    const MOST: usize = 60;

    fn from_now(target: &RunningTarget, fixture: &CaseFixture) -> Self {
        let is_shared = !target.model_prefix.is_empty();
        let written = target.process.as_ref().filter(|_| is_shared);
        Self {
            before: written.map_or(0, |process| process.log().len()),
            marks: match is_shared {
                true => vec![
                    target.model_prefix.clone(),
                    fixture.id.clone(),
                    fixture.nonce.clone(),
                ],
                false => Vec::new(),
            },
        }
    }

    fn of_case(&self, target: &RunningTarget) -> String {
        let Some(process) = &target.process else {
            return String::new();
        };
        if self.marks.is_empty() {
            return process.log_tail();
        }
        let log = process.log();
        lines_of_case(log.get(self.before..).unwrap_or_default(), &self.marks)
    }
}

/// Returns the last lines, and those with a mark before them; a marked line begins with `» `.
fn lines_of_case(log: &str, marks: &[String]) -> String {
    let log = without_colours(log);
    let lines: Vec<&str> = log.lines().collect();
    let is_marked = |line: &str| marks.iter().any(|mark| line.contains(mark.as_str()));
    let mut room = Log::MOST;
    let mut kept = Vec::new();
    for (from_end, line) in lines.iter().rev().enumerate() {
        let marked = is_marked(line);
        if room > 0 && (marked || from_end < Log::MOST / 2) {
            room -= 1;
            kept.push(format!("{}{line}", if marked { "» " } else { "" }));
        }
    }
    kept.reverse();
    kept.join("\n")
}

/// Adds requests that no stub answers to the verdict: they are an error of the gateway or of the
/// case, and a case with one cannot pass.
fn with_unmatched(verdict: Verdict, tape: &Tape) -> Verdict {
    match (verdict, unmatched(tape)) {
        (Verdict::Passed, Some(reason)) => Verdict::Failed {
            failure: Failure::Violated {
                fact: "provider.unmatched".into(),
                expected: "only requests that the providers of the case answer".into(),
                observed: format!("a request that no provider answers: {reason}"),
                mode: FailureMode::Visible,
            },
        },
        (
            Verdict::Failed {
                failure:
                    Failure::Violated {
                        fact,
                        expected,
                        observed,
                        mode,
                    },
            },
            Some(reason),
        ) => Verdict::Failed {
            failure: Failure::Violated {
                fact,
                expected,
                observed: format!(
                    "{observed}; besides, no provider answers one of the requests: {reason}"
                ),
                mode,
            },
        },
        (verdict, _) => verdict,
    }
}

/// Returns why the first request that no stub answers is not answered, if there is one.
pub(super) fn unmatched(tape: &Tape) -> Option<String> {
    let first = tape.first(|entry| matches!(entry.event, Event::Unmatched { .. }));
    match first?.event {
        Event::Unmatched { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Returns how the gateway ended, if it ended and not by the case.
async fn died(
    target: &RunningTarget,
    case: &Case,
    tape: &Tape,
    verdict: &Verdict,
) -> Option<String> {
    if case.needs.contains(&Capability::Process) || case.needs.contains(&Capability::Drain) {
        return None;
    }
    let process = target.process.as_ref()?;
    // a process that dies closes its sockets first, and what the case saw of that is no verdict:
    // after a failed case the end of the process is awaited
    let moment = if matches!(verdict, Verdict::Failed { .. }) {
        DYING
    } else {
        Duration::from_millis(1)
    };
    let waited = bounded(moment, process.wait()).await?;
    let signalled = tape
        .first(|entry| matches!(&entry.event, Event::Target { what } if what == "SIGTERM"))
        .is_some();
    match waited {
        _ if signalled => None,
        Ok(Some(code)) => Some(format!(
            "it exited with code {code} in the middle of {}",
            case.id
        )),
        Ok(None) => Some(format!("a signal ended it in the middle of {}", case.id)),
        Err(_) => None,
    }
}

/// Makes the outcome of a case that could not be examined.
pub(super) fn failed(case: &Case, failure: Failure, began: Instant, tape: &Tape) -> Outcome {
    Outcome {
        duration_ms: milliseconds(began),
        tape: tape.entries(),
        ..Outcome::without_run(case, verdict_of(failure))
    }
}

/// Returns the verdict on a case that ended with this failure.
fn verdict_of(failure: Failure) -> Verdict {
    match failure {
        Failure::NotRun { why } => Verdict::NotRun { why },
        Failure::NotExercised { why } => Verdict::NotExercised { why },
        failure => Verdict::Failed { failure },
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn milliseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::lines_of_case;

    #[test]
    fn the_log_of_a_shared_gateway_shows_the_lines_of_the_case() {
        let marks = ["time-02-".to_string()];
        let log: String = (0..100)
            .map(|n| match n {
                3 => "\u{1b}[31mtime-02-solo failed\u{1b}[0m\n".to_string(),
                _ => format!("line {n}\n"),
            })
            .collect();
        let shown = lines_of_case(&log, &marks);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "» time-02-solo failed");
        assert_eq!((lines[1], lines[30]), ("line 70", "line 99"));
        assert_eq!(lines.len(), 31);
        let crowd = lines_of_case(&"time-02-solo\n".repeat(500), &marks);
        assert_eq!(crowd.lines().count(), 60);
    }
}
