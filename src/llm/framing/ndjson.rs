//! Newline-delimited JSON: one record per line, which ends in LF or CRLF. Blank lines are ignored,
//! a record may have any length up to a limit, and the last record needs no newline.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::{FrameError, append};

/// Decodes bytes into records.
#[derive(Debug)]
pub struct NdjsonDecoder {
    /// The input that has not been examined.
    input: Bytes,
    /// The start of a record whose newline has not arrived, from earlier reads.
    open: BytesMut,
    limit: usize,
    failed: bool,
}

impl NdjsonDecoder {
    /// Creates a decoder for records of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            input: Bytes::new(),
            open: BytesMut::new(),
            limit,
            failed: false,
        }
    }

    /// Takes the next bytes. Call it after [`NdjsonDecoder::next_record`] has returned `None`.
    pub fn push(&mut self, bytes: Bytes) {
        if self.failed {
            return;
        }
        append(&mut self.input, bytes);
    }

    /// The next complete record, in UTF-8 and without surrounding space; `None` until more bytes
    /// arrive.
    ///
    /// # Errors
    /// [`FrameError`] if a record is too large or not UTF-8. Nothing follows it.
    pub fn next_record(&mut self) -> Option<Result<Bytes, FrameError>> {
        while !self.failed {
            let Some(end) = memchr(b'\n', &self.input) else {
                if self.open.len() + self.input.len() > self.limit {
                    return Some(Err(self.fail(FrameError::Oversized { limit: self.limit })));
                }
                self.open.extend_from_slice(&self.input);
                self.input = Bytes::new();
                return None;
            };
            let mut line = self.input.split_to(end);
            self.input.advance(1);
            if !self.open.is_empty() {
                self.open.extend_from_slice(&line);
                line = self.open.split().freeze();
            }
            if let Some(record) = self.record(line) {
                return Some(record);
            }
        }
        None
    }

    /// Whether a part of a record has arrived, and its end has not.
    pub fn is_inside_a_record(&self) -> bool {
        !self.open.trim_ascii().is_empty()
    }

    /// The last record, if the body ended without a newline behind it. Call it once, when the body
    /// has ended in order.
    ///
    /// # Errors
    /// [`FrameError`] if the record is too large or not UTF-8.
    pub fn finish(&mut self) -> Option<Result<Bytes, FrameError>> {
        if self.failed {
            return None;
        }
        let line = self.open.split().freeze();
        self.record(line)
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.failed = true;
        self.input = Bytes::new();
        self.open = BytesMut::new();
        error
    }

    fn record(&mut self, line: Bytes) -> Option<Result<Bytes, FrameError>> {
        if line.len() > self.limit {
            return Some(Err(self.fail(FrameError::Oversized { limit: self.limit })));
        }
        let record = line.trim_ascii();
        if record.is_empty() {
            return None;
        }
        if std::str::from_utf8(record).is_err() {
            return Some(Err(self.fail(FrameError::InvalidUtf8)));
        }
        Some(Ok(line.slice_ref(record)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rstest::rstest;

    use super::*;

    fn read(bytes: &[u8], step: usize, limit: usize) -> Vec<Result<String, FrameError>> {
        let mut decoder = NdjsonDecoder::new(limit);
        let mut records = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(record) = decoder.next_record() {
                records.push(record);
            }
        }
        records.extend(decoder.finish());
        records
            .into_iter()
            .map(|record| record.map(|record| String::from_utf8(record.to_vec()).unwrap()))
            .collect()
    }

    #[rstest]
    #[case::lf(b"{}\n[]\n", &["{}", "[]"])]
    #[case::crlf(b"{}\r\n[]\r\n", &["{}", "[]"])]
    #[case::blank_lines(b"\n\n{}\n \n\r\n[]\n", &["{}", "[]"])]
    #[case::no_last_newline(b"{}\n[]", &["{}", "[]"])]
    #[case::nothing(b"", &[])]
    #[case::split_code_point("\"\u{1F44D}\"\n".as_bytes(), &["\"\u{1F44D}\""])]
    fn records(
        #[case] bytes: &[u8],
        #[case] expected: &[&str],
        #[values(1, 2, 3, 1000)] step: usize,
    ) {
        let records: Vec<String> = read(bytes, step, 64)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(records, expected);
    }

    #[rstest]
    fn a_record_over_64_kib_is_taken(#[values(1000, 65_536, 1_000_000)] step: usize) {
        let record = format!("\"{}\"", "x".repeat(200_000));
        assert_eq!(
            read(format!("{record}\n1").as_bytes(), step, 1 << 20),
            [Ok(record), Ok("1".to_owned())]
        );
    }

    #[rstest]
    #[case::with_end("1\n23456\n7\n")]
    #[case::without_end("1\n23456")]
    fn a_record_beyond_the_bound_is_an_error(
        #[case] bytes: &str,
        #[values(1, 3, 1000)] step: usize,
    ) {
        assert_eq!(
            read(bytes.as_bytes(), step, 4),
            [Ok("1".to_owned()), Err(FrameError::Oversized { limit: 4 })]
        );
    }

    #[test]
    fn a_record_without_end_is_refused_at_the_bound_and_not_kept() {
        let mut decoder = NdjsonDecoder::new(4);
        for piece in ["12", "34"] {
            decoder.push(Bytes::from_static(piece.as_bytes()));
            assert!(decoder.next_record().is_none());
        }
        decoder.push(Bytes::from_static(b"5"));
        assert_eq!(
            decoder.next_record(),
            Some(Err(FrameError::Oversized { limit: 4 }))
        );
        assert!(decoder.open.capacity() == 0 && decoder.finish().is_none());
    }

    #[rstest]
    fn what_is_not_utf8_is_an_error_and_the_last(#[values(1, 3, 1000)] step: usize) {
        assert_eq!(
            read(b"1\n\xFF\n2\n", step, 64),
            [Ok("1".to_owned()), Err(FrameError::InvalidUtf8)]
        );
    }
}
