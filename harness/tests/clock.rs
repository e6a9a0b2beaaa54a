//! Time stays in the gate: no other code of harness, cases and properties sleeps or measures how
//! long something took.
//!
//! A case that waits for time fails on a busy machine, and one that asserts an upper bound too.
//! `suites/src/defects` holds the gateways under examination: they have time-outs of their own, and
//! are not looked at.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// What only the gate may do.
const TIME: [&str; 4] = ["sleep(", "sleep_until(", "interval(", ".elapsed()"];

/// Who else may read the clock, and for what.
const ALLOWED: [(&str, &str, &str); 3] = [
    (
        "harness/src/tape/mod.rs",
        ".elapsed()",
        "stamps entries, for pictures and for the gate's lower bounds",
    ),
    (
        "harness/src/runner/examine.rs",
        ".elapsed()",
        "how long a case took, for people",
    ),
    (
        "harness/src/runner/replay.rs",
        ".elapsed()",
        "how long a schedule took, for people, and its deadline, with the schedule's own tolerance",
    ),
];

#[test]
fn time_is_the_gates_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in ["harness/src", "suites/src/cases", "suites/src/properties"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(
        files.len() > 50,
        "the sources are not where they were: {files:?}"
    );
    let found: Vec<String> = files.iter().flat_map(|file| offences(root, file)).collect();
    assert!(
        found.is_empty(),
        "only harness/src/gate waits for time or measures it (see its functions):\n{}",
        found.join("\n")
    );
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn offences(root: &Path, file: &Path) -> Vec<String> {
    let name = file
        .strip_prefix(root)
        .unwrap()
        .to_string_lossy()
        .into_owned();
    if name == "harness/src/gate.rs" || name.starts_with("harness/src/gate/") {
        return Vec::new();
    }
    let text = std::fs::read_to_string(file).unwrap();
    let code = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"));
    let offends = |line: &str| {
        TIME.iter().any(|time| {
            line.contains(time)
                && !ALLOWED
                    .iter()
                    .any(|(path, what, _)| *path == name && what == time)
        })
    };
    code.filter(|(_, line)| offends(line))
        .map(|(n, line)| format!("  {name}:{}: {}", n + 1, line.trim()))
        .collect()
}
