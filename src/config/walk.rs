//! The one pass over the rows and the values that are written for them: it notes every problem,
//! fills in defaults, and prints each key.

use std::collections::HashSet;
use std::time::Duration;

use toml::{Table, Value};

use super::environment::{identity, selector};
use super::print::{Line, comment, row};
use super::schema::{Bound, Default, Entry, Node, Takes};

/// The state of a pass. It goes on after a problem, so that all are found at once.
pub(super) struct Walk<'a> {
    pub(super) root: Section<'a>,
    pub(super) problems: Vec<String>,
    pub(super) lines: Vec<Line>,
}

/// A section: its rows, the values that are written for them, and where it is.
#[derive(Clone)]
pub(super) struct Section<'s> {
    rows: &'s [Entry],
    values: &'s Table,
    /// The name for people: `providers.openai.timeouts`.
    label: String,
    /// The name in a header of a file: `providers.timeouts`.
    path: String,
    /// The beginning of its variables: `GAUNTLET_PROVIDERS__OPENAI__TIMEOUTS__`.
    variable: String,
    /// Whether the section is printed only to show the keys that an element would have.
    template: bool,
}

impl<'s> Section<'s> {
    pub(super) fn root(rows: &'s [Entry], values: &'s Table) -> Self {
        let (label, path, variable) = (String::new(), String::new(), "GAUNTLET_".into());
        Self {
            rows,
            values,
            label,
            path,
            variable,
            template: false,
        }
    }

    fn below(&self, name: &str, rows: &'s [Entry], values: &'s Table) -> Self {
        let (label, path) = (join(&self.label, name), join(&self.path, name));
        let variable = format!("{}{}__", self.variable, name.to_ascii_uppercase());
        Self {
            rows,
            values,
            label,
            path,
            variable,
            template: self.template,
        }
    }

    fn element(&self, name: &str, selector: &str, values: &'s Table) -> Self {
        let label = join(&self.label, name);
        let variable = format!("{}{selector}__", self.variable);
        Self {
            values,
            label,
            variable,
            ..self.clone()
        }
    }
}

impl Walk<'_> {
    /// The effective values of all keys.
    pub(super) fn run(&mut self) -> Table {
        let root = self.root.clone();
        self.section(&root, String::new()).unwrap_or_default()
    }

    fn problem(&mut self, section: &Section<'_>, name: &str, problem: &str) {
        self.problems
            .push(format!("{} {problem}", join(&section.label, name)));
    }

    /// The effective values of a section; `None` if a required key is missing.
    fn section(&mut self, section: &Section<'_>, header: String) -> Option<Table> {
        let known = section.rows.iter().map(|row| row.name);
        for name in section.values.keys() {
            if !known.clone().any(|known| known == name) {
                let instead = instead(name, known.clone(), |known| join(&section.label, known));
                self.problem(section, name, &format!("is not a known key: {instead}"));
            }
        }
        if matches!(
            section.rows,
            [
                Entry {
                    node: Node::Key(..),
                    ..
                },
                ..
            ]
        ) {
            self.lines.push(Line::Text(header));
        }
        let (mut effective, mut complete) = (Table::new(), true);
        for entry in section.rows {
            let value = match &entry.node {
                Node::Key(takes, default) => {
                    let value = self.key(section, entry, *takes, *default);
                    complete &= value.is_some() || !default.is_required();
                    value
                }
                Node::Table(rows) => self.table(section, entry, rows).map(Value::Table),
                Node::Array(rows) => Some(self.array(section, entry, rows).into()),
            };
            effective.extend(value.map(|value| (entry.name.to_owned(), value)));
        }
        complete.then_some(effective)
    }

    fn table(&mut self, parent: &Section<'_>, entry: &Entry, rows: &[Entry]) -> Option<Table> {
        let empty = Table::new();
        let values = parent
            .values
            .get(entry.name)
            .map_or(Some(&empty), Value::as_table);
        let section = parent.below(entry.name, rows, values.unwrap_or(&empty));
        let header = format!("[{}]", section.path);
        if values.is_none() {
            let problem = format!("is not a section: write {header}, with its keys below it");
            self.problem(parent, entry.name, &problem);
        }
        let mark = if section.template { "# " } else { "" };
        self.section(
            &section,
            format!("\n{}{mark}{header}", comment(entry.about)),
        )
    }

    fn array(&mut self, parent: &Section<'_>, entry: &Entry, rows: &[Entry]) -> Vec<Value> {
        let empty = Table::new();
        let array = parent.below(entry.name, rows, &empty);
        let header = format!("[[{}]]", array.path);
        let elements = match parent.values.get(entry.name) {
            None => &[][..],
            Some(Value::Array(elements)) if elements.iter().all(Value::is_table) => elements,
            Some(_) => {
                let problem = format!("is not an array: write {header} before each element");
                self.problem(parent, entry.name, &problem);
                return Vec::new();
            }
        };
        let about = comment(entry.about);
        if elements.is_empty() {
            let mut template = array.element("0", "0", &empty);
            template.template = true;
            self.section(&template, format!("\n{about}# {header}"));
        }
        for row in rows
            .iter()
            .filter(|row| matches!(row.node, Node::Key(_, Default::Unique)))
        {
            let (name, mut seen) = (row.name, HashSet::new());
            let values = elements
                .iter()
                .filter_map(|element| element.get(name)?.as_str());
            for value in values.filter(|value| !seen.insert(value.to_lowercase())) {
                let remedy = format!("give each element another {name}");
                self.problem(
                    &array,
                    name,
                    &format!("= {value:?} is written twice: {remedy}"),
                );
            }
        }
        let mut effective = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let (name, selector) = (identity(element, index), selector(elements, index));
            let values = element.as_table().unwrap_or(&empty);
            let section = array.element(&name, &selector, values);
            let element = self.section(&section, format!("\n{about}{header}"));
            effective.extend(element.map(Value::Table));
        }
        effective
    }

    /// The effective value of a key, checked and printed.
    fn key(
        &mut self,
        section: &Section<'_>,
        entry: &Entry,
        takes: Takes,
        default: Default,
    ) -> Option<Value> {
        let name = entry.name;
        match (section.values.get(name), takes) {
            (Some(value), takes) if !takes.accepts(value) => {
                let shown = match value {
                    Value::Table(_) => "a table".into(),
                    Value::Array(_) => "an array".into(),
                    value => takes.redacted(value).to_string(),
                };
                let shown = match shown.len() {
                    0..=300 => shown,
                    length => format!("a text of {length} bytes"),
                };
                let problem = format!("= {shown} is not possible: write {}", takes.wanted());
                self.problem(section, name, &problem);
            }
            (Some(Value::Integer(value)), Takes::Millis(_, _, bound)) => {
                self.bound(section, name, *value, bound);
            }
            (Some(Value::String(value)), Takes::NameOf(array, key)) => {
                self.reference(section, name, value, (array, key));
            }
            (None, _) if default.is_required() && !section.template => {
                self.problem(
                    section,
                    name,
                    &format!("is missing: write {}", takes.wanted()),
                );
            }
            _ => {}
        }
        let value = self.effective(section, name);
        let variable = format!("{}{}", section.variable, name.to_ascii_uppercase());
        row(&mut self.lines, entry, (takes, default), &variable);
        self.lines.push(match &value {
            _ if section.template => Line::Text(format!("# {name} = …")),
            Some(value) => Line::of(takes, name, value),
            None => Line::Unwritten {
                name,
                path: join(&section.label, name),
            },
        });
        match takes {
            Takes::Millis(..) => Value::try_from(time(value?.as_integer()?)).ok(),
            _ => value,
        }
    }

    /// The valid value that is written for a key, else its default.
    fn effective(&self, section: &Section<'_>, name: &str) -> Option<Value> {
        let entry = section.rows.iter().find(|row| row.name == name)?;
        let Node::Key(takes, default) = entry.node else {
            return None;
        };
        let written = section
            .values
            .get(name)
            .filter(|value| takes.accepts(value));
        if let Some(value) = written {
            return Some(value.clone());
        }
        let number = match default {
            Default::Is(value) => value,
            Default::Or(key, value) => self.number(section, key).unwrap_or(value),
            Default::Fraction(value) => return Some(value.into()),
            Default::Text(value) => return Some(value.into()),
            Default::First(array, key) => return Some(self.names(array, key).next()?.into()),
            _ => return None,
        };
        let Takes::Millis(_, _, bound) = takes else {
            return Some(number.into());
        };
        Some(bound.limit(number, |key| self.number(section, key))?.into())
    }

    /// The number that a row refers to: a key of the same section, or the path of any other key.
    fn number(&self, section: &Section<'_>, key: &str) -> Option<i64> {
        let Some((other, key)) = key.split_once('.') else {
            return self.effective(section, key)?.as_integer();
        };
        let entry = self.root.rows.iter().find(|row| row.name == other)?;
        let (Node::Table(rows), empty) = (&entry.node, Table::new()) else {
            return None;
        };
        let values = self.root.values.get(other).and_then(Value::as_table);
        let section = Section::root(rows, values.unwrap_or(&empty));
        self.effective(&section, key)?.as_integer()
    }

    /// The values that a key has in the elements of an array.
    fn names(&self, array: &str, key: &'static str) -> impl Iterator<Item = &str> + Clone {
        let elements = self.root.values.get(array).and_then(Value::as_array);
        elements
            .into_iter()
            .flatten()
            .filter_map(move |element| element.get(key)?.as_str())
    }

    /// Notes a name that refers to nothing.
    fn reference(
        &mut self,
        section: &Section<'_>,
        name: &str,
        value: &str,
        (array, key): (&'static str, &'static str),
    ) {
        let known: Vec<_> = self.names(array, key).collect();
        let mut remedy = format!("add [[{array}]] with that {key}");
        if !known.is_empty() {
            let instead = instead(value, known.iter().copied(), |known| format!("{known:?}"));
            remedy = format!("{instead}, or {remedy}");
        }
        if !known.contains(&value) {
            let problem = format!("= {value:?} is not one of [[{array}]]: {remedy}");
            self.problem(section, name, &problem);
        }
    }

    /// Notes a written time that contradicts its bound.
    fn bound(&mut self, section: &Section<'_>, name: &str, value: i64, bound: Bound) {
        let (Bound::AtMost(key) | Bound::Below(key) | Bound::AtLeast(key)) = bound else {
            return;
        };
        let Some(other) = self.number(section, key) else {
            return;
        };
        let own = join(&section.label, name);
        let key = if key.contains('.') {
            key.to_owned()
        } else {
            join(&section.label, key)
        };
        match bound {
            Bound::Below(_) if value >= other => self.problems.push(format!(
                "{own} = {value} is not shorter than {key} = {other}: write at most {}, or raise \
                 {key}",
                other / 2
            )),
            Bound::AtMost(_) => {
                within(&mut self.problems, (&own, time(value)), (&key, time(other)));
            }
            Bound::AtLeast(_) => {
                within(&mut self.problems, (&key, time(other)), (&own, time(value)));
            }
            _ => {}
        }
    }
}

fn time(millis: i64) -> Duration {
    Duration::from_millis(millis.unsigned_abs())
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
