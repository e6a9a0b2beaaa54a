//! Examines the bundled gateway by every case, one test for each: `cargo test --test conformance
//! TIME-02`.
//!
//! The bundled gateway keeps every SHOULD, too, and a violation of one fails here. A case that
//! cannot be run on this machine (there is no Postgres) is reported as ignored with its reason,
//! unless `GAUNTLET_REQUIRE` forbids that.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use gauntlet_harness::case::{Case, Verdict};
use gauntlet_harness::database::{Choice, Database, Require};
use gauntlet_harness::runner::examine;
use gauntlet_harness::subject::{Target, TargetFile};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match conformance(arguments) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
    }
}

fn conformance(arguments: Arguments) -> Result<ExitCode, String> {
    let cases = gauntlet_suites::cases::all();
    if arguments.list {
        let trials = cases
            .iter()
            .map(|case| Trial::ignorable_test(case.id, || Ok(Completion::Completed)))
            .collect();
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    let runtime = Arc::new(Runtime::new().map_err(|error| error.to_string())?);
    let require = Require::from_env().map_err(|error| error.to_string())?;
    let choice: Choice = std::env::var("GAUNTLET_DATABASE")
        .unwrap_or_else(|_| "auto".into())
        .parse()
        .map_err(|error| format!("{error}"))?;
    let resolved = runtime
        .block_on(Database::resolve(&choice, require))
        .map_err(|error| error.to_string())?;
    eprintln!("database: {resolved}");
    let target = bundled()?;
    let trials = cases.into_iter().map(|case| {
        let (runtime, target, database) = (
            Arc::clone(&runtime),
            Arc::clone(&target),
            Arc::clone(&resolved.database),
        );
        Trial::ignorable_test(case.id, move || {
            judge(&runtime, &target, &case, &database, require)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    runtime.block_on(resolved.database.stop());
    Ok(conclusion.exit_code())
}

fn judge(
    runtime: &Runtime,
    target: &Arc<dyn Target>,
    case: &Case,
    database: &Database,
    require: Require,
) -> Result<Completion, Failed> {
    let outcome = runtime.block_on(examine(target, case, Some(database)));
    match outcome.verdict {
        Verdict::Passed => Ok(Completion::Completed),
        Verdict::NotRun { why } if require == Require::Nothing => Ok(Completion::ignored_with(why)),
        _ => Err(format!(
            "{}\n{}\n{}",
            case.requirement,
            outcome.reason(),
            outcome.log_tail
        )
        .into()),
    }
}

fn bundled() -> Result<Arc<dyn Target>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/targets/bundled.toml");
    let file = TargetFile::load(&path).map_err(|error| error.to_string())?;
    file.into_target(PathBuf::from(env!("CARGO_BIN_EXE_gauntlet")))
        .map_err(|error| error.to_string())
}
