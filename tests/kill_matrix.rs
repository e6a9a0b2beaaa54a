//! The kill matrix: each case passes on the correct reference gateway, and rejects each of its
//! variants with a bug.
//!
//! A case fails here if it rejects the correct gateway, lets a defect pass, rejects a defect by
//! another fact than the defect's own ([`Defect::fact`]), or has no defect at all. Where the proof
//! is a hang, the correct gateway must also end within the same short guard, or else the defect is
//! examined again under the usual guard, so that a busy machine proves nothing. There is one trial
//! for each case (`cargo test --test kill_matrix -- TIME-02`); the matrix is printed at the end and
//! written to `target/kill-matrix.md`.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test with its own main"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use gauntlet_harness::case::{Case, Failure, FailureMode, Verdict};
use gauntlet_harness::database::{Choice, Database, Require};
use gauntlet_harness::gate::{hang_guard, with_hang_guard};
use gauntlet_harness::runner::examine;
use gauntlet_harness::spec::DatabaseNeed;
use gauntlet_harness::subject::Target;
use gauntlet_suites::cases;
use gauntlet_suites::{defect::Defect, reference::Reference};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, Semaphore};

/// The hang guard of a defect. Many defects are proven by a hang, and the usual guard would be
/// long.
const GUARD: Duration = Duration::from_secs(6);
/// How many gateways are examined at once. Most of them wait, but a few keep a core busy.
const AT_ONCE: usize = 16;

/// The results of one case: of the correct gateway, and of each defect.
struct Row {
    reference: TrialResult,
    defects: Vec<(Defect, TrialResult)>,
}

/// The result of one examination.
#[derive(Clone)]
enum TrialResult {
    Passed,
    /// The case rejected the gateway by this fact, in these words.
    Rejected {
        fact: String,
        hang: bool,
        how: String,
    },
    /// The case rejected the defect by another fact than the defect's own.
    RejectedBeside {
        fact: String,
        how: String,
    },
    /// The gateway was not examined on this machine, for this reason.
    NotRun(String),
    /// The case or the harness is at fault.
    Broken(String),
}

/// The stack of a thread that examines, in bytes: without optimisation, a case and the gateway that
/// it starts are deep.
const STACK: usize = 16 << 20;

/// What the trials share.
struct KillMatrix {
    runtime: Runtime,
    permits: Semaphore,
    database: OnceCell<Result<Arc<Database>, String>>,
    matrix: Mutex<BTreeMap<usize, (&'static str, Row)>>,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // trials wait far more than they compute
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    let trials = cases::all()
        .into_iter()
        .enumerate()
        .map(|(order, case)| Trial::test(case.id, move || matrix().trial(order, case)));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if !arguments.list {
        matrix().close();
    }
    if conclusion.has_failed() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

fn matrix() -> &'static KillMatrix {
    static MATRIX: OnceLock<KillMatrix> = OnceLock::new();
    MATRIX.get_or_init(|| KillMatrix {
        runtime: tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(STACK)
            .build()
            .expect("a runtime"),
        permits: Semaphore::new(AT_ONCE),
        database: OnceCell::new(),
        matrix: Mutex::default(),
    })
}

impl TrialResult {
    fn by_hang(&self) -> bool {
        matches!(self, Self::Rejected { hang: true, .. })
    }
}

impl KillMatrix {
    /// The reference first, then every defect of the requirement, together.
    fn trial(&'static self, order: usize, case: Case) -> Result<(), Failed> {
        // on a thread of the runtime, whose stack is larger than that of a trial's own
        let trial = self.runtime.spawn(async move { self.row(&case).await });
        let row = self.runtime.block_on(trial);
        let row = row.map_err(|error| Failed::from(format!("the trial ended: {error}")))?;
        let verdict = judge(&case, &row);
        self.matrix
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(order, (case.id, row));
        verdict.map_err(Failed::from)
    }

    async fn row(&self, case: &Case) -> Row {
        let reference = self.reference(case, hang_guard()).await;
        if !matches!(reference, TrialResult::Passed) {
            return Row {
                reference,
                defects: Vec::new(),
            };
        }
        let defects = Defect::of(case.id)
            .into_iter()
            .map(|defect| async move { (defect, self.seen(case, defect).await) });
        let mut defects = join_all(defects).await;
        if defects.iter().any(|(_, result)| result.by_hang())
            && !matches!(self.reference(case, GUARD).await, TrialResult::Passed)
        {
            // the machine is too busy for the short guard, and the correct gateway has passed under
            // the usual one
            let hung = defects.iter_mut().filter(|(_, result)| result.by_hang());
            for (defect, result) in hung {
                let _permit = self.permits.acquire().await;
                *result = self.examine_defect(case, *defect, hang_guard()).await;
            }
        }
        Row { reference, defects }
    }

    /// Examines a defect: a rejection counts by the defect's own fact only.
    ///
    /// Load makes everything later, and so lets a defect that is seen by a lower bound pass. A
    /// defect that is not rejected is therefore examined once more, with nothing else running.
    async fn seen(&self, case: &Case, defect: Defect) -> TrialResult {
        let result = {
            let _permit = self.permits.acquire().await;
            self.examine_defect(case, defect, GUARD).await
        };
        if matches!(result, TrialResult::Rejected { .. }) {
            return result;
        }
        let _all = self.permits.acquire_many(AT_ONCE as u32).await;
        self.examine_defect(case, defect, GUARD).await
    }

    async fn examine_defect(&self, case: &Case, defect: Defect, guard: Duration) -> TrialResult {
        match self.examine(case, Some(defect), guard).await {
            TrialResult::Rejected { fact, hang, how }
                // a later row of the same table may have hung, too
                if fact != defect.fact() || (defect.hangs() && !hang) =>
            {
                TrialResult::RejectedBeside { fact, how }
            }
            result => result,
        }
    }

    /// Examines the correct gateway.
    async fn reference(&self, case: &Case, guard: Duration) -> TrialResult {
        let _permit = self.permits.acquire().await;
        self.examine(case, None, guard).await
    }

    async fn examine(&self, case: &Case, defect: Option<Defect>, guard: Duration) -> TrialResult {
        let database = match (case.spec)().database {
            DatabaseNeed::None => None,
            DatabaseNeed::Any | DatabaseNeed::Postgres => match self.database().await {
                Ok(database) => Some(database),
                Err(error) => return TrialResult::Broken(error),
            },
        };
        let target: Arc<dyn Target> = Arc::new(Reference::new(defect));
        let outcome = with_hang_guard(guard, examine(&target, case, database.as_deref())).await;
        match outcome.verdict {
            Verdict::Passed => TrialResult::Passed,
            // a gateway that ended or never started was not examined
            Verdict::Failed {
                failure: failure @ (Failure::Harness { .. } | Failure::Target { .. }),
            } => TrialResult::Broken(failure.to_string()),
            Verdict::Failed { failure } => rejected(&failure),
            Verdict::NotRun { why } => TrialResult::NotRun(why),
            Verdict::NotSupported { capability } => {
                TrialResult::Broken(format!("the reference does not declare {capability}"))
            }
            // a fault that the case planted must be met by every gateway that it judges
            Verdict::NotExercised { why } => TrialResult::Broken(format!("not exercised: {why}")),
            Verdict::Flaky { failure } => TrialResult::Broken(format!("flaky: {failure}")),
        }
    }

    async fn database(&self) -> Result<Arc<Database>, String> {
        let resolve = async {
            let require = Require::from_env().map_err(|error| error.to_string())?;
            let resolved = Database::resolve(&Choice::Auto, require)
                .await
                .map_err(|error| error.to_string())?;
            println!("database: {}", resolved.taken);
            Ok(resolved.database)
        };
        self.database.get_or_init(|| resolve).await.clone()
    }

    /// Prints and writes the matrix, and ends the database.
    fn close(&self) {
        let matrix = self.matrix.lock().unwrap_or_else(PoisonError::into_inner);
        let text = markdown(matrix.values());
        println!("{text}");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kill-matrix.md");
        if let Err(error) = std::fs::write(&path, &text) {
            println!("cannot write {}: {error}", path.display());
        }
        if let Some(Ok(database)) = self.database.get() {
            self.runtime.block_on(database.stop());
        }
    }
}

/// Whether the case does its work: the reference passes, every defect is rejected, and there is at
/// least one.
fn judge(case: &Case, row: &Row) -> Result<(), String> {
    match &row.reference {
        TrialResult::Passed => {}
        // what cannot be run here is listed in the matrix as such
        TrialResult::NotRun(_) => return Ok(()),
        TrialResult::Rejected { how: why, .. } => {
            return Err(format!("{} rejects the correct gateway: {why}", case.id));
        }
        TrialResult::Broken(what) | TrialResult::RejectedBeside { how: what, .. } => {
            return Err(format!("{} cannot be examined: {what}", case.id));
        }
    }
    if row.defects.is_empty() {
        return Err(format!(
            "{} kills nothing: there is no defect of this requirement",
            case.id
        ));
    }
    let survivors: Vec<String> = row
        .defects
        .iter()
        .filter_map(|(defect, result)| match result {
            TrialResult::Rejected { .. } => None,
            TrialResult::Passed => Some(format!("{defect:?} survives ({})", defect.bug())),
            TrialResult::RejectedBeside { fact, how } => Some(format!(
                "{defect:?} is rejected by {fact} and not by {}: {how}",
                defect.fact()
            )),
            TrialResult::NotRun(why) | TrialResult::Broken(why) => {
                Some(format!("{defect:?} is not judged: {why}"))
            }
        })
        .collect();
    if survivors.is_empty() {
        Ok(())
    } else {
        Err(format!("{}: {}", case.id, survivors.join("; ")))
    }
}

/// The matrix as a table: a line for each case and defect.
fn markdown<'r>(rows: impl Iterator<Item = &'r (&'static str, Row)>) -> String {
    let mut text = String::from(
        "# Kill matrix\n\n| case | reference | defect | | fact | rejection |\n|---|---|---|---|---|---|\n",
    );
    let (mut killed, mut of) = (0, 0);
    for (id, row) in rows {
        let reference = match &row.reference {
            TrialResult::Passed => "passed",
            TrialResult::NotRun(_) => "not run",
            TrialResult::Rejected { .. }
            | TrialResult::RejectedBeside { .. }
            | TrialResult::Broken(_) => "FAILED",
        };
        if row.defects.is_empty() {
            let why = match &row.reference {
                TrialResult::Passed => "kills nothing",
                TrialResult::NotRun(why)
                | TrialResult::Rejected { how: why, .. }
                | TrialResult::RejectedBeside { how: why, .. }
                | TrialResult::Broken(why) => why,
            };
            let _ = writeln!(text, "| {id} | {reference} | | | | {} |", cell(why));
        }
        for (defect, result) in &row.defects {
            let (mark, fact, how) = match result {
                TrialResult::Rejected { fact, how, .. } => ("killed", fact.as_str(), how.as_str()),
                TrialResult::RejectedBeside { fact, how } => {
                    ("REJECTED BY ANOTHER FACT", fact.as_str(), how.as_str())
                }
                TrialResult::Passed => ("SURVIVED", "", defect.bug()),
                TrialResult::NotRun(how) | TrialResult::Broken(how) => {
                    ("not judged", "", how.as_str())
                }
            };
            killed += usize::from(matches!(result, TrialResult::Rejected { .. }));
            of += 1;
            let _ = writeln!(
                text,
                "| {id} | {reference} | {defect:?} | {mark} | {fact} | {} |",
                cell(how)
            );
        }
    }
    let _ = writeln!(text, "\n{killed} of {of} defects killed.");
    text
}

fn rejected(failure: &Failure) -> TrialResult {
    let (fact, hang) = match failure {
        Failure::Violated { fact, mode, .. } => (fact.clone(), *mode == FailureMode::Hang),
        _ => (String::new(), false),
    };
    TrialResult::Rejected {
        fact,
        hang,
        how: failure.to_string(),
    }
}

fn cell(text: &str) -> String {
    let line: String = text
        .replace('|', "\\|")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if line.chars().count() > 160 {
        line.chars().take(160).chain(['…']).collect()
    } else {
        line
    }
}
