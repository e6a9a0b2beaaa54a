//! An answer, its head as it is written, and where the events of its body end.

use bytes::Bytes;

use super::{HARNESS_STATUS, Request, message};
use crate::plan::{Framing, Plan};

/// What is answered, and how its bytes flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Its headers but for those that frame the body: the plan's framing writes these.
    pub headers: Vec<(String, String)>,
    /// The whole body, unframed.
    pub body: Bytes,
    /// How its bytes flow.
    pub plan: Plan,
    /// Why this answer is the harness's own: nothing matched the request.
    pub unmatched: Option<String>,
    /// The number of the planted fault that the answer is, if it is one; see
    /// [`Source::met`](super::Source::met).
    pub fault: Option<u64>,
}

impl Answer {
    /// An answer that flows all at once.
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type".to_string(), content_type.to_string())];
        Self {
            status,
            headers,
            body: body.into(),
            plan: Plan::default(),
            unmatched: None,
            fault: None,
        }
    }

    /// The answer to a request that no rule answers: the harness's own status and a text, and never
    /// a provider's 404.
    pub fn unmatched(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let text = format!("gauntlet: no stub answers this request: {reason}\n");
        Self {
            unmatched: Some(reason),
            ..Self::new(HARNESS_STATUS, "text/plain; charset=utf-8", text)
        }
    }

    /// The same answer with this plan.
    #[must_use]
    pub fn with_plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }
}

/// How the body is framed on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Chunked,
    Length,
    WrongLength,
    UntilClose,
    /// The answer has no body, whatever its headers say.
    Bodyless,
}

impl Layout {
    /// The layout that the plan's framing asks for; an answer that can have no body has none.
    pub(super) fn of(request: &Request, answer: &Answer) -> Self {
        match answer.plan.framing {
            _ if request.method == "HEAD" || matches!(answer.status, 204 | 304) => Self::Bodyless,
            Framing::Natural if is_stream(answer) => Self::Chunked,
            Framing::Natural => Self::Length,
            Framing::WrongLength(_) => Self::WrongLength,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the connection may serve another request after the whole answer.
    pub(super) fn keeps_connection(self) -> bool {
        matches!(self, Self::Chunked | Self::Length | Self::Bodyless)
    }
}

/// Status line and headers, the empty line included.
pub(super) fn head_text(request: &Request, answer: &Answer, layout: Layout) -> String {
    let reason = http::StatusCode::from_u16(answer.status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown");
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", answer.status);
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = answer.body.len() as i64;
    match (layout, answer.plan.framing) {
        (Layout::Chunked, _) => text.push_str("transfer-encoding: chunked\r\n"),
        (_, Framing::WrongLength(off)) => text.push_str(&format!(
            "content-length: {}\r\n",
            length.saturating_add(off).max(0)
        )),
        (Layout::UntilClose, _) => {}
        (Layout::Bodyless, _) if answer.status == 204 => {}
        _ => text.push_str(&format!("content-length: {length}\r\n")),
    }
    let closes = request.wants_close() || matches!(layout, Layout::UntilClose);
    if closes {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}

fn content_type(answer: &Answer) -> String {
    message::header(&answer.headers, "content-type")
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Whether the body is a stream of events.
pub(super) fn is_stream(answer: &Answer) -> bool {
    let kind = content_type(answer);
    kind.starts_with("text/event-stream") || kind.starts_with("application/x-ndjson")
}

/// Where the events of the body end: after each blank line for SSE, after each line for NDJSON,
/// else at the end.
pub(super) fn event_ends(answer: &Answer) -> Vec<usize> {
    let kind = content_type(answer);
    let body = &answer.body[..];
    let mut ends = Vec::new();
    if kind.starts_with("text/event-stream") {
        let mut line = 0;
        let mut at = 0;
        while at < body.len() {
            let end = match body[at] {
                b'\r' if body.get(at + 1) == Some(&b'\n') => at + 2,
                b'\r' | b'\n' => at + 1,
                _ => {
                    at += 1;
                    continue;
                }
            };
            if at == line {
                ends.push(end);
            }
            line = end;
            at = end;
        }
    } else if kind.starts_with("application/x-ndjson") {
        ends.extend(
            body.iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'\n')
                .map(|(at, _)| at + 1),
        );
    }
    if !body.is_empty() && ends.last() != Some(&body.len()) {
        ends.push(body.len());
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(kind: &str, body: &str) -> Vec<usize> {
        event_ends(&Answer::new(200, kind, body.to_string()))
    }

    #[test]
    fn events_end_where_their_format_says() {
        assert_eq!(
            ends(
                "text/event-stream",
                "data: a\n\ndata: b\r\n\r\ndata: c\r\rdata: d"
            ),
            [9, 20, 29, 36]
        );
        assert_eq!(ends("application/x-ndjson", "{}\n{}\n{"), [3, 6, 7]);
        assert_eq!(ends("application/json", "{\n\n}"), [4]);
        assert_eq!(ends("application/json", ""), Vec::<usize>::new());
    }
}
