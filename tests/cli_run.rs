//! `gauntlet run`, `list`, `explain` and `report` as people use them. Bad input gets one sentence
//! and exit code 2.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

fn gauntlet(folder: &Path, arguments: &[&str]) -> Answer {
    answer(command(folder, arguments).output().unwrap())
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

fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Asserts that the command is refused: stderr holds all of `words`, the exit code is 2, and
/// nothing panics.
fn refuses(folder: &Path, arguments: &[&str], words: &[&str]) {
    let answer = gauntlet(folder, arguments);
    assert_eq!(
        answer.code,
        Some(2),
        "{arguments:?}: {}{}",
        answer.out,
        answer.err
    );
    for word in words {
        assert!(
            answer.err.contains(word),
            "the message for {arguments:?} does not hold {word:?}: {}",
            answer.err
        );
    }
    assert!(!answer.err.contains("panicked"), "{}", answer.err);
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_unknown_id_is_refused_with_the_nearest_known_ids() {
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
    refuses(folder.path(), &["list", "UNKNOWN"], &["UNKNOWN"]);
}

#[test]
fn a_value_that_cannot_be_used_is_refused_with_the_option_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    refuses(
        folder,
        &["run", "CHAT"],
        &["no area CHAT", "WIRE, TIME, ", "AUTH"],
    );
    refuses(folder, &["run", "--jobs", "0"], &["'0'", "from 1 to 1024"]);
    refuses(
        folder,
        &["run", "--repeat", "x"],
        &["'x'", "from 1 to 10000"],
    );
    refuses(
        folder,
        &["run", "--require", "foo", "TIME-06"],
        &[
            "--require (GAUNTLET_REQUIRE)",
            "`foo`",
            "docker",
            "postgres",
        ],
    );
    refuses(
        folder,
        &["stub", "--listen", "foo"],
        &["'foo'", "127.0.0.1:11435"],
    );
    refuses(
        folder,
        &["keys", "revoke", "nope"],
        &["'nope'", "gauntlet keys list"],
    );
}

#[test]
fn a_missing_target_is_refused_with_the_remedy() {
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
fn a_broken_target_file_is_refused_with_key_and_line() {
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
    let answer = gauntlet(folder.path(), &["run", "--target", &target]);
    // the target declares nothing, so nothing is examined
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("not supported"), "{}", answer.out);
}

#[test]
fn a_run_that_examines_nothing_fails_in_every_form_of_target_and_selection() {
    let folder = tempfile::tempdir().unwrap();
    let started = file(
        &folder,
        "t.toml",
        "name = \"t\"\n[start]\ncommand = [\"true\"]\n",
    );
    let url = "http://127.0.0.1:9";
    for arguments in [
        &["--target", url, "TIME-06"][..],
        &["--target", &started, "STRM-01"],
        &["--target", &started, "--profile", "query"],
        &["--target", "bundled", "--database", "sqlite", "TIME-10"],
        &["--target", url, "--shard", "1/1", "OBS-01"],
        &["--target", url, "--strict", "AUTH-01"],
    ] {
        let answer = gauntlet(folder.path(), &[&["run"], arguments].concat());
        assert_eq!(answer.code, Some(2), "{arguments:?} {}", answer.out);
        assert!(
            answer.out.contains("Nothing was examined: of")
                && answer.out.contains("Exit code 2: nothing was examined"),
            "{arguments:?} {}",
            answer.out
        );
        let junit = std::fs::read_to_string(folder.path().join("report/junit.xml")).unwrap();
        assert!(junit.contains("<error"), "{arguments:?} {junit}");
    }
    refuses(
        folder.path(),
        &["run", "--shard", "2/2", "TIME-06"],
        &["no case", "gauntlet list"],
    );
}

#[test]
fn a_template_with_an_unknown_name_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let target = file(
        &folder,
        "t.toml",
        "name = \"t\"\ncapabilities = [\"chat\", \"stream\"]\n[start]\ncommand = [\"true\", \"{{ timeots.total_ms }}\"]\n",
    );
    let answer = gauntlet(folder.path(), &["run", "--target", &target, "TIME-02"]);
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("start.command"), "{}", answer.out);
}

#[test]
fn a_target_that_dies_before_it_is_ready_ends_the_run_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let target = file(
        &folder,
        "t.toml",
        "name = \"t\"\ncapabilities = [\"chat\", \"stream\"]\n[start]\ncommand = [\"sh\", \"-c\", \"echo the licence has expired; exit 7\"]\n",
    );
    let answer = gauntlet(folder.path(), &["run", "--target", &target, "TIME-02"]);
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(
        answer.out.contains("exited with code 7") && answer.out.contains("the licence has expired"),
        "{}",
        answer.out
    );
    assert!(
        answer.out.contains("not run"),
        "nothing was examined: {}",
        answer.out
    );
    assert!(
        folder.path().join("report/index.html").is_file(),
        "what was measured is reported"
    );
}

#[test]
fn a_target_that_dies_in_the_middle_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // a gateway that is killed as soon as it has logged a request for its liveness
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
    let answer = gauntlet(
        folder.path(),
        &[
            "run", "--target", &target, "--jobs", "1", "TIME-02", "PARA-01",
        ],
    );
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("a signal"), "{}", answer.out);
    assert!(
        answer.out.contains("the run ended before this case"),
        "the rest is not run: {}",
        answer.out
    );
    assert!(
        folder.path().join("report/report.json").is_file(),
        "what was measured is reported"
    );
}

#[test]
fn a_program_that_is_not_installed_is_reported_with_the_hint() {
    let folder = tempfile::tempdir().unwrap();
    for (target, variable, remedy) in [
        ("litellm", "GAUNTLET_LITELLM", "pip install"),
        ("lm-proxy", "GAUNTLET_LM_PROXY", "pip install lm-proxy"),
        (
            "modelswitch",
            "GAUNTLET_MODELSWITCH",
            "pip install modelswitch",
        ),
        ("crabllm", "GAUNTLET_CRABLLM", "cargo install crabllm"),
    ] {
        let mut run = command(folder.path(), &["run", "--target", target, "TIME-02"]);
        let answer = answer(run.env(variable, "/nowhere/program").output().unwrap());
        assert_eq!(
            answer.code,
            Some(2),
            "{target}: {}{}",
            answer.out,
            answer.err
        );
        assert!(
            answer.out.contains("/nowhere/program") && answer.out.contains(remedy),
            "{target}: {}",
            answer.out
        );
    }
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
    let answer = gauntlet(
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
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains(&free.to_string()), "{}", answer.out);
}

/// A gateway that refuses every request with this status, and its address. It ends with the test.
fn refusing(status: &'static str, error: &'static str) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while head.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let body = format!("{{\"error\": {{\"message\": \"{error}\"}}}}");
            let _ = std::io::Write::write_all(
                &mut stream,
                format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
    });
    address
}

#[test]
fn a_url_that_is_not_wired_to_the_stubs_is_accused_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let manifest = file(
        &folder,
        "m.toml",
        &format!(
            "name = \"mine\"\ncapabilities = [\"chat\", \"stream\"]\n[listen]\np1 = \"{port}\"\n\
             [headers]\nauthorization = \"Bearer sk-of-the-client-12345\"\n"
        ),
    );
    for (status, error, remedy) in [
        (
            "404 Not Found",
            "no model solo for sk-of-the-client-12345",
            "point the alias solo at the model m-p1 of http://127.0.0.1",
        ),
        ("401 Unauthorized", "no key", "[headers] of a target file"),
    ] {
        let url = format!("http://{}", refusing(status, error));
        let answer = gauntlet(
            folder.path(),
            &["run", "--target", &url, "--manifest", &manifest, "STRM"],
        );
        assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
        let shown = error.replace("sk-of-the-client-12345", "[secret]");
        for words in [
            "the preflight failed",
            &format!("status {}", &status[..3]),
            &shown,
            "the provider p1 (http://127.0.0.1:",
            "was not asked",
            remedy,
            "Exit code 2",
        ] {
            assert!(answer.out.contains(words), "{words:?}: {}", answer.out);
        }
        assert!(!answer.out.contains("failed  "), "{}", answer.out);
        let junit = std::fs::read_to_string(folder.path().join("report/junit.xml")).unwrap();
        assert!(
            junit.contains("<error") && !junit.contains("<failure"),
            "{junit}"
        );
    }
}

#[test]
fn an_occupied_port_is_reported_with_address_and_remedy() {
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
    let answer = gauntlet(
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
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(
        answer.out.contains(&address.to_string()) && answer.out.contains("[listen]"),
        "{}",
        answer.out
    );
}

#[test]
fn a_missing_database_is_reported() {
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
    let answer = gauntlet(
        folder.path(),
        &["run", "--database", &url, "--require", "postgres"],
    );
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.err.contains(&free.to_string()), "{}", answer.err);
    assert!(
        !answer.err.contains("secret-password") && !answer.out.contains("secret-password"),
        "the output holds a password"
    );
}

#[test]
fn an_interrupt_during_the_preparation_is_reported_and_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    // a database that accepts and never answers, for which the preparation waits
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
    let answer = answer(child.wait_with_output().unwrap());
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(
        answer
            .err
            .contains("interrupted before anything was examined"),
        "{}",
        answer.err
    );
}

#[test]
fn a_run_that_is_killed_leaves_no_folder_and_no_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let mut child = command(
        folder.path(),
        &[
            "run",
            "WIRE-01",
            "RETRY-04",
            "--jobs",
            "1",
            "--database",
            "sqlite",
        ],
    )
    .env("TMPDIR", temporary.path())
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let left = || std::fs::read_dir(temporary.path()).unwrap().count();
    // RETRY-04 takes seconds, and runs or is the next one when WIRE-01 is reported
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().contains("WIRE-01")));
    assert!(left() > 0, "the run has a folder");
    child.kill().unwrap();
    child.wait().unwrap();
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while left() > 0 && std::time::Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(left(), 0, "what the run left in its temporary folder");
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
    // RETRY-04 takes seconds, and runs or is the next one when WIRE-01 is reported
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
fn a_report_folder_that_cannot_be_made_is_refused() {
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
    // the folder is tried before anything starts: no case has a line
    let answer = gauntlet(folder.path(), &["run", "--report", "/proc/x", "TIME-02"]);
    assert_eq!(answer.code, Some(2), "{}{}", answer.out, answer.err);
    assert!(answer.err.contains("/proc/x"), "{}", answer.err);
    assert_eq!(answer.out, "");
}

#[test]
fn cases_are_left_out_with_skip_and_the_report_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let answer = gauntlet(
        folder.path(),
        &[
            "run",
            "--skip",
            "WIRE-02,TIME",
            "WIRE-01",
            "WIRE-02",
            "TIME-02",
        ],
    );
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    let text = std::fs::read_to_string(folder.path().join("report/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        report["selection"],
        "--skip WIRE-02 --skip TIME WIRE-01 WIRE-02 TIME-02"
    );
    assert_eq!(report["outcomes"].as_array().unwrap().len(), 1);
    assert_eq!(report["outcomes"][0]["id"], "WIRE-01");
    refuses(
        folder.path(),
        &["run", "--skip", "WIRE-1"],
        &["WIRE-1", "WIRE-01"],
    );
    refuses(
        folder.path(),
        &["run", "--skip", "WIRE-01", "WIRE-01"],
        &["skipped", "gauntlet list"],
    );
}

#[test]
fn a_baseline_accepts_known_failures_and_refuses_stale_lines() {
    let folder = tempfile::tempdir().unwrap();
    let baseline = |text: &str| {
        let path = file(&folder, "known.txt", text);
        gauntlet(folder.path(), &["run", "--baseline", &path, "WIRE-01"])
    };
    // a case that this run leaves out is neither known nor stale
    let answer = baseline("# known failures\n\nTIME-02 it has no timeouts # since 1.2\n");
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    for (text, why) in [
        ("wire-01: an old failure\n", "WIRE-01 passes"),
        ("WIRE-0x\n", "WIRE-0X is no id of the catalogue"),
    ] {
        let answer = baseline(text);
        assert_eq!(answer.code, Some(1), "{}{}", answer.out, answer.err);
        assert!(answer.out.contains(why), "{}", answer.out);
        assert!(answer.out.contains("remove its line"), "{}", answer.out);
        let page = std::fs::read_to_string(folder.path().join("report/report.md")).unwrap();
        assert!(page.contains("Stale line of the baseline"), "{page}");
    }
    refuses(
        folder.path(),
        &["run", "--baseline", "missing.txt", "WIRE-01"],
        &["missing.txt", "id of a known failure"],
    );
}

#[test]
fn shards_are_merged_into_one_report() {
    let folder = tempfile::tempdir().unwrap();
    for shard in ["1/2", "2/2"] {
        let out = format!("shard-{}", &shard[..1]);
        let ids = ["WIRE-01", "WIRE-03", "WIRE-09"];
        let mut arguments = vec!["run", "--shard", shard, "--report", &out];
        arguments.extend(ids);
        let answer = gauntlet(folder.path(), &arguments);
        assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    }
    let answer = gauntlet(folder.path(), &["report", "shard-2", "shard-1/report.json"]);
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    let text = std::fs::read_to_string(folder.path().join("report/report.json")).unwrap();
    let mut report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["selection"], "WIRE-01 WIRE-03 WIRE-09");
    let outcomes = report["outcomes"].as_array().unwrap();
    let ids: Vec<&str> = outcomes.iter().filter_map(|o| o["id"].as_str()).collect();
    assert_eq!(ids, ["WIRE-01", "WIRE-03", "WIRE-09"]);
    refuses(
        folder.path(),
        &["report", "shard-1", "report", "--out", "x"],
        &["WIRE-01", "shard-1", "share no case"],
    );
    refuses(
        folder.path(),
        &["report", "shard-1", "shard-2", "--out", "shard-1"],
        &["overwrite", "--out"],
    );
    report["target"]["name"] = "other".into();
    let other = file(&folder, "other.json", &report.to_string());
    refuses(
        folder.path(),
        &["report", "shard-1", &other],
        &["bundled", "other", "one target"],
    );
}

#[test]
fn a_file_that_is_no_schedule_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["run", "--schedule", "missing.json"],
        &["missing.json"],
    );
    let schedule = file(&folder, "p.json", "{\"requests\": 3}");
    refuses(
        folder.path(),
        &["run", "--schedule", &schedule],
        &[
            "p.json",
            "fault schedule",
            "line 1, column 14",
            "a list: [ … ]",
        ],
    );
}

#[test]
fn a_report_is_written_again_from_its_record() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        folder.path(),
        &["report"],
        &["report/report.json", "gauntlet run"],
    );
    let answer = gauntlet(folder.path(), &["run", "WIRE-01"]);
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    refuses(
        folder.path(),
        &["reproduce", "report", "WIRE-01"],
        &["WIRE-01 is passed", "no case of this report failed"],
    );
    refuses(
        folder.path(),
        &["reproduce", "report", "WIRE-02"],
        &["report/report.json has no case WIRE-02"],
    );
    refuses(
        folder.path(),
        &["reproduce", "missing", "WIRE-02"],
        &["missing", "gauntlet run"],
    );
    refuses(
        folder.path(),
        &["reproduce", "report", "WIRE-02", "--port", "80"],
        &["'80'", "from 1024 to 65000"],
    );
    let page = std::fs::read_to_string(folder.path().join("report/index.html")).unwrap();
    std::fs::remove_file(folder.path().join("report/index.html")).unwrap();
    assert_eq!(gauntlet(folder.path(), &["report"]).code, Some(0));
    assert_eq!(
        std::fs::read_to_string(folder.path().join("report/index.html")).unwrap(),
        page
    );
}

#[test]
fn the_catalogue_is_listed_with_proofs_and_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let all = gauntlet(folder.path(), &["list"]).out;
    for requirement in gauntlet_suites::catalogue::all() {
        assert!(
            all.lines().any(|line| line.starts_with(requirement.id)),
            "{} is missing: {all}",
            requirement.id
        );
    }
    let time = gauntlet(folder.path(), &["list", "TIME"]).out;
    let (rows, summary) = time.trim_end().split_once("\n\n").unwrap();
    assert!(rows.lines().all(|line| line.starts_with("TIME-")), "{rows}");
    let proven = rows.lines().filter(|line| line.contains(" case ")).count();
    assert!(
        summary.contains(&format!("{proven} are proven by a case")),
        "{summary}"
    );
    let json = gauntlet(folder.path(), &["list", "SNAP-01", "--json"]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["proof"], "test", "{json}");
    assert!(json[0]["functions"][0]["file"].is_string(), "{json}");
}

#[test]
fn every_requirement_and_every_capability_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let explained = gauntlet(folder.path(), &["explain", "time-02"]).out;
    for part in [
        "TIME-02 (MUST",
        "Why it matters",
        "How it is examined",
        "What to do if it fails",
        "gauntlet run TIME-02",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let explained = gauntlet(folder.path(), &["explain", "PROP-01"]).out;
    assert!(
        explained.contains("Where it is proven") && explained.contains("tests/"),
        "{explained}"
    );
    let explained = gauntlet(folder.path(), &["explain", "retry_budget"]).out;
    assert!(explained.contains("RETRY-06"), "{explained}");
    let capabilities = gauntlet(folder.path(), &["list", "--capabilities"]).out;
    assert!(capabilities.lines().count() > 20, "{capabilities}");
    refuses(
        folder.path(),
        &["run", "PROP-01"],
        &["PROP-01", "gauntlet explain"],
    );
}

fn manifest(folder: &TempDir) -> String {
    file(
        folder,
        "mine.toml",
        "name = \"mine\"\ncapabilities = [\"chat\", \"stream\"]\n[listen]\np1 = \"127.0.0.1:0\"\n",
    )
}
