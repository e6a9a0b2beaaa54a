//! `gauntlet` as a process: what it says, and its exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use super::snapshots::settings;

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

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gauntlet.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path.to_string_lossy().into_owned())
}

#[test]
fn a_refused_configuration_names_every_problem_and_exits_with_2() {
    let (_folder, path) = file("[server]\nlissten = \"127.0.0.1:0\"\ndrain_ms = -1\n");
    let output = run(&["serve", "--config", &path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert_eq!(
        said.lines()
            .filter(|line| line.starts_with("error: server."))
            .count(),
        2,
        "{said}"
    );
}

#[test]
fn an_occupied_port_is_told_with_its_remedy() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    let (_folder, path) = file(&format!(
        "[server]\nlisten = \"{address}\"\n[store]\nurl = \"sqlite::memory:\"\n"
    ));
    let output = run(&["serve", "--config", &path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains(&format!("server.listen = {address}"))
            && said.contains("configure another port"),
        "{said}"
    );
}

#[test]
fn a_missing_database_is_told_without_its_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (_folder, path) = file(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[store]\nurl = \"postgres://me:canary@{free}/none\"\nacquire_timeout_ms = 300\n"
    ));
    let output = run(&["serve", "--config", &path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("store.url = postgres://[redacted]@") && !said.contains("canary"),
        "{said}"
    );
}

#[test]
fn sigterm_ends_it_with_0_and_keys_made_meanwhile_are_listed() {
    let (folder, path) = file("[server]\nlisten = \"127.0.0.1:0\"\n");
    let mut serving = gauntlet(&["serve", "--config", &path])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(serving.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert!(said.starts_with("listening on http://127.0.0.1:"), "{said}");

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
    let token = added
        .lines()
        .find_map(|line| line.strip_prefix("token  "))
        .unwrap();
    let id = added
        .lines()
        .find_map(|line| line.strip_prefix("key    "))
        .unwrap();
    let (_, listed) = keys(&["list"]);
    assert!(
        listed.contains(id) && listed.contains("acme") && !listed.contains(token),
        "{listed}"
    );
    assert_eq!(keys(&["revoke", id]).0, Some(0));
    assert_eq!(keys(&["revoke", id]).0, Some(2));

    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -TERM {}", serving.id())])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(serving.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let provider = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base_url = format!("http://{}/v1", provider.local_addr().unwrap());
    let (folder, path) = file(&super::gateway::toml(
        &[("p1", &base_url)],
        "[server]\nlisten = \"127.0.0.1:0\"\n",
    ));
    let mut serving = gauntlet(&["serve", "--config", &path])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(serving.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    let address = said
        .trim()
        .strip_prefix("listening on http://")
        .unwrap()
        .to_owned();
    let signal = |serving: &std::process::Child| {
        assert!(
            Command::new("sh")
                .args(["-c", &format!("kill -TERM {}", serving.id())])
                .status()
                .unwrap()
                .success()
        )
    };

    let mut client = std::net::TcpStream::connect(&address).unwrap();
    let body = super::client::question("plain");
    write!(client, "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    let _held = provider.accept().unwrap();
    signal(&serving);
    let ready = || {
        let mut client = std::net::TcpStream::connect(&address).unwrap();
        client
            .write_all(b"GET /health/ready HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        said.starts_with("HTTP/1.1 200")
    };
    while ready() {}
    assert!(
        serving.try_wait().unwrap().is_none(),
        "it ended although a request is in flight"
    );
    signal(&serving);
    assert_eq!(serving.wait().unwrap().code(), Some(130));
}

#[test]
fn the_printed_configuration_can_be_started_from_and_shows_no_secret() {
    let text = "[[providers]]\nname = \"p1\"\nprotocol = \"openai\"\nbase_url = \"http://user:canary@127.0.0.1:1/v1\"\n[[providers]]\nname = \"p2\"\nprotocol = \"ollama\"\nbase_url = \"http://127.0.0.1:2\"\napi_key = \"canary\"\n[[models]]\nalias = \"solo\"\ncandidates = [{ provider = \"p1\", model = \"m\" }]\n[models.timeouts]\ntotal_ms = 1000\n";
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
        ("SNAP-01__help_stub", &["stub", "--help"]),
    ] {
        let said = String::from_utf8(run(args).stdout).unwrap();
        settings().bind(|| insta::assert_snapshot!(name, said));
    }
}

#[test]
fn without_a_configuration_it_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut serving = gauntlet(&["serve", "--listen", "127.0.0.1:0"])
        .env("OPENAI_API_KEY", "canary")
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(serving.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert!(said.starts_with("listening on"), "{said}");
    assert!(folder.path().join("gauntlet.db").exists());
    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -TERM {}", serving.id())])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(serving.wait().unwrap().code(), Some(0));
    let mut logged = String::new();
    serving
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut logged)
        .unwrap();
    assert!(
        logged.contains("'ollama'")
            && logged.contains("OPENAI_API_KEY is set: gpt-4o-mini, gpt-4o")
            && !logged.contains("canary"),
        "{logged}"
    );
}
