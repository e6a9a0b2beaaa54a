//! JSON whose texts are cut in the middle of a surrogate pair, which no string of Rust can hold.
//!
//! Halves that stand alone are read as characters of a private plane, and become the character that
//! they are a part of when the texts are joined.

use std::borrow::Cow;

/// The first of the characters that stand for the 2,048 halves of surrogate pairs.
const PRIVATE: u32 = 0xF_0000;
/// The first of the halves of surrogate pairs.
const FIRST: u16 = 0xD800;
/// The length of an escape such as `\ud83d`.
const ESCAPE: usize = 6;

/// The JSON document, in which a private character stands for each half of a surrogate pair whose
/// other half is not beside it.
pub(crate) fn readable(json: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = json[at..].find('\\') {
        at += found;
        let Some(unit) = escaped(&json[at..]).filter(|unit| (0xD800..0xE000).contains(unit)) else {
            // the escape of one character, such as that of a backslash
            let next = json[at + 1..].chars().next();
            at += 1 + next.map_or(0, char::len_utf8);
            continue;
        };
        let after = at + ESCAPE;
        let second = json.get(after..).and_then(escaped);
        if unit < 0xDC00 && second.is_some_and(|second| (0xDC00..0xE000).contains(&second)) {
            at = after + ESCAPE;
            continue;
        }
        out.push_str(&json[copied..at]);
        out.extend(char::from_u32(PRIVATE + u32::from(unit - FIRST)));
        (copied, at) = (after, after);
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

/// The text in which two halves that stand side by side are one character; a half that still
/// stands alone is U+FFFD.
pub(crate) fn joined(text: &str) -> String {
    let mut units = Vec::with_capacity(text.len());
    for character in text.chars() {
        match half(character) {
            Some(unit) => units.push(unit),
            None => units.extend_from_slice(character.encode_utf16(&mut [0; 2])),
        }
    }
    String::from_utf16_lossy(&units)
}

/// Whether the character stands for the first half of a surrogate pair.
pub(crate) fn is_first_half(character: char) -> bool {
    half(character).is_some_and(|unit| unit < 0xDC00)
}

/// The half of a surrogate pair for which the character stands, if it stands for one.
fn half(character: char) -> Option<u16> {
    let at = u32::from(character).checked_sub(PRIVATE)?;
    let at = u16::try_from(at).ok()?;
    (at < 0x800).then_some(FIRST + at)
}

/// The UTF-16 unit of the escape with which the text begins, if it begins with one.
fn escaped(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> String {
        serde_json::from_str(&readable(json)).unwrap()
    }

    #[test]
    fn halves_are_joined_whatever_document_they_stand_in() {
        let halves = [r#""a\ud83d""#, r#""\uDE00\ud83e""#, r#""\udd80b""#];
        let text: String = halves.map(read).concat();
        assert_eq!(joined(&text), "a😀🦀b");
        assert!(read(halves[0]).ends_with(is_first_half));
        assert_eq!(joined(&read(halves[0])), "a\u{fffd}");
    }

    #[test]
    fn what_is_no_half_is_left_as_it_is() {
        for (json, text) in [
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\u00e9\n\"""#, "é\n\""),
            (r#""東\\""#, "東\\"),
        ] {
            assert!(matches!(readable(json), Cow::Borrowed(_)), "{json}");
            assert_eq!(read(json), text);
            assert_eq!(joined(text), text);
        }
        assert_eq!(joined(&read(r#""\\\ud83d""#)), "\\\u{fffd}");
    }
}
