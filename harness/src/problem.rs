//! Why a file cannot be read, in the words of its writer: the messages of the readers of YAML and
//! JSON speak of keys, texts and numbers instead of the types of the code.

/// A kind of file that people write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// What shows how such a file is written.
    pub(crate) shown_by: &'static str,
    /// How a list is written.
    pub(crate) list: &'static str,
    /// How keys with values are written.
    pub(crate) mapping: &'static str,
}

/// Scripts of `gauntlet stub`.
pub(crate) const SCRIPT: Form = Form {
    shown_by: "`gauntlet stub --help`",
    list: "a list: [ … ]",
    mapping: "a mapping: { KEY: VALUE }",
};

/// Fault schedules.
pub(crate) const SCHEDULE: Form = Form {
    shown_by: "a schedule that a failing property has written",
    list: "a list: [ … ]",
    mapping: "an object: { \"KEY\": VALUE }",
};

/// The records of runs.
#[cfg(feature = "report")]
pub(crate) const RECORD: Form = Form {
    shown_by: "the report.json of another run",
    list: "a list: [ … ]",
    mapping: "an object: { \"KEY\": VALUE }",
};

/// Returns what is wrong with a JSON text, with line and column before it.
pub(crate) fn json(error: &serde_json::Error, form: Form) -> String {
    let text = error.to_string();
    let problem = text.split(" at line ").next().unwrap_or(&text);
    let position = match error.line() {
        // a value that is no text any more has no lines
        0 => String::new(),
        line => format!("line {line}, column {}: ", error.column()),
    };
    format!("{position}{}", plain(problem, form))
}

/// The problem in the words of the file, with the nearest known name for an unknown one.
pub(crate) fn plain(problem: &str, form: Form) -> String {
    let (position, problem) = split_position(problem);
    let text = unknown(problem)
        .or_else(|| missing(problem))
        .or_else(|| wrong_type(problem, form))
        .unwrap_or_else(|| {
            let problem = match problem.strip_prefix("EOF while parsing ") {
                Some(inside) => format!("the file ends inside {inside}"),
                None => problem.to_string(),
            };
            format!("{problem}; write it as {} shows", form.shown_by)
        });
    format!("{position}{text}")
}

/// Splits the keys that lead to the value (`rules[0].match: `) off the problem.
fn split_position(problem: &str) -> (&str, &str) {
    match problem.find(": ") {
        // the words of a message have spaces between them
        Some(end) if !problem[..end].contains([' ', '`']) => problem.split_at(end + 2),
        _ => ("", problem),
    }
}

/// The texts between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the name in `known` that is most like `name`, if one is close.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Returns what an unknown name stands for, the name, and the known ones; a value that is one of a
/// few is called `value`.
pub(crate) fn unknown_name<'a>(
    problem: &'a str,
    value: &'static str,
) -> Option<(&'static str, &'a str, Vec<&'a str>)> {
    let (what, rest) = [("unknown field ", "key"), ("unknown variant ", value)]
        .into_iter()
        .find_map(|(begin, what)| Some((what, problem.strip_prefix(begin)?)))?;
    let (name, known) = rest.split_once(", ").unwrap_or((rest, ""));
    Some((what, name.trim_matches('`'), quoted(known)))
}

fn unknown(problem: &str) -> Option<String> {
    let (what, name, known) = unknown_name(problem, "word")?;
    let remedy = match nearest(name, known.iter().copied()) {
        Some(nearest) => format!("write `{nearest}`, the nearest known {what}"),
        None if known.is_empty() => "remove it".into(),
        None => format!("write one of {}", known.join(", ")),
    };
    Some(format!("unknown {what} `{name}`; {remedy}"))
}

/// Returns the sentence about a key that is missing, or there twice.
pub(crate) fn missing(problem: &str) -> Option<String> {
    if let Some(name) = problem.strip_prefix("missing field ") {
        let name = name.trim_matches('`');
        return Some(format!("the key `{name}` is missing; add it"));
    }
    let name = problem.strip_prefix("duplicate field ")?.trim_matches('`');
    Some(format!("the key `{name}` is there twice; remove one"))
}

fn wrong_type(problem: &str, form: Form) -> Option<String> {
    if let Some(rest) = problem.strip_prefix("invalid length ") {
        let (found, expected) = rest.split_once(", expected ")?;
        let expected = expected_in_words(expected, form);
        return Some(format!("a list of {found} is there; write {expected}"));
    }
    let rest = problem
        .strip_prefix("invalid type: ")
        .or_else(|| problem.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let found = found_in_words(found);
    let expected = expected_in_words(expected, form);
    Some(format!("{found} is there; write {expected}"))
}

fn found_in_words(found: &str) -> String {
    if let Some(text) = found.strip_prefix("string ") {
        return format!("the text {text}");
    }
    for (begin, word) in [
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("boolean ", "the word "),
        ("sequence", "a list"),
        ("map", "a mapping"),
        ("unit", "no value"),
        ("null", "no value"),
    ] {
        if let Some(rest) = found.strip_prefix(begin) {
            return match word.ends_with(' ') {
                true => format!("{word}{}", rest.trim_matches('`')),
                false => word.into(),
            };
        }
    }
    "another value".into()
}

fn expected_in_words(expected: &str, form: Form) -> String {
    let words = match expected {
        "u16" => "a whole number from 0 to 65535, without quotes",
        "u8" => "whole numbers from 0 to 255",
        "u64" | "usize" | "u32" => "a whole number, 0 or more, without quotes",
        "i64" | "i32" => "a whole number, without quotes",
        "f64" => "a number, without quotes",
        "a boolean" => "true or false",
        "a string" | "string" | "char" => "a text; quotes make a text of a number",
        "a sequence" | "an array" => form.list,
        "a map" => form.mapping,
        "unit" | "null" => "nothing",
        "socket address" => "an address with a port, such as \"127.0.0.1:9101\"",
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged ") => {
            form.mapping
        }
        _ if expected.starts_with("enum ") || expected.contains("variant") => {
            return format!("one of the forms that {} shows", form.shown_by);
        }
        _ if expected.starts_with("a tuple") || expected.starts_with("tuple ") => form.list,
        _ if expected.starts_with("an array of length ") => form.list,
        _ => return expected.to_string(),
    };
    words.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{SCHEDULE, SCRIPT, json, nearest, plain};

    #[test]
    fn types_of_the_code_become_words_of_the_file() {
        for (problem, expected) in [
            (
                "invalid type: string \"429\", expected u16",
                "the text \"429\" is there; write a whole number from 0 to 65535, without quotes",
            ),
            (
                "invalid type: integer `5`, expected a sequence",
                "the number 5 is there; write a list: [ … ]",
            ),
            (
                "missing field `rules`",
                "the key `rules` is missing; add it",
            ),
            (
                "about: invalid type: sequence, expected a string",
                "about: a list is there; write a text; quotes make a text of a number",
            ),
            (
                "invalid length 0, expected struct Schedule with 3 elements",
                "a list of 0 is there; write a mapping: { KEY: VALUE }",
            ),
            (
                "unknown field `rulse`, expected `about` or `rules`",
                "unknown key `rulse`; write `rules`, the nearest known key",
            ),
            (
                "unknown field `x`, there are no fields",
                "unknown key `x`; remove it",
            ),
        ] {
            assert_eq!(plain(problem, SCRIPT), expected);
        }
    }

    #[test]
    fn a_problem_of_json_has_its_position() {
        let cut = serde_json::from_str::<Vec<u8>>("[1,\n").map_err(|error| json(&error, SCHEDULE));
        let cut = cut.unwrap_err();
        assert!(
            cut.starts_with("line 2, column 0: the file ends inside a value; write it as"),
            "{cut}"
        );
    }

    #[test]
    fn the_nearest_name_is_close_or_none() {
        let known = ["timeouts", "retry", "port"];
        assert_eq!(nearest("timeots", known.into_iter()), Some("timeouts"));
        assert_eq!(nearest("prot", known.into_iter()), Some("port"));
        assert_eq!(nearest("whatever", known.into_iter()), None);
    }
}
