//! Server-sent events as the WHATWG defines them (HTML Living Standard, section 9.2.6,
//! "Interpreting an event stream"): line ends LF, CRLF and CR, a leading BOM, comments, `data:`
//! with and without a space, data of several lines, and no event without its blank line. This
//! decoder is stricter in one point: an event that is not UTF-8 is an error, where a browser shows
//! replacement characters.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

use super::{FrameError, append};

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// The value of the `event:` field; empty if there was none, which means `message`.
    pub name: Bytes,
    /// The values of the `data:` fields, joined by LF; always UTF-8.
    pub data: Bytes,
}

impl SseEvent {
    /// The data as text.
    pub fn text(&self) -> &str {
        // The decoder has checked that the data is UTF-8.
        std::str::from_utf8(&self.data).unwrap_or_default()
    }
}

/// Decodes bytes into events. An event is complete when its blank line has arrived.
#[derive(Debug)]
pub struct SseDecoder {
    /// The input that has not been examined.
    input: Bytes,
    /// The start of an event whose end has not arrived, from earlier reads.
    open: BytesMut,
    /// Whether the last examined byte ended a line, or no byte has been examined.
    line_start: bool,
    /// Whether the last examined byte was a CR: an LF after it belongs to the same line end.
    after_cr: bool,
    /// Whether the first event has not ended yet, so that it may start with a BOM.
    first: bool,
    limit: usize,
    failed: bool,
}

impl SseDecoder {
    /// Creates a decoder for events of at most `limit` bytes, comments and field names included.
    pub fn new(limit: usize) -> Self {
        Self {
            input: Bytes::new(),
            open: BytesMut::new(),
            line_start: true,
            after_cr: false,
            first: true,
            limit,
            failed: false,
        }
    }

    /// Takes the next bytes. Call it after [`SseDecoder::next_event`] has returned `None`.
    pub fn push(&mut self, bytes: Bytes) {
        if self.failed {
            return;
        }
        append(&mut self.input, bytes);
    }

    /// The next complete event; `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`] if an event is too large or not UTF-8. Nothing follows it.
    pub fn next_event(&mut self) -> Option<Result<SseEvent, FrameError>> {
        while !self.failed {
            let block = match self.next_block()? {
                Ok(block) => block,
                Err(error) => return Some(Err(self.fail(error))),
            };
            match interpret(&block) {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(error) => return Some(Err(self.fail(error))),
            }
        }
        None
    }

    /// Whether a line of data has begun of an event whose end has not arrived.
    pub fn is_inside_data(&self) -> bool {
        // A field that stands before the data is short. What is behind the first bytes of a long
        // event is not searched again with each read.
        let start = &self.open[..self.open.len().min(1_024)];
        start
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .any(|line| {
                line.strip_prefix(b"data:")
                    .is_some_and(|data| !data.trim_ascii().is_empty())
            })
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.failed = true;
        self.input = Bytes::new();
        self.open = BytesMut::new();
        error
    }

    /// Takes the lines up to the next blank line, without the blank line.
    fn next_block(&mut self) -> Option<Result<Bytes, FrameError>> {
        let mut at = 0;
        while at < self.input.len() {
            if self.after_cr {
                self.after_cr = false;
                if self.input[at] == b'\n' {
                    if self.line_start_of_event(at) {
                        // This is the second half of the line end that closed the last event.
                        self.input.advance(1);
                    } else {
                        at += 1;
                    }
                    continue;
                }
            }
            let Some(length) = memchr2(b'\n', b'\r', &self.input[at..]) else {
                self.line_start = false;
                break;
            };
            let blank = self.line_start && length == 0;
            let end = at + length;
            self.after_cr = self.input[end] == b'\r';
            self.line_start = true;
            if blank {
                let mut block = self.cut(at);
                self.input.advance(1);
                if block.len() > self.limit {
                    return Some(Err(FrameError::Oversized { limit: self.limit }));
                }
                if std::mem::take(&mut self.first) && block.starts_with(b"\xEF\xBB\xBF") {
                    block.advance(3);
                }
                return Some(Ok(block));
            }
            at = end + 1;
        }
        let length = self.input.len();
        if self.open.len() + length > self.limit {
            return Some(Err(FrameError::Oversized { limit: self.limit }));
        }
        self.open.extend_from_slice(&self.input);
        self.input = Bytes::new();
        None
    }

    /// Whether `at` is the start of an event of which nothing has been examined.
    fn line_start_of_event(&self, at: usize) -> bool {
        at == 0 && self.open.is_empty()
    }

    /// Takes the first `length` bytes of the input, with the open bytes of earlier reads before
    /// them.
    fn cut(&mut self, length: usize) -> Bytes {
        let tail = self.input.split_to(length);
        if self.open.is_empty() {
            return tail;
        }
        self.open.extend_from_slice(&tail);
        self.open.split().freeze()
    }
}

/// Reads the lines of one event; `None` if they carry no data.
fn interpret(block: &Bytes) -> Result<Option<SseEvent>, FrameError> {
    let mut name = Bytes::new();
    let mut data: Option<Bytes> = None;
    let mut joined: Option<BytesMut> = None;
    let mut rest: &[u8] = block;
    while !rest.is_empty() {
        // A CRLF yields an empty line between its halves; an empty line inside a block has no
        // effect.
        let (line, after) = match memchr2(b'\n', b'\r', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        let (field, value) = match memchr(b':', line) {
            Some(colon) => (
                &line[..colon],
                line[colon + 1..]
                    .strip_prefix(b" ")
                    .unwrap_or(&line[colon + 1..]),
            ),
            None => (line, &line[line.len()..]),
        };
        match field {
            b"data" => match &data {
                None => data = Some(block.slice_ref(value)),
                Some(first) => {
                    let joined = joined.get_or_insert_with(|| BytesMut::from(&first[..]));
                    joined.extend_from_slice(b"\n");
                    joined.extend_from_slice(value);
                }
            },
            b"event" => name = block.slice_ref(value),
            // id and retry serve clients that connect again, which no LLM client does.
            _ => {}
        }
    }
    let Some(data) = joined.map(BytesMut::freeze).or(data) else {
        return Ok(None);
    };
    if std::str::from_utf8(&data).is_err() || std::str::from_utf8(&name).is_err() {
        return Err(FrameError::InvalidUtf8);
    }
    Ok(Some(SseEvent { name, data }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rstest::rstest;

    use super::*;

    fn read(bytes: &[u8], step: usize) -> Vec<Result<(String, String), FrameError>> {
        let mut decoder = SseDecoder::new(64);
        let mut events = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(event) = decoder.next_event() {
                events.push(event.map(|event| {
                    (
                        String::from_utf8(event.name.to_vec()).unwrap(),
                        event.text().to_owned(),
                    )
                }));
            }
        }
        events
    }

    #[rstest]
    #[case::lf(b"data: a\n\ndata: b\n\n", &["a", "b"])]
    #[case::crlf(b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"])]
    #[case::cr(b"data: a\r\rdata: b\r\r", &["a", "b"])]
    #[case::mixed(b"data: a\r\n\ndata: b\n\r\n", &["a", "b"])]
    #[case::no_space(b"data:a\n\n", &["a"])]
    #[case::only_one_space_is_stripped(b"data:  a\n\n", &[" a"])]
    #[case::several_lines(b"data: a\ndata\ndata: b\r\ndata: c\n\n", &["a\n\nb\nc"])]
    #[case::comments(b": keepalive\n\n:\ndata: a\n: x\n\n", &["a"])]
    #[case::bom(b"\xEF\xBB\xBFdata: a\n\n", &["a"])]
    #[case::a_second_bom_is_no_bom(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n", &["a"])]
    #[case::id_and_retry(b"id: 1\nretry: 5\ndata: a\n\n", &["a"])]
    #[case::unknown_field(b"datum: x\ndata: a\n\n", &["a"])]
    #[case::an_event_without_data_is_none(b"event: ping\n\ndata: a\n\n", &["a"])]
    #[case::empty_data_is_an_event(b"data\n\ndata:\ndata\n\n", &["", "\n"])]
    #[case::no_blank_line_no_event(b"data: a\n\ndata: b\n", &["a"])]
    #[case::many_blank_lines(b"\n\r\n\rdata: a\n\n\n\n", &["a"])]
    #[case::utf8("data: \u{1F44D}é\n\n".as_bytes(), &["\u{1F44D}é"])]
    fn events(
        #[case] bytes: &[u8],
        #[case] expected: &[&str],
        #[values(1, 2, 3, 5, 1000)] step: usize,
    ) {
        let data: Vec<String> = read(bytes, step)
            .into_iter()
            .map(|event| event.unwrap().1)
            .collect();
        assert_eq!(data, expected);
    }

    #[rstest]
    fn names(#[values(1, 4, 1000)] step: usize) {
        let events = read(b"event: error\ndata: a\n\ndata: b\n\n", step);
        assert_eq!(
            events,
            [
                Ok(("error".into(), "a".into())),
                Ok((String::new(), "b".into()))
            ]
        );
    }

    #[rstest]
    fn what_is_not_utf8_is_an_error_and_the_last(#[values(1, 4, 1000)] step: usize) {
        let events = read(b"data: a\n\ndata: \xFF\n\ndata: b\n\n", step);
        assert_eq!(
            events,
            [
                Ok((String::new(), "a".into())),
                Err(FrameError::InvalidUtf8)
            ]
        );
    }

    #[rstest]
    #[case::without_end(80, "")]
    #[case::with_end(80, "\n\n")]
    fn an_event_beyond_the_bound_is_an_error(
        #[case] length: usize,
        #[case] end: &str,
        #[values(1, 7, 1000)] step: usize,
    ) {
        let bytes = format!("data: a\n\ndata: {}{end}", "x".repeat(length));
        assert_eq!(
            read(bytes.as_bytes(), step),
            [
                Ok((String::new(), "a".into())),
                Err(FrameError::Oversized { limit: 64 })
            ]
        );
    }

    #[rstest]
    fn an_event_at_the_bound_is_taken(
        #[values("\n\n", "\r\r", "\r\n\r\n")] end: &str,
        #[values(1, 7, 1000)] step: usize,
    ) {
        // The end of the data line counts, the blank line does not.
        let bytes = format!(
            "data: {}{end}",
            "x".repeat(64 - "data: ".len() - end.len() / 2)
        );
        assert!(matches!(read(bytes.as_bytes(), step)[..], [Ok(_)]));
        let bytes = format!(
            "data: {}{end}",
            "x".repeat(65 - "data: ".len() - end.len() / 2)
        );
        assert!(matches!(read(bytes.as_bytes(), step)[..], [Err(_)]));
    }

    #[test]
    fn an_event_inside_one_read_is_not_copied() {
        let bytes = Bytes::from_static(b"data: one\n\ndata: two\n\n");
        let mut decoder = SseDecoder::new(64);
        decoder.push(bytes.clone());
        let event = decoder.next_event().unwrap().unwrap();
        assert_eq!(event.data.as_ptr(), bytes[6..].as_ptr());
    }
}
