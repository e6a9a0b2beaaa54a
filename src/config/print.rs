//! `--print-config`: the table of options with the values in effect, as a TOML file that can be saved and started from.

use std::fmt::Write as _;

use super::options::{Fallback, OPTIONS, Opt};
use super::reader::Effective;
use super::source::as_variable;
use super::value::{default, shown, wanted};

/// Writes every key: sections in the table's order, each element of an array with its own keys; where an array is empty, its
/// keys are shown as comments.
pub(super) fn print(effective: &[Effective]) -> String {
    let mut out = String::from(
        "# Every key with its effective value; above it what it is for, its default, what it takes, and the variable that overrides it.\n# A key behind a # is not written: it holds nothing, or what it inherits. Secrets are not shown.\n",
    );
    let mut roots: Vec<&str> = Vec::new();
    for option in OPTIONS {
        let root = root(option.section);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    for wanted_root in roots {
        let mut values: Vec<&Effective> = effective.iter().filter(|value| root(&value.pattern) == wanted_root).collect();
        if wanted_root.ends_with("[]") {
            elements(&mut out, &values);
        } else {
            // the order of reading serves dependencies between keys; the order of showing is the table's
            values.sort_by_key(|value| position(value.option));
            lines(&mut out, &values);
        }
        for section in sections_without_values(wanted_root, effective) {
            let _ = write!(out, "\n# {}\n", header(section));
            for option in OPTIONS.iter().filter(|option| option.section == section) {
                let _ = writeln!(out, "# {}\n# {} = …", facts(option, None), option.key);
            }
        }
    }
    out
}

fn elements(out: &mut String, values: &[&Effective]) {
    // elements come one after the other as they were read; a table of an element is read twice where two things need it
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let mut kept: Vec<&Effective> = Vec::new();
    for value in values {
        let id = (value.section.as_str(), value.option.key);
        if !seen.contains(&id) {
            seen.push(id);
            kept.push(value);
        }
    }
    lines(out, &kept);
}

fn lines(out: &mut String, values: &[&Effective]) {
    let mut section = None;
    for value in values {
        if section != Some(&value.section) {
            section = Some(&value.section);
            let _ = write!(out, "\n{}\n", header(&value.pattern));
        }
        let _ = writeln!(out, "# {}", facts(value.option, Some(&value.section)));
        let key = value.option.key;
        let _ = match (value.value.as_deref(), value.inherited.as_deref()) {
            (Some("\"[redacted]\""), _) => writeln!(out, "# {key} = [redacted]"),
            (Some(text), _) => writeln!(out, "{key} = {text}"),
            (None, Some(inherited)) => writeln!(out, "# {key} = {inherited}"),
            (None, None) => writeln!(out, "# {key} is not set"),
        };
    }
}

/// What is told of a key besides its value.
fn facts(option: &Opt, section: Option<&str>) -> String {
    let fallback = match option.fallback {
        Fallback::Required => "required".to_owned(),
        Fallback::Unset => "default: not set".to_owned(),
        Fallback::AtMost(number, key) => format!("default: {number}, or {key} if that is less"),
        Fallback::AtLeast(number, key) => format!("default: {number}, or {key} if that is more"),
        Fallback::Derived(words) => format!("default: {words}"),
        _ => default(option).map_or_else(String::new, |value| format!("default: {}", shown(option.kind, &value))),
    };
    let path = section.unwrap_or(option.section);
    let variable: Vec<String> = path.split('.').chain([option.key]).map(|part| as_variable(part).to_ascii_uppercase()).collect();
    format!("{} Takes {}; {fallback}. GAUNTLET_{}", option.help, wanted(option.kind), variable.join("__").replace("____", "__NAME__"))
}

/// `server` → `[server]`, `providers[].timeouts` → `[providers.timeouts]`, `models[].candidates[]` → `[[models.candidates]]`.
fn header(pattern: &str) -> String {
    let name = pattern.replace("[]", "");
    if pattern.ends_with("[]") { format!("[[{name}]]") } else { format!("[{name}]") }
}

fn root(pattern: &str) -> &str {
    pattern.split('.').next().unwrap_or(pattern)
}

fn position(option: &Opt) -> usize {
    OPTIONS.iter().position(|other| std::ptr::eq(other, option)).unwrap_or(usize::MAX)
}

/// The sections below `wanted_root` of which no value was read: empty arrays.
fn sections_without_values<'a>(wanted_root: &str, effective: &[Effective]) -> Vec<&'a str> {
    let mut sections = Vec::new();
    for option in OPTIONS.iter().filter(|option| root(option.section) == wanted_root) {
        if !effective.iter().any(|value| value.pattern == option.section) && !sections.contains(&option.section) {
            sections.push(option.section);
        }
    }
    sections
}
