//! Server-sent events, read by the crate `sse-core`: a reader that is neither the gateway's nor
//! ours is the better witness.
//!
//! What is added here is only the position of the reader in the body, so that what came after the
//! last whole event can be shown. An event that never meets its blank line is not an event.

use std::num::NonZeroUsize;

use sse_core::{PayloadTooLargeError, SseDecoder, SseEvent};

/// An event: its name, if it has one, and its data with the lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sse {
    pub name: Option<String>,
    pub data: String,
}

/// Reads events from a body that grows. The caller keeps the body and bounds its size.
#[derive(Debug)]
pub(super) struct Reader {
    decoder: SseDecoder,
    /// How many bytes of the body have been read.
    read: usize,
    /// How many bytes of the body there were at the end of the last event.
    event_end: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            decoder: SseDecoder::with_limit(NonZeroUsize::MAX),
            read: 0,
            event_end: 0,
        }
    }
}

impl Reader {
    /// The next event whose blank line has come; `body` is everything that has come so far.
    ///
    /// # Errors
    /// The decoder's, for an event that is larger than the address space.
    pub fn next(&mut self, body: &[u8]) -> Result<Option<Sse>, PayloadTooLargeError> {
        loop {
            let mut unread = &body[self.read..];
            let event = self.decoder.next(&mut unread);
            self.read = body.len() - unread.len();
            match event.transpose()? {
                None => return Ok(None),
                // the time after which a client connects again is no event
                Some(SseEvent::Retry(_)) => {}
                Some(SseEvent::Message(message)) => {
                    self.event_end = self.read;
                    return Ok(Some(Sse {
                        // the standard gives this name to events that have none
                        name: (message.event != "message").then(|| message.event.into_owned()),
                        data: message.data,
                    }));
                }
            }
        }
    }

    /// What came after the last whole event.
    pub fn after_events<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        &body[self.event_end..]
    }

    /// What came after the last whole event, as text.
    pub fn rest(&self, body: &[u8]) -> String {
        String::from_utf8_lossy(self.after_events(body)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(name: Option<&str>, data: &str) -> Sse {
        Sse {
            name: name.map(String::from),
            data: data.into(),
        }
    }

    /// Reads the body as it grows to each of these lengths in order.
    fn read(body: &[u8], lengths: impl IntoIterator<Item = usize>) -> (Vec<Sse>, String) {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for length in lengths {
            events.extend(std::iter::from_fn(|| reader.next(&body[..length]).unwrap()));
        }
        (events, reader.rest(body))
    }

    #[test]
    fn no_event_depends_on_how_the_bytes_are_split() {
        let body = "\u{feff}: hello\ndata: a\ndata:b\n\nevent: error\r\ndata: é\r\n\r\nid: 1\n\n\
            retry: 5\ndata: c\r\rdata: d\r\n\ndata:\n\ndata: never"
            .as_bytes();
        let expected = [
            event(None, "a\nb"),
            event(Some("error"), "é"),
            event(None, "c"),
            event(None, "d"),
            event(None, ""),
        ];
        let all = body.len();
        let every_step = (1..all).map(|step| (step..all).step_by(step).chain([all]).collect());
        let every_two = (0..all).flat_map(|a| (a..all).map(move |b| vec![a, b, all]));
        for lengths in every_step.chain(every_two) {
            let (events, rest) = read(body, lengths.iter().copied());
            assert_eq!(events, expected, "the body grew to {lengths:?}");
            assert_eq!(rest, "data: never");
        }
    }

    #[test]
    fn bytes_that_are_no_text_lose_no_event() {
        let body = b"data: a\xc3\n\ndata: b\n\n";
        let (events, _) = read(body, 0..=body.len());
        assert_eq!(events, [event(None, "a\u{fffd}"), event(None, "b")]);
    }

    #[test]
    fn a_large_event_is_whole() {
        let text = "x".repeat(1 << 20);
        let body = format!("data: {text}\n\n");
        let (events, _) = read(body.as_bytes(), [body.len()]);
        assert_eq!(events, [event(None, &text)]);
    }
}
