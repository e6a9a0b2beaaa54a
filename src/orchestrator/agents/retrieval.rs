//! Retrieval: asks every lane together for the raw question. A lane that fails costs its own passages only.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Declaration, Policy, Source};
use crate::orchestrator::outcome::Cause;
use crate::orchestrator::plan::Step;
use crate::retrieval::{Answer, LaneError, Search, fuse, lanes, search};
use crate::store::{Passage, Store, StoreError};

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

/// Asks every lane until `until`, and joins what they found.
///
/// Cancel safe: dropping the future drops every lane's call.
///
/// # Errors
/// The cause of the first lane in their order, if every lane failed.
pub async fn retrieve(store: &Arc<dyn Store>, tenant: &str, question: &str, limit: u32, until: Instant) -> Result<Evidence, (Cause, String)> {
    let lanes = lanes::all(store);
    let answers = search(&lanes, Search { tenant, text: question, limit }, until).await;
    let mut evidence = Evidence { lanes: lanes.len(), ..Evidence::default() };
    let mut first_failure = None;
    for Answer { lane, found } in &answers {
        if let Err(error) = found {
            let cause = match error {
                LaneError::Store(error) => cause(error),
                LaneError::TimedOut => Cause::Timeout,
            };
            evidence.lost.push((lane, cause));
            first_failure.get_or_insert_with(|| (cause, format!("{lane}: {error}")));
        }
    }
    match first_failure {
        Some(failure) if evidence.lost.len() == evidence.lanes => Err(failure),
        _ => {
            evidence.sources = number(fuse(answers.iter().filter_map(|answer| answer.found.as_deref().ok()), limit), limit);
            Ok(evidence)
        }
    }
}

fn number(passages: Vec<Passage>, limit: u32) -> Vec<Source> {
    (1..=limit).zip(passages).map(|(n, passage)| Source { n, passage: Passage { text: shorten(passage.text), ..passage } }).collect()
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
        StoreError::Unavailable(_) | StoreError::PoolExhausted(_) | StoreError::NotWritable(_) => Cause::StoreUnavailable,
        StoreError::Timeout(_) => Cause::Timeout,
        StoreError::Rejected(_) | StoreError::Failed(_) => Cause::Error,
    }
}
