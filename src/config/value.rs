//! What a key takes, checked: one total function from a raw value to the value or to what should stand there instead.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::Uri;
use percent_encoding::percent_decode_str;
use toml::Value;

use super::options::{Fallback, Kind, Opt};

/// Checks a raw value against what its key takes.
///
/// # Errors
/// What to write instead, to be put behind "write".
pub(super) fn check(kind: Kind, value: &Value) -> Result<(), String> {
    let fits = match (kind, value) {
        (
            Kind::Millis(min, max) | Kind::Bytes(min, max) | Kind::Count(min, max),
            Value::Integer(n),
        ) => (min..=max).contains(n),
        (Kind::Ratio(min, max), Value::Float(n)) => (min..=max).contains(n),
        #[allow(clippy::cast_precision_loss)]
        (Kind::Ratio(min, max), Value::Integer(n)) => (min..=max).contains(&(*n as f64)),
        (Kind::Switch, Value::Boolean(_)) => true,
        (Kind::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
        (Kind::Name | Kind::Variable, Value::String(text)) => is_name(text),
        (Kind::Secret, Value::String(text)) => {
            !text.is_empty() && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
        }
        (Kind::BaseUrl, Value::String(text)) => is_base_url(text),
        (Kind::StoreUrl, Value::String(text)) => ["postgres://", "postgresql://", "sqlite:"]
            .iter()
            .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme)),
        (Kind::Hash, Value::String(text)) => {
            text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        }
        (Kind::Choice(words), Value::String(text)) => words.contains(&text.as_str()),
        (Kind::Filter, Value::String(text)) => tracing_subscriber::EnvFilter::try_new(text).is_ok(),
        _ => false,
    };
    if fits { Ok(()) } else { Err(wanted(kind)) }
}

/// What the kind takes, in words, bounds included.
pub(super) fn wanted(kind: Kind) -> String {
    match kind {
        Kind::Address => {
            "an address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"".into()
        }
        Kind::Millis(min, max) => format!("whole milliseconds from {min} to {max}"),
        Kind::Bytes(min, max) => format!("a number of bytes from {min} to {max}"),
        Kind::Count(min, max) => format!("a whole number from {min} to {max}"),
        Kind::Ratio(min, max) => format!("a number from {min} to {max}"),
        Kind::Switch => "true or false".into(),
        Kind::Name => "a text of 1 to 200 characters, none of them a control character".into(),
        Kind::Secret => "a text of visible ASCII characters".into(),
        Kind::Variable => "the name of an environment variable".into(),
        Kind::BaseUrl => {
            "an address that begins with http:// or https:// and has a host and no query".into()
        }
        Kind::StoreUrl => {
            "postgres://user:password@host/name, sqlite://path or sqlite::memory:".into()
        }
        Kind::Hash => "64 hex digits".into(),
        Kind::Choice(words) => words
            .iter()
            .map(|word| format!("{word:?}"))
            .collect::<Vec<_>>()
            .join(" or "),
        Kind::Filter => {
            "a level (\"error\", \"warn\", \"info\", \"debug\", \"trace\") or module=level pairs"
                .into()
        }
    }
}

/// The raw value as the environment gives it: a number where the kind takes one and the text is one, else the text.
pub(super) fn from_text(kind: Kind, text: &str) -> Value {
    let parsed = match kind {
        Kind::Millis(..) | Kind::Bytes(..) | Kind::Count(..) => {
            text.parse().ok().map(Value::Integer)
        }
        Kind::Ratio(..) => text.parse().ok().map(Value::Float),
        Kind::Switch => text.parse().ok().map(Value::Boolean),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::String(text.into()))
}

/// The default as a raw value; `None` where there is none, or where it follows from other keys.
pub(super) fn default(option: &Opt) -> Option<Value> {
    match option.fallback {
        Fallback::Integer(n) => Some(Value::Integer(n)),
        Fallback::Float(n) => Some(Value::Float(n)),
        Fallback::Text(text) => Some(Value::String(text.into())),
        _ => None,
    }
}

/// The value as it may be shown to people: secrets and passwords are left out.
pub(super) fn shown(kind: Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Secret, _) => "\"[redacted]\"".into(),
        (Kind::BaseUrl | Kind::StoreUrl, Value::String(text)) => {
            Value::String(redact_url(text)).to_string()
        }
        (_, Value::String(text)) if text.len() > 300 => format!("a text of {} bytes", text.len()),
        (_, Value::Table(_)) => "a table".into(),
        (_, Value::Array(_)) => "an array".into(),
        _ => value.to_string(),
    }
}

/// A value that holds, as a configuration file has it.
#[derive(Debug)]
pub(super) enum Printed {
    /// The value itself.
    Whole(String),
    /// What may be shown of it, and what a file can be started from instead, if there is something.
    Redacted {
        shown: String,
        instead: Option<String>,
    },
}

/// A value for a configuration file; a secret, or a URL with one, is redacted.
pub(super) fn printed(kind: Kind, value: &Value) -> Printed {
    match (kind, value) {
        (Kind::Secret, _) => Printed::Redacted {
            shown: "[redacted]".into(),
            instead: None,
        },
        (Kind::BaseUrl | Kind::StoreUrl, Value::String(text)) if redact_url(text) != *text => {
            // a provider has to have a URL, and can be asked without user and password
            let without_user = (kind == Kind::BaseUrl)
                .then(|| text.parse().ok())
                .flatten()
                .and_then(|url| split_user(url).ok());
            match without_user {
                Some((_, None)) => Printed::Whole(value.to_string()),
                Some((url, Some(_))) => {
                    let instead = Some(Value::String(url.to_string()).to_string());
                    Printed::Redacted {
                        shown: shown(kind, value),
                        instead,
                    }
                }
                None => Printed::Redacted {
                    shown: shown(kind, value),
                    instead: None,
                },
            }
        }
        _ => Printed::Whole(value.to_string()),
    }
}

/// A URL without user and password, and these as `user:password` (RFC 3986 section 3.2.1), no longer percent-encoded.
///
/// # Errors
/// Where they are not UTF-8, or the rest is no URL.
pub(super) fn split_user(url: Uri) -> Result<(Uri, Option<String>), ()> {
    let mut parts = url.into_parts();
    let authority = parts.authority.take().ok_or(())?;
    let (user, host) = match authority.as_str().rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority.as_str()),
    };
    let user = user
        .filter(|user| !user.is_empty())
        .map(|user| percent_decode_str(user).decode_utf8())
        .transpose()
        .map_err(drop)?;
    parts.authority = Some(host.parse().map_err(drop)?);
    let user = user.map(|user| {
        if user.contains(':') {
            user.into_owned()
        } else {
            format!("{user}:")
        }
    });
    Ok((Uri::from_parts(parts).map_err(drop)?, user))
}

/// A URL without its user, password and query values. A password may hold any character, also those that end a host: whatever
/// stands before the last `@` is taken for user and password. An `@` behind a `?` may be one of a query's value as well: nothing
/// but the scheme is shown then.
pub fn redact_url(url: &str) -> String {
    let (scheme, rest) = url
        .split_once("://")
        .map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
    let (user, rest) = match (scheme, rest.rsplit_once('@')) {
        (Some(scheme), Some((before, _))) if before.contains('?') => {
            return format!("{scheme}://[redacted]");
        }
        (Some(_), Some((_, rest))) => ("[redacted]@", rest),
        _ => ("", rest),
    };
    let (base, query) = rest
        .split_once('?')
        .map_or((rest, None), |(base, query)| (base, Some(query)));
    let mut safe = scheme
        .map(|scheme| format!("{scheme}://"))
        .unwrap_or_default();
    let _ = write!(safe, "{user}{base}");
    if let Some(query) = query {
        let names: Vec<_> = query
            .split('&')
            .map(|pair| pair.split('=').next().unwrap_or_default())
            .collect();
        let _ = write!(
            safe,
            "?{}",
            names
                .iter()
                .map(|name| format!("{name}=[redacted]"))
                .collect::<Vec<_>>()
                .join("&")
        );
    }
    safe
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 200 && !text.chars().any(char::is_control)
}

fn is_base_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("postgres://host:5432/db", "postgres://host:5432/db")]
    #[case::password("postgres://user:canary@host/db", "postgres://[redacted]@host/db")]
    #[case::slash("postgres://user:can/canary@host/db", "postgres://[redacted]@host/db")]
    #[case::question_mark("postgres://user:can?canary@host/db", "postgres://[redacted]")]
    #[case::at("postgres://user:can@canary@host/db", "postgres://[redacted]@host/db")]
    #[case::all(
        "https://user:c/an@ary/canary@host/v1?key=canary&x",
        "https://[redacted]@host/v1?key=[redacted]&x=[redacted]"
    )]
    #[case::at_in_the_query("postgres://host/db?password=c@canary", "postgres://[redacted]")]
    #[case::no_scheme("sqlite:data.db?mode=ro", "sqlite:data.db?mode=[redacted]")]
    #[case::path("sqlite://a@b.db", "sqlite://[redacted]@b.db")]
    fn urls_are_shown_without_user_password_and_query_values(
        #[case] url: &str,
        #[case] shown: &str,
    ) {
        assert_eq!(redact_url(url), shown);
        assert!(!redact_url(url).contains("canary"));
    }
}
