//! `gauntlet` as a process: its output, its exit codes and its signals.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use gauntlet_harness::client::Client;
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::{Responder, Stub};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::tape::Tape;

use super::snapshots::settings;
use super::support::config::{Provider, toml};
use super::support::gateway::{completion, question, stub};

fn gauntlet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command
        .args(args)
        .env_clear()
        .current_dir(std::env::temp_dir());
    command
}

fn run(args: &[&str]) -> Output {
    gauntlet(args).output().unwrap()
}

/// Runs `gauntlet serve` over this configuration, which it refuses. Returns what it writes to
/// stderr.
fn refused(configuration: &str) -> String {
    let (_folder, path) = file(configuration);
    let output = run(&["serve", "--config", &path]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    text
}

/// `gauntlet serve` in this folder; returned once it listens, with its base URL.
fn serve(command: &mut Command, folder: &Path) -> (Child, String) {
    let mut serving = command
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(serving.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap_or_else(|| panic!("{line:?}"));
    let url = url.to_owned();
    (serving, url)
}

/// `gauntlet serve` over one provider that answers like this, and a client of it.
struct Serving {
    process: Child,
    provider: Stub,
    client: Client,
    _folder: tempfile::TempDir,
}

async fn serve_over(answer: Responder, tape: Tape, gates: &Gates) -> Serving {
    let provider = stub("p1", &tape, gates).await;
    provider.answers(answer);
    let base_url = provider.base_url();
    let provider_of_p1 = Provider {
        name: "p1",
        protocol: "openai",
        base_url: &base_url,
        api_key: None,
    };
    let (folder, path) = file(&toml(&[provider_of_p1], ""));
    let mut command = gauntlet(&["serve", "--config", &path]);
    let (process, url) = serve(&mut command, folder.path());
    Serving {
        process,
        provider,
        client: Client::new(&url, Vec::new(), tape).unwrap(),
        _folder: folder,
    }
}

fn terminate(serving: &Child) {
    send("TERM", serving);
}

fn send(signal: &str, serving: &Child) {
    let kill = format!("kill -{signal} {}", serving.id());
    let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success());
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gauntlet.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path.to_string_lossy().into_owned())
}

#[test]
fn a_refused_configuration_names_every_problem_and_exits_with_2() {
    let text = refused("[server]\nlissten = \"127.0.0.1:0\"\ndrain_ms = -1\n");
    let problems = text
        .lines()
        .filter(|line| line.starts_with("error: server."));
    assert_eq!(problems.count(), 2, "{text}");
}

#[test]
fn an_occupied_port_is_reported_with_its_remedy() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    let text = refused(&format!(
        "[server]\nlisten = \"{address}\"\n[store]\nurl = \"sqlite::memory:\"\n"
    ));
    assert!(
        text.contains(&format!("server.listen = {address}"))
            && text.contains("configure another port"),
        "{text}"
    );
}

#[test]
fn a_missing_database_is_reported_without_its_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("postgres://me:canary@{free}/none");
    let store = format!("[store]\nurl = \"{url}\"\nacquire_timeout_ms = 300\n");
    let text = refused(&toml(&[], &store));
    assert!(
        text.contains("store.url = postgres://[redacted]@") && !text.contains("canary"),
        "{text}"
    );
}

#[test]
fn sigterm_ends_it_with_0_and_keys_made_meanwhile_are_listed() {
    let (folder, path) = file("[server]\nlisten = \"127.0.0.1:0\"\n");
    let (mut serving, _) = serve(&mut gauntlet(&["serve", "--config", &path]), folder.path());

    let keys = |args: &[&str]| {
        let output = gauntlet(&[&["keys", "--config", &path], args].concat())
            .current_dir(folder.path())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, added) = keys(&["add", "--tenant", "acme"]);
    assert_eq!(code, Some(0), "{added}");
    let value_of = |name: &str| added.lines().find_map(|line| line.strip_prefix(name));
    let token = value_of("token  ").unwrap();
    let id = value_of("key    ").unwrap();
    let (_, listed) = keys(&["list"]);
    assert!(
        listed.contains(id) && listed.contains("acme") && !listed.contains(token),
        "{listed}"
    );
    assert_eq!(keys(&["revoke", id]).0, Some(0));
    assert_eq!(keys(&["revoke", id]).0, Some(2));

    terminate(&serving);
    assert_eq!(serving.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let mut serving = serve_over(completion().plan(Plan::silent()), tape, &gates).await;

    let _in_flight = serving.client.send_chat(question()).await.unwrap();
    serving.provider.seen(1).await.unwrap();
    terminate(&serving.process);
    while serving.client.get("/health/ready").await.unwrap().status == 200 {}
    assert!(
        serving.process.try_wait().unwrap().is_none(),
        "it ended although a request is in flight"
    );
    terminate(&serving.process);
    assert_eq!(serving.process.wait().unwrap().code(), Some(130));
}

/// SIGHUP, which a service manager sends to have a configuration read again, cuts nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_cuts_nothing_that_is_in_flight() {
    let tape = Tape::new();
    let gates = Gates::new(tape.clone());
    let mut serving = serve_over(completion().plan(Plan::held("answer")), tape, &gates).await;

    let in_flight = serving.client.send_chat(question()).await.unwrap();
    serving.provider.held(1).await.unwrap();
    send("HUP", &serving.process);
    let mut log = BufReader::new(serving.process.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("SIGHUP changes nothing")));
    gates.gate("answer").open();
    assert_eq!(in_flight.reply().await.unwrap().status, 200);
    let ready = serving.client.get("/health/ready").await.unwrap();
    assert_eq!(ready.status, 200);
    terminate(&serving.process);
    assert_eq!(serving.process.wait().unwrap().code(), Some(0));
}

#[test]
fn the_printed_configuration_can_be_started_from_and_shows_no_secret() {
    let text = "[[providers]]\nname = \"p1\"\nprotocol = \"openai\"\nbase_url = \"http://user:canary@127.0.0.1:1/v1\"\n\
        [[providers]]\nname = \"p2\"\nprotocol = \"ollama\"\nbase_url = \"http://127.0.0.1:2\"\napi_key = \"canary\"\n\
        [[models]]\nalias = \"solo\"\ncandidates = [{ provider = \"p1\", model = \"m\" }]\n[models.timeouts]\ntotal_ms = 1000\n";
    let (_folder, path) = file(text);
    let printed =
        String::from_utf8(run(&["serve", "--config", &path, "--print-config"]).stdout).unwrap();
    assert!(!printed.contains("canary"), "{printed}");
    gauntlet::config::Config::from_toml(&printed).unwrap();
    settings().bind(|| insta::assert_snapshot!("SNAP-01__print_config", printed));
}

#[test]
fn help() {
    for (name, args) in [
        ("SNAP-01__help", &["--help"][..]),
        ("SNAP-01__help_serve", &["serve", "--help"]),
        ("SNAP-01__help_keys", &["keys", "--help"]),
        ("SNAP-01__help_keys_add", &["keys", "add", "--help"]),
        ("SNAP-01__help_run", &["run", "--help"]),
        ("SNAP-01__help_list", &["list", "--help"]),
        ("SNAP-01__help_explain", &["explain", "--help"]),
        ("SNAP-01__help_report", &["report", "--help"]),
        ("SNAP-01__help_diff", &["diff", "--help"]),
        ("SNAP-01__help_stub", &["stub", "--help"]),
    ] {
        let output = String::from_utf8(run(args).stdout).unwrap();
        settings().bind(|| insta::assert_snapshot!(name, output));
    }
}

#[test]
fn without_a_configuration_it_reports_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = gauntlet(&["serve", "--listen", "127.0.0.1:0"]);
    let (mut serving, _) = serve(command.env("OPENAI_API_KEY", "canary"), folder.path());
    assert!(folder.path().join("gauntlet.db").exists());
    terminate(&serving);
    assert_eq!(serving.wait().unwrap().code(), Some(0));
    let mut logged = String::new();
    serving
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut logged)
        .unwrap();
    assert!(
        logged.contains("answers at http://127.0.0.1:11434")
            && logged.contains("OPENAI_API_KEY is set: gpt-4o-mini, gpt-4o")
            && !logged.contains("canary"),
        "{logged}"
    );
}
