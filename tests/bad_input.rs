//! Every kind of file that the tools read, as arbitrary bytes and as a valid file with random
//! changes: reading never panics, and an error is a sentence that names the file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use gauntlet::config::Loaded;
use gauntlet_harness::llm::ScriptSource;
use gauntlet_harness::llm::fixture::Script;
use gauntlet_harness::report::RunRecord;
use gauntlet_harness::schedule::Schedule;
use gauntlet_harness::subject::TargetFile;
use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

const SCRIPTS: [&str; 2] = [
    include_str!("../fixtures/conversations/capitals.yaml"),
    include_str!("../fixtures/conversations/faults.yaml"),
];
const TARGETS: [&str; 3] = [
    include_str!("../fixtures/targets/bundled.toml"),
    include_str!("../fixtures/targets/litellm.toml"),
    include_str!("../fixtures/targets/portkey.toml"),
];
const MANIFEST: &str = "\
name = \"mine\"
capabilities = [\"chat\", \"stream\"]
[listen]
p1 = \"127.0.0.1:9101\"
[settings.timeouts]
connect_ms = 500
";
const CONFIGURATION: &str = "\
[server]
listen = \"127.0.0.1:0\"
[[providers]]
name = \"p1\"
protocol = \"openai\"
base_url = \"http://127.0.0.1:1/v1\"
[[models]]
alias = \"solo\"
candidates = [{ provider = \"p1\", model = \"m\" }]
[timeouts]
total_ms = 1000
";
const SCHEDULE: &str = r#"{
  "settings": {"connect_ms": 100, "first_token_ms": 100, "idle_ms": 100, "total_ms": 500,
    "reserve_ms": 10, "max_attempts": 2, "base_ms": 1, "max_ms": 2, "jitter_percent": 0,
    "budget_percent": 20, "budget_floor": 3, "failure_threshold": 5, "cool_down_ms": 100,
    "half_open_probes": 1},
  "candidates": [[{"status": {"status": 503, "retry_after_s": 1}}, "answer"], []],
  "requests": [{"after_ms": 0, "stream": true, "leaves": {"after_words": 1}}]
}"#;

/// Words that are types of the code, or end a program that panics.
const NOT_FOR_PEOPLE: [&str; 12] = [
    "u8", "u16", "u32", "u64", "usize", "i64", "f64", "struct", "enum", "variant", "sequence",
    "panicked",
];

/// One change of a file: where, how, and with which byte.
type Change = (Index, u8, u8);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((any::<Index>(), 0..6_u8, any::<u8>()), 0..8)
}

/// Returns the text with these changes: bytes are inserted, replaced, repeated and cut off, and
/// values are exchanged for those of another kind.
fn changed(text: &str, changes: &[Change]) -> Vec<u8> {
    const VALUES: [&str; 8] = [
        "-1",
        "\"x\"",
        "1e400",
        "[]",
        "{}",
        "true",
        "99999999999999999999",
        "",
    ];
    let mut bytes = text.as_bytes().to_vec();
    for (at, kind, byte) in changes {
        let at = at.index(bytes.len() + 1);
        match kind {
            0 => bytes.insert(at, *byte),
            1 => bytes.truncate(at),
            2 => bytes.extend_from_within(at..),
            3 => {
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            _ => {
                let is_end = |byte: &u8| b",\n}]".contains(byte);
                let begin = bytes[..at]
                    .iter()
                    .rposition(|byte| b":=".contains(byte))
                    .map_or(at, |at| at + 1);
                let end = bytes[begin..].iter().position(is_end);
                let end = end.map_or(bytes.len(), |length| begin + length);
                let value = VALUES[usize::from(*byte) % VALUES.len()];
                bytes.splice(begin..end, format!(" {value}").into_bytes());
            }
        }
    }
    bytes
}

/// A folder with one file, which holds these bytes.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Checks that the message of a file is for people: it names the file, and has none of these words
/// beside what the file itself holds.
fn is_for_people(message: &str, path: &Path, content: &[u8]) -> Result<(), TestCaseError> {
    let name = path.file_name().unwrap().to_string_lossy();
    prop_assert!(message.contains(&*name), "{message}");
    let content = String::from_utf8_lossy(content);
    for word in NOT_FOR_PEOPLE {
        let has = |text: &str| {
            text.split(|c: char| !c.is_ascii_alphanumeric())
                .any(|one| one == word)
        };
        prop_assert!(!has(message) || has(&content), "{word} in: {message}");
    }
    Ok(())
}

/// Reads the bytes as each kind of file.
fn read_as_each_kind(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (_folder, path) = file("input.txt", bytes);
    let mut messages = Vec::new();
    match Script::read(&path) {
        Ok(script) => script.install(&ScriptSource::of_every_protocol()),
        Err(error) => messages.push(error.to_string()),
    }
    messages.extend(RunRecord::read(&path).err());
    let target = TargetFile::load(&path);
    let manifest = TargetFile::load_for_url(&path, "http://127.0.0.1:1");
    let wrong = [target.err(), manifest.err()].into_iter().flatten();
    messages.extend(wrong.map(|error| error.to_string()));
    for message in &messages {
        is_for_people(message, &path, bytes)?;
        prop_assert_eq!(message.lines().count(), 1, "{}", message);
    }
    // the configuration reports each problem in a line of its own
    if let Err(error) = Loaded::from_file(&path, Vec::new()) {
        prop_assert!(!error.to_string().is_empty());
    }
    if let Err(message) = Schedule::from_json(&String::from_utf8_lossy(bytes)) {
        is_for_people(&format!("input.txt {message}"), &path, bytes)?;
        prop_assert_eq!(message.lines().count(), 1, "{}", message);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_as_each_kind(&bytes)?;
    }

    #[test]
    fn a_script_with_changes_is_refused_or_read(n in 0..SCRIPTS.len(), changes in changes()) {
        read_as_each_kind(&changed(SCRIPTS[n], &changes))?;
    }

    #[test]
    fn a_target_file_with_changes_is_refused_or_read(n in 0..TARGETS.len(), changes in changes()) {
        read_as_each_kind(&changed(TARGETS[n], &changes))?;
    }

    #[test]
    fn a_manifest_with_changes_is_refused_or_read(changes in changes()) {
        read_as_each_kind(&changed(MANIFEST, &changes))?;
    }

    #[test]
    fn a_configuration_with_changes_is_refused_or_read(changes in changes()) {
        read_as_each_kind(&changed(CONFIGURATION, &changes))?;
    }

    #[test]
    fn a_schedule_with_changes_is_refused_or_read(changes in changes()) {
        read_as_each_kind(&changed(SCHEDULE, &changes))?;
    }

    #[test]
    fn a_record_with_changes_is_refused_or_read(changes in changes()) {
        read_as_each_kind(&changed(RECORD, &changes))?;
    }
}

const RECORD: &str = r#"{"schema":1,"gauntlet":"0.1.0","started_at":"2026-01-01T00:00:00Z",
"duration_ms":5,"target":{"name":"t","version":null},"database":{"kind":"none","why":"w"},
"command":"gauntlet run","strict":false,"broken":null,"outcomes":[{"id":"WIRE-01","level":"MUST",
"profiles":["llm"],"requirement":"r","why":"w","shown":"s","remedy":"m","verdict":"passed",
"duration_ms":1,"attempts":1,"tape":[{"seq":1,"at_us":2,"side":{"who":"target"},"event":"opened"}],
"log_tail":""}]}"#;

/// The files that the random changes begin with are valid: otherwise the changes would prove
/// nothing.
#[test]
fn the_files_without_changes_are_read() {
    for text in SCRIPTS {
        Script::parse(text, Path::new("s.yaml")).unwrap();
    }
    for text in TARGETS {
        TargetFile::parse(text, "t.toml").unwrap();
    }
    let (_folder, path) = file("m.toml", MANIFEST.as_bytes());
    TargetFile::load_for_url(&path, "http://127.0.0.1:1").unwrap();
    let (_folder, path) = file("c.toml", CONFIGURATION.as_bytes());
    Loaded::from_file(&path, Vec::new()).unwrap();
    Schedule::from_json(SCHEDULE).unwrap();
    let (_folder, path) = file("report.json", RECORD.as_bytes());
    RunRecord::read(&path).unwrap();
}
