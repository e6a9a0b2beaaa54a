//! `gauntlet run`: starts database, stubs and gateway, runs the cases, shows a live table, and
//! writes a report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use gauntlet_harness::case::Case;
use gauntlet_harness::database::{Choice, Database, Require, Resolved};
use gauntlet_harness::report::{self, Baseline, DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::Run;
use gauntlet_harness::spec::{DatabaseNeed, Spec};
use gauntlet_harness::subject::{Target, TargetFile};
use gauntlet_suites::requirements;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::CommandError;
use super::select::{Selection, Shard};
use super::table::Table;

/// The gateways whose target files are built in.
const BUILT_IN: [(&str, &str); 6] = [
    (
        "bundled",
        include_str!("../../fixtures/targets/bundled.toml"),
    ),
    (
        "litellm",
        include_str!("../../fixtures/targets/litellm.toml"),
    ),
    (
        "portkey",
        include_str!("../../fixtures/targets/portkey.toml"),
    ),
    (
        "lm-proxy",
        include_str!("../../fixtures/targets/lm-proxy.toml"),
    ),
    (
        "modelswitch",
        include_str!("../../fixtures/targets/modelswitch.toml"),
    ),
    (
        "crabllm",
        include_str!("../../fixtures/targets/crabllm.toml"),
    ),
];

/// The end of the help. The timeouts are those that the cases assume.
fn after_help() -> String {
    let timeouts = Spec::default().timeouts;
    let seconds = |ms: Option<u64>| ms.unwrap_or_default() / 1_000;
    format!(
        "\
Exit codes:
  0  every MUST that was examined holds
  1  a MUST does not hold (with --strict also: a SHOULD does not hold, or a case is flaky), or a
     line of the baseline is stale
  2  the run itself failed: nothing was examined, bad input, a required database is missing, the
     gateway does not start or dies, a healthy request does not reach the stubs through it, or
     Ctrl-C

Before a gateway is judged, healthy requests go through it to the stubs. If one of them fails, the
gateway is not wired as the cases assume: the run ends and accuses it of nothing.

Each case has one verdict: passed; failed; flaky (it failed, and passed when it was examined again
with everything set up afresh); not exercised (nothing was wrong, but a planted fault was never met,
or a state that the case is about was never reached, so that nothing is shown); not supported (the
target does not declare a capability that the case needs); not run (something is missing on this
machine). A flaky case is reported and fails the run only with --strict. A case that was not
exercised, not supported or not run never fails the run, and is never counted as passed.

To examine a gateway of your own, describe it in a target file (see fixtures/targets/README.md), or
start it yourself and give its URL. Before a run with a URL, point the gateway at the stubs: the
alias `solo` at model `m-p1` of http://127.0.0.1:9101/v1, the alias `pair` at the same model and
then at model `m-p2` of http://127.0.0.1:9102/v1. Configure no retries, and these timeouts:
{} s (connect), {} s (first token, idle) and {} s (total).",
        seconds(timeouts.connect_ms),
        seconds(timeouts.first_token_ms),
        seconds(timeouts.total_ms),
    )
}

/// Arguments of `gauntlet run`.
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// Examine this gateway: bundled, litellm, portkey, lm-proxy, modelswitch, crabllm, a target
    /// file, or the URL of one that runs already
    #[arg(long, value_name = "TARGET", default_value = "bundled")]
    target: String,
    /// Describe the gateway at the URL by this target file, which has no [start]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Take the databases of cases from: auto (Docker, then Postgres on this machine, then SQLite),
    /// docker, local, sqlite, or postgres://user:password@host/name
    #[arg(
        long,
        value_name = "DATABASE",
        default_value = "auto",
        env = "GAUNTLET_DATABASE",
        hide_env_values = true
    )]
    database: String,
    /// Fail if this is missing, instead of taking another database: docker or postgres
    #[arg(
        long,
        value_name = "WHAT",
        env = "GAUNTLET_REQUIRE",
        hide_env_values = true
    )]
    require: Option<String>,
    /// Write the report into this folder
    #[arg(long, value_name = "DIR", default_value = "report")]
    report: PathBuf,
    /// Examine each case N times; a case whose verdicts differ is flaky
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = |text: &str| number(text, 10_000)
    )]
    repeat: u32,
    /// Run N cases at the same time [default: 2 for each core, 4 with a shared target]
    #[arg(long, value_name = "N", value_parser = |text: &str| number(text, 1_024))]
    jobs: Option<u32>,
    /// Run only the K-th of N equal parts of the cases
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// Leave these out: an id such as TIME-02, or an area such as TIME; several with commas
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    skip: Vec<String>,
    /// Accept the failures of this file: an id on each line, then a reason if you like; # begins a
    /// comment. A line whose case passes, or whose id does not exist, fails the run
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Fail the run also if a SHOULD does not hold or a case is flaky
    #[arg(long)]
    strict: bool,
    /// End the run at the first MUST that does not hold
    #[arg(long)]
    fail_fast: bool,
    /// Play this fault schedule (JSON, as a failing property prints it) instead of running cases
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["ids", "profile", "shard", "skip", "baseline", "repeat", "fail_fast"]
    )]
    schedule: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
}

/// Reads a number from 1 to `most`.
fn number(text: &str, most: u32) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("write a whole number from 1 to {most}")),
    }
}

/// Runs the cases or plays the schedule. The exit code is that of the report.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    // the harness logs what takes long or stays behind: an image that is pulled, a container that
    // cannot be removed
    let harness = EnvFilter::new("gauntlet_harness=info");
    let _ = tracing_subscriber::fmt()
        .with_env_filter(harness)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .try_init();
    super::runtime()?.block_on(async {
        if let Some(schedule) = &args.schedule {
            report::prepare(&args.report).map_err(CommandError)?;
            return play(args, schedule).await;
        }
        // dropping the preparation ends what it has started so far
        let prepared = tokio::select! {
            biased;
            () = interrupted() => return Err(stopped()),
            prepared = prepared(args) => prepared.map_err(CommandError)?,
        };
        prepared.run(args).await
    })
}

/// Plays one fault schedule. Ctrl-C ends it, and everything that was started with it.
async fn play(args: &Args, schedule: &Path) -> Result<ExitCode, CommandError> {
    let (began, started_at) = (Instant::now(), jiff::Timestamp::now());
    let target = target(args).map_err(CommandError)?;
    let replay = tokio::select! {
        replay = super::replay::play(&target, schedule) => replay?,
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
        command: format!("{} --schedule {}", command(args), schedule.display()),
        selection: String::new(),
        strict: args.strict,
        broken: None,
        baseline: Baseline::default(),
        levels: None,
        outcomes: vec![replay.outcome],
    };
    let page = record.write(&args.report).map_err(CommandError)?;
    say!("\nReport: {}", page.display());
    Ok(ExitCode::from(record.exit_code()))
}

fn stopped() -> CommandError {
    CommandError(
        "the run was interrupted before anything was examined; everything that it started has ended"
            .into(),
    )
}

/// A run whose arguments are valid and whose database is ready.
struct Prepared {
    target: Arc<dyn Target>,
    cases: Vec<Case>,
    database: Option<Resolved>,
    known: Vec<String>,
}

async fn prepared(args: &Args) -> Result<Prepared, String> {
    let cases = args.selection.cases(args.shard, &args.skip)?;
    if cases.is_empty() {
        return Err(
            "no case has this profile, id and shard together, and is not skipped; `gauntlet list` \
             shows all"
                .into(),
        );
    }
    let choice: Choice = args.database.parse().map_err(|error| format!("{error}"))?;
    let require: Require = match args.require.as_deref() {
        None | Some("") => Require::Nothing,
        Some(what) => what
            .parse()
            .map_err(|error| format!("--require (GAUNTLET_REQUIRE): {error}"))?,
    };
    let target = target(args)?;
    let known = match &args.baseline {
        Some(file) => super::baseline::read(file)?,
        None => Vec::new(),
    };
    report::prepare(&args.report)?;
    let needed = cases.iter().any(|case| {
        let spec = target.declared((case.spec)());
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
        known,
    })
}

fn target(args: &Args) -> Result<Arc<dyn Target>, String> {
    let gauntlet = std::env::current_exe().map_err(|error| {
        format!("cannot find the path of this program: {error}; start it by its path")
    })?;
    if args.manifest.is_some() && !args.target.contains("://") {
        return Err(format!(
            "--manifest describes a gateway at a URL, and {} has a target file of its own; leave \
             --manifest out, or give the URL with --target",
            args.target
        ));
    }
    target_file(&args.target, args.manifest.as_deref())?
        .into_target(gauntlet)
        .map_err(|error| error.to_string())
}

/// Reads the target file that `--target` names; `manifest` describes the gateway at a URL.
///
/// # Errors
/// A sentence with the file, the reason and the remedy.
pub(super) fn target_file(target: &str, manifest: Option<&Path>) -> Result<TargetFile, String> {
    let built_in = BUILT_IN.iter().find(|(name, _)| *name == target);
    let file = match (built_in, manifest) {
        (Some((name, text)), _) => TargetFile::parse(text, name),
        (None, Some(manifest)) => TargetFile::load_for_url(manifest, target),
        (None, None) if target.contains("://") => Ok(TargetFile::for_url(target)),
        (None, None) => TargetFile::load(Path::new(target)),
    };
    file.map_err(|error| error.to_string())
}

impl Prepared {
    async fn run(self, args: &Args) -> Result<ExitCode, CommandError> {
        let began = Instant::now();
        let started_at = jiff::Timestamp::now();
        let jobs = args
            .jobs
            .and_then(|jobs| usize::try_from(jobs).ok())
            .unwrap_or_else(|| default_jobs(self.target.shared()));
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
            preflight: true,
        };
        let stop = CancellationToken::new();
        let signals = tokio::spawn(cancel_on_signal(stop.clone()));
        let result = run.execute(&|progress| table.show(progress), &stop).await;
        drop(run);
        if let Some(database) = held {
            database.stop().await;
        }
        signals.abort();
        let mut record = RunRecord {
            schema: SCHEMA,
            gauntlet: env!("CARGO_PKG_VERSION").into(),
            started_at,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            target,
            database,
            command: command(args),
            selection: selection(args),
            strict: args.strict,
            broken: result.broken,
            baseline: Baseline::default(),
            levels: Some(requirements::levels(&result.outcomes).map_err(CommandError)?),
            outcomes: result.outcomes,
        };
        if let Some(file) = &args.baseline {
            record.baseline = super::baseline::compared(file, &self.known, &record);
        }
        let written = record.write(&args.report);
        table.finish(&record, written.as_deref().ok());
        written.map_err(CommandError)?;
        Ok(ExitCode::from(record.exit_code()))
    }
}

/// Cancels the run at the first Ctrl-C or SIGTERM, and ends the process at the second.
async fn cancel_on_signal(stop: CancellationToken) {
    interrupted().await;
    eprintln!(
        "stopping: the report will hold the verdicts so far; press Ctrl-C again to leave at once"
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

/// The cases of a shared gateway wait more than they compute: nothing is started for each.
fn default_jobs(shared: bool) -> usize {
    let each = if shared { 4 } else { 2 };
    each * std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

fn described(database: Option<&Resolved>) -> DatabaseRecord {
    let Some(resolved) = database else {
        return DatabaseRecord {
            kind: "none".into(),
            why: "because no case of this run needs one".into(),
        };
    };
    let mut why = if resolved.passed_over.is_empty() {
        "the first choice".to_string()
    } else {
        format!("because there is {}", resolved.passed_over.join(" and "))
    };
    if let Some(not_run) = resolved.not_run {
        why.push_str(&format!("; not run: {not_run}"));
    }
    DatabaseRecord {
        kind: resolved.taken.clone(),
        why,
    }
}

/// Returns the command that examines the same target again, without a password.
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

/// Returns the arguments that selected the cases.
fn selection(args: &Args) -> String {
    let profile = args
        .selection
        .profile
        .map(|profile| format!("--profile {}", profile.name()));
    let shard = args.shard.map(|shard| format!("--shard {shard}"));
    let baseline = args
        .baseline
        .as_ref()
        .map(|file| format!("--baseline {}", file.display()));
    let skip = args.skip.iter().map(|name| format!("--skip {name}"));
    profile
        .into_iter()
        .chain(shard)
        .chain(baseline)
        .chain(skip)
        .chain(args.selection.ids.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ")
}
