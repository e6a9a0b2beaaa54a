//! `gauntlet run`: database, stubs and target are started, the cases run, a live table is shown, a report is written.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use gauntlet_harness::case::Case;
use gauntlet_harness::database::{Choice, Database, Require, Resolved};
use gauntlet_harness::report::{DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::Run;
use gauntlet_harness::spec::DatabaseNeed;
use gauntlet_harness::subject::{Target, TargetFile};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::CommandError;
use super::select::{ProfileArg, Shard, select};
use super::table::Table;

const BUNDLED: &str = include_str!("../../fixtures/targets/bundled.toml");
const LITELLM: &str = include_str!("../../fixtures/targets/litellm.toml");

const AFTER_HELP: &str = "\
Exit codes:
  0  every MUST that was examined holds
  1  a MUST does not hold (with --strict: a SHOULD does not, or a case is flaky)
  2  the run itself failed: bad input, no database that was asked for, a target that is not ready or dies, Ctrl-C

A case is passed, failed, flaky (failed, then passed on a repeat in a fresh set-up), not supported (the target does not
declare the capability) or not run (something here is missing, with the reason). A flaky case is reported and fails the
run only with --strict.

To examine a gateway of your own, describe it in a target file (see fixtures/targets), or start it yourself and give its
URL. With a URL, point it at the stubs before: alias `solo` -> model `m-p1` at http://127.0.0.1:9101/v1, alias `pair` ->
the same, then `m-p2` at http://127.0.0.1:9102/v1. Set the time-outs to 1 s (connect), 3 s (first token, idle) and 8 s
(total), no retries; or say in a --manifest what they are.";

/// Options of `gauntlet run`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The gateway: bundled, litellm, a target file, or the URL of one that runs
    #[arg(long, value_name = "TARGET", default_value = "bundled")]
    target: String,
    /// A target file without [start] that says what the gateway at the URL can do
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// auto (Docker, then local Postgres, then SQLite), docker, local, sqlite, or postgres://user:password@host/name
    #[arg(
        long,
        value_name = "DATABASE",
        default_value = "auto",
        env = "GAUNTLET_DATABASE",
        hide_env_values = true
    )]
    database: String,
    /// Fail instead of falling back: docker, postgres
    #[arg(
        long,
        value_name = "WHAT",
        env = "GAUNTLET_REQUIRE",
        hide_env_values = true
    )]
    require: Option<String>,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "report")]
    report: PathBuf,
    /// Examine each case so often; verdicts that differ make it flaky
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    /// Cases at once; twice the cores by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    jobs: Option<u32>,
    /// Only cases of this surface
    #[arg(long, value_enum)]
    profile: Option<ProfileArg>,
    /// Only the k-th of n parts of the cases
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// A SHOULD that does not hold, or a flaky case, fails the run
    #[arg(long)]
    strict: bool,
    /// End the run at the first MUST that does not hold
    #[arg(long)]
    fail_fast: bool,
    /// Instead of cases: a fault schedule (JSON), as the property suites print it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cases", "profile", "shard", "repeat", "fail_fast"])]
    plan: Option<PathBuf>,
    /// Only these cases: an id (TIME-02) or an area (TIME)
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
}

/// Runs, and says by the exit code how it went.
pub fn run(args: Args) -> Result<ExitCode, CommandError> {
    // what the harness has to say besides verdicts: an image that is pulled for minutes, a container that stays behind
    let harness = EnvFilter::new("gauntlet_harness=info");
    let _ = tracing_subscriber::fmt()
        .with_env_filter(harness)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .try_init();
    super::runtime()?.block_on(async {
        match args.plan.clone() {
            Some(plan) => play(args, &plan).await,
            None => {
                // dropping the preparation ends what it has started so far
                let prepared = tokio::select! {
                    biased;
                    () = interrupted() => return Err(stopped()),
                    prepared = prepared(&args) => prepared.map_err(CommandError)?,
                };
                prepared.run(args).await
            }
        }
    })
}

/// Plays one fault schedule; Ctrl-C ends it and everything that was started.
async fn play(args: Args, plan: &Path) -> Result<ExitCode, CommandError> {
    let (began, started_at) = (Instant::now(), jiff::Timestamp::now());
    let target = target(&args).map_err(CommandError)?;
    let replay = tokio::select! {
        replay = super::replay::play(&target, plan) => replay?,
        () = interrupted() => return Err(stopped()),
    };
    let record = RunRecord {
        schema: SCHEMA,
        gauntlet: env!("CARGO_PKG_VERSION").into(),
        started_at,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        target: TargetRecord {
            name: target.manifest().name.clone(),
            version: target.manifest().version.clone(),
        },
        database: described(None),
        command: format!("{} --plan {}", command(&args), plan.display()),
        selection: String::new(),
        strict: args.strict,
        broken: None,
        outcomes: vec![replay.outcome],
    };
    let page = record.write(&args.report).map_err(CommandError)?;
    say!("\nReport: {}", page.display());
    Ok(ExitCode::from(record.exit_code()))
}

fn stopped() -> CommandError {
    CommandError(
        "interrupted before anything was examined; everything that was started is ended".into(),
    )
}

/// Everything that can be refused before anything is examined.
struct Prepared {
    target: Arc<dyn Target>,
    cases: Vec<Case>,
    database: Option<Resolved>,
}

async fn prepared(args: &Args) -> Result<Prepared, String> {
    let cases = select(
        gauntlet_suites::cases::all(),
        &args.cases,
        args.profile.map(Into::into),
        args.shard,
    )?;
    if cases.is_empty() {
        return Err("no case is left to run; `gauntlet list` shows all".into());
    }
    let choice: Choice = args.database.parse().map_err(|error| format!("{error}"))?;
    let require: Require = match args.require.as_deref() {
        None | Some("") => Require::Nothing,
        Some(what) => what.parse().map_err(|error| format!("{error}"))?,
    };
    let target = target(args)?;
    let needed = cases.iter().any(|case| {
        let spec = (case.spec)();
        spec.database != DatabaseNeed::None
            && case
                .needs
                .iter()
                .all(|need| target.manifest().capabilities.contains(need))
            && target.accepts(&spec).is_ok()
    });
    let database = match needed || require != Require::Nothing {
        true => Some(Database::resolve(&choice, require).await.map_err(|error| {
            format!("{error}; correct --database or --require, or leave them out")
        })?),
        false => None,
    };
    Ok(Prepared {
        target,
        cases,
        database,
    })
}

fn target(args: &Args) -> Result<Arc<dyn Target>, String> {
    let gauntlet =
        std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let is_url = args.target.contains("://");
    if args.manifest.is_some() && !is_url {
        return Err(format!(
            "--manifest belongs to a URL; {} is described by its own file",
            args.target
        ));
    }
    let file = match (args.target.as_str(), &args.manifest) {
        ("bundled", _) => TargetFile::parse(BUNDLED, "bundled"),
        ("litellm", _) => TargetFile::parse(LITELLM, "litellm"),
        (url, Some(manifest)) => TargetFile::load_for_url(manifest, url),
        (url, None) if is_url => Ok(TargetFile::for_url(url)),
        (path, None) => TargetFile::load(Path::new(path)),
    };
    file.and_then(|file| file.into_target(gauntlet))
        .map_err(|error| error.to_string())
}

impl Prepared {
    async fn run(self, args: Args) -> Result<ExitCode, CommandError> {
        let began = Instant::now();
        let started_at = jiff::Timestamp::now();
        let jobs = args
            .jobs
            .and_then(|jobs| usize::try_from(jobs).ok())
            .unwrap_or_else(default_jobs);
        let target = TargetRecord {
            name: self.target.manifest().name.clone(),
            version: self.target.manifest().version.clone(),
        };
        let database = described(self.database.as_ref());
        let table = Table::new(&target, &database, self.cases.len(), jobs);
        let held = self
            .database
            .as_ref()
            .map(|resolved| Arc::clone(&resolved.database));
        let run = Run {
            target: self.target,
            cases: self.cases,
            database: held.clone(),
            parallelism: jobs,
            repeat: args.repeat,
            fail_fast: args.fail_fast,
        };
        let stop = CancellationToken::new();
        let signals = tokio::spawn(cancel_on_signal(stop.clone()));
        let result = run.execute(&|progress| table.show(progress), &stop).await;
        drop(run);
        if let Some(database) = held {
            database.stop().await;
        }
        signals.abort();
        let record = RunRecord {
            schema: SCHEMA,
            gauntlet: env!("CARGO_PKG_VERSION").into(),
            started_at,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            target,
            database,
            command: command(&args),
            selection: selection(&args),
            strict: args.strict,
            broken: result.broken,
            outcomes: result.outcomes,
        };
        let written = record.write(&args.report);
        table.finish(&record, written.as_deref().ok());
        written.map_err(CommandError)?;
        Ok(ExitCode::from(record.exit_code()))
    }
}

/// Cancels at the first Ctrl-C or SIGTERM; ends the process at the second.
async fn cancel_on_signal(stop: CancellationToken) {
    interrupted().await;
    eprintln!(
        "stopping: everything that was started is ended, what was measured is reported; once more to leave at once"
    );
    stop.cancel();
    interrupted().await;
    std::process::exit(2);
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn default_jobs() -> usize {
    2 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

fn described(database: Option<&Resolved>) -> DatabaseRecord {
    let Some(resolved) = database else {
        return DatabaseRecord {
            kind: "none".into(),
            why: "no case of this run needs one".into(),
        };
    };
    let mut why = if resolved.passed_over.is_empty() {
        "the first that was asked for".to_string()
    } else {
        format!("because {}", resolved.passed_over.join("; "))
    };
    if let Some(not_run) = resolved.not_run {
        why.push_str(&format!("; not run: {not_run}"));
    }
    DatabaseRecord {
        kind: resolved.taken.clone(),
        why,
    }
}

/// The command that runs it again; never with a password.
fn command(args: &Args) -> String {
    let mut words = vec![
        "gauntlet run".to_string(),
        format!("--target {}", args.target),
    ];
    if let Some(manifest) = &args.manifest {
        words.push(format!("--manifest {}", manifest.display()));
    }
    match args.database.as_str() {
        "" | "auto" => {}
        url if url.contains('@') || url.contains('?') => {
            words.push("--database \"$GAUNTLET_DATABASE\"".into())
        }
        other => words.push(format!("--database {other}")),
    }
    if args.strict {
        words.push("--strict".into());
    }
    words.join(" ")
}

/// What was chosen of the cases, as it was written.
fn selection(args: &Args) -> String {
    let profile = args.profile.and_then(|profile| {
        Some(format!(
            "--profile {}",
            profile.to_possible_value()?.get_name()
        ))
    });
    let shard = args.shard.map(|shard| format!("--shard {shard}"));
    profile
        .into_iter()
        .chain(shard)
        .chain(args.cases.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A duration for people.
pub(super) fn duration(ms: u64) -> String {
    if ms < 1_000 {
        format!("{ms} ms")
    } else {
        format!("{:.1} s", Duration::from_millis(ms).as_secs_f64())
    }
}
