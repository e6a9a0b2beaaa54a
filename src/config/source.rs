//! Where values come from: the file, then the environment over it. Nothing is judged here but what can't be placed.

use toml::{Table, Value};

use super::options::{find, known, nearest};
use super::value::from_text;

/// Names that tell elements of an array apart, in the environment and in messages.
const IDENTITIES: [&str; 4] = ["name", "alias", "tenant", "provider"];

/// Parses a file's text.
///
/// # Errors
/// A sentence with line and reason.
pub(super) fn parse(text: &str, origin: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.get(..span.start)
                .map_or(1, |before| before.matches('\n').count() + 1)
        });
        format!(
            "{origin}, line {line}, is not TOML: {}: correct that line",
            error.message().replace('\n', ", ")
        )
    })
}

/// Puts `GAUNTLET_SECTION__KEY` variables over the file. Variables without two underscores are not configuration.
pub(super) fn overlay(
    table: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<String>,
) {
    let mut variables: Vec<_> = variables
        .into_iter()
        .filter(|(name, _)| name.starts_with("GAUNTLET_") && name.contains("__"))
        .collect();
    // an index is a number: element 2 comes before element 10
    let order = |part: &str| part.parse::<u64>().map_err(|_| part.to_owned());
    variables.sort_by_cached_key(|(name, _)| name.split("__").map(order).collect::<Vec<_>>());
    for (name, value) in variables {
        let path = name["GAUNTLET_".len()..].to_ascii_lowercase();
        let segments: Vec<&str> = path.split("__").collect();
        if let Err(reason) = place(table, &segments, "", &value) {
            problems.push(format!("the environment variable {name} {reason}"));
        }
    }
}

/// What tells an element of an array apart: its name, or its index.
pub(super) fn identity(element: &Table, index: usize) -> String {
    IDENTITIES
        .iter()
        .find_map(|key| element.get(*key).and_then(Value::as_str))
        .map_or_else(|| index.to_string(), Into::into)
}

/// What stands for an element in a variable's name: its name where that can be told and means this element, else its index.
pub(super) fn selector(elements: &[Value], element: &Table, index: usize) -> String {
    let name = as_variable(&identity(element, index));
    let tellable =
        !name.contains("__") && !name.ends_with('_') && select(elements, &name) == Ok(index);
    if tellable { name } else { index.to_string() }
}

fn place(table: &mut Table, segments: &[&str], section: &str, value: &str) -> Result<(), String> {
    let Some((head, rest)) = segments.split_first() else {
        return Err("names a section, not a key: add __ and a key".into());
    };
    let names = known(section);
    let below = |name: &str| {
        if section.is_empty() {
            name.to_owned()
        } else {
            format!("{section}.{name}")
        }
    };
    if let Some(option) = find(section, head) {
        if !rest.is_empty() {
            return Err(format!(
                "goes on behind {head}, which is a key: end it there"
            ));
        }
        table.insert((*head).to_owned(), from_text(option.kind, value));
        return Ok(());
    }
    let array = format!("{head}[]");
    if names.contains(&array.as_str()) {
        let Some((selector, rest)) = rest.split_first() else {
            return Err(format!(
                "names an array: write GAUNTLET_…{}__NAME_OR_INDEX__KEY",
                head.to_ascii_uppercase()
            ));
        };
        let Value::Array(elements) = table
            .entry((*head).to_owned())
            .or_insert_with(|| Value::Array(Vec::new()))
        else {
            return Ok(());
        };
        let index = select(elements, selector)?;
        if index == elements.len() {
            elements.push(Value::Table(Table::new()));
        }
        let Some(Value::Table(element)) = elements.get_mut(index) else {
            return Ok(());
        };
        return place(element, rest, &below(&array), value);
    }
    if names.contains(head) {
        let Value::Table(inner) = table
            .entry((*head).to_owned())
            .or_insert_with(|| Value::Table(Table::new()))
        else {
            return Ok(());
        };
        return place(inner, rest, &below(head), value);
    }
    let hint = nearest(head, names.iter().map(|name| name.trim_end_matches("[]"))).map_or_else(
        || {
            format!(
                "write one of {}",
                names
                    .iter()
                    .map(|name| name.trim_end_matches("[]").to_ascii_uppercase())
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        },
        |name| format!("did you mean {}?", name.to_ascii_uppercase()),
    );
    Err(format!(
        "overrides no known key: there is no {}: {hint}",
        head.to_ascii_uppercase()
    ))
}

/// The element that a selector means: by its name as a variable can tell it, or by its index; the next free index appends.
fn select(elements: &[Value], selector: &str) -> Result<usize, String> {
    let by_name = elements.iter().position(|element| {
        let Value::Table(element) = element else {
            return false;
        };
        IDENTITIES.iter().any(|key| {
            element
                .get(*key)
                .and_then(Value::as_str)
                .is_some_and(|name| as_variable(name) == selector)
        })
    });
    if let Some(index) = by_name {
        return Ok(index);
    }
    match selector.parse::<usize>() {
        Ok(index) if index <= elements.len() => Ok(index),
        _ => Err(format!(
            "names the element {selector:?}, which is not configured: write the name of one that is, or an index from 0 to {}",
            elements.len()
        )),
    }
}

/// A name as it stands in a variable's name, in small letters.
pub(super) fn as_variable(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect()
}
