//! HTTP/1.1 messages, read from bytes: the wire and the client see exactly what came and how it
//! ended.
//!
//! There are no sockets here. `httparse` reads heads; [`Body`] reads bodies and distinguishes an
//! orderly end from a cut.

use bytes::{Buf, Bytes, BytesMut};

/// The largest head, in bytes.
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADERS: usize = 128;

/// Why bytes are not HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not HTTP/1.1: {0}")]
pub struct Malformed(pub String);

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The method as the sender wrote it.
    pub method: String,
    /// Path and query as the sender wrote them.
    pub target: String,
    /// The minor version: 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version: u8,
    /// Names and values in the order and spelling of the sender.
    pub headers: Vec<(String, String)>,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// Names and values in the order and spelling of the sender.
    pub headers: Vec<(String, String)>,
}

/// The first header of that name, whatever its spelling.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// Takes a request's head off the buffer; gives `None` as long as the head is not complete.
///
/// # Errors
/// [`Malformed`] for anything that is not a request, or a head that is too large.
pub fn take_request(buffer: &mut BytesMut) -> Result<Option<RequestHead>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = match request.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => {
            let head = RequestHead {
                method: request.method.unwrap_or_default().to_string(),
                target: request.path.unwrap_or_default().to_string(),
                version: request.version.unwrap_or(1),
                headers: owned(request.headers),
            };
            Some((length, head))
        }
        Ok(httparse::Status::Partial) => None,
        Err(error) => return Err(Malformed(error.to_string())),
    };
    taken(buffer, parsed)
}

/// Takes an answer's head off the buffer and skips interim (1xx) answers; gives `None` as long as
/// the head is not complete.
///
/// # Errors
/// [`Malformed`] for anything that is not an answer, or a head that is too large.
pub fn take_response(buffer: &mut BytesMut) -> Result<Option<ResponseHead>, Malformed> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = match response.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => Some((
                length,
                ResponseHead {
                    status: response.code.unwrap_or_default(),
                    headers: owned(response.headers),
                },
            )),
            Ok(httparse::Status::Partial) => None,
            Err(error) => return Err(Malformed(error.to_string())),
        };
        match taken(buffer, parsed)? {
            Some(head) if (100..200).contains(&head.status) && head.status != 101 => {}
            head => return Ok(head),
        }
    }
}

/// Gives the status of the next head of an answer; `None` as long as the head is not complete. An
/// interim head (1xx) is taken off the buffer, and a final one stays in it.
///
/// # Errors
/// As [`take_response`].
pub fn next_status(buffer: &mut BytesMut) -> Result<Option<u16>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => Some((length, response.code.unwrap_or_default())),
        Ok(httparse::Status::Partial) => None,
        Err(error) => return Err(Malformed(error.to_string())),
    };
    match parsed {
        Some((_, status)) if !(100..200).contains(&status) => Ok(Some(status)),
        parsed => taken(buffer, parsed),
    }
}

fn owned(headers: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|header| {
            (
                header.name.to_string(),
                String::from_utf8_lossy(header.value).into_owned(),
            )
        })
        .collect()
}

fn taken<T>(buffer: &mut BytesMut, parsed: Option<(usize, T)>) -> Result<Option<T>, Malformed> {
    match parsed {
        Some((length, head)) => {
            buffer.advance(length);
            Ok(Some(head))
        }
        None if buffer.len() > MAX_HEAD => {
            Err(Malformed(format!("a head of more than {MAX_HEAD} bytes")))
        }
        None => Ok(None),
    }
}

/// The body of a message while it is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are left.
    Length(u64),
    /// A chunk's size line comes next.
    ChunkSize,
    /// This many bytes of the chunk are left.
    ChunkData(u64),
    /// The line end after a chunk's data comes next.
    ChunkEnd,
    /// The trailer's lines come next.
    Trailer,
    /// Everything until the end of the connection.
    UntilClose,
    Done,
}

impl Body {
    /// The body of a request with these headers.
    ///
    /// # Errors
    /// [`Malformed`] if the length is not a number.
    pub fn of_request(headers: &[(String, String)]) -> Result<Self, Malformed> {
        Ok(Self {
            state: framing(headers)?.unwrap_or(State::Done),
        })
    }

    /// The body of an answer with this head to a request of this method.
    ///
    /// # Errors
    /// [`Malformed`] if the length is not a number.
    pub fn of_response(method: &str, head: &ResponseHead) -> Result<Self, Malformed> {
        if method.eq_ignore_ascii_case("HEAD") || matches!(head.status, 204 | 304) {
            return Ok(Self { state: State::Done });
        }
        Ok(Self {
            state: framing(&head.headers)?.unwrap_or(State::UntilClose),
        })
    }

    /// Takes what is there of the body off the buffer.
    ///
    /// # Errors
    /// [`Malformed`] for broken chunk framing.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Malformed> {
        let mut taken = BytesMut::new();
        loop {
            match &mut self.state {
                State::Done => break,
                State::Length(left) => {
                    let piece = split(buffer, *left);
                    *left -= piece.len() as u64;
                    taken.extend_from_slice(&piece);
                    if *left > 0 {
                        break;
                    }
                    self.state = State::Done;
                }
                State::UntilClose => {
                    taken.extend_from_slice(&buffer.split());
                    break;
                }
                State::ChunkSize => {
                    let Some(line) = take_line(buffer)? else {
                        break;
                    };
                    let digits = line.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(digits, 16)
                        .map_err(|_| Malformed(format!("chunk size {line:?}")))?;
                    self.state = if size == 0 {
                        State::Trailer
                    } else {
                        State::ChunkData(size)
                    };
                }
                State::ChunkData(left) => {
                    let piece = split(buffer, *left);
                    *left -= piece.len() as u64;
                    taken.extend_from_slice(&piece);
                    if *left > 0 {
                        break;
                    }
                    self.state = State::ChunkEnd;
                }
                State::ChunkEnd => {
                    let Some(line) = take_line(buffer)? else {
                        break;
                    };
                    if !line.is_empty() {
                        return Err(Malformed(format!("{line:?} after a chunk's data")));
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailer => {
                    let Some(line) = take_line(buffer)? else {
                        break;
                    };
                    if line.is_empty() {
                        self.state = State::Done;
                    }
                }
            }
        }
        Ok(taken.freeze())
    }

    /// How many bytes are still to come, where the head has a `Content-Length`.
    pub fn content_length(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Whether it is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of the connection is the proper end of the body.
    pub fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }
}

/// How the headers frame the body; chunked wins over a length (RFC 9112 section 6.3).
fn framing(headers: &[(String, String)]) -> Result<Option<State>, Malformed> {
    if header(headers, "transfer-encoding")
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
    {
        return Ok(Some(State::ChunkSize));
    }
    match header(headers, "content-length") {
        Some(value) => match value.trim().parse() {
            Ok(0) => Ok(Some(State::Done)),
            Ok(length) => Ok(Some(State::Length(length))),
            Err(_) => Err(Malformed(format!("content-length {value:?}"))),
        },
        None => Ok(None),
    }
}

fn split(buffer: &mut BytesMut, most: u64) -> BytesMut {
    let length = usize::try_from(most).map_or(buffer.len(), |most| most.min(buffer.len()));
    buffer.split_to(length)
}

fn take_line(buffer: &mut BytesMut) -> Result<Option<String>, Malformed> {
    let Some(end) = buffer.iter().position(|byte| *byte == b'\n') else {
        return if buffer.len() > 4_096 {
            Err(Malformed("a chunk line without end".into()))
        } else {
            Ok(None)
        };
    };
    let line = buffer.split_to(end + 1);
    Ok(Some(
        String::from_utf8_lossy(&line)
            .trim_end_matches(['\r', '\n'])
            .to_string(),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_chunked_body_is_the_same_however_it_is_split() {
        let whole = b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\ntrailer: 1\r\n\r\nnext";
        for step in 1..whole.len() {
            let mut body = Body {
                state: State::ChunkSize,
            };
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for piece in whole.chunks(step) {
                buffer.extend_from_slice(piece);
                read.extend_from_slice(&body.take(&mut buffer).unwrap());
            }
            assert_eq!(read, b"Wikipedia");
            assert!(body.is_done());
            assert_eq!(&buffer[..], b"next");
        }
    }

    #[test]
    fn a_length_that_is_not_reached_is_no_end() {
        let mut body = Body::of_request(&[("Content-Length".into(), "10".into())]).unwrap();
        assert_eq!(
            &body.take(&mut BytesMut::from(&b"12345"[..])).unwrap()[..],
            b"12345"
        );
        assert!(!body.is_done() && !body.may_end_here());
    }

    #[test]
    fn interim_answers_are_skipped() {
        let mut buffer =
            BytesMut::from(&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n"[..]);
        let head = take_response(&mut buffer).unwrap().unwrap();
        assert_eq!((head.status, header(&head.headers, "a")), (200, Some("b")));
    }

    #[test]
    fn broken_chunks_are_named() {
        let mut body = Body {
            state: State::ChunkSize,
        };
        assert!(body.take(&mut BytesMut::from(&b"zz\r\n"[..])).is_err());
    }
}
