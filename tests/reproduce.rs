//! `gauntlet reproduce`, run as its README says: a failed case of the reference gateway with a
//! defect becomes a folder; upstream.py and client.py of that folder show the failure on the same
//! gateway, and none on the correct one.
//!
//! There is a trial for each case that has a defect. A few run by default; `cargo test --test
//! reproduce -- --include-ignored` runs all and prints which cases can be reproduced.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test with its own main"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gauntlet_harness::case::{Case, Failure, Verdict};
use gauntlet_harness::database::{Choice, Database, Require};
use gauntlet_harness::gate::with_hang_guard;
use gauntlet_harness::report::{Baseline, DatabaseRecord, RunRecord, SCHEMA, TargetRecord};
use gauntlet_harness::runner::{Outcome, examine};
use gauntlet_harness::spec::DatabaseNeed;
use gauntlet_harness::subject::{Deployment, Target};
use gauntlet_harness::tape::Tape;
use gauntlet_suites::{cases, defect::Defect, reference::Reference};
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The hang guard of the examinations.
const GUARD: Duration = Duration::from_secs(6);
/// How many reproductions are played at once.
const AT_ONCE: usize = 4;

/// The cases that run by default: a hang, a buffered stream, a candidate too many, an answer that
/// is changed, a stream that is cut, and a client that leaves.
const BY_DEFAULT: [&str; 6] = [
    "TIME-02", "WIRE-02", "WIRE-03", "FALL-06", "STRM-01", "CANC-01",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    let trials = cases::all()
        .into_iter()
        .filter(|case| !Defect::of(case.id).is_empty())
        .map(|case| {
            Trial::test(case.id, move || trial(&case))
                .with_ignored_flag(!BY_DEFAULT.contains(&case.id))
        });
    let mut trials: Vec<Trial> = trials.collect();
    trials.push(Trial::test("the_bundled_gateway_is_started", || {
        Runtime::new()
            .unwrap()
            .block_on(bundled())
            .map_err(Failed::from)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let results = results().lock().unwrap();
    if results.len() > BY_DEFAULT.len() {
        let shown = results.values().filter(|why| why.is_empty()).count();
        println!("{shown} of {} cases are reproduced\n", results.len());
        for (id, why) in results.iter().filter(|(_, why)| !why.is_empty()) {
            println!("{id}: {why}");
        }
    }
    match conclusion.has_failed() {
        true => ExitCode::from(101),
        false => ExitCode::SUCCESS,
    }
}

fn results() -> &'static Mutex<BTreeMap<&'static str, String>> {
    static RESULTS: OnceLock<Mutex<BTreeMap<&'static str, String>>> = OnceLock::new();
    RESULTS.get_or_init(Mutex::default)
}

fn trial(case: &Case) -> Result<(), Failed> {
    let result = Runtime::new().unwrap().block_on(reproduced(case));
    let why = result.as_ref().err().cloned().unwrap_or_default();
    results().lock().unwrap().insert(case.id, why);
    result.map_err(Failed::from)
}

/// Examines the first defect of the case, writes the reproduction, and plays it against the same
/// gateway and against the correct one.
async fn reproduced(case: &Case) -> Result<(), String> {
    let defect = Defect::of(case.id)[0];
    let outcome = examined(case, defect).await?;
    // it stays for whoever looks into a failure
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("reproduce")
        .join(case.id);
    let (folder, port) = written(&folder, case.id, record(outcome, "reference"))?;
    let (code, text) = played(case, Some(defect), &folder, port).await?;
    if code == Some(2) {
        let line = text.lines().find(|line| line.starts_with("UNDECIDED"));
        return Err(line.unwrap_or(&text).to_string());
    }
    if code != Some(1) {
        return Err(format!("{defect:?} is not reproduced ({code:?}):\n{text}"));
    }
    let (code, text) = played(case, None, &folder, port).await?;
    if code != Some(0) {
        return Err(format!(
            "the correct gateway shows the failure of {defect:?} ({code:?}):\n{text}"
        ));
    }
    Ok(())
}

/// All failures of another gateway, reproduced with the bundled one, which run.sh starts with the
/// configuration of each case: they are not there.
async fn bundled() -> Result<(), String> {
    let case = cases::all()
        .into_iter()
        .find(|case| case.id == "STRM-01")
        .ok_or("no STRM-01")?;
    let outcome = examined(&case, Defect::of(case.id)[0]).await?;
    let folder = tempfile::tempdir().unwrap();
    let (folder, port) = written(folder.path(), "--all", record(outcome, "bundled"))?;
    let (all, folder) = (folder.clone(), folder.join(case.id));
    let configuration = std::fs::read_to_string(folder.join("gateway/gateway.toml")).unwrap();
    for part in [
        format!("listen = \"127.0.0.1:{port}\""),
        format!("http://127.0.0.1:{}/v1", port + 2),
    ] {
        if !configuration.contains(&part) {
            return Err(format!("{part} is not in {configuration}"));
        }
    }
    let program = Path::new(env!("CARGO_BIN_EXE_gauntlet")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new("sh")
        .arg("run.sh")
        .current_dir(&all)
        .env("PATH", format!("{}:{path}", program.display()))
        .output()
        .unwrap();
    let text = std::fs::read_to_string(folder.join("output.txt")).unwrap_or_default();
    let is_better = text.contains("NOT REPRODUCED") && text.contains("error events: 1");
    let results = std::fs::read_to_string(all.join("results.tsv")).unwrap_or_default();
    match run.status.code() {
        Some(0) if is_better && results == "STRM-01\tnot reproduced\n" => Ok(()),
        code => Err(format!(
            "{code:?}: {text}{}",
            String::from_utf8_lossy(&run.stderr)
        )),
    }
}

/// Writes the record and the reproduction of a case, and returns the folder of the latter and its
/// first port.
fn written(folder: &Path, id: &str, record: RunRecord) -> Result<(PathBuf, u16), String> {
    record.write(folder)?;
    let port = free_ports();
    let made = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .arg("reproduce")
        .arg(folder)
        .args([id, "--out"])
        .arg(folder.join("r"))
        .args(["--port", &port.to_string()])
        .output()
        .unwrap();
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned());
    }
    Ok((folder.join("r"), port))
}

async fn examined(case: &Case, defect: Defect) -> Result<Outcome, String> {
    let database = match (case.spec)().database {
        DatabaseNeed::None => None,
        _ => Some(
            Database::resolve(&Choice::Sqlite, Require::Nothing)
                .await
                .map_err(|error| error.to_string())?
                .database,
        ),
    };
    let target: Arc<dyn Target> = Arc::new(Reference::new(Some(defect)));
    let outcome = with_hang_guard(GUARD, examine(&target, case, database.as_deref())).await;
    if let Some(database) = database {
        database.stop().await;
    }
    match &outcome.verdict {
        Verdict::Failed {
            failure: Failure::Violated { .. },
        } => Ok(outcome),
        verdict => Err(format!("{defect:?} is not rejected here: {verdict:?}")),
    }
}

fn record(outcome: Outcome, target: &str) -> RunRecord {
    RunRecord {
        schema: SCHEMA,
        gauntlet: env!("CARGO_PKG_VERSION").into(),
        started_at: jiff::Timestamp::now(),
        duration_ms: outcome.duration_ms,
        target: TargetRecord {
            name: target.into(),
            version: None,
        },
        database: DatabaseRecord {
            kind: "none".into(),
            why: "a test".into(),
        },
        command: format!("gauntlet run --target {target}"),
        selection: String::new(),
        strict: false,
        broken: None,
        baseline: Baseline::default(),
        levels: None,
        outcomes: vec![outcome],
    }
}

/// The first of some ports that nobody uses.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let first = 20_000 + NEXT.fetch_add(20, Ordering::Relaxed) % 12_000;
        let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + 20).all(is_free) {
            return first;
        }
    }
}

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays the folder against the reference gateway: the exit code of client.py, and what it writes.
async fn played(
    case: &Case,
    defect: Option<Defect>,
    folder: &Path,
    port: u16,
) -> Result<(Option<i32>, String), String> {
    let mut upstream = Command::new("python3")
        .arg("upstream.py")
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .map_err(|error| format!("python3 cannot be started: {error}"))?;
    let mut lines = BufReader::new(upstream.0.stdout.take().unwrap()).lines();
    let ready = |line: &std::io::Result<String>| {
        line.as_ref().is_ok_and(|line| line.starts_with("control"))
    };
    if !lines.any(|line| ready(&line)) {
        return Err("upstream.py is not ready".into());
    }
    // the pipe must not fill up
    std::thread::spawn(move || lines.for_each(drop));
    let deployments = tempfile::tempdir().unwrap();
    let gateway = Reference::new(defect)
        .start(deployment(case, &deployments, port))
        .await
        .map_err(|error| error.to_string())?;
    let client = tokio::process::Command::new("python3")
        .arg("client.py")
        .args(["--gateway", &gateway.base_url])
        .current_dir(folder)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = [client.stdout, client.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let judgement = ["NOT REPRODUCED", "UNDECIDED", "REPRODUCED"]
        .iter()
        .find_map(|word| text.find(word))
        .unwrap_or_default();
    Ok((client.status.code(), text[judgement..].to_string()))
}

fn deployment(case: &Case, folder: &TempDir, port: u16) -> Deployment {
    let spec = (case.spec)();
    let endpoints = spec
        .providers
        .iter()
        .zip(port + 2..)
        .map(|(provider, port)| {
            let user = provider
                .userinfo
                .as_ref()
                .map_or(String::new(), |user| format!("{user}@"));
            let path = provider.protocol.base_path();
            (
                provider.name.clone(),
                format!("http://{user}127.0.0.1:{port}{path}"),
            )
        })
        .collect();
    let database = folder.path().join("gateway.db");
    Deployment {
        id: "reproduction".into(),
        database_url: (spec.database != DatabaseNeed::None)
            .then(|| format!("sqlite://{}?mode=rwc", database.display())),
        spec,
        endpoints,
        folder: folder.path().to_path_buf(),
        tape: Tape::new(),
    }
}
