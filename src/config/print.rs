//! `--print-config`: how a row and its effective value look in a file that can be started from.

use std::collections::HashMap;

use toml::Value;

use super::schema::{Default, Entry, Shown, Takes};
use super::url::split_user;

const HEAD: &str = "\
# Every key with its effective value. Above it stand its purpose, what it takes, its default and
# the environment variable that overrides it.
# A key behind a # is not written: it is not set, or it has the value that it inherits or that
# follows from other keys, or it is a secret that is not shown.
";

/// One line of the file, or the line of a key that is not written.
pub(super) enum Line {
    Text(String),
    /// The path of the key, by which its value is found if it follows from other sections.
    Unwritten {
        name: &'static str,
        path: String,
    },
}

/// Writes all lines. `derived` holds the values that follow from other sections, by path.
pub(super) fn print(lines: &[Line], derived: &HashMap<String, String>) -> String {
    let line = |line: &Line| match line {
        Line::Text(text) => format!("{text}\n"),
        Line::Unwritten { name, path } => match derived.get(path) {
            Some(value) => format!("# {name} = {value}\n"),
            None => format!("# {name} is not set\n"),
        },
    };
    HEAD.to_owned() + &lines.iter().map(line).collect::<String>()
}

/// Documentation as comments.
pub(super) fn comment(about: &[&str]) -> String {
    about.iter().map(|line| format!("#{line}\n")).collect()
}

/// Appends everything about a key but its value.
pub(super) fn row(
    lines: &mut Vec<Line>,
    entry: &Entry,
    (takes, default): (Takes, Default),
    variable: &str,
) {
    let mut text = format!("\n{}", comment(entry.about));
    if let Takes::Protocol(rows) = takes {
        for row in rows {
            let (name, url) = (row.name, row.default_base_url);
            text += &format!(
                "# {name:?}: {}.\n#   Its base_url is {url} by default.\n",
                row.description
            );
        }
    }
    let (wanted, default) = (takes.wanted(), default.words(takes));
    text += &format!("# Takes: {wanted}\n# Default: {default}\n# Environment: {variable}");
    lines.push(Line::Text(text));
}

impl Line {
    /// The line that sets a key. A secret becomes a comment; a provider's URL is set without user.
    pub(super) fn of(takes: Takes, name: &str, value: &Value) -> Self {
        let redacted = takes.redacted(value);
        let url = match (takes, value) {
            (Takes::Text(_, _, Shown::BaseUrl), Value::String(text)) => split_user(text).ok(),
            _ => None,
        };
        Self::Text(match url {
            Some((url, Some(_))) => {
                format!("# {name} = {redacted}\n{name} = {:?}", url.to_string())
            }
            // an @ in its path is no user
            Some((_, None)) => format!("{name} = {value}"),
            None if redacted == *value => format!("{name} = {value}"),
            None => format!("# {name} = {redacted}"),
        })
    }
}
