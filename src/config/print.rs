//! `--print-config`: the table of options with the values in effect, as a TOML file that can be saved and started from.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::options::{Fallback, OPTIONS, Opt};
use super::reader::Effective;
use super::value::{Printed, default, shown, wanted};

/// Writes every key: sections in the table's order, each element of an array with its own keys; where an array is empty, its
/// keys are shown as comments.
pub(super) fn print(effective: &[Effective]) -> String {
    let mut out = String::from(
        "# Every key with its effective value; above it what it is for, its default, what it takes, and the variable that overrides it.\n# A key behind a # is not written: it holds nothing, or what it inherits, or a secret that is not shown.\n",
    );
    let mut roots: Vec<&str> = Vec::new();
    for option in OPTIONS {
        let root = root(option.section);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    for wanted_root in roots {
        let mut values: Vec<&Effective> = effective
            .iter()
            .filter(|value| root(&value.pattern) == wanted_root)
            .collect();
        if wanted_root.ends_with("[]") {
            // elements come one after the other as they were read; a table of an element is read twice where two things need it
            let mut seen = HashSet::new();
            values.retain(|value| {
                seen.insert((&value.pattern, &value.place.indexes, value.option.key))
            });
        } else {
            // the order of reading serves dependencies between keys; the order of showing is the table's, an element after the other
            values.sort_by_key(|value| {
                (
                    section_position(&value.pattern),
                    value.place.indexes.clone(),
                    position(value.option),
                )
            });
        }
        lines(&mut out, &values);
        for section in sections_without_values(wanted_root, effective) {
            let _ = write!(out, "\n# {}\n", header(section));
            for option in OPTIONS.iter().filter(|option| option.section == section) {
                let _ = writeln!(
                    out,
                    "# {}\n# {} = …",
                    facts(option, &pattern_variable(section)),
                    option.key
                );
            }
        }
    }
    out
}

fn lines(out: &mut String, values: &[&Effective]) {
    let mut section = None;
    for value in values {
        let here = Some((&value.pattern, &value.place));
        if section != here {
            section = here;
            let _ = write!(out, "\n{}\n", header(&value.pattern));
        }
        let _ = writeln!(out, "# {}", facts(value.option, &value.place.variable));
        let key = value.option.key;
        let _ = match (&value.value, value.inherited.as_deref()) {
            (
                Some(Printed::Redacted {
                    shown,
                    instead: Some(instead),
                }),
                _,
            ) => writeln!(out, "# {key} = {shown}\n{key} = {instead}"),
            (
                Some(Printed::Redacted {
                    shown,
                    instead: None,
                }),
                _,
            ) => writeln!(out, "# {key} = {shown}"),
            (Some(Printed::Whole(text)), _) => writeln!(out, "{key} = {text}"),
            (None, Some(inherited)) => writeln!(out, "# {key} = {inherited}"),
            (None, None) => writeln!(out, "# {key} is not set"),
        };
    }
}

/// What is told of a key besides its value.
fn facts(option: &Opt, section: &[String]) -> String {
    let fallback = match option.fallback {
        Fallback::Required => "required".to_owned(),
        Fallback::Unset => "default: not set".to_owned(),
        Fallback::AtMost(number, key) => format!("default: {number}, or {key} if that is less"),
        Fallback::AtLeast(number, key) => format!("default: {number}, or {key} if that is more"),
        Fallback::Derived(words) => format!("default: {words}"),
        _ => default(option).map_or_else(String::new, |value| {
            format!("default: {}", shown(option.kind, &value))
        }),
    };
    let variable: Vec<String> = section
        .iter()
        .map(String::as_str)
        .chain([option.key])
        .map(str::to_ascii_uppercase)
        .collect();
    format!(
        "{} Takes {}; {fallback}. GAUNTLET_{}",
        option.help,
        wanted(option.kind),
        variable.join("__")
    )
}

/// `auth.keys[]` → `auth`, `keys`, `NAME`.
fn pattern_variable(pattern: &str) -> Vec<String> {
    let part = |part: &str| match part.strip_suffix("[]") {
        Some(array) => vec![array.to_owned(), "NAME".to_owned()],
        None => vec![part.to_owned()],
    };
    pattern.split('.').flat_map(part).collect()
}

/// `server` → `[server]`, `providers[].timeouts` → `[providers.timeouts]`, `models[].candidates[]` → `[[models.candidates]]`.
fn header(pattern: &str) -> String {
    let name = pattern.replace("[]", "");
    if pattern.ends_with("[]") {
        format!("[[{name}]]")
    } else {
        format!("[{name}]")
    }
}

fn root(pattern: &str) -> &str {
    pattern.split('.').next().unwrap_or(pattern)
}

fn section_position(pattern: &str) -> usize {
    OPTIONS
        .iter()
        .position(|option| option.section == pattern)
        .unwrap_or(usize::MAX)
}

fn position(option: &Opt) -> usize {
    OPTIONS
        .iter()
        .position(|other| std::ptr::eq(other, option))
        .unwrap_or(usize::MAX)
}

/// The sections below `wanted_root` of which no value was read: empty arrays.
fn sections_without_values<'a>(wanted_root: &str, effective: &[Effective]) -> Vec<&'a str> {
    let mut sections = Vec::new();
    for option in OPTIONS
        .iter()
        .filter(|option| root(option.section) == wanted_root)
    {
        if !effective
            .iter()
            .any(|value| value.pattern == option.section)
            && !sections.contains(&option.section)
        {
            sections.push(option.section);
        }
    }
    sections
}
