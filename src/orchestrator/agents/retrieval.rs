//! Retrieval: asks every lane together for the raw question. A lane that fails costs its own passages only.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{Declaration, Policy, Source};
use crate::orchestrator::outcome::Cause;
use crate::orchestrator::plan::Step;
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

/// Asks the keyword lane until `until`.
///
/// Cancel safe: dropping the future drops every lane's call.
///
/// # Errors
/// The cause of the first lane in their order, if every lane failed.
pub async fn retrieve(store: &Arc<dyn Store>, tenant: &str, question: &str, limit: u32, until: Instant) -> Result<Evidence, (Cause, String)> {
    let names = ["keyword"];
    let asked = join_all(names.iter().map(|_| timeout_at(until, store.search(tenant, question, limit)))).await;
    let mut evidence = Evidence { lanes: names.len(), ..Evidence::default() };
    let mut first_failure = None;
    let mut found = Vec::new();
    for (lane, answer) in names.into_iter().zip(asked) {
        match answer.unwrap_or(Err(StoreError::Timeout(Duration::ZERO))) {
            Ok(passages) => found.extend(passages),
            Err(error) => {
                let cause = cause(&error);
                evidence.lost.push((lane, cause));
                first_failure.get_or_insert_with(|| (cause, format!("{lane}: {error}")));
            }
        }
    }
    match first_failure {
        Some(failure) if evidence.lost.len() == evidence.lanes => Err(failure),
        _ => {
            evidence.sources = number(found, limit);
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
