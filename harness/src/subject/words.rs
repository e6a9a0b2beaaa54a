//! Messages about target files in the words of their author: one sentence with the line and the
//! nearest known name.

use crate::problem::{missing, nearest, unknown_name};

/// Returns the line of the byte at `offset`, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Returns what is wrong with a TOML text as the rest of a sentence after the name of the file.
pub(super) fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map(|span| format!(", line {}", line_of(text, span.start)))
        .unwrap_or_default();
    let problem = error.message().trim().replace('\n', "; ");
    let problem = unknown(&problem)
        .or_else(|| missing(&problem))
        .or_else(|| wrong_type(&problem))
        .unwrap_or_else(|| {
            format!("{problem}; correct it as fixtures/targets/README.md describes the file")
        });
    format!("{line}: {problem}")
}

fn unknown(problem: &str) -> Option<String> {
    let (what, name, known) = unknown_name(problem, "value")?;
    let remedy = match nearest(name, known.iter().copied()) {
        Some(nearest) => format!("the nearest known {what} is `{nearest}`"),
        None if known.is_empty() => "remove it".into(),
        None => format!("write one of {}", known.join(", ")),
    };
    Some(format!("the {what} `{name}` is unknown; {remedy}"))
}

fn wrong_type(problem: &str) -> Option<String> {
    let rest = problem
        .strip_prefix("invalid type: ")
        .or_else(|| problem.strip_prefix("invalid value: "))?;
    let (found, wanted) = rest.rsplit_once(", expected ")?;
    let wanted = match wanted {
        "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "a borrowed string" | "a string" => "a text in quotes",
        "a sequence" => "a list in square brackets",
        "a map" | "a table" => "a table",
        "a boolean" => "true or false",
        wanted if wanted.starts_with("struct ") => "a table",
        wanted => wanted,
    };
    let found = match found.split_once(' ') {
        None if found == "map" => "a table".to_string(),
        None if found == "sequence" => "a list".to_string(),
        Some(("integer" | "floating", rest)) => {
            format!(
                "the number {}",
                rest.trim_start_matches("point ").trim_matches('`')
            )
        }
        Some(("boolean", rest)) => rest.trim_matches('`').to_string(),
        Some(("string", rest)) => format!("the text {rest}"),
        _ => found.to_string(),
    };
    Some(format!("it holds {found}; write {wanted} instead"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_line_is_that_of_the_byte() {
        assert_eq!(line_of("a\nb\nc", 0), 1);
        assert_eq!(line_of("a\nb\nc", 4), 3);
        assert_eq!(line_of("a\nb", 99), 2);
    }
}
