//! The README holds what it shows: its Rust runs, its files are read, its commands exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use gauntlet::config::Loaded;
use gauntlet_harness::client::Client;
use gauntlet_harness::subject::TargetFile;
use gauntlet_harness::tape::Tape;

const README: &str = include_str!("../README.md");

/// The code blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    README
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

fn without_indentation(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}

/// The body of this test is in the README, word for word.
#[tokio::test]
async fn the_stub_of_the_readme_answers_as_described() {
    use gauntlet_harness::llm::{error, openai, reply, sequence};

    let server = wiremock::MockServer::start().await;
    wiremock::Mock::given(openai::chat().model("gpt-4o").user_says("capital"))
        .respond_with(sequence([
            error(503).retry_after(1),
            reply("Paris").usage(12, 1),
        ]))
        .mount(&server)
        .await;
    // point your client at format!("{}/v1", server.uri()): plain and streamed requests get the same
    // answer; `ollama::chat()` speaks NDJSON

    let shown = blocks("rust").remove(0);
    let here = include_str!("readme.rs");
    let body = without_indentation(here);
    for line in without_indentation(&shown) {
        assert!(
            body.contains(&line),
            "the README shows a line that no test has: {line}"
        );
    }
    let client = Client::new(&server.uri(), Vec::new(), Tape::new()).unwrap();
    let prompt = serde_json::json!({"role": "user", "content": "the capital of France?"});
    let question = serde_json::json!({"model": "gpt-4o", "messages": [prompt]});
    let refused = client.chat(question.clone()).await.unwrap();
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    let answer = client.chat(question).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Paris");
}

#[test]
fn the_files_of_the_readme_are_read() {
    let blocks = blocks("toml");
    let target = blocks
        .iter()
        .find(|block| block.contains("[start]"))
        .expect("the README shows a target file");
    TargetFile::parse(target, "README.md").unwrap();
    let gateway = blocks
        .iter()
        .find(|block| block.contains("[[providers]]"))
        .expect("a gateway's configuration");
    let environment = vec![("OPENAI_API_KEY".to_owned(), "sk-canary".to_owned())];
    let loaded = Loaded::from_text(gateway, "README.md", environment).unwrap();
    assert_eq!(loaded.config.models["chat"].candidates.len(), 2);
}

/// Each indented line that begins with `gauntlet` names a subcommand and options that there are.
#[test]
fn the_commands_of_the_readme_exist() {
    let mut seen = 0;
    for line in README
        .lines()
        .filter_map(|line| line.strip_prefix("    gauntlet "))
    {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().collect();
        let help = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
            .args([words[0], "--help"])
            .output()
            .unwrap();
        assert!(help.status.success(), "gauntlet {line}");
        let mut help = String::from_utf8(help.stdout).unwrap();
        if words.get(1) == Some(&"add") {
            let add = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
                .args([words[0], "add", "--help"])
                .output()
                .unwrap();
            help = String::from_utf8(add.stdout).unwrap();
        }
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(
                help.contains(option),
                "gauntlet {line}: there is no {option}"
            );
        }
        seen += 1;
    }
    assert!(seen >= 8, "{seen} commands");
}

/// The timeouts that the help asks a user to set are those that the cases take for granted.
#[test]
fn the_help_names_the_default_timeouts() {
    let timeouts = gauntlet_harness::spec::Spec::default().timeouts;
    let seconds = |ms: Option<u64>| format!("{} s", ms.unwrap() / 1_000);
    let [connect, first_token, idle, total] = [
        timeouts.connect_ms,
        timeouts.first_token_ms,
        timeouts.idle_ms,
        timeouts.total_ms,
    ]
    .map(seconds);
    assert_eq!(first_token, idle);
    let help = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["run", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap().replace('\n', " ");
    assert!(
        help.contains(&format!(
            "{connect} (connect), {first_token} (first token, idle) and {total} (total)"
        )),
        "{help}"
    );
    let targets = include_str!("../fixtures/targets/README.md");
    assert!(targets.contains(&format!(
        "{connect} to connect, {first_token} to the first token and between two, {total} in all"
    )));
}
