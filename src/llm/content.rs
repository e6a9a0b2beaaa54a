//! Helpers for messages on either side of the gateway: the media type, the body in one piece, and a
//! foreign text in a length that fits into an error or a log line.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};

/// The media type of a message, in lower case and without parameters; empty if there is none.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// The start of a text, at most `limit` characters, on one line. An ellipsis marks a text that was
/// longer.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut start: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        start.push('…');
    }
    start
}

/// Collects the pieces of a body. A body that arrives in one piece is not copied.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    /// The number of bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    /// Adds the next piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        self.all.extend_from_slice(&std::mem::take(&mut self.first));
        self.all.extend_from_slice(&piece);
    }

    /// The whole body.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.all.is_empty() {
            self.first
        } else {
            self.all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_one_piece_is_that_piece_and_others_are_joined() {
        let whole = Bytes::from_static(b"whole");
        let mut joined = Joined::default();
        joined.push(Bytes::new());
        joined.push(whole.clone());
        assert_eq!(joined.into_bytes().as_ptr(), whole.as_ptr());
        let mut joined = Joined::default();
        ["in", "", " three ", "pieces"]
            .into_iter()
            .for_each(|piece| joined.push(Bytes::from_static(piece.as_bytes())));
        assert_eq!(
            (joined.len(), &joined.into_bytes()[..]),
            (15, &b"in three pieces"[..])
        );
    }

    #[test]
    fn a_text_is_clipped_between_characters_and_on_one_line() {
        assert_eq!(clip("né\n", 3), "né ");
        assert_eq!(clip("néant", 2), "né…");
    }
}
