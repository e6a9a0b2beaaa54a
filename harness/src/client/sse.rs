//! Server-sent events as the WHATWG standard reads them, however the bytes are split.

use bytes::{Buf, BytesMut};

/// An event: its name, if it has one, and its data, lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sse {
    pub name: Option<String>,
    pub data: String,
}

/// Takes events off bytes. An event that never meets its blank line is none.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
    /// So many bytes at the front of the buffer hold no line end.
    scanned: usize,
    started: bool,
    /// The last line ended with CR: a LF right after it belongs to it.
    after_cr: bool,
    name: Option<String>,
    data: Vec<String>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event whose blank line has come.
    pub fn next(&mut self) -> Option<Sse> {
        loop {
            let line = self.line()?;
            if line.is_empty() {
                let (name, data) = (self.name.take(), std::mem::take(&mut self.data));
                if !data.is_empty() {
                    return Some(Sse {
                        name,
                        data: data.join("\n"),
                    });
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line.as_str(), ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => self.data.push(value.to_string()),
                "event" => self.name = Some(value.to_string()),
                _ => {}
            }
        }
    }

    /// What has come of an event that is not complete.
    pub fn rest(&self) -> String {
        let mut rest: String = self
            .data
            .iter()
            .map(|line| format!("data: {line}\n"))
            .collect();
        rest.push_str(&String::from_utf8_lossy(&self.buffer));
        rest
    }

    fn line(&mut self) -> Option<String> {
        if self.after_cr && self.buffer.first() == Some(&b'\n') {
            self.buffer.advance(1);
            self.after_cr = false;
        }
        if !self.buffer.is_empty() {
            self.after_cr = false;
        }
        let Some(end) = self.buffer[self.scanned..]
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r'))
        else {
            self.scanned = self.buffer.len();
            return None;
        };
        let end = std::mem::take(&mut self.scanned) + end;
        let mut line = self.buffer.split_to(end + 1);
        self.after_cr = line[end] == b'\r';
        line.truncate(end);
        if !std::mem::replace(&mut self.started, true) && line.starts_with(b"\xEF\xBB\xBF") {
            line.advance(3);
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_do_not_depend_on_how_the_bytes_are_split() {
        let bytes = "\u{feff}: hello\ndata: a\ndata:b\n\nevent: error\r\ndata: é\r\n\r\nid: 1\n\ndata: c\r\rdata: d\r\n\ndata: never".as_bytes();
        let event = |name: Option<&str>, data: &str| Sse {
            name: name.map(String::from),
            data: data.into(),
        };
        let expected = [
            event(None, "a\nb"),
            event(Some("error"), "é"),
            event(None, "c"),
            event(None, "d"),
        ];
        for step in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut events = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                events.extend(std::iter::from_fn(|| decoder.next()));
            }
            assert_eq!(events, expected);
            assert_eq!(decoder.rest(), "data: never");
        }
    }
    #[test]
    fn a_long_line_is_looked_through_once() {
        let mut decoder = Decoder::default();
        decoder.push(b"\ndata: ");
        for _ in 0..100 {
            assert_eq!(decoder.next(), None);
            assert_eq!(decoder.scanned, decoder.buffer.len());
            decoder.push(b"xxxx");
        }
        decoder.push(b"\n\ndata");
        assert_eq!(
            decoder.next().map(|event| event.data),
            Some("x".repeat(400))
        );
        assert_eq!((decoder.next(), decoder.scanned), (None, 4));
    }
}
