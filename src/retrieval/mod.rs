//! Retrieval: every retriever is asked at the same time, each has a result of its own, and what was
//! found is joined by reciprocal-rank fusion into [`Evidence`]. A new retriever is one file in
//! [`retriever`] and its two lines there.

mod evidence;
pub mod fusion;
pub mod retriever;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

pub use evidence::{Evidence, NoEvidence, Source, find};
pub use fusion::fuse;

use crate::store::{Passage, StoreError};

/// What a retriever looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search<'a> {
    /// The tenant whose documents are searched.
    pub tenant: &'a str,
    /// The text to look for: a question, as the client sent it.
    pub text: &'a str,
    /// The most passages that a retriever may return.
    pub limit: u32,
}

/// Why a retriever has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetrieverError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The retriever gave no answer before its share of the deadline ended.
    #[error("it gave no answer within its share of the deadline")]
    TimedOut,
}

/// One way to find passages.
#[async_trait]
pub trait Retriever: Send + Sync {
    /// Returns the name of the retriever in degradations and logs: stable, lower case.
    fn name(&self) -> &'static str;

    /// Finds passages, best first.
    ///
    /// Cancel safe: a retriever only reads.
    ///
    /// # Errors
    /// Returns a [`RetrieverError`], which costs the passages of this retriever alone.
    async fn search(&self, search: Search<'_>) -> Result<Vec<Passage>, RetrieverError>;
}

/// The answer of a retriever.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The name of the retriever.
    pub retriever: &'static str,
    /// What the retriever found, best first, or why it has no result.
    pub found: Result<Vec<Passage>, RetrieverError>,
}

/// Asks all retrievers at the same time. One that has not answered by `until` gets
/// [`RetrieverError::TimedOut`]; it neither delays nor cancels another. The answers stand in the
/// order of the retrievers, whichever came first.
///
/// Cancel safe: dropping the future drops every retriever's call.
pub async fn search(
    retrievers: &[Box<dyn Retriever>],
    search: Search<'_>,
    until: Instant,
) -> Vec<Answer> {
    join_all(retrievers.iter().map(|retriever| async move {
        let found = timeout_at(until, retriever.search(search))
            .await
            .unwrap_or(Err(RetrieverError::TimedOut));
        Answer {
            retriever: retriever.name(),
            found,
        }
    }))
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Barrier;
    use uuid::Uuid;

    use super::*;

    /// A retriever that answers once all parties of the barrier have been asked.
    struct Together(&'static str, Arc<Barrier>);
    struct Silent;
    struct Failing;

    #[async_trait]
    impl Retriever for Together {
        fn name(&self) -> &'static str {
            self.0
        }
        async fn search(&self, search: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
            self.1.wait().await;
            Ok(vec![Passage {
                document: Uuid::nil(),
                title: self.0.into(),
                text: search.text.into(),
                score: 1.0,
            }])
        }
    }

    #[async_trait]
    impl Retriever for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }
        async fn search(&self, _search: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
            std::future::pending().await
        }
    }

    #[async_trait]
    impl Retriever for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }
        async fn search(&self, _search: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
            Err(StoreError::Unavailable("gone".into()).into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retrievers_run_together_and_each_has_its_own_result() {
        let barrier = Arc::new(Barrier::new(2));
        let retrievers: Vec<Box<dyn Retriever>> = vec![
            Box::new(Together("one", barrier.clone())),
            Box::new(Silent),
            Box::new(Failing),
            Box::new(Together("other", barrier)),
        ];
        let until = Instant::now() + Duration::from_secs(30);
        let answers = search(
            &retrievers,
            Search {
                tenant: "a",
                text: "what",
                limit: 5,
            },
            until,
        )
        .await;
        let results: Vec<(&str, Result<usize, RetrieverError>)> = answers
            .iter()
            .map(|answer| {
                (
                    answer.retriever,
                    answer.found.as_ref().map(Vec::len).map_err(Clone::clone),
                )
            })
            .collect();
        assert_eq!(results[0], ("one", Ok(1)));
        assert_eq!(results[1], ("silent", Err(RetrieverError::TimedOut)));
        assert_eq!(
            results[2],
            (
                "failing",
                Err(RetrieverError::Store(StoreError::Unavailable(
                    "gone".into()
                )))
            )
        );
        assert_eq!(results[3], ("other", Ok(1)));
    }
}
