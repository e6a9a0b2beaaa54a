//! Text search that gives the same answer on both databases: this module makes the words, the
//! passages and the order; the database only finds passages.
//!
//! A word is a run of alphanumeric characters in lower case, without stemming and without stop
//! words. A character of a script that writes without spaces is a word of its own. Words that are
//! not ASCII are written as hex, so that no tokenizer, locale or Unicode version of a database
//! takes part. A passage matches when it has any word of the query.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::Passage;

/// The length of the longest passage, in bytes. A passage ends at a paragraph, a sentence or a word
/// where it can.
const PASSAGE_BYTES: usize = 1_200;
/// The number of distinct words of a query that are searched for; the rest of a very long query
/// adds little.
const QUERY_WORDS: usize = 64;
/// The number of bytes of a word that count; a longer word is cut.
const WORD_BYTES: usize = 64;
/// The number of passages that a database finds for [`rerank`], the best by its own rank. Where
/// fewer passages match, the order is equal on both databases.
pub(super) const MAX_RERANKED: u32 = 256;

/// A piece of a document with its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub text: String,
    /// The words of the title and of the text, with one space between two words.
    pub terms: String,
}

/// A passage that a database found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub document: Uuid,
    pub ordinal: i64,
    pub title: String,
    pub text: String,
    pub terms: String,
}

/// Cuts a document into passages. Text without a word gives no passage.
pub(super) fn pieces(title: &str, text: &str) -> Vec<Piece> {
    let title = words(title).join(" ");
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(cut(rest));
        let terms = words(piece).join(" ");
        if !terms.is_empty() {
            let terms = if title.is_empty() {
                terms
            } else {
                format!("{title} {terms}")
            };
            pieces.push(Piece {
                text: piece.trim_end().to_owned(),
                terms,
            });
        }
        rest = after.trim_start();
    }
    pieces
}

/// Returns the distinct words of a query, in order.
pub(super) fn query_words(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    words(text)
        .into_iter()
        .filter(|word| seen.insert(word.clone()))
        .take(QUERY_WORDS)
        .collect()
}

/// Orders the passages that a database found, keeps the best passage of each document, and returns
/// at most `limit` of them: the best first, newer documents first among equals.
///
/// The score has the formula of BM25, but the rarity of a word and the average length are taken
/// over the passages that were found, not over the whole corpus. A word that every found passage
/// has therefore counts little, however rare it is in the corpus: the score orders the
/// found passages, and scores of two searches cannot be compared. The order is the same on both
/// databases.
pub(super) fn rerank(query: &[String], found: Vec<Found>, limit: u32) -> Vec<Passage> {
    let counted: Vec<(HashMap<&str, f64>, f64)> = found
        .iter()
        .map(|passage| count(query, &passage.terms))
        .collect();
    let total = counted.len() as f64;
    let average = counted.iter().map(|(_, length)| length).sum::<f64>() / total.max(1.0);
    let rarity: Vec<f64> = query
        .iter()
        .map(|word| {
            let having = counted
                .iter()
                .filter(|(counts, _)| counts.contains_key(word.as_str()))
                .count() as f64;
            (1.0 + (total - having + 0.5) / (having + 0.5)).ln()
        })
        .collect();
    let scores: Vec<f64> = counted
        .iter()
        .map(|(counts, length)| {
            // the sum runs in the order of the query, so that equal passages have equal scores
            query
                .iter()
                .zip(&rarity)
                .map(|(word, rarity)| {
                    rarity * saturation(counts.get(word.as_str()).copied(), *length, average)
                })
                .sum()
        })
        .collect();

    let mut best: BTreeMap<Uuid, (f64, Found)> = BTreeMap::new();
    for (score, passage) in scores.into_iter().zip(found) {
        match best.get(&passage.document) {
            Some((other, kept)) if (*other, -kept.ordinal) >= (score, -passage.ordinal) => {}
            _ => {
                best.insert(passage.document, (score, passage));
            }
        }
    }
    let mut ranked: Vec<(f64, Found)> = best.into_values().collect();
    ranked.sort_by(|(a, one), (b, other)| {
        b.total_cmp(a)
            .then_with(|| other.document.cmp(&one.document))
    });
    ranked
        .into_iter()
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .map(
            |(
                score,
                Found {
                    document,
                    title,
                    text,
                    ..
                },
            )| Passage {
                document,
                title,
                text,
                score,
            },
        )
        .collect()
}

/// Returns what a word's count adds to the score: the more often, the less each time. The formula
/// is BM25's with the usual k1 = 1.2 and b = 0.75.
fn saturation(count: Option<f64>, length: f64, average: f64) -> f64 {
    let Some(count) = count else { return 0.0 };
    count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / average.max(1.0)))
}

/// Counts each word of the query in a passage, and all words of the passage.
fn count<'a>(query: &[String], terms: &'a str) -> (HashMap<&'a str, f64>, f64) {
    let mut counts = HashMap::new();
    let mut length = 0.0;
    for term in terms.split(' ') {
        length += 1.0;
        if query.iter().any(|word| word == term) {
            *counts.entry(term).or_insert(0.0) += 1.0;
        }
    }
    (counts, length)
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for character in text.chars() {
        if writes_without_spaces(character) {
            finish(&mut word, &mut words);
            word.push(character);
            finish(&mut word, &mut words);
        } else if character.is_alphanumeric() {
            word.extend(character.to_lowercase());
        } else {
            finish(&mut word, &mut words);
        }
    }
    finish(&mut word, &mut words);
    words
}

fn finish(word: &mut String, words: &mut Vec<String>) {
    if word.is_empty() {
        return;
    }
    let word = std::mem::take(word);
    let word = &word[..word.floor_char_boundary(WORD_BYTES)];
    // the hex form begins with "0u", so that a plain word that begins so is written as hex too
    if word.is_ascii() && !word.starts_with("0u") {
        words.push(word.to_owned());
    } else {
        words.push(format!("0u{}", hex::encode(word)));
    }
}

/// Returns whether a script writes sentences as one run: Thai to Myanmar, Khmer, kana, Han.
fn writes_without_spaces(character: char) -> bool {
    let in_script = matches!(character,
        '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}'
        | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{323AF}');
    in_script && character.is_alphanumeric()
}

/// Returns where the next passage ends: at the last paragraph, else sentence, else word that fits.
fn cut(text: &str) -> usize {
    if text.len() <= PASSAGE_BYTES {
        return text.len();
    }
    let window = &text[..text.floor_char_boundary(PASSAGE_BYTES)];
    // a cut near the beginning would make a very short passage
    let least = window.len() / 3;
    ["\n\n", "\n", ". ", "。", " "]
        .iter()
        .find_map(|mark| {
            window
                .rfind(mark)
                .map(|at| at + mark.len())
                .filter(|end| *end > least)
        })
        .unwrap_or(window.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn found(document: u128, ordinal: i64, text: &str) -> Found {
        Found {
            document: Uuid::from_u128(document),
            ordinal,
            title: String::new(),
            text: text.into(),
            terms: words(text).join(" "),
        }
    }

    #[test]
    fn words_are_ascii_in_lower_case_and_split_in_scripts_without_spaces() {
        assert_eq!(
            words("The Quick-brown fox's 1e5"),
            ["the", "quick", "brown", "fox", "s", "1e5"]
        );
        assert_eq!(words("STRASSE Straße"), ["strasse", "0u73747261c39f65"]);
        assert_eq!(words("日本 0u"), ["0ue697a5", "0ue69cac", "0u3075"]);
        assert!(words("\0 ' \" | & ! ( ) :* <-> 🎉").is_empty());
    }

    #[test]
    fn every_character_of_a_long_text_is_in_one_passage() {
        let text = "Äpfel und Birnen. ".repeat(400) + &"x".repeat(5_000);
        let pieces = pieces("Obst", &text);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.text.len() <= PASSAGE_BYTES && piece.terms.starts_with("obst "))
        );
        let joined: String = pieces
            .iter()
            .flat_map(|piece| piece.text.chars())
            .filter(|c| !c.is_whitespace())
            .collect();
        assert_eq!(
            joined,
            text.chars()
                .filter(|c| !c.is_whitespace())
                .collect::<String>()
        );
    }

    #[test]
    fn a_rare_word_outweighs_a_common_one_and_ties_go_to_the_newer_document() {
        let query = query_words("the heron");
        let passages = vec![
            found(1, 0, "the cat"),
            found(2, 0, "a heron"),
            found(3, 0, "the dog"),
            found(3, 1, "the heron"),
        ];
        let order: Vec<u128> = rerank(&query, passages, 10)
            .iter()
            .map(|passage| passage.document.as_u128())
            .collect();
        assert_eq!(order, [3, 2, 1]);
        let equal = rerank(
            &query_words("cat"),
            vec![found(1, 0, "cat"), found(2, 0, "cat")],
            1,
        );
        assert_eq!(equal[0].document.as_u128(), 2);
    }
}
