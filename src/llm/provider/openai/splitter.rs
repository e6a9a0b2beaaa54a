//! Edits of an event that leave all other bytes as they are: [`Edits`], and the joining of
//! surrogate pairs that a provider cut between two events.
//!
//! JSON writes a character beyond the first 65,536 as two escapes, and servers that cut a text by
//! UTF-16 units may send the first escape in one event and the second in the next. Each alone is no
//! character: some readers replace it, and others refuse the whole event. [`Splitter`] keeps the
//! first escape back and puts it before the second.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::view::{Delta, TEXTS};

/// The length of an escape such as `\\ud83d`.
const ESCAPE: usize = 6;

/// Replacements in one text.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Replaces a value of the text. A value that is not a part of the text is left alone.
    pub(super) fn replace(&mut self, text: &str, value: Option<&RawValue>, with: &str) {
        if let Some(range) = value.and_then(|value| range_of(text, value)) {
            self.0.push((range, with.to_owned()));
        }
    }

    /// The text with all replacements; `None` if there are none.
    pub(super) fn apply(mut self, text: &str) -> Option<Bytes> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_by_key(|(range, _)| range.start);
        let (mut edited, mut done) = (String::with_capacity(text.len()), 0);
        for (range, with) in self.0 {
            edited.push_str(text.get(done..range.start)?);
            edited.push_str(&with);
            done = range.end;
        }
        edited.push_str(text.get(done..)?);
        Some(edited.into())
    }
}

/// Where a value that was borrowed from the text stands in it.
fn range_of(text: &str, value: &RawValue) -> Option<Range<usize>> {
    let value = value.get();
    let start = (value.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let end = start.checked_add(value.len())?;
    (end <= text.len()).then_some(start..end)
}

/// The first halves of surrogate pairs that wait for their second half.
#[derive(Debug, Default)]
pub(super) struct Splitter(Vec<Carried>);

#[derive(Debug)]
struct Carried {
    choice: u64,
    text: usize,
    escape: String,
}

impl Splitter {
    /// Keeps back what a text of this choice ends with, if it is the first half of a pair, and puts
    /// what was kept back before the text that follows.
    pub(super) fn join(&mut self, event: &str, delta: &Delta<'_>, edits: &mut Edits) {
        for number in 0..TEXTS {
            let Some(range) = delta.texts[number].and_then(|value| range_of(event, value)) else {
                continue;
            };
            let Some(text) = event
                .get(range.clone())
                .and_then(|value| value.strip_prefix('"'))
                .and_then(|value| value.strip_suffix('"'))
                .filter(|text| !text.is_empty())
            else {
                continue;
            };
            let start = range.start + 1;
            let waiting = self
                .0
                .iter()
                .position(|carried| (carried.choice, carried.text) == (delta.index, number));
            if let Some(waiting) = waiting {
                edits
                    .0
                    .push((start..start, self.0.swap_remove(waiting).escape));
            }
            if let Some(length) = ends_with_first_half(text) {
                let end = start + text.len();
                edits.0.push((end - length..end, String::new()));
                self.0.push(Carried {
                    choice: delta.index,
                    text: number,
                    escape: text[text.len() - length..].to_owned(),
                });
            }
        }
    }
}

/// The length of the escape at the end of the text, if it is the first half of a surrogate pair.
fn ends_with_first_half(text: &str) -> Option<usize> {
    let at = text.len().checked_sub(ESCAPE)?;
    let escape = text.get(at..)?.as_bytes();
    let first_half = matches!(
        escape,
        [
            b'\\',
            b'u',
            b'd' | b'D',
            b'8' | b'9' | b'a' | b'b' | b'A' | b'B',
            _,
            _
        ]
    ) && escape[4..].iter().all(u8::is_ascii_hexdigit);
    let escaped = text[..at].bytes().rev().take_while(|byte| *byte == b'\\');
    (first_half && escaped.count() % 2 == 0).then_some(ESCAPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_escape_that_is_the_first_half_of_a_pair_is_one() {
        for (text, expected) in [
            (r"a\ud83d", true),
            (r"\uDBFF", true),
            (r"\\\ud83d", true),
            (r"\\ud83d", false),
            (r"\ude00", false),
            (r"\ud83d\ude00", false),
            (r"\u00e9", false),
            ("ud83d", false),
            ("d83d", false),
            ("\u{1f600}", false),
        ] {
            assert_eq!(ends_with_first_half(text).is_some(), expected, "{text}");
        }
    }
}
