//! Words for people: the entries of a tape, times and counts, in a form that is safe to show.

use std::collections::HashMap;

use serde_json::Value;

use crate::plan::Listen;
use crate::tape::{Action, Close, Data, Dribble, Entry, Event, Side};

/// Returns whether an entry may be the cause of a failure, so that it is drawn in red.
pub(super) fn is_trouble(event: &Event) -> bool {
    match event {
        Event::ClientStatus { status, .. } | Event::HeadSent { status, .. } => *status >= 400,
        Event::ClientChunk { name, data, .. } => is_error(name.as_deref(), data),
        Event::ClientFailed { .. } | Event::Fault { .. } | Event::Unmatched { .. } => true,
        Event::PeerClosed { request, .. } => request.is_some(),
        _ => false,
    }
}

/// Whether an event of a stream is an in-band error.
fn is_error(name: Option<&str>, data: &Data) -> bool {
    let has_error = || {
        let text = data.text();
        text.contains("\"error\"")
            && serde_json::from_str::<Value>(&text).is_ok_and(|json| !json["error"].is_null())
    };
    name == Some("error") || has_error()
}

/// The texts of an event that are bounded.
pub(super) fn data_mut(event: &mut Event) -> Vec<&mut Data> {
    match event {
        Event::ClientSent { body, .. }
        | Event::ClientAnswered { body, .. }
        | Event::ClientFailed { body, .. } => vec![body],
        Event::ClientChunk { data, .. } => vec![data],
        Event::Planned { actions, .. } => actions.iter_mut().flat_map(Action::texts_mut).collect(),
        _ => Vec::new(),
    }
}

/// What the stubs planned to send, by the number of the request: the tape has each event of an
/// answer with its number alone.
#[derive(Default)]
pub(super) struct Sent(HashMap<u64, SentAnswer>);

#[derive(Default)]
struct SentAnswer {
    streams: bool,
    /// The text of each event; that of a plain answer is its body.
    events: HashMap<usize, String>,
}

impl Sent {
    /// Finds the answers on a tape.
    pub fn of(entries: &[Entry]) -> Self {
        let mut sent = Self::default();
        for entry in entries {
            if let Event::Planned { request, actions } = &entry.event {
                sent.0.insert(*request, answer(actions));
            }
        }
        sent
    }

    /// The sentence about the n-th event of the answer to a request.
    fn event(&self, request: u64, n: usize) -> String {
        let answer = self.0.get(&request);
        let text = answer
            .and_then(|answer| answer.events.get(&n))
            .map(|text| format!(": {text}"))
            .unwrap_or_default();
        if answer.is_some_and(|answer| !answer.streams) {
            format!("sends the body of its answer to request {request}{text}")
        } else {
            format!("sends event {n} of its answer to request {request}{text}")
        }
    }
}

fn answer(actions: &[Action]) -> SentAnswer {
    let mut answer = SentAnswer::default();
    let mut chunked = false;
    let mut part = String::new();
    let sends = actions.iter().filter_map(|action| match action {
        Action::Send { bytes, event } => Some((bytes, event)),
        _ => None,
    });
    for (n, (bytes, event)) in sends.enumerate() {
        let text = bytes.text();
        if n == 0 && text.starts_with("HTTP/1.") {
            let head = text.to_ascii_lowercase();
            answer.streams = head.contains("text/event-stream") || head.contains("x-ndjson");
            chunked = head.contains("transfer-encoding: chunked");
            continue;
        }
        let text = match text.split_once("\r\n") {
            Some((_, chunk)) if chunked => chunk.strip_suffix("\r\n").unwrap_or(chunk),
            _ => &text,
        };
        part.push_str(text);
        if !bytes.is_whole() {
            part.push('…');
        }
        if let Some(event) = event {
            let text = std::mem::take(&mut part);
            let text = text.trim();
            let data = text.strip_prefix("data:").unwrap_or(text);
            answer.events.insert(*event, gist(data));
        }
    }
    answer
}

/// What an answer, or an event of one, brings: its text, tool calls, finish reason and usage; the
/// beginning of anything that is no completion.
fn gist(text: &str) -> String {
    let json: Value = serde_json::from_str(text.trim()).unwrap_or_default();
    if !json["error"].is_null() {
        return excerpt(text);
    }
    let choice = &json["choices"][0];
    let message = [
        &choice["delta"],
        &choice["message"],
        &json["message"],
        &json,
    ]
    .into_iter()
    .find(|message| message.is_object())
    .unwrap_or(&Value::Null);
    let mut parts = Vec::new();
    for content in [&message["content"], &message["response"]] {
        if let Some(content) = content.as_str().filter(|content| !content.is_empty()) {
            parts.push(format!("text {content:?}"));
        }
    }
    if let Some(calls) = message["tool_calls"].as_array() {
        let calls: Vec<String> = calls
            .iter()
            .map(|call| call["function"].to_string())
            .collect();
        parts.push(format!("tool call {}", calls.join(", ")));
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        parts.push(format!("finish_reason {reason:?}"));
    }
    if json["usage"].is_object() {
        parts.push(format!("usage {}", json["usage"]));
    }
    if let (true, Some(role)) = (parts.is_empty(), message["role"].as_str()) {
        parts.push(format!("role {role:?} and no text"));
    }
    match parts.is_empty() {
        true => excerpt(text),
        false => excerpt(&parts.join(", ")),
    }
}

/// The beginning of a text on one line.
pub(super) fn excerpt(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    clip(&words.join(" "), 300)
}

/// The name of a party, as every sentence of a report has it.
pub(super) fn party(side: &Side) -> String {
    match side {
        Side::Client(label) if label.is_empty() => "client".to_string(),
        Side::Client(label) => format!("client {label}"),
        Side::Provider(name) => format!("upstream {name}"),
        Side::Database => "database".to_string(),
        Side::Gate(name) => format!("gate “{name}”"),
        Side::Target => "gateway".to_string(),
    }
}

/// Returns one entry as a sentence.
pub(super) fn words(entry: &Entry, sent: &Sent) -> String {
    let who = party(&entry.side);
    let what = match &entry.event {
        Event::ClientSent {
            method,
            path,
            body,
            dribbled,
            ..
        } => {
            let slowly = dribbled.map_or_else(String::new, |Dribble { piece, every_ms }| {
                let bytes = counted(piece, "byte", "bytes");
                format!(" slowly, {bytes} each {every_ms} ms")
            });
            format!("sends {method} {path}{slowly}{}", asked(body))
        }
        Event::ClientStatus { status, .. } => format!("receives status {status}"),
        Event::ClientChunk {
            n,
            text,
            name,
            data,
        } => {
            let name = match name {
                Some(name) => format!(" named {name}"),
                None => String::new(),
            };
            // a cut event has at least its text
            match data.is_whole() || text.is_empty() {
                true => format!("receives event {n}{name}: {}", gist(&data.text())),
                false => format!("receives event {n}{name}: text {text:?}"),
            }
        }
        Event::ClientAnswered { status, body } => {
            let text = gist(&body.text());
            let text = if text.is_empty() {
                text
            } else {
                format!(": {text}")
            };
            format!("has the whole answer, status {status}{text}")
        }
        Event::ClientFailed { error, .. } => format!("fails: {error}"),
        Event::ClientLeft => "closes its connection".into(),
        Event::Listening { how } => match how {
            Listen::Serve => "serves new connections from now on".into(),
            Listen::Refuse => "refuses new connections from now on".into(),
            Listen::NeverAccept => "lets no new connection be established from now on".into(),
            Listen::Silence => "accepts new connections and stays silent from now on".into(),
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
            format!("holds its answer to request {request} at gate “{gate}” of the case")
        }
        Event::HeadSent { request, status } => {
            format!("answers request {request} with status {status}")
        }
        Event::EventSent { request, n } => sent.event(*request, *n),
        Event::Fault {
            request: Some(request),
            fault,
        } => format!("has the planned fault at request {request}: {fault}"),
        Event::Fault {
            request: None,
            fault,
        } => format!("has a fault: {fault}"),
        Event::AnswerSent { request } => {
            format!("sends the last byte of its answer to request {request}")
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
        Event::Opened => return format!("the case opens {who}"),
        Event::Met { count } => {
            let answers = counted(*count, "answer waits", "answers wait");
            return format!("{answers} at {who}, as many as the case wants, and go on");
        }
        Event::Database { what } | Event::Target { what } | Event::Note { text: what } => {
            return format!("{who}: {what}");
        }
    };
    format!("{who} {what}")
}

/// What a request asks for, where its body shows it.
fn asked(body: &Data) -> String {
    let json: Value = serde_json::from_slice(body.bytes()).unwrap_or_default();
    let Some(model) = json["model"].as_str() else {
        return String::new();
    };
    let streamed = if json["stream"] == true {
        ", streamed"
    } else {
        ""
    };
    format!(" for model {model}{streamed}")
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

#[cfg(test)]
mod tests {
    use super::gist;

    #[test]
    fn an_answer_is_shown_by_what_it_brings() {
        for (text, shown) in [
            (
                "{\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"so\"},\"finish_reason\":null}]}",
                "text \"so\"",
            ),
            (
                "{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"n\":1}}",
                "finish_reason \"stop\", usage {\"n\":1}",
            ),
            (
                "{\"choices\":[{\"message\":{\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}}]}",
                "tool call {\"name\":\"f\"}",
            ),
            (
                "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}",
                "role \"assistant\" and no text",
            ),
            (
                "{\"error\":{\"message\":\"no\"},\"choices\":[]}",
                "{\"error\":{\"message\":\"no\"},\"choices\":[]}",
            ),
            (
                "{\"message\":{\"content\":\"hi\"},\"done\":false}",
                "text \"hi\"",
            ),
            ("[DONE]", "[DONE]"),
            ("  <html>\n  500 ", "<html> 500"),
        ] {
            assert_eq!(gist(text), shown);
        }
    }
}
