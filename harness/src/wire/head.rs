//! The head of an answer as the wire writes it, and how the body's length is told in it.

use super::connection::wants_close;
use super::events::is_stream;
use super::{Answer, Request};
use crate::plan::Framing;

/// How the body is laid on the wire.
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
    /// As the plan's framing says; an answer that can have no body has none.
    pub(super) fn of(request: &Request, answer: &Answer) -> Self {
        match answer.plan.framing {
            _ if request.method == "HEAD" || matches!(answer.status, 204 | 304) => Self::Bodyless,
            Framing::Natural if is_stream(answer) => Self::Chunked,
            Framing::Natural => Self::Length,
            Framing::WrongLength(_) => Self::WrongLength,
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

/// Status line and headers, up to and with the empty line.
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
        (_, Framing::WrongLength(off)) => {
            text.push_str(&format!("content-length: {}\r\n", (length + off).max(0)))
        }
        (Layout::UntilClose, _) => {}
        (Layout::Bodyless, _) if answer.status == 204 => {}
        _ => text.push_str(&format!("content-length: {length}\r\n")),
    }
    let closes = wants_close(request) || matches!(layout, Layout::UntilClose);
    if closes {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}
