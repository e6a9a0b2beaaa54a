//! Words for people: the entries of a tape, times and counts, in a form that is safe to show.

use super::secret::is_secret;
use crate::plan::Listen;
use crate::tape::{Close, Entry, Event, Side};

/// Returns whether an entry may be the cause of a failure, so that it is drawn in red.
pub(super) fn is_trouble(event: &Event) -> bool {
    match event {
        Event::ClientStatus { status, .. } | Event::HeadSent { status, .. } => *status >= 400,
        Event::ClientFailed { .. } | Event::Fault { .. } | Event::Unmatched { .. } => true,
        Event::PeerClosed { request, .. } => request.is_some(),
        _ => false,
    }
}

/// Returns one entry as a sentence.
pub(super) fn words(entry: &Entry) -> String {
    let who = match &entry.side {
        Side::Client(label) if label.is_empty() => "client".to_string(),
        Side::Client(label) => format!("client {label}"),
        Side::Provider(name) => name.clone(),
        Side::Database => "database".to_string(),
        Side::Gate(name) if matches!(entry.event, Event::Met { .. }) => {
            format!("rendezvous {name}")
        }
        Side::Gate(name) => format!("gate {name}"),
        Side::Target => "gateway".to_string(),
    };
    let what = match &entry.event {
        Event::ClientSent { method, path, .. } => format!("sends {method} {path}"),
        Event::ClientStatus { status, .. } => format!("receives status {status}"),
        Event::ClientChunk { n, text, .. } => format!("receives chunk {n}: {text:?}"),
        Event::ClientAnswered { status, .. } => {
            format!("has received the whole answer, status {status}")
        }
        Event::ClientFailed { error, .. } => format!("fails: {error}"),
        Event::ClientLeft => "closes its connection".into(),
        Event::Listening { how } => match how {
            Listen::Serve => "accepts connections and serves them from now on".into(),
            Listen::Refuse => "refuses connections from now on".into(),
            Listen::NeverAccept => "establishes no connection from now on".into(),
            Listen::Silence => "accepts connections and stays silent from now on".into(),
        },
        Event::Accepted { connection } => format!("accepts connection {connection}"),
        Event::RequestRead {
            request,
            method,
            path,
            ..
        } => format!(
            "receives request {request}: {method} {}",
            without_namespace(path)
        ),
        Event::Planned { request, .. } => format!("has an answer for request {request}"),
        Event::Held { request, gate } => {
            format!("holds the answer to request {request} at gate {gate}")
        }
        Event::HeadSent { request, status } => {
            format!("answers request {request} with status {status}")
        }
        Event::EventSent { request, n } => {
            format!("sends event {n} of the answer to request {request}")
        }
        Event::Fault {
            request: Some(request),
            fault,
        } => format!("has a fault at request {request}: {fault}"),
        Event::Fault {
            request: None,
            fault,
        } => format!("has a fault: {fault}"),
        Event::AnswerSent { request } => {
            format!("sends the last byte of the answer to request {request}")
        }
        Event::PeerClosed { request, how, .. } => {
            let how = match how {
                Close::Fin => "close",
                Close::Reset => "reset",
            };
            match request {
                Some(request) => {
                    format!("sees the gateway {how} the connection of request {request}")
                }
                None => format!("sees the gateway {how} an idle connection"),
            }
        }
        Event::Unmatched { request, reason } => {
            format!("has no answer for request {request}: {reason}")
        }
        Event::Opened => "opens".into(),
        Event::Met { count } => {
            let parties = counted(*count, "party has come", "parties have come");
            return format!("{who}: {parties}");
        }
        Event::Database { what } | Event::Target { what } | Event::Note { text: what } => {
            return format!("{who}: {what}");
        }
    };
    format!("{who} {what}")
}

/// Returns the path without the prefix that distinguishes the cases.
pub(super) fn without_namespace(path: &str) -> &str {
    match path
        .strip_prefix("/t/")
        .and_then(|rest| rest.find('/').map(|slash| &rest[slash..]))
    {
        Some(rest) => rest,
        None => path,
    }
}

/// Returns an entry in full, for the reader who points at it.
pub(super) fn detail(entry: &Entry) -> String {
    match &entry.event {
        Event::RequestRead { headers, body, .. } => {
            let headers: Vec<String> = headers
                .iter()
                .filter(|(name, _)| !is_secret(name))
                .map(|(name, value)| format!("{name}: {value}"))
                .collect();
            format!(
                "{}\n{}\n{}",
                words(entry),
                headers.join("\n"),
                clip(body, 2_000)
            )
        }
        _ => format!(
            "{} (number {} in the order of all events)",
            words(entry),
            entry.seq
        ),
    }
}

/// Formats a duration in milliseconds: from one second on, in seconds with one decimal.
pub fn duration(ms: u64) -> String {
    if ms < 1_000 {
        format!("{ms} ms")
    } else {
        format!(
            "{:.1} s",
            std::time::Duration::from_millis(ms).as_secs_f64()
        )
    }
}

/// Formats a number with its noun: `1 case`, `2 cases`.
pub fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Formats a time of the tape: with one decimal below 100 ms.
pub(super) fn milliseconds(us: u64) -> String {
    let ms = std::time::Duration::from_micros(us).as_secs_f64() * 1_000.0;
    if ms < 100.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// Returns at most `most` characters of a text; a shortened text ends with `…`.
pub(super) fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_string()
    } else {
        format!("{}…", text.chars().take(most).collect::<String>())
    }
}

/// Escapes a text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // these characters are not allowed in XML
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}
