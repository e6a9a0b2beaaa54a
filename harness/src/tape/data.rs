//! Bytes on the tape: bounded, without loss, and readable where they are text.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest number of bytes that the tape keeps of one text.
pub const MOST_KEPT: usize = 16 << 10;

/// The beginning of some bytes, and how many there were.
///
/// As JSON it is a plain string where it is whole and UTF-8. Otherwise it is an object: `text`, or
/// `latin1` where it is not UTF-8 (each character is one byte, U+0000 to U+00FF), and `length`, the
/// true number of bytes. It was cut if `length` exceeds the bytes that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    bytes: Bytes,
    length: u64,
}

impl Data {
    /// Keeps at most [`MOST_KEPT`] bytes; a character that begins before the bound and ends after
    /// it is left out.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self::keeping(bytes, MOST_KEPT)
    }

    /// Keeps at most `most` bytes.
    pub fn keeping(bytes: impl Into<Bytes>, most: usize) -> Self {
        let whole = bytes.into();
        Self {
            length: length_of(&whole),
            bytes: beginning(whole, most),
        }
    }

    /// The bytes that are kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes that are kept, as text; what is not UTF-8 in them is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The true number of bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether all bytes are kept.
    pub fn is_whole(&self) -> bool {
        self.length == length_of(&self.bytes)
    }

    /// Whether there were no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The same with at most `most` bytes kept; the true number of bytes stays.
    #[must_use]
    pub fn shortened(self, most: usize) -> Self {
        Self {
            length: self.length,
            bytes: beginning(self.bytes, most),
        }
    }

    /// The same, followed by this many bytes that are not kept.
    #[must_use]
    pub fn followed_by(self, bytes: usize) -> Self {
        Self {
            length: self.length + u64::try_from(bytes).unwrap_or(u64::MAX),
            ..self
        }
    }

    /// The same with these bytes instead of the kept ones, by which a report masks a secret. What
    /// was cut off stays counted.
    #[must_use]
    pub fn with_bytes(self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let cut_off = self.length - length_of(&self.bytes);
        Self {
            length: length_of(&bytes) + cut_off,
            bytes,
        }
    }
}

impl<T: Into<Bytes>> From<T> for Data {
    fn from(bytes: T) -> Self {
        Self::new(bytes)
    }
}

/// How many bytes are kept of the texts of one exchange together, so that an endless stream does
/// not take the harness's memory.
#[derive(Clone, Debug)]
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(16 * MOST_KEPT)
    }
}

impl Budget {
    /// Keeps what the rest of the budget permits.
    pub fn keep(&mut self, bytes: impl Into<Bytes>) -> Data {
        let data = Data::keeping(bytes, self.0.min(MOST_KEPT));
        self.0 -= data.bytes.len();
        data
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// At most `most` bytes from the beginning, with the bytes of a character together.
fn beginning(mut bytes: Bytes, most: usize) -> Bytes {
    if bytes.len() <= most {
        return bytes;
    }
    let continues = |at: &usize| bytes.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let most = (most.saturating_sub(3)..=most)
        .rev()
        .find(|at| !continues(at))
        .unwrap_or(most);
    // a copy: a slice would keep the whole in memory
    bytes.truncate(most);
    Bytes::copy_from_slice(&bytes)
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Form {
    Whole(String),
    Text { text: String, length: u64 },
    Latin1 { latin1: String, length: u64 },
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let length = self.length;
        let form = match std::str::from_utf8(&self.bytes) {
            Ok(text) if self.is_whole() => Form::Whole(text.to_owned()),
            Ok(text) => Form::Text {
                text: text.to_owned(),
                length,
            },
            Err(_) => Form::Latin1 {
                latin1: self.bytes.iter().copied().map(char::from).collect(),
                length,
            },
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (bytes, length) = match Form::deserialize(deserializer)? {
            Form::Whole(text) => (text.into_bytes(), 0),
            Form::Text { text, length } => (text.into_bytes(), length),
            Form::Latin1 { latin1, length } => {
                let bytes: Result<Vec<u8>, _> = latin1.chars().map(u8::try_from).collect();
                let wrong = |_| {
                    serde::de::Error::custom(
                        "`latin1` has a character above U+00FF; each character must be one byte",
                    )
                };
                (bytes.map_err(wrong)?, length)
            }
        };
        Ok(Self {
            length: length.max(length_of(&bytes)),
            bytes: bytes.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_survives_json_and_text_stays_readable() {
        let all: Vec<u8> = (0..=255).collect();
        for (data, form) in [
            (Data::new("héllo\n"), json!("héllo\n")),
            (Data::new(""), json!("")),
            (
                Data::new(&b"a\xff\x00"[..]),
                json!({"latin1": "a\u{ff}\u{0}", "length": 3}),
            ),
            (
                Data::keeping("abcdef", 2),
                json!({"text": "ab", "length": 6}),
            ),
        ] {
            assert_eq!(serde_json::to_value(&data).unwrap(), form);
            assert_eq!(serde_json::from_value::<Data>(form).unwrap(), data);
        }
        let data = Data::new(all.clone());
        let again: Data = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
        assert_eq!(again.bytes(), all);
    }

    #[test]
    fn a_cut_splits_no_character_and_states_the_true_length() {
        for most in 0..9 {
            let data = Data::keeping("aé€😀", most);
            assert!(std::str::from_utf8(data.bytes()).is_ok(), "{most}");
            assert!(data.bytes().len() <= most && data.length() == 10);
            assert!(!data.is_whole());
        }
        assert!(Data::keeping("aé€😀", 10).is_whole());
        let read = |form| serde_json::from_value::<Data>(form).unwrap();
        assert!(!read(json!({"text": "ab", "length": 9})).is_whole());
        assert!(
            read(json!("ab")).is_whole()
                && read(json!({"latin1": "\u{ff}", "length": 1})).is_whole()
        );
        let shorter = Data::keeping("abcdef", 4).shortened(2);
        assert_eq!((shorter.bytes(), shorter.length()), (&b"ab"[..], 6));
        let masked = shorter.with_bytes("xyz");
        assert_eq!((masked.bytes(), masked.length()), (&b"xyz"[..], 7));
    }

    #[test]
    fn an_exchange_keeps_a_bounded_number_of_bytes() {
        let mut budget = Budget::default();
        let kept: usize = (0..1_000)
            .map(|_| budget.keep(vec![b'x'; 1_000]).bytes().len())
            .sum();
        assert_eq!(kept, 16 * MOST_KEPT);
        assert_eq!(budget.keep("x").length(), 1);
    }
}
