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
    address: String,
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
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let control = lines.find(|line| line.starts_with("Control")).unwrap();
    let url = control.split_whitespace().last().unwrap();
    let root = url.strip_suffix("/_gauntlet").unwrap();
    let client = Client::new(root, Vec::new(), Tape::new()).unwrap();
    let address = root.trim_start_matches("http://").to_owned();
    Running {
        child,
        client,
        address,
    }
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
}

#[rstest::rstest]
#[case::reset("fault: reset")]
#[case::cut("fault: cut")]
#[tokio::test]
async fn a_fault_of_a_plain_answer_hits_it_and_not_the_next_request(#[case] fault: &str) {
    let stub = stub(&[fixture("faults.yaml")]);
    for _ in 0..3 {
        let hit = stub.client.chat(says(fault)).await;
        let complete = hit.is_ok_and(|reply| serde_json::from_str::<Value>(&reply.text()).is_ok());
        assert!(!complete, "{fault} must not end in a complete answer");
        let next = stub.client.chat(says("fault: quota")).await.unwrap();
        assert_eq!(next.status, 429);
    }
}

#[tokio::test]
async fn a_request_that_no_rule_answers_is_a_404_of_the_protocol_and_a_line_on_the_console() {
    let mut stub = stub(&[fixture("faults.yaml")]);
    let unmatched = stub.client.chat(says("something else")).await.unwrap();
    assert_eq!(unmatched.status, 404);
    let error = &unmatched.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("invalid_request_error"), &json!("no_rule"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("the nearest rule is") && message.contains("fault: slow"),
        "{message}"
    );
    let ollama = stub
        .client
        .post("/api/chat", says("something else"))
        .await
        .unwrap();
    assert_eq!(ollama.status, 404);
    assert!(
        ollama.json()["error"]
            .as_str()
            .unwrap()
            .contains("the nearest rule is")
    );
    let nowhere = stub.client.post("/v2/chat", says("x")).await.unwrap();
    assert_eq!(
        (nowhere.status, &nowhere.json()["error"]["code"]),
        (404, &json!("no_rule"))
    );
    let mut console = BufReader::new(stub.child.stderr.take().unwrap()).lines();
    let line = console.next().unwrap().unwrap();
    assert!(
        line.starts_with("unmatched  POST /v1/chat/completions"),
        "{line}"
    );
}

#[rstest::rstest]
#[case::broken(r#"{"messages": ["#, "could not parse the JSON body", Value::Null)]
#[case::empty("", "could not parse the JSON body", Value::Null)]
#[case::no_object("[1]", "expected an object, but got an array", Value::Null)]
#[case::no_model(
    r#"{"messages":[{"role":"user","content":"a"}]}"#,
    "must provide a model",
    Value::Null
)]
#[case::no_messages(r#"{"model":"x"}"#, "Missing required parameter: 'messages'", json!("missing_required_parameter"))]
#[case::empty_messages(r#"{"model":"x","messages":[]}"#, "empty array", json!("empty_array"))]
#[case::text_for_messages(r#"{"model":"x","messages":"a"}"#, "expected an array of objects, but got a string", json!("invalid_type"))]
#[case::role(r#"{"model":"x","messages":[{"role":"bogus","content":"a"}]}"#, "'bogus'", json!("invalid_value"))]
#[case::content(r#"{"model":"x","messages":[{"role":"user","content":5}]}"#, "but got an integer", json!("invalid_type"))]
#[case::temperature(r#"{"model":"x","messages":[{"role":"user","content":"a"}],"temperature":99}"#, "a value <= 2, but got 99", json!("decimal_above_max_value"))]
#[case::stream(r#"{"model":"x","messages":[{"role":"user","content":"a"}],"stream":"yes"}"#, "expected a boolean", json!("invalid_type"))]
#[tokio::test]
async fn what_openai_refuses_is_refused_in_its_envelope(
    #[case] body: &str,
    #[case] message: &str,
    #[case] code: Value,
) {
    let (status, answer) = post(&stub(&[]), "/v1/chat/completions", body).await;
    assert_eq!(status, 400, "{answer}");
    let error = &answer["error"];
    assert!(
        error["message"].as_str().unwrap().contains(message),
        "{error}"
    );
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("invalid_request_error"), &code)
    );
}

#[rstest::rstest]
#[case::broken(r#"{"messages": ["#, "invalid JSON: EOF")]
#[case::empty("", "missing request body")]
#[case::no_object(
    "[1]",
    "json: cannot unmarshal array into Go value of type api.ChatRequest"
)]
#[case::no_model(r#"{"messages":[{"role":"user","content":"a"}]}"#, "model is required")]
#[case::text_for_messages(
    r#"{"model":"x","messages":"a"}"#,
    "ChatRequest.messages of type []api.Message"
)]
#[case::content(
    r#"{"model":"x","messages":[{"role":"user","content":5}]}"#,
    "cannot unmarshal number"
)]
#[tokio::test]
async fn what_ollama_refuses_is_refused_in_its_own_form(#[case] body: &str, #[case] message: &str) {
    let (status, answer) = post(&stub(&[]), "/api/chat", body).await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().contains(message),
        "{answer}"
    );
}

/// Posts bytes as they are; returns status and JSON.
async fn post(stub: &Running, path: &str, body: &str) -> (u16, Value) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(&stub.address).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: stub\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
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
        message.contains("bad.yaml:2:") && message.contains("unknown key `modle`"),
        "{message}"
    );
}

/// Sends a signal to the stub.
fn signal(stub: &Running, name: &str) {
    let kill = Command::new("kill")
        .args([&format!("-{name}"), &stub.child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
}

#[tokio::test]
async fn a_stub_reads_its_scripts_again_at_sighup_and_ends_well_at_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("s.yaml");
    let write = |text: &str| std::fs::write(&script, text).unwrap();
    write("rules:\n  - answers: [{ reply: before }]\n");
    let mut stub = stub(std::slice::from_ref(&script));
    let mut console = BufReader::new(stub.child.stderr.take().unwrap()).lines();
    let mut next_line = || console.next().unwrap().unwrap();

    write("rules:\n  - answers: [{ reply: after }]\n");
    signal(&stub, "HUP");
    assert!(next_line().starts_with("reloaded"));
    let answer = stub.client.chat(says("x")).await.unwrap();
    assert_eq!(answer.content(), "after");

    write("rules:\n  - anwsers: []\n");
    signal(&stub, "HUP");
    let line = next_line();
    assert!(
        line.starts_with("not reloaded") && line.contains("anwsers"),
        "{line}"
    );
    let answer = stub.client.chat(says("x")).await.unwrap();
    assert_eq!(answer.content(), "after");

    signal(&stub, "TERM");
    assert_eq!(stub.child.wait().unwrap().code(), Some(0));
}
