//! Reads one section after the other by the table of options: checks each value, falls back to its default, and keeps what
//! was wrong and what is in effect.

use std::time::Duration;

use toml::{Table, Value};

use super::options::{Fallback, Opt, find, known, nearest};
use super::source::{as_variable, identity, selector};
use super::value::{Printed, check, default, printed, shown};

/// A section as it is read.
#[derive(Clone)]
pub(super) struct Section<'a> {
    /// Its pattern in the table of options: `providers[].timeouts`.
    pattern: String,
    /// How people name it: `providers.openai.timeouts`.
    pub(super) label: String,
    /// Which one it is, whatever names it has.
    place: Permit,
    table: Option<&'a Table>,
}

impl<'a> Section<'a> {
    fn root(table: &'a Table) -> Self {
        Self {
            pattern: String::new(),
            label: String::new(),
            place: Permit::default(),
            table: Some(table),
        }
    }
}

/// Where a section stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Permit {
    /// The index in each array on the way to it.
    pub(super) indexes: Vec<usize>,
    /// What stands for it in a variable's name, part by part.
    pub(super) variable: Vec<String>,
}

impl Permit {
    fn below(&self, part: &str) -> Self {
        let mut below = self.clone();
        below.variable.push(as_variable(part));
        below
    }

    fn element(&self, index: usize, selector: String) -> Self {
        let mut element = self.clone();
        element.indexes.push(index);
        element.variable.push(selector);
        element
    }
}

/// A key with its effective value, for `--print-config`.
#[derive(Debug)]
pub(super) struct Effective {
    /// The section's place.
    pub(super) place: Permit,
    /// The section's pattern.
    pub(super) pattern: String,
    /// The key.
    pub(super) option: &'static Opt,
    /// The value, as it may be shown; `None` if it is unset.
    pub(super) value: Option<Printed>,
    /// Where it is unset: the value that holds instead, and where it is from.
    pub(super) inherited: Option<String>,
}

/// Collects problems and effective values while sections are read.
pub(super) struct Reader<'a> {
    root: &'a Table,
    /// What is wrong, one sentence each.
    pub(super) problems: Vec<String>,
    /// What holds.
    pub(super) effective: Vec<Effective>,
}

impl<'a> Reader<'a> {
    /// A reader of a whole configuration; names unknown sections.
    pub(super) fn new(root: &'a Table, problems: Vec<String>) -> Self {
        let mut reader = Self {
            root,
            problems,
            effective: Vec::new(),
        };
        reader.names(&Section::root(root));
        reader
    }

    /// A top-level section.
    pub(super) fn section(&mut self, name: &str) -> Section<'a> {
        self.below(&Section::root(self.root), name)
    }

    /// A section of a section.
    pub(super) fn below(&mut self, parent: &Section<'a>, name: &str) -> Section<'a> {
        let label = join(&parent.label, name);
        let table = match parent.table.and_then(|table| table.get(name)) {
            None => None,
            Some(Value::Table(table)) => Some(table),
            Some(other) => {
                self.problems.push(format!(
                    "{label} = {other} is no section: write [{label}] with its keys below"
                ));
                None
            }
        };
        let section = Section {
            pattern: join(&parent.pattern, name),
            label,
            place: parent.place.below(name),
            table,
        };
        self.names(&section);
        section
    }

    /// The elements of an array of tables.
    pub(super) fn elements(
        &mut self,
        parent: Option<&Section<'a>>,
        name: &str,
    ) -> Vec<Section<'a>> {
        let parent = parent.cloned().unwrap_or_else(|| Section::root(self.root));
        let (label, pattern) = (
            join(&parent.label, name),
            join(&parent.pattern, &format!("{name}[]")),
        );
        let array = parent.place.below(name);
        let wrong = || format!("{label} is no array of tables: write [[{label}]] once for each");
        let elements = match parent.table.and_then(|table| table.get(name)) {
            None => return Vec::new(),
            Some(Value::Array(elements)) => elements,
            Some(_) => {
                self.problems.push(wrong());
                return Vec::new();
            }
        };
        let mut sections = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let Value::Table(table) = element else {
                self.problems.push(wrong());
                continue;
            };
            let place = array.element(index, selector(elements, table, index));
            let section = Section {
                pattern: pattern.clone(),
                label: format!("{label}.{}", identity(table, index)),
                place,
                table: Some(table),
            };
            self.names(&section);
            sections.push(section);
        }
        sections
    }

    /// A value that must be there, or has a constant default.
    fn value(&mut self, section: &Section<'a>, key: &str) -> Option<Value> {
        let option = self.option(section, key)?;
        let value = self.written(section, option).or_else(|| {
            if option.fallback == Fallback::Required
                && section.table.is_none_or(|table| !table.contains_key(key))
            {
                self.problems.push(format!(
                    "{}.{key} is missing: write {}",
                    section.label,
                    super::value::wanted(option.kind)
                ));
            }
            default(option)
        });
        self.keep(section, option, value.as_ref());
        value
    }

    /// Milliseconds with a constant default.
    pub(super) fn millis(&mut self, section: &Section<'a>, key: &str) -> Duration {
        Duration::from_millis(self.integer(section, key).unsigned_abs())
    }

    /// Milliseconds whose default gives way to another key's value `other`; whether they were written.
    pub(super) fn millis_by(
        &mut self,
        section: &Section<'a>,
        key: &str,
        other: Duration,
    ) -> (Duration, bool) {
        let Some(option) = self.option(section, key) else {
            return (other, false);
        };
        let derived = match option.fallback {
            Fallback::AtMost(number, _) => other.min(Duration::from_millis(number.unsigned_abs())),
            Fallback::AtLeast(number, _) => other.max(Duration::from_millis(number.unsigned_abs())),
            _ => other,
        };
        let written = self
            .written(section, option)
            .and_then(|value| value.as_integer());
        let effective = written.map_or(derived, |ms| Duration::from_millis(ms.unsigned_abs()));
        self.keep(
            section,
            option,
            Some(&Value::Integer(
                i64::try_from(effective.as_millis()).unwrap_or(i64::MAX),
            )),
        );
        (effective, written.is_some())
    }

    /// Milliseconds, if they are written; the caller tells later what holds.
    pub(super) fn millis_if_written(
        &mut self,
        section: &Section<'a>,
        key: &str,
    ) -> Option<Duration> {
        let option = self.option(section, key)?;
        let value = self.written(section, option);
        self.keep(section, option, value.as_ref());
        Some(Duration::from_millis(value?.as_integer()?.unsigned_abs()))
    }

    /// A whole number.
    pub(super) fn integer(&mut self, section: &Section<'a>, key: &str) -> i64 {
        self.value(section, key)
            .and_then(|value| value.as_integer())
            .unwrap_or_default()
    }

    /// A whole number that the bounds keep within `u32`.
    pub(super) fn count(&mut self, section: &Section<'a>, key: &str) -> u32 {
        u32::try_from(self.integer(section, key)).unwrap_or(u32::MAX)
    }

    /// A number with a fraction.
    pub(super) fn ratio(&mut self, section: &Section<'a>, key: &str) -> f64 {
        match self.value(section, key) {
            Some(Value::Float(n)) => n,
            #[allow(clippy::cast_precision_loss)]
            Some(Value::Integer(n)) => n as f64,
            _ => 0.0,
        }
    }

    /// A switch whose default follows from something else; `None` where nothing decides it yet.
    pub(super) fn switch_or(
        &mut self,
        section: &Section<'a>,
        key: &str,
        derived: Option<bool>,
    ) -> Option<bool> {
        let Some(option) = self.option(section, key) else {
            return derived;
        };
        let effective = self
            .written(section, option)
            .and_then(|value| value.as_bool())
            .or(derived);
        self.keep(section, option, effective.map(Value::Boolean).as_ref());
        effective
    }

    /// A text; `None` if it is unset or wrong (which is then a problem already).
    pub(super) fn text(&mut self, section: &Section<'a>, key: &str) -> Option<String> {
        match self.value(section, key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A text whose default follows from other keys.
    pub(super) fn text_or(
        &mut self,
        section: &Section<'a>,
        key: &str,
        derived: Option<&str>,
    ) -> Option<String> {
        let option = self.option(section, key)?;
        let value = self
            .written(section, option)
            .or_else(|| derived.map(|text| Value::String(text.into())));
        self.keep(section, option, value.as_ref());
        value.and_then(|value| value.as_str().map(Into::into))
    }

    /// Tells what holds where a key of a section is not written.
    pub(super) fn inherits(&mut self, section: &Section<'a>, key: &str, value: &str) {
        let of = |effective: &Effective| {
            effective.pattern == section.pattern
                && effective.place == section.place
                && effective.option.key == key
        };
        for effective in self
            .effective
            .iter_mut()
            .filter(|effective| of(effective) && effective.value.is_none())
        {
            effective.inherited = Some(value.to_owned());
        }
    }

    /// Notes a problem with a written value.
    pub(super) fn wrong(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn written(&mut self, section: &Section<'a>, option: &'static Opt) -> Option<Value> {
        let value = section.table?.get(option.key)?;
        match check(option.kind, value) {
            Ok(()) => Some(value.clone()),
            Err(instead) => {
                let path = join(&section.label, option.key);
                self.problems.push(format!(
                    "{path} = {} is not possible: write {instead}",
                    shown(option.kind, value)
                ));
                None
            }
        }
    }

    fn option(&mut self, section: &Section<'a>, key: &str) -> Option<&'static Opt> {
        let option = find(&section.pattern, key);
        debug_assert!(
            option.is_some(),
            "{}.{key} is read, but is not in the table of options",
            section.pattern
        );
        option
    }

    fn keep(&mut self, section: &Section<'a>, option: &'static Opt, value: Option<&Value>) {
        let value = value.map(|value| printed(option.kind, value));
        self.effective.push(Effective {
            place: section.place.clone(),
            pattern: section.pattern.clone(),
            option,
            value,
            inherited: None,
        });
    }

    /// Names what stands in a section and is not known there.
    fn names(&mut self, section: &Section<'a>) {
        let Some(table) = section.table else { return };
        let known: Vec<&str> = known(&section.pattern)
            .iter()
            .map(|name| name.trim_end_matches("[]"))
            .collect();
        for name in table.keys().filter(|name| !known.contains(&name.as_str())) {
            let path = join(&section.label, name);
            let instead = nearest(name, known.iter().copied()).map_or_else(
                || format!("write one of {}", known.join(", ")),
                |near| format!("did you mean {}?", join(&section.label, near)),
            );
            self.problems
                .push(format!("{path} is not a known key: {instead}"));
        }
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}
