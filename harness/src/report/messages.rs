//! A tape as text: every message in full for a case without a pass, and one line for each entry
//! for a case that passed.

use std::fmt::Write;

use super::timeline::{numbered, story};
use super::words::{clip, milliseconds, party, without_namespace, words};
use crate::tape::{Action, Data, Entry, Event};

/// The largest number of bytes of all messages of a case in the page.
const MOST: usize = 48 << 10;
/// The largest number of characters of one message in the page.
const MOST_OF_ONE: usize = 6_000;
/// The largest number of lines of a case that passed: the first and the last ones.
const LINES: (usize, usize) = (36, 14);

/// Returns every message of a tape with its headers and its body, and what the stubs planned to
/// send; an empty text if there are none.
pub(super) fn messages(entries: &[Entry]) -> String {
    let mut text = String::new();
    let entries = numbered(entries);
    for (n, entry) in entries.iter().enumerate() {
        let Some((title, message)) = message_of(entry) else {
            continue;
        };
        if text.len() > MOST {
            let left = entries[n..]
                .iter()
                .filter(|entry| message_of(entry).is_some())
                .count();
            // writing to a String cannot fail
            let _ = write!(text, "… report.json has {left} more");
            break;
        }
        let _ = write!(
            text,
            "── {title} · {}\n{}\n\n",
            milliseconds(entry.at_us),
            clip(message.trim_end(), MOST_OF_ONE)
        );
    }
    text
}

/// Returns one line for each entry, with the time; the middle of a long tape is left out.
pub(super) fn lines(entries: &[Entry]) -> String {
    let (entries, sent) = story(entries);
    let (first, last) = LINES;
    let mut text = String::new();
    for (n, entry) in entries.iter().enumerate() {
        if n == first && entries.len() > first + last {
            let left = entries.len() - first - last;
            let _ = writeln!(text, "{:>10}  … {left} more, which report.json has", "");
        }
        if n < first || n + last >= entries.len() {
            let line = clip(&words(entry, &sent), 130);
            let _ = writeln!(text, "{:>10}  {line}", milliseconds(entry.at_us));
        }
    }
    text
}

/// The title and the text of the message that an entry is, if it is one.
fn message_of(entry: &Entry) -> Option<(String, String)> {
    let who = party(&entry.side);
    Some(match &entry.event {
        Event::ClientSent {
            method,
            path,
            headers,
            body,
            ..
        } => (
            format!("{who} → gateway"),
            format!("{method} {path}\n{}\n{}", fields(headers), shown(body)),
        ),
        Event::ClientStatus { status, headers } => (
            format!("gateway → {who}"),
            format!("status {status}\n{}", fields(headers)),
        ),
        Event::ClientChunk { n, name, data, .. } => {
            let name = name
                .as_ref()
                .map(|name| format!("event: {name}\n"))
                .unwrap_or_default();
            (
                format!("gateway → {who}: event {n}"),
                format!("{name}data: {}", shown(data)),
            )
        }
        Event::ClientAnswered { body, .. } if !body.is_empty() => {
            (format!("gateway → {who}: the body"), shown(body))
        }
        Event::ClientFailed { error, body } => (
            format!("gateway → {who}: {error}"),
            format!("what had come of the body: {}", shown(body)),
        ),
        Event::RequestRead {
            request,
            method,
            path,
            headers,
            body,
            ..
        } => (
            format!("gateway → {who}: request {request}"),
            format!(
                "{method} {}\n{}\n{body}",
                without_namespace(path),
                fields(headers)
            ),
        ),
        Event::Planned { request, actions } => (
            format!("{who} → gateway: the answer to request {request} as it is planned"),
            planned(actions),
        ),
        _ => return None,
    })
}

fn fields(headers: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in headers {
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

/// The text of some bytes; those that are not text are written as escapes.
fn shown(data: &Data) -> String {
    let mut text = match std::str::from_utf8(data.bytes()) {
        Ok(text) => text.replace("\r\n", "\n"),
        Err(_) => data.bytes().escape_ascii().to_string(),
    };
    if !data.is_whole() {
        let _ = write!(
            text,
            "… ({} of {} bytes)",
            data.bytes().len(),
            data.length()
        );
    }
    text
}

fn planned(actions: &[Action]) -> String {
    let mut text = String::new();
    for action in actions {
        let wait = match action {
            Action::Send { bytes, .. } => {
                text.push_str(&shown(bytes));
                continue;
            }
            Action::Drip { pieces, every_ms } => {
                for piece in pieces {
                    text.push_str(&shown(piece));
                }
                format!("{} pieces, one each {every_ms} ms", pieces.len())
            }
            Action::Repeat {
                before,
                after,
                every_ms,
                ..
            } => {
                text.push_str(&shown(before));
                if let Some(after) = after {
                    text.push_str(&format!("N{}", shown(after)));
                }
                format!("again each {every_ms} ms until the gateway leaves")
            }
            Action::Hold { gate } => format!("waits until the case opens gate “{gate}”"),
            Action::Meet { rendezvous, count } => {
                format!("waits until {count} answers wait at “{rendezvous}”")
            }
            Action::Acknowledged { event, .. } => {
                format!("waits until the client has received event {event}")
            }
            Action::Pause { ms } => format!("waits {ms} ms"),
            Action::Drain => "waits until the gateway has read everything".into(),
            Action::Stall => "sends nothing more and keeps the connection open".into(),
            Action::Cut => "closes the connection, although the answer is not complete".into(),
            Action::Reset => "resets the connection".into(),
            Action::Close => "closes the connection, as the answer announces".into(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let _ = writeln!(text, "[{wait}]");
    }
    text
}
