//! `gauntlet stub` as people run it: the shipped scripts answer, faults included, and a bad script
//! is refused in one sentence.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gauntlet_harness::client::{Client, End};
use gauntlet_harness::llm::fixture::Script;
use gauntlet_harness::tape::Tape;
use serde_json::{Value, json};

struct Running {
    child: Child,
    client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/conversations")
        .join(name)
}

fn stub(scripts: &[PathBuf]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command.args(["stub", "--listen", "127.0.0.1:0"]);
    for script in scripts {
        command.arg("--script").arg(script);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let control = lines.find(|line| line.starts_with("Control")).unwrap();
    let url = control.split_whitespace().last().unwrap();
    let root = url.strip_suffix("/_gauntlet").unwrap();
    let client = Client::new(root, Vec::new(), Tape::new()).unwrap();
    Running { child, client }
}

fn says(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}]})
}

#[test]
fn every_shipped_script_can_be_read() {
    let scripts = std::fs::read_dir(fixture("")).unwrap();
    let read: Vec<Script> = scripts
        .map(|entry| Script::read(&entry.unwrap().path()).unwrap())
        .collect();
    assert!(read.len() >= 2);
}

#[tokio::test]
async fn one_port_speaks_both_protocols() {
    let stub = stub(&[fixture("capitals.yaml")]);
    let france = says("What is the capital of France?");
    assert_eq!(
        stub.client.chat(france.clone()).await.unwrap().content(),
        "Paris is the capital of France."
    );
    let streamed = stub
        .client
        .stream(france.clone())
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    streamed.strict().unwrap();
    assert_eq!(streamed.text, "Paris is the capital of France.");
    let ollama = stub.client.post("/api/chat", france).await.unwrap();
    assert_eq!(ollama.text().lines().count(), 7);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(stub.client.chat(says("try again")).await.unwrap().status);
    }
    assert_eq!(statuses, [429, 503, 200]);
    let requests = stub.client.get("/_gauntlet/requests").await.unwrap().json();
    assert_eq!(requests.as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn faults_reach_the_client() {
    let stub = stub(&[fixture("faults.yaml")]);
    let reset = stub
        .client
        .stream(says("fault: reset"))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(reset.text, "It begins");
    assert!(matches!(reset.end, End::Cut(_)));
    let unmatched = stub.client.chat(says("something else")).await.unwrap();
    assert_eq!(unmatched.status, 599);
    assert!(
        unmatched.text().contains("the nearest rule is"),
        "{}",
        unmatched.text()
    );
}

#[tokio::test]
async fn gates_are_opened_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("held.yaml");
    std::fs::write(&script, "rules:\n  - answers:\n      - { reply: at last, plan: { steps: [{ hold: g }, head, rest] } }\n").unwrap();
    let stub = stub(&[script]);
    let held = stub.client.send_chat(says("x")).await.unwrap();
    stub.client
        .post("/_gauntlet/gates/g/open", json!({}))
        .await
        .unwrap();
    assert_eq!(held.reply().await.unwrap().content(), "at last");
}

#[test]
fn a_bad_script_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("bad.yaml");
    std::fs::write(
        &script,
        "rules:\n  - match: { modle: m }\n    answers: [{ reply: a }]\n",
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .arg("stub")
        .arg("--script")
        .arg(&script)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(
        message.contains("bad.yaml:2:") && message.contains("unknown field `modle`"),
        "{message}"
    );
}
