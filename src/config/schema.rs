//! What a row of the configuration can say, and the macro that makes the type of a section, its
//! keys and their documentation out of rows.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use indexmap::IndexMap;
use toml::Value;

use super::StepConfig;
use super::kinds::{Kinds, ProtocolSettings, StepSettings};
use super::url::redact_url;

/// What a key takes, with its unit and its bounds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    /// Whole milliseconds from the first to the second number, read as a [`Duration`].
    Millis(i64, i64, Bound),
    /// A whole number of this unit.
    Whole(&'static str, i64, i64),
    Ratio(f64, f64),
    Switch,
    /// A text that the function accepts; the words describe it.
    Text(&'static str, fn(&str) -> bool, Shown),
    /// The name of a protocol that the gateway has.
    Protocol(&'static [ProtocolSettings]),
    /// A value that the named key of an element of the named array has.
    NameOf(&'static str, &'static str),
}

/// What another key's time means for a time. A key is named as in its own section, or by its path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    Free,
    /// A written value must not exceed the other; a default gives way to it.
    AtMost(&'static str),
    /// A written value must be less than the other; a default gives way to half of it.
    Below(&'static str),
    /// A written value must reach the other; a default gives way to it.
    AtLeast(&'static str),
}

/// How a text is shown to people.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    Whole,
    BaseUrl,
    StoreUrl,
    Nothing,
}

/// The value of a key that is not written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Default {
    /// The key must be written.
    Required,
    /// The key must be written, with another value in each element of its array.
    Unique,
    Unset,
    /// The value follows from other sections, as these words describe.
    Derived(&'static str),
    /// The value that the named key of the first element of the named array has.
    First(&'static str, &'static str),
    Is(i64),
    Fraction(f64),
    Text(&'static str),
    /// The value of the key with this path, or the number.
    Or(&'static str, i64),
}

/// A key or a section, with the lines that document it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) about: &'static [&'static str],
    pub(super) node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Key(Takes, Default),
    Table(Vec<Entry>),
    /// The keys of each element of an array of tables.
    Array(Vec<Entry>),
}

/// A section whose type and keys come from the same rows.
pub(super) trait Settings {
    const ABOUT: &'static [&'static str];
    fn entries(kinds: &Kinds) -> Vec<Entry>;
}

/// Declares sections. A row reads: documentation, key in the file, field, type, what the key takes
/// and its default. A row `table name: Type;` or `array name: Type;` holds a section of its own.
/// The types are deserialized from effective values, in which a time is a [`Duration`].
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+ $(#[derive($($extra:ident),+)])?
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+
            $key:literal => $field:ident: $type:ty, $takes:expr, $default:expr;)*
            $($nested:ident $section:ident: $of:ty;)*
        }
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug, serde::Deserialize $($(, $extra)+)?)]
        $vis struct $name {
            $($(#[doc = $doc])+
            #[doc = concat!("\n\n`", $key, "`: ", stringify!($takes), ", ", stringify!($default))]
            #[serde(rename = $key)]
            pub $field: $type,)*
            $(#[doc = concat!("The section `", stringify!($section), "`.")]
            pub $section: settings!(@type $nested $of),)*
        }
        impl Settings for $name {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            fn entries(kinds: &super::kinds::Kinds) -> Vec<super::schema::Entry> {
                use super::schema::{Entry, Node};
                vec![
                    $(Entry {
                        name: $key,
                        about: &[$($doc),+],
                        node: Node::Key($takes.among(kinds), $default),
                    },)*
                    $(Entry {
                        name: stringify!($section),
                        about: <$of>::ABOUT,
                        node: settings!(@node $nested)(<$of>::entries(kinds)),
                    },)*
                ]
            }
        }
    )+};
    (@type table $of:ty) => { $of };
    (@type array $of:ty) => { Vec<$of> };
    (@node table) => { Node::Table };
    (@node array) => { Node::Array };
}
pub(super) use settings;

pub(super) const DAY: i64 = 24 * 3_600_000;
pub(super) const TIME: Takes = time(Bound::Free);
pub(super) const TIME_OR_NONE: Takes = Takes::Millis(0, DAY, Bound::Free);

pub(super) const fn time(bound: Bound) -> Takes {
    Takes::Millis(1, DAY, bound)
}

pub(super) const fn bytes(min: i64, max: i64) -> Takes {
    Takes::Whole("a number of bytes", min, max)
}

pub(super) const fn count(min: i64, max: i64) -> Takes {
    Takes::Whole("a whole number", min, max)
}

/// Names what a text can be: how it is shown, the words for it, and whether a text is one.
macro_rules! texts {
    ($($name:ident: $shown:ident, $words:literal, $accepts:expr;)+) => {
        $(pub(super) const $name: Takes = Takes::Text($words, $accepts, Shown::$shown);)+
    };
}
texts! {
    ADDRESS: Whole, "an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"",
        |text| text.parse::<SocketAddr>().is_ok();
    NAME: Whole, "a text of 1 to 200 characters without control characters", is_name;
    VARIABLE: Whole, "the name of an environment variable", is_name;
    SECRET: Nothing, "a text of visible ASCII characters",
        |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    BASE_URL: BaseUrl, "a URL with http:// or https://, a host and no query", is_base_url;
    STORE_URL: StoreUrl, "postgres://user:password@host/name, sqlite://path or sqlite::memory:",
        |text| ["postgres://", "postgresql://", "sqlite:"]
            .iter()
            .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    HASH: Whole, "64 hexadecimal digits",
        |text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    FILTER: Whole, "a level (\"error\", \"warn\", \"info\", \"debug\", \"trace\") or module=level pairs",
        |text| tracing_subscriber::EnvFilter::try_new(text).is_ok();
    FORMAT: Whole, "\"text\" or \"json\"", |text| ["text", "json"].contains(&text);
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 200 && !text.chars().any(char::is_control)
}

fn is_base_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.query().is_none()
    })
}

impl Takes {
    /// The same, with the protocols that the gateway has.
    pub(super) fn among(self, kinds: &Kinds) -> Self {
        match self {
            Self::Protocol(_) => Self::Protocol(kinds.protocols),
            other => other,
        }
    }

    pub(super) fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Millis(min, max, _) | Self::Whole(_, min, max), Value::Integer(n)) => {
                (min..=max).contains(n)
            }
            (Self::Ratio(min, max), Value::Integer(_) | Value::Float(_)) => {
                let number = value.clone().try_into::<f64>();
                number.is_ok_and(|number| (min..=max).contains(&number))
            }
            (Self::Switch, Value::Boolean(_)) => true,
            (Self::Text(_, accepts, _), Value::String(text)) => accepts(text),
            (Self::Protocol(rows), Value::String(text)) => rows.iter().any(|row| row.name == text),
            (Self::NameOf(..), Value::String(_)) => NAME.accepts(value),
            _ => false,
        }
    }

    /// What the key takes, in words that can follow "write".
    pub(super) fn wanted(self) -> String {
        match self {
            Self::Millis(min, max, _) => format!("whole milliseconds from {min} to {max}"),
            Self::Whole(unit, min, max) => format!("{unit} from {min} to {max}"),
            Self::Ratio(min, max) => format!("a number from {min} to {max}"),
            Self::Switch => "true or false".into(),
            Self::Text(words, ..) => words.into(),
            Self::NameOf(array, key) => format!("the {key} of one of [[{array}]]"),
            Self::Protocol(rows) => {
                let names: Vec<_> = rows.iter().map(|row| format!("{:?}", row.name)).collect();
                names.join(" or ")
            }
        }
    }

    /// The value that a variable means: where no text is taken, its text is read as TOML.
    pub(super) fn parse(self, text: &str) -> Value {
        match self {
            Self::Text(..) | Self::Protocol(_) | Self::NameOf(..) => None,
            _ => text.parse().ok(),
        }
        .unwrap_or_else(|| Value::String(text.into()))
    }

    /// The value without the secrets in it.
    pub(super) fn redacted(self, value: &Value) -> Value {
        match (self, value) {
            (Self::Text(_, _, Shown::Nothing), _) => Value::String("[redacted]".into()),
            (Self::Text(_, _, Shown::BaseUrl | Shown::StoreUrl), Value::String(text)) => {
                Value::String(redact_url(text))
            }
            _ => value.clone(),
        }
    }
}

impl Bound {
    /// The default, as far as the bound allows; `number` gives the value of another key.
    pub(super) fn limit(self, default: i64, number: impl Fn(&str) -> Option<i64>) -> Option<i64> {
        Some(match self {
            Self::Free => default,
            Self::AtMost(key) => default.min(number(key)?),
            Self::Below(key) => default.min(number(key)? / 2),
            Self::AtLeast(key) => default.max(number(key)?),
        })
    }
}

impl Default {
    pub(super) const fn is_required(self) -> bool {
        matches!(self, Self::Required | Self::Unique)
    }

    pub(super) fn words(self, takes: Takes) -> String {
        let limit = match takes {
            Takes::Millis(_, _, Bound::AtMost(key)) => format!(", or {key} if that is less"),
            Takes::Millis(_, _, Bound::Below(key)) => format!(", or half of {key} if that is less"),
            Takes::Millis(_, _, Bound::AtLeast(key)) => format!(", or {key} if that is more"),
            _ => String::new(),
        };
        match self {
            Self::Required | Self::Unique => "none, the key is required".into(),
            Self::First(array, key) => format!("the {key} of the first of [[{array}]]"),
            Self::Unset => "not set".into(),
            Self::Derived(words) => words.into(),
            Self::Is(value) => format!("{value}{limit}"),
            Self::Or(key, value) => format!("{key}, else {value}{limit}"),
            Self::Fraction(value) => value.to_string(),
            Self::Text(value) => format!("{value:?}"),
        }
    }
}

/// One section for each step; the defaults are those of the step's row.
impl Settings for IndexMap<String, StepConfig> {
    const ABOUT: &'static [&'static str] = &[];

    fn entries(kinds: &Kinds) -> Vec<Entry> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let bounds = |step: &StepSettings| {
            let mut keys = StepConfig::entries(kinds);
            for key in &mut keys {
                match &mut key.node {
                    Node::Key(_, Default::Or(_, cap)) => *cap = millis(step.cap),
                    Node::Key(_, Default::Is(minimum)) => *minimum = millis(step.minimum),
                    _ => {}
                }
            }
            Entry {
                name: step.name,
                about: StepConfig::ABOUT,
                node: Node::Table(keys),
            }
        };
        kinds.steps.iter().map(bounds).collect()
    }
}

/// One key for each step that asks a model.
impl Settings for IndexMap<String, String> {
    const ABOUT: &'static [&'static str] = &[" The model that each step asks."];

    fn entries(kinds: &Kinds) -> Vec<Entry> {
        let takes = Node::Key(
            Takes::NameOf("models", "alias"),
            Default::First("models", "alias"),
        );
        let alias = |step: &StepSettings| Entry {
            name: step.name,
            about: &[" The alias of the model that this step asks."],
            node: takes.clone(),
        };
        let asking = kinds.steps.iter().filter(|step| step.asks_model);
        asking.map(alias).collect()
    }
}
