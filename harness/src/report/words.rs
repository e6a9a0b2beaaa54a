//! The entries of a tape in words, safe to be shown.

use super::secret::is_secret;
use crate::tape::{Close, Entry, Event, Side};

/// Whether a reader who looks for the cause of a failure should look here.
pub(super) fn is_trouble(event: &Event) -> bool {
    match event {
        Event::ClientStatus { status } | Event::HeadSent { status, .. } => *status >= 400,
        Event::ClientFailed { .. } | Event::Fault { .. } | Event::Unmatched { .. } => true,
        Event::PeerClosed { request, .. } => request.is_some(),
        _ => false,
    }
}

/// One entry in words.
pub(super) fn words(entry: &Entry) -> String {
    let who = match &entry.side {
        Side::Client(label) if label.is_empty() => "client".to_string(),
        Side::Client(label) => format!("client {label}"),
        Side::Provider(name) => name.clone(),
        Side::Database => "database".to_string(),
        Side::Gate(name) => format!("gate {name}"),
        Side::Target => "gateway".to_string(),
    };
    let what = match &entry.event {
        Event::ClientSent { method, path } => format!("asks {method} {path}"),
        Event::ClientStatus { status } => format!("has status {status}"),
        Event::ClientChunk { n, text } => format!("has chunk {n} {text:?}"),
        Event::ClientAnswered { status } => format!("has the whole answer, {status}"),
        Event::ClientFailed { error } => format!("fails: {error}"),
        Event::ClientLeft => "leaves".into(),
        Event::Accepted { connection } => format!("accepts connection {connection}"),
        Event::RequestRead {
            request,
            method,
            path,
            ..
        } => format!(
            "has read request {request}: {method} {}",
            without_namespace(path)
        ),
        Event::Held { request, gate } => format!("holds the answer to {request} at {gate}"),
        Event::HeadSent { request, status } => format!("sends status {status} to {request}"),
        Event::EventSent { request, n } => format!("sends event {n} to {request}"),
        Event::Fault {
            request: Some(request),
            fault,
        } => format!("fault at {request}: {fault}"),
        Event::Fault {
            request: None,
            fault,
        } => format!("fault: {fault}"),
        Event::AnswerSent { request } => format!("has sent the last byte to {request}"),
        Event::PeerClosed { request, how, .. } => {
            let how = match how {
                Close::Fin => "closed",
                Close::Reset => "reset",
            };
            match request {
                Some(request) => format!("sees request {request} {how} by the gateway"),
                None => format!("sees an idle connection {how}"),
            }
        }
        Event::Unmatched { request, reason } => format!("has no answer for {request}: {reason}"),
        Event::Opened => "opens".into(),
        Event::Met { count } => format!("{count} have met"),
        Event::Database { what } | Event::Target { what } => what.clone(),
        Event::Note { text } => format!("note: {text}"),
    };
    format!("{who} {what}")
}

/// The path without what keeps the cases apart.
pub(super) fn without_namespace(path: &str) -> &str {
    match path
        .strip_prefix("/t/")
        .and_then(|rest| rest.find('/').map(|slash| &rest[slash..]))
    {
        Some(rest) => rest,
        None => path,
    }
}

/// More of an entry, for who points at it.
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
        _ => format!("{} (place {} in the order)", words(entry), entry.seq),
    }
}

/// A time of the tape, as precise as it is of use.
pub(super) fn milliseconds(us: u64) -> String {
    let ms = std::time::Duration::from_micros(us).as_secs_f64() * 1_000.0;
    if ms < 100.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// The beginning of a text.
pub(super) fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_string()
    } else {
        format!("{}…", text.chars().take(most).collect::<String>())
    }
}

/// Text that can stand in HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // not allowed in XML, and nothing to see
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}
