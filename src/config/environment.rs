//! `GAUNTLET_SECTION__KEY` variables over the file: how a variable's name means a key.

use toml::{Table, Value};

use super::schema::{Entry, Node};
use super::walk::instead;

/// The keys whose values name an element of an array, in messages and in the environment.
const IDENTITIES: [&str; 4] = ["name", "alias", "tenant", "provider"];

/// Puts variables over the file. A variable without two underscores is not configuration.
pub(super) fn overlay(
    entries: &[Entry],
    table: &mut Table,
    environment: &[(String, String)],
    problems: &mut Vec<String>,
) {
    let mut variables: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| Some((name, name.strip_prefix("GAUNTLET_")?, value)))
        .filter(|(_, path, _)| path.contains("__"))
        .collect();
    // an index is a number: element 2 comes before element 10
    let order = |part: &str| part.parse::<u64>().map_err(|_| part.to_owned());
    variables.sort_by_cached_key(|(_, path, _)| path.split("__").map(order).collect::<Vec<_>>());
    for (name, path, value) in variables {
        let path = path.to_ascii_lowercase();
        let path: Vec<&str> = path.split("__").collect();
        if let Err(reason) = set(entries, table, &path, value) {
            problems.push(format!("the environment variable {name} {reason}"));
        }
    }
}

fn set(entries: &[Entry], table: &mut Table, path: &[&str], text: &str) -> Result<(), String> {
    let [name, rest @ ..] = path else {
        return Err("names a section, not a key: add two underscores and a key".into());
    };
    let upper = name.to_ascii_uppercase();
    let Some(entry) = entries.iter().find(|entry| entry.name == *name) else {
        let known = entries.iter().map(|entry| entry.name);
        let instead = instead(name, known, str::to_ascii_uppercase);
        return Err(format!(
            "overrides no known key, because there is no {upper}: {instead}"
        ));
    };
    match (&entry.node, rest) {
        (Node::Key(takes, _), []) => {
            table.insert((*name).to_owned(), takes.parse(text));
        }
        (Node::Key(..), _) => {
            return Err(format!(
                "continues after {upper}, which is a key: end the name there"
            ));
        }
        (Node::Table(entries), _) => {
            let inner = table.entry(*name).or_insert_with(|| Table::new().into());
            if let Value::Table(inner) = inner {
                set(entries, inner, rest, text)?;
            }
        }
        (Node::Array(_), []) => {
            return Err(format!(
                "names an array: continue with {upper}__NAME_OR_INDEX__KEY"
            ));
        }
        (Node::Array(entries), [selector, rest @ ..]) => {
            let array = table
                .entry(*name)
                .or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(elements) = array else {
                return Ok(());
            };
            let index = select(elements, selector)?;
            if index == elements.len() {
                elements.push(Table::new().into());
            }
            if let Some(Value::Table(element)) = elements.get_mut(index) {
                set(entries, element, rest, text)?;
            }
        }
    }
    Ok(())
}

/// The name of an element of an array, or its index if it has none.
pub(super) fn identity(element: &Value, index: usize) -> String {
    let name = IDENTITIES.iter().find_map(|key| element.get(key)?.as_str());
    name.map_or_else(|| index.to_string(), Into::into)
}

/// What means an element in a variable's name: its name if that means no other, else its index.
pub(super) fn selector(elements: &[Value], index: usize) -> String {
    let name = elements
        .get(index)
        .map(|element| as_variable(&identity(element, index)));
    let means_it = |name: &String| {
        select(elements, name) == Ok(index) && !name.contains("__") && !name.ends_with('_')
    };
    name.filter(means_it)
        .map_or_else(|| index.to_string(), |name| name.to_ascii_uppercase())
}

/// The index of the element that a variable's name means; the next free index appends one.
fn select(elements: &[Value], selector: &str) -> Result<usize, String> {
    let named = |element: &Value| {
        let mut names = IDENTITIES
            .iter()
            .filter_map(|key| element.get(key)?.as_str());
        names.any(|name| as_variable(name) == selector)
    };
    let (named, length) = (elements.iter().position(named), elements.len());
    let by_index = || selector.parse().ok().filter(|index| *index <= length);
    named.or_else(by_index).ok_or_else(|| {
        format!(
            "names the element {selector:?}, which is not configured: write the name of one that \
             is, or an index from 0 to {length}"
        )
    })
}

/// A name as it stands in a variable's name, in lower case.
fn as_variable(name: &str) -> String {
    let part = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    name.chars().map(part).collect()
}
