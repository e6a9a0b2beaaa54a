//! Retrieval: asks every lane together for the raw question. A lane that fails costs its own passages only.

use tokio::time::Instant;

use super::{Declaration, Policy, Source};
use crate::orchestrator::outcome::Cause;
use crate::orchestrator::step::Step;
use crate::retrieval::{self, Retriever, RetrieverError, Search};
use crate::store::{Passage, StoreError};

/// The answer stands without sources.
pub const DECLARATION: Declaration = Declaration {
    step: Step::Retrieval,
    policy: Policy::Degrade,
    effect: "No documents could be searched: the answer has no sources and rests on what the model knows.",
    unanswered: "No documents could be searched: there is no passage that could stand in for an answer.",
};

/// The most characters of a passage that are handed on and shown.
const PASSAGE_CHARS: usize = 2_000;

/// What the lanes found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Best first, numbered from 1.
    pub sources: Vec<Source>,
    /// How many lanes were asked; at least one of them answered.
    pub lanes: usize,
    /// The lanes that failed, in their declared order.
    pub lost: Vec<(&'static str, Cause)>,
}

/// Asks every lane together until `until`, and joins what they found.
///
/// Cancel safe: dropping the future drops every lane's call.
///
/// # Errors
/// The cause of the first lane in their order, if every lane failed.
pub async fn retrieve(
    lanes: &[Box<dyn Retriever>],
    search: Search<'_>,
    until: Instant,
) -> Result<Evidence, (Cause, String)> {
    let answers = retrieval::search(lanes, search, until).await;
    let failed: Vec<_> = answers
        .iter()
        .filter_map(|answer| {
            answer
                .found
                .as_ref()
                .err()
                .map(|error| (answer.lane, error))
        })
        .collect();
    if let Some((lane, error)) = failed.first().filter(|_| failed.len() == answers.len()) {
        return Err((class(error), format!("{lane}: {error}")));
    }
    let fused = retrieval::fuse(
        answers
            .iter()
            .filter_map(|answer| answer.found.as_deref().ok()),
        search.limit,
    );
    let lost = failed
        .into_iter()
        .map(|(lane, error)| (lane, class(error)))
        .collect();
    Ok(Evidence {
        sources: number(fused),
        lanes: answers.len(),
        lost,
    })
}

fn class(error: &RetrieverError) -> Cause {
    match error {
        RetrieverError::Store(error) => cause(error),
        RetrieverError::TimedOut => Cause::Timeout,
    }
}

fn number(passages: Vec<Passage>) -> Vec<Source> {
    (1..)
        .zip(passages)
        .map(|(n, passage)| Source {
            n,
            passage: Passage {
                text: shorten(passage.text),
                ..passage
            },
        })
        .collect()
}

fn shorten(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(PASSAGE_CHARS) {
        text.truncate(cut);
    }
    text
}

/// The class of a store's failure.
#[must_use]
pub fn cause(error: &StoreError) -> Cause {
    match error {
        StoreError::Unavailable(_) | StoreError::PoolExhausted(_) | StoreError::NotWritable(_) => {
            Cause::StoreUnavailable
        }
        StoreError::Timeout(_) => Cause::Timeout,
        StoreError::Rejected(_) | StoreError::Failed(_) => Cause::Error,
    }
}
