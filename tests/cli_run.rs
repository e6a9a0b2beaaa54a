//! `gauntlet run`, `list`, `explain`, `report` as people use them: bad input gets one sentence and exit code 2.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn gauntlet(folder: &Path, arguments: &[&str]) -> Said {
    said(command(folder, arguments).output().unwrap())
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env_remove("GAUNTLET_DATABASE")
        .env_remove("GAUNTLET_REQUIRE")
        .stdin(Stdio::null());
    command
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// One sentence on stderr with all of `words`, exit code 2, and no panic.
fn refuses(folder: &Path, arguments: &[&str], words: &[&str]) {
    let said = gauntlet(folder, arguments);
    assert_eq!(
        said.code,
        Some(2),
        "{arguments:?}: {}{}",
        said.out,
        said.err
    );
    for word in words {
        assert!(
            said.err.contains(word),
            "{arguments:?} does not say {word:?}: {}",
            said.err
        );
    }
    assert!(!said.err.contains("panicked"), "{}", said.err);
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_unknown_case_is_told_with_the_nearest_ones() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["run", "TIME-2"],
        &["TIME-2", "TIME-02", "gauntlet list"],
    );
    refuses(
        folder.path(),
        &["explain", "WIRE-1"],
        &["WIRE-1", "WIRE-01"],
    );
    refuses(folder.path(), &["list", "NONSENSE"], &["NONSENSE"]);
}

#[test]
fn a_target_that_is_not_there_is_told_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["run", "--target", "missing.toml"],
        &["missing.toml", "bundled, litellm"],
    );
    refuses(
        folder.path(),
        &["run", "--target", "https://example.com"],
        &["https://example.com", "http://"],
    );
    refuses(
        folder.path(),
        &["run", "--manifest", "x.toml"],
        &["--manifest", "URL"],
    );
}

#[test]
fn a_broken_target_file_is_told_with_key_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let target = file(&folder, "t.toml", "name = \"t\"\nstrat = 1\n");
    refuses(
        folder.path(),
        &["run", "--target", &target],
        &["t.toml", "strat", "start"],
    );
    let target = file(
        &folder,
        "u.toml",
        "name = \"u\"\n[start]\ncommand = [\"true\", \"{{ timeots.total_ms }}\"]\n",
    );
    let said = gauntlet(folder.path(), &["run", "--target", &target]);
    // nothing is declared, so nothing is examined
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(said.out.contains("not supported"), "{}", said.out);
}

#[test]
fn a_template_with_an_unknown_name_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let target = file(
        &folder,
        "t.toml",
        "name = \"t\"\ncapabilities = [\"chat\", \"stream\"]\n[start]\ncommand = [\"true\", \"{{ timeots.total_ms }}\"]\n",
    );
    let said = gauntlet(folder.path(), &["run", "--target", &target, "TIME-02"]);
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(said.out.contains("start.command"), "{}", said.out);
}

#[test]
fn a_target_that_dies_before_it_is_ready_ends_the_run_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let target = file(
        &folder,
        "t.toml",
        "name = \"t\"\ncapabilities = [\"chat\", \"stream\"]\n[start]\ncommand = [\"sh\", \"-c\", \"echo the licence has expired; exit 7\"]\n",
    );
    let said = gauntlet(folder.path(), &["run", "--target", &target, "TIME-02"]);
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("exited with code 7") && said.out.contains("the licence has expired"),
        "{}",
        said.out
    );
    assert!(
        said.out.contains("not run"),
        "nothing was examined: {}",
        said.out
    );
    assert!(
        folder.path().join("report/index.html").is_file(),
        "what was measured is reported"
    );
}

#[test]
fn a_target_that_dies_in_the_middle_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // a gateway that is killed as soon as it has said that it was asked whether it lives
    let fragile = r#"command = ["sh", "-c", """ "$0" serve --config "$1" 2>&1 | while read -r line; do echo "$line"; case "$line" in *health/live*) kill -KILL $$;; esac; done""", "{{ gauntlet }}", "{{ file['gateway.toml'] }}"]"#;
    let bundled = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/targets/bundled.toml"
    ))
    .unwrap();
    let text: Vec<&str> = bundled
        .lines()
        .map(|line| {
            if line.starts_with("command = ") {
                fragile
            } else {
                line
            }
        })
        .collect();
    let target = file(&folder, "fragile.toml", &text.join("\n"));
    let said = gauntlet(
        folder.path(),
        &[
            "run", "--target", &target, "--jobs", "1", "TIME-02", "PARA-01",
        ],
    );
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(said.out.contains("a signal"), "{}", said.out);
    assert!(
        said.out.contains("the run ended before it"),
        "the rest is not run: {}",
        said.out
    );
    assert!(
        folder.path().join("report/report.json").is_file(),
        "what was measured is reported"
    );
}

#[test]
fn a_program_that_is_not_installed_is_told_with_the_hint() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = command(folder.path(), &["run", "--target", "litellm", "TIME-02"]);
    let said = said(
        run.env("GAUNTLET_LITELLM", "/nowhere/litellm")
            .output()
            .unwrap(),
    );
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("/nowhere/litellm") && said.out.contains("pip install"),
        "{}",
        said.out
    );
}

#[test]
fn a_url_where_nothing_answers_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // bound and closed again: nothing listens there
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let manifest = manifest(&folder);
    let said = gauntlet(
        folder.path(),
        &[
            "run",
            "--target",
            &format!("http://{free}"),
            "--manifest",
            &manifest,
            "STRM-01",
        ],
    );
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(said.out.contains(&free.to_string()), "{}", said.out);
}

#[test]
fn an_occupied_port_is_told_with_address_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let manifest = file(
        &folder,
        "m.toml",
        &format!(
            "name = \"mine\"\ncapabilities = [\"chat\", \"stream\"]\n[listen]\np1 = \"{address}\"\n"
        ),
    );
    let said = gauntlet(
        folder.path(),
        &[
            "run",
            "--target",
            "http://127.0.0.1:9",
            "--manifest",
            &manifest,
            "STRM-01",
        ],
    );
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(
        said.out.contains(&address.to_string()) && said.out.contains("[listen]"),
        "{}",
        said.out
    );
}

#[test]
fn a_database_that_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["run", "--database", "mysql://x"],
        &["postgres://"],
    );
    refuses(
        folder.path(),
        &["run", "--require", "mysql"],
        &["mysql", "docker"],
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("postgres://user:secret-password@{free}/db");
    let said = gauntlet(
        folder.path(),
        &["run", "--database", &url, "--require", "postgres"],
    );
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(said.err.contains(&free.to_string()), "{}", said.err);
    assert!(
        !said.err.contains("secret-password") && !said.out.contains("secret-password"),
        "a password is told"
    );
}

#[test]
fn an_interrupt_during_the_preparation_is_told_and_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    // a database that accepts and says nothing: the preparation waits for it
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://user@{}/db", silent.local_addr().unwrap());
    let child = command(folder.path(), &["run", "--database", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _held = silent.accept().unwrap();
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let said = said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(2), "{}{}", said.out, said.err);
    assert!(
        said.err
            .contains("interrupted before anything was examined"),
        "{}",
        said.err
    );
}

#[test]
fn an_interrupt_in_the_middle_reports_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(
        folder.path(),
        &["run", "WIRE-01", "RETRY-04", "--jobs", "1"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    // RETRY-04 takes seconds, and is under way or next when WIRE-01 has been told
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().contains("WIRE-01")));
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let out: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{out:?}");
    assert!(
        out.iter().any(|line| line.contains("interrupted")),
        "{out:?}"
    );
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("report/report.json")).unwrap())
            .unwrap();
    let verdicts: Vec<_> = record["outcomes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].as_str(), one["verdict"].as_str()))
        .collect();
    assert_eq!(
        verdicts,
        [
            (Some("WIRE-01"), Some("passed")),
            (Some("RETRY-04"), Some("not_run"))
        ]
    );
}

#[test]
fn a_report_folder_that_cannot_be_made_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let occupied = file(&folder, "occupied", "a file");
    let nowhere = file(
        &folder,
        "t.toml",
        "name = \"t\"\n[start]\ncommand = [\"true\"]\n",
    );
    refuses(
        folder.path(),
        &[
            "run", "--target", &nowhere, "--report", &occupied, "TIME-02",
        ],
        &["occupied", "--report"],
    );
}

#[test]
fn a_plan_that_is_none_is_told() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["run", "--plan", "missing.json"],
        &["missing.json"],
    );
    let plan = file(&folder, "p.json", "{\"requests\": 3}");
    refuses(
        folder.path(),
        &["run", "--plan", &plan],
        &["p.json", "fault schedule"],
    );
}

#[test]
fn a_report_is_made_again_from_its_record() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["report"],
        &["report/report.json", "gauntlet run"],
    );
    let said = gauntlet(folder.path(), &["run", "WIRE-01"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let page = std::fs::read_to_string(folder.path().join("report/index.html")).unwrap();
    std::fs::remove_file(folder.path().join("report/index.html")).unwrap();
    assert_eq!(gauntlet(folder.path(), &["report"]).code, Some(0));
    assert_eq!(
        std::fs::read_to_string(folder.path().join("report/index.html")).unwrap(),
        page
    );
}

#[test]
fn the_catalogue_is_listed_and_explained() {
    let folder = tempfile::tempdir().unwrap();
    let said = gauntlet(folder.path(), &["list", "TIME"]);
    assert!(
        said.out.lines().any(|line| line.starts_with("TIME-02")),
        "{}",
        said.out
    );
    assert!(
        said.out.lines().all(|line| line.starts_with("TIME-")),
        "{}",
        said.out
    );
    let said = gauntlet(folder.path(), &["explain", "time-02"]);
    for part in [
        "TIME-02 (MUST",
        "Why",
        "How it is shown",
        "What it rejects",
        "What to do about it",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
}

fn manifest(folder: &TempDir) -> String {
    file(
        folder,
        "mine.toml",
        "name = \"mine\"\ncapabilities = [\"chat\", \"stream\"]\n[listen]\np1 = \"127.0.0.1:0\"\n",
    )
}
