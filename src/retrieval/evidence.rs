//! Evidence: what all retrievers found together, as numbered sources.

use tokio::time::Instant;

use super::{Retriever, RetrieverError, Search, fuse, search};
use crate::store::Passage;

/// The most characters of a passage that are handed on and shown.
const PASSAGE_CHARS: usize = 2_000;

/// A passage with the number by which an answer cites it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The number `n` of the mark `[n]`, counted from 1.
    pub n: u32,
    /// The passage.
    pub passage: Passage,
}

/// What the retrievers found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// The sources, best first, numbered from 1.
    pub sources: Vec<Source>,
    /// The number of retrievers that were asked; at least one of them answered.
    pub retrievers: usize,
    /// The retrievers that failed, in their declared order.
    pub lost: Vec<(&'static str, RetrieverError)>,
}

/// Every retriever failed; this is the failure of the first one in their order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no retriever answered; {retriever}: {error}")]
pub struct NoEvidence {
    /// The name of the retriever.
    pub retriever: &'static str,
    /// Why it failed.
    pub error: RetrieverError,
}

/// Asks every retriever together until `until`, and joins what they found.
///
/// Cancel safe: dropping the future drops every retriever's call.
///
/// # Errors
/// Returns [`NoEvidence`] if every retriever failed.
pub async fn find(
    retrievers: &[Box<dyn Retriever>],
    query: Search<'_>,
    until: Instant,
) -> Result<Evidence, NoEvidence> {
    let mut found = Vec::new();
    let mut lost = Vec::new();
    for answer in search(retrievers, query, until).await {
        match answer.found {
            Ok(passages) => found.push(passages),
            Err(error) => lost.push((answer.retriever, error)),
        }
    }
    if found.is_empty()
        && let Some((retriever, error)) = lost.first().cloned()
    {
        return Err(NoEvidence { retriever, error });
    }
    Ok(Evidence {
        sources: number(fuse(found.iter().map(Vec::as_slice), query.limit)),
        retrievers: retrievers.len(),
        lost,
    })
}

fn number(passages: Vec<Passage>) -> Vec<Source> {
    (1..)
        .zip(passages)
        .map(|(n, mut passage)| {
            shorten(&mut passage.text);
            Source { n, passage }
        })
        .collect()
}

fn shorten(text: &mut String) {
    if let Some((cut, _)) = text.char_indices().nth(PASSAGE_CHARS) {
        text.truncate(cut);
    }
}
