//! The one pass over the rows and the values that are written for them: it notes every problem,
//! fills in defaults, and prints each key.

use std::collections::HashSet;
use std::time::Duration;

use toml::{Table, Value};

use super::environment::{identity, selector};
use super::print::{Line, comment, row};
use super::schema::{Default, Entry, Node, Takes};

/// The state of a pass. It goes on after a problem, so that all are found at once.
pub(super) struct Walk<'a> {
    entries: &'a [Entry],
    table: &'a Table,
    pub(super) problems: Vec<String>,
    pub(super) lines: Vec<Line>,
}

/// Where a section is in the file, in messages and in the environment.
#[derive(Clone, Default)]
struct Position {
    /// The name for people: `providers.openai.timeouts`.
    label: String,
    /// The name in a header of a file: `providers.timeouts`.
    path: String,
    /// The beginning of its variables: `PROVIDERS__OPENAI__TIMEOUTS__`.
    variable: String,
    /// Whether the section is printed only to show the keys that an element would have.
    template: bool,
}

impl Position {
    fn below(&self, name: &str) -> Self {
        Self {
            label: join(&self.label, name),
            path: join(&self.path, name),
            variable: format!("{}{}__", self.variable, name.to_ascii_uppercase()),
            template: self.template,
        }
    }

    fn element(&self, label: &str, selector: &str) -> Self {
        Self {
            label: join(&self.label, label),
            variable: format!("{}{selector}__", self.variable),
            ..self.clone()
        }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(entries: &'a [Entry], table: &'a Table, problems: Vec<String>) -> Self {
        Self {
            entries,
            table,
            problems,
            lines: Vec::new(),
        }
    }

    /// The effective values of all keys.
    pub(super) fn run(&mut self) -> Table {
        let effective = self.section(self.entries, self.table, &Position::default(), "");
        effective.unwrap_or_default()
    }

    /// The effective values of a section; `None` if a required key is missing.
    fn section(
        &mut self,
        entries: &[Entry],
        table: &Table,
        at: &Position,
        header: &str,
    ) -> Option<Table> {
        let names = entries.iter().map(|entry| entry.name);
        for name in table
            .keys()
            .filter(|name| names.clone().all(|known| known != *name))
        {
            let instead = instead(name, names.clone(), |known| join(&at.label, known));
            let path = join(&at.label, name);
            self.problems
                .push(format!("{path} is not a known key: {instead}"));
        }
        if entries
            .iter()
            .any(|entry| matches!(entry.node, Node::Key(..)))
        {
            let mark = if at.template { "\n# [" } else { "\n[" };
            self.lines.push(Line::Text(header.replace("\n[", mark)));
        }
        let (mut effective, mut complete) = (Table::new(), true);
        for entry in entries {
            let value = match &entry.node {
                Node::Key(takes, default) => {
                    let value = self.key(entry, (*takes, *default), (entries, table), at);
                    complete &= value.is_some() || !default.is_required();
                    value
                }
                Node::Table(keys) => self.table(entry, keys, table, at).map(Value::Table),
                Node::Array(keys) => Some(Value::Array(self.array(entry, keys, table, at))),
            };
            effective.extend(value.map(|value| (entry.name.to_owned(), value)));
        }
        complete.then_some(effective)
    }

    fn table(
        &mut self,
        entry: &Entry,
        keys: &[Entry],
        parent: &Table,
        at: &Position,
    ) -> Option<Table> {
        let (empty, at) = (Table::new(), at.below(entry.name));
        let table = match parent.get(entry.name) {
            None => &empty,
            Some(Value::Table(table)) => table,
            Some(other) => {
                let (path, type_name) = (&at.label, other.type_str());
                self.problems.push(format!(
                    "{path} is of type {type_name}: write [{path}], with its keys below it"
                ));
                &empty
            }
        };
        let header = format!("\n{}[{}]", comment(entry.about), at.path);
        self.section(keys, table, &at, &header)
    }

    fn array(
        &mut self,
        entry: &Entry,
        keys: &[Entry],
        parent: &Table,
        at: &Position,
    ) -> Vec<Value> {
        let at = at.below(entry.name);
        let header = format!("\n{}[[{}]]", comment(entry.about), at.path);
        let elements = parent.get(entry.name).map_or(Some(&[][..]), |value| {
            let elements = value.as_array()?;
            elements.iter().all(Value::is_table).then_some(elements)
        });
        let Some(elements) = elements else {
            let path = &at.label;
            self.problems.push(format!(
                "{path} is not an array of tables: write [[{path}]] before each element"
            ));
            return Vec::new();
        };
        if elements.is_empty() {
            let template = Position {
                template: true,
                ..at.element("0", "0")
            };
            self.section(keys, &Table::new(), &template, &header);
        }
        for Entry { name, node, .. } in keys {
            let mut seen = HashSet::new();
            let values = elements
                .iter()
                .filter_map(|element| element.get(name)?.as_str());
            let mut repeated = values.filter(|value| !seen.insert(value.to_lowercase()));
            if let (Node::Key(_, Default::Unique), Some(value)) = (node, repeated.next()) {
                let path = join(&at.label, name);
                self.problems.push(format!(
                    "{path} = {value:?} is written twice: give each element another {name}"
                ));
            }
        }
        let mut effective = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let at = at.element(&identity(element, index), &selector(elements, index));
            let table = element.as_table();
            let table = table.and_then(|table| self.section(keys, table, &at, &header));
            effective.extend(table.map(Value::Table));
        }
        effective
    }

    /// The effective value of a key, checked and printed.
    fn key(
        &mut self,
        entry: &Entry,
        (takes, default): (Takes, Default),
        section: (&[Entry], &Table),
        at: &Position,
    ) -> Option<Value> {
        let (name, path) = (entry.name, join(&at.label, entry.name));
        let written = section.1.get(name);
        let accepted = written.filter(|value| takes.accepts(value));
        match (written, accepted) {
            (Some(value), None) => {
                let shown = match value {
                    Value::Table(_) => "a table".into(),
                    Value::Array(_) => "an array".into(),
                    value => takes.redacted(value).to_string(),
                };
                let shown = match shown.len() {
                    0..=300 => shown,
                    length => format!("a text of {length} bytes"),
                };
                let wanted = takes.wanted();
                self.problems
                    .push(format!("{path} = {shown} is not possible: write {wanted}"));
            }
            (None, _) if default.is_required() && !at.template => {
                self.problems
                    .push(format!("{path} is missing: write {}", takes.wanted()));
            }
            _ => {}
        }
        match (takes, accepted) {
            (Takes::NameOf(array, key), Some(Value::String(name))) => {
                self.reference(&path, name, (array, key));
            }
            (_, Some(Value::Integer(value))) => self.bound((&path, *value), default, section, at),
            _ => {}
        }
        let value = self.effective(section, name);
        let variable = format!("GAUNTLET_{}{}", at.variable, name.to_ascii_uppercase());
        row(&mut self.lines, entry, (takes, default), &variable);
        self.lines.push(match &value {
            _ if at.template => Line::Text(format!("# {name} = …")),
            Some(value) => Line::of(takes, name, value),
            None => Line::Unwritten { name, path },
        });
        match takes {
            Takes::Millis(..) => {
                let millis = value?.as_integer()?.unsigned_abs();
                Value::try_from(Duration::from_millis(millis)).ok()
            }
            _ => value,
        }
    }

    /// The valid value that is written for a key, else its default.
    fn effective(&self, section: (&[Entry], &Table), name: &str) -> Option<Value> {
        let entry = section.0.iter().find(|entry| entry.name == name)?;
        let Node::Key(takes, default) = entry.node else {
            return None;
        };
        let written = section.1.get(name).filter(|value| takes.accepts(value));
        written.cloned().or_else(|| match default {
            Default::First(array, key) => {
                Some(Value::String(names(self.table, array, key).next()?.into()))
            }
            _ => default.value(|key| self.number(section, key)),
        })
    }

    /// The number that a row refers to: a key of the same section, or the path of any other key.
    fn number(&self, section: (&[Entry], &Table), key: &str) -> Option<i64> {
        let Some((other, key)) = key.split_once('.') else {
            return self.effective(section, key)?.as_integer();
        };
        let entry = self.entries.iter().find(|entry| entry.name == other)?;
        let (Node::Table(keys), empty) = (&entry.node, Table::new()) else {
            return None;
        };
        let table = self
            .table
            .get(other)
            .and_then(Value::as_table)
            .unwrap_or(&empty);
        self.effective((keys, table), key)?.as_integer()
    }

    /// Notes a name that refers to nothing.
    fn reference(&mut self, path: &str, name: &str, (array, key): (&str, &'static str)) {
        let known = names(self.table, array, key);
        if known.clone().any(|known| known == name) {
            return;
        }
        let mut remedy = format!("add [[{array}]] with that {key}");
        if known.clone().next().is_some() {
            let instead = instead(name, known, |known| format!("{known:?}"));
            remedy = format!("{instead}, or {remedy}");
        }
        self.problems.push(format!(
            "{path} = {name:?} is not one of [[{array}]]: {remedy}"
        ));
    }

    /// Notes a written value that contradicts the key to which its row refers.
    fn bound(
        &mut self,
        (path, value): (&str, i64),
        default: Default,
        section: (&[Entry], &Table),
        at: &Position,
    ) {
        let (Default::AtMost(_, key)
        | Default::UnsetAtMost(key)
        | Default::AtMostHalf(_, key)
        | Default::AtLeast(_, key)
        | Default::Instead(_, _, key)) = default
        else {
            return;
        };
        let Some(other) = self.number(section, key) else {
            return;
        };
        let key = if key.contains('.') {
            key.to_owned()
        } else {
            join(&at.label, key)
        };
        let time = |number: i64| Duration::from_millis(number.unsigned_abs());
        match default {
            Default::AtMostHalf(..) if value < other => {}
            Default::AtMostHalf(..) => self.problems.push(format!(
                "{path} = {value} is not shorter than {key} = {other}: write at most {}, or raise \
                 {key}",
                other / 2
            )),
            Default::AtLeast(..) => {
                within(&mut self.problems, (&key, time(other)), (path, time(value)));
            }
            _ => within(&mut self.problems, (path, time(value)), (&key, time(other))),
        }
    }
}

/// The values that a key has in the elements of an array.
fn names<'t>(
    root: &'t Table,
    array: &str,
    key: &'static str,
) -> impl Iterator<Item = &'t str> + Clone + use<'t> {
    let elements = root
        .get(array)
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    elements.filter_map(move |element| element.get(key)?.as_str())
}

/// Notes an inner time that is longer than the outer one.
pub(super) fn within(
    problems: &mut Vec<String>,
    (inner_key, inner): (&str, Duration),
    (outer_key, outer): (&str, Duration),
) {
    if inner > outer {
        let (inner, outer) = (inner.as_millis(), outer.as_millis());
        problems.push(format!(
            "{inner_key} = {inner} is longer than {outer_key} = {outer}: write at most {outer}, or \
             raise {outer_key}"
        ));
    }
}

/// What to write instead of an unknown name, to follow a colon.
pub(super) fn instead<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    shown: impl Fn(&str) -> String,
) -> String {
    let limit = (name.chars().count() / 3).max(2);
    let near = known
        .clone()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| {
            *distance <= limit || known.starts_with(name) || name.starts_with(*known)
        })
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, near)) => format!("write {}, the nearest known name", shown(near)),
        None => format!(
            "write one of {}",
            known.map(shown).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn join(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        section => format!("{section}.{key}"),
    }
}
