//! The words of the project: docs/glossary.md lists those that are not used, and none occurs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

/// What people read: every file with one of these endings in these folders and in the root.
const FOLDERS: [&str; 10] = [
    "src",
    "harness",
    "suites",
    "tests",
    "docs",
    "fixtures",
    "snapshots",
    "examples",
    ".ci",
    ".github",
];
const ENDINGS: [&str; 9] = [
    "rs", "md", "toml", "yaml", "yml", "html", "snap", "sql", "py",
];

/// The files that hold the words because they list them, or because they quote other programs.
const LISTS: [&str; 3] = ["docs/glossary.md", "docs/field.md", "tests/language.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text of the repository, with its path from the root.
fn texts() -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("each folder of the list is there") {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    let named = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    let read = |path: PathBuf| (named(&path), std::fs::read_to_string(&path).unwrap());
    let is_text = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let name = path.file_name().and_then(|name| name.to_str());
        ending.is_some_and(|ending| ENDINGS.contains(&ending))
            || matches!(name, Some("Makefile" | "run"))
    };
    let texts: Vec<_> = files.into_iter().filter(is_text).map(read).collect();
    assert!(texts.len() > 300, "only {} files were found", texts.len());
    texts
}

/// The words that docs/glossary.md lists as not used.
fn unused_words() -> Vec<String> {
    let glossary = std::fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let list = glossary.split("```not-used\n").nth(1).expect("the list");
    list.split("```")
        .next()
        .unwrap()
        .lines()
        .map(String::from)
        .collect()
}

/// The line in lower case, with a single space around each word. `snake_case` and `CamelCase` are
/// taken apart.
fn words(line: &str) -> String {
    let mut words = String::from(" ");
    let mut previous = ' ';
    for c in line.chars() {
        if c.is_ascii_alphabetic() {
            if c.is_ascii_uppercase() && previous.is_ascii_lowercase() {
                words.push(' ');
            }
            words.push(c.to_ascii_lowercase());
        } else if c == '-' && previous.is_ascii_alphabetic() {
            words.push('-');
        } else if !words.ends_with(' ') {
            words.push(' ');
        }
        previous = c;
    }
    if !words.ends_with(' ') {
        words.push(' ');
    }
    words
}

#[test]
fn words_that_the_glossary_does_not_use_occur_nowhere() {
    let unused: Vec<String> = unused_words();
    assert!(unused.len() > 10);
    let mut found = Vec::new();
    for (path, text) in texts()
        .iter()
        .filter(|(path, _)| !LISTS.contains(&path.as_str()))
    {
        for (number, line) in text.lines().enumerate() {
            let words = words(line);
            for word in unused
                .iter()
                .filter(|word| words.contains(&format!(" {word} ")))
            {
                found.push(format!("{path}:{}: {word}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} lines:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn a_documentation_comment_is_a_sentence() {
    let mut found = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| path.ends_with(".rs")) {
        let mut continues = false;
        for (number, line) in text.lines().map(str::trim).enumerate() {
            let comment = line.strip_prefix("/// ").or(line.strip_prefix("//! "));
            let one_word = |text: &str| text.ends_with('.') && !text.contains([' ', '`', '/']);
            if !continues && comment.is_some_and(one_word) {
                found.push(format!("{path}:{}: {line}", number + 1));
            }
            continues = comment.is_some();
        }
    }
    assert!(
        found.is_empty(),
        "{} lines:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn lines_of_comments_are_at_most_100_columns_wide() {
    let mut found = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| path.ends_with(".rs")) {
        for (number, line) in text.lines().enumerate() {
            let comment = line.trim_start().strip_prefix("//");
            let is_free = |text: &str| !text.contains("http") && !text.contains('|');
            if line.chars().count() > 100 && comment.is_some_and(is_free) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} lines:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn words_are_taken_apart_at_capitals_and_underscores() {
    assert_eq!(words("fn asIs_written(x: u8)"), " fn as is written x u ");
    assert_eq!(words("a time-limit – ok"), " a time-limit ok ");
}
