//! The kill matrix: each case passes on the reference gateway, and rejects every gateway with a bug of its requirement.
//!
//! A case that fails on the correct gateway, lets a defect pass, rejects one for another reason than its bug ([`Defect::seen`]), or has no
//! defect at all, fails here. Where a hang gave a defect away, the reference must end within the same short guard, at the same time: so a
//! busy machine kills nobody. One trial a case
//! (`cargo test --test kill_matrix -- TIME-02`); the matrix is printed at the end and written to `target/kill-matrix.md`.

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
use gauntlet_harness::case::{Case, Failure, Verdict};
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

/// Many defects are shown by a hang: for these the guard is short. The reference has the usual one.
const GUARD: Duration = Duration::from_secs(6);
/// Gateways examined at once: most of them wait, but a few keep a core busy, and all share one process.
const AT_ONCE: usize = 16;

/// What the reference and the defects of one case came to.
struct Row {
    reference: Came,
    defects: Vec<(Defect, Came)>,
}

/// What one examination came to.
#[derive(Clone)]
enum Came {
    Passed,
    /// Rejected, with the case's words.
    Rejected(String),
    /// Rejected in words that are not the defect's.
    RejectedBeside(String),
    /// Not examined, or not judged: says nothing about the case.
    Nothing(String),
    /// The case or the harness is at fault.
    Broken(String),
}

/// Everything that the trials share.
struct Laboratory {
    runtime: Runtime,
    places: Semaphore,
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
        .map(|(order, case)| Trial::test(case.id, move || laboratory().trial(order, case)));
    let trials: Vec<Trial> = trials
        .chain([Trial::test(
            "every_defect_names_a_requirement",
            every_defect_names_a_requirement,
        )])
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        laboratory().close();
    }
    if conclusion.has_failed() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

fn laboratory() -> &'static Laboratory {
    static LABORATORY: OnceLock<Laboratory> = OnceLock::new();
    LABORATORY.get_or_init(|| Laboratory {
        runtime: Runtime::new().expect("a runtime"),
        places: Semaphore::new(AT_ONCE),
        database: OnceCell::new(),
        matrix: Mutex::default(),
    })
}

fn every_defect_names_a_requirement() -> Result<(), Failed> {
    for defect in Defect::ALL {
        let id = defect.requirement();
        let (area, number) = id.split_once('-').unwrap_or_default();
        if area.is_empty() || number.len() != 2 || defect.bug().is_empty() {
            return Err(format!("{defect:?} names {id:?}").into());
        }
    }
    Ok(())
}

impl Came {
    fn by_hang(&self) -> bool {
        matches!(self, Self::Rejected(how) if how.contains("within the hang guard"))
    }
}

impl Laboratory {
    /// The reference first, then every defect of the requirement, together.
    fn trial(&'static self, order: usize, case: Case) -> Result<(), Failed> {
        let row = self.runtime.block_on(self.row(&case));
        let verdict = judge(&case, &row);
        self.matrix
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(order, (case.id, row));
        verdict.map_err(Failed::from)
    }

    async fn row(&self, case: &Case) -> Row {
        let reference = self.examine(case, None, hang_guard()).await;
        if !matches!(reference, Came::Passed) {
            return Row {
                reference,
                defects: Vec::new(),
            };
        }
        let defects = Defect::of(case.id)
            .into_iter()
            .map(|defect| async move { (defect, self.seen(case, defect).await) });
        let mut defects = join_all(defects).await;
        if defects.iter().any(|(_, came)| came.by_hang())
            && !matches!(self.examine(case, None, GUARD).await, Came::Passed)
        {
            let slow = || {
                Came::Broken(
                    "the reference hangs, too, under the short guard: the machine is too busy"
                        .into(),
                )
            };
            defects
                .iter_mut()
                .filter(|(_, came)| came.by_hang())
                .for_each(|(_, came)| *came = slow());
        }
        Row { reference, defects }
    }

    /// A defect's examination: a rejection counts in the defect's own words only.
    async fn seen(&self, case: &Case, defect: Defect) -> Came {
        match self.examine(case, Some(defect), GUARD).await {
            Came::Rejected(how) if !how.contains(defect.seen()) => Came::RejectedBeside(how),
            came => came,
        }
    }

    async fn examine(&self, case: &Case, defect: Option<Defect>, guard: Duration) -> Came {
        let _place = self.places.acquire().await;
        let database = match (case.spec)().database {
            DatabaseNeed::None => None,
            DatabaseNeed::Any | DatabaseNeed::Postgres => match self.database().await {
                Ok(database) => Some(database),
                Err(error) => return Came::Broken(error),
            },
        };
        let target: Arc<dyn Target> = Arc::new(Reference::new(defect));
        let outcome = with_hang_guard(guard, examine(&target, case, database.as_deref())).await;
        match outcome.verdict {
            Verdict::Passed => Came::Passed,
            // a gateway that died or did not start was not examined
            Verdict::Failed {
                failure: failure @ (Failure::Harness { .. } | Failure::Target { .. }),
            } => Came::Broken(failure.to_string()),
            Verdict::Failed { failure } => Came::Rejected(failure.to_string()),
            Verdict::NotRun { why } => Came::Nothing(why),
            Verdict::NotSupported { capability } => {
                Came::Broken(format!("the reference does not declare {capability}"))
            }
            Verdict::Flaky { failure } => Came::Broken(format!("flaky: {failure}")),
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

/// Whether the case does its work: the reference passes, every defect is rejected, and there is at least one.
fn judge(case: &Case, row: &Row) -> Result<(), String> {
    match &row.reference {
        Came::Passed => {}
        // what cannot be run here is listed in the matrix as such
        Came::Nothing(_) => return Ok(()),
        Came::Rejected(why) => {
            return Err(format!("{} rejects the correct gateway: {why}", case.id));
        }
        Came::Broken(what) | Came::RejectedBeside(what) => {
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
        .filter_map(|(defect, came)| match came {
            Came::Rejected(_) => None,
            Came::Passed => Some(format!("{defect:?} survives ({})", defect.bug())),
            Came::RejectedBeside(how) => Some(format!(
                "{defect:?} is rejected for another reason than {:?}: {how}",
                defect.seen()
            )),
            Came::Nothing(why) | Came::Broken(why) => {
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
        "# Kill matrix\n\n| case | reference | defect | | how it was seen |\n|---|---|---|---|---|\n",
    );
    let (mut killed, mut of) = (0, 0);
    for (id, row) in rows {
        let reference = match &row.reference {
            Came::Passed => "passed",
            Came::Nothing(_) => "not run",
            Came::Rejected(_) | Came::RejectedBeside(_) | Came::Broken(_) => "FAILED",
        };
        if row.defects.is_empty() {
            let why = match &row.reference {
                Came::Passed => "kills nothing",
                Came::Nothing(why)
                | Came::Rejected(why)
                | Came::RejectedBeside(why)
                | Came::Broken(why) => why,
            };
            let _ = writeln!(text, "| {id} | {reference} | | | {} |", cell(why));
        }
        for (defect, came) in &row.defects {
            let (mark, how) = match came {
                Came::Rejected(how) => ("killed", how.as_str()),
                Came::RejectedBeside(how) => ("REJECTED BESIDE", how.as_str()),
                Came::Passed => ("SURVIVED", defect.bug()),
                Came::Nothing(how) | Came::Broken(how) => ("not judged", how.as_str()),
            };
            killed += usize::from(matches!(came, Came::Rejected(_)));
            of += 1;
            let _ = writeln!(
                text,
                "| {id} | {reference} | {defect:?} | {mark} | {} |",
                cell(how)
            );
        }
    }
    let covered: Vec<&str> = cases::all().iter().map(|case| case.id).collect();
    let waiting: Vec<String> = Defect::ALL
        .iter()
        .filter(|defect| !covered.contains(&defect.requirement()))
        .map(|defect| format!("{defect:?}"))
        .collect();
    let _ = writeln!(text, "\n{killed} of {of} defects killed.");
    if !waiting.is_empty() {
        let _ = writeln!(
            text,
            "Defects of requirements without a case: {}.",
            waiting.join(", ")
        );
    }
    text
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
