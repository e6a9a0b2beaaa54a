//! Where the events of a body end, by its content type.

use super::{Answer, http1};

fn content_type(answer: &Answer) -> String {
    http1::header(&answer.headers, "content-type")
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Whether the body is a stream of events.
pub(super) fn is_stream(answer: &Answer) -> bool {
    let kind = content_type(answer);
    kind.starts_with("text/event-stream") || kind.starts_with("application/x-ndjson")
}

/// Where the events of the body end: after each blank line for SSE, after each line for NDJSON, else at the end.
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
