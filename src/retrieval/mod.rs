//! Retrieval: every lane is asked together, each has a result of its own, and what was found is joined by reciprocal-rank fusion.
//! A new lane is one file in [`lanes`] and one line in [`retriever::all`]. The orchestrator calls [`search`], then [`fuse`].

pub mod fusion;
pub mod retriever;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

pub use fusion::fuse;

use crate::store::{Passage, StoreError};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search<'a> {
    /// Whose documents.
    pub tenant: &'a str,
    /// Any text: a question, as it was asked.
    pub text: &'a str,
    /// The most passages that a lane may answer.
    pub limit: u32,
}

/// Why a lane answered nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetrieverError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It did not answer in the time that it was given.
    #[error("it did not answer in its share of the deadline")]
    TimedOut,
}

/// One way to find passages.
#[async_trait]
pub trait Retriever: Send + Sync {
    /// Its name, in degradations and metrics: stable, lower case.
    fn name(&self) -> &'static str;

    /// Finds passages, best first. Cancel safe: a lane only reads.
    ///
    /// # Errors
    /// A [`RetrieverError`]; it costs the passages of this lane alone.
    async fn search(&self, search: Search<'_>) -> Result<Vec<Passage>, RetrieverError>;
}

/// What a lane came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The lane's name.
    pub lane: &'static str,
    /// What it found, best first, or why it did not.
    pub found: Result<Vec<Passage>, RetrieverError>,
}

/// Asks all lanes together; a lane that has not answered by `until` has [`RetrieverError::TimedOut`], and never delays or cancels
/// another. The answers stand in the order of the lanes, whichever came first.
///
/// Cancel safe: dropping the future drops every lane's call.
pub async fn search(
    lanes: &[Box<dyn Retriever>],
    search: Search<'_>,
    until: Instant,
) -> Vec<Answer> {
    join_all(lanes.iter().map(|lane| async move {
        let found = timeout_at(until, lane.search(search))
            .await
            .unwrap_or(Err(RetrieverError::TimedOut));
        Answer {
            lane: lane.name(),
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

    /// Answers once everybody has been asked.
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
    async fn lanes_run_together_and_each_has_its_own_result() {
        let barrier = Arc::new(Barrier::new(2));
        let lanes: Vec<Box<dyn Retriever>> = vec![
            Box::new(Together("one", barrier.clone())),
            Box::new(Silent),
            Box::new(Failing),
            Box::new(Together("other", barrier)),
        ];
        let until = Instant::now() + Duration::from_secs(30);
        let answers = search(
            &lanes,
            Search {
                tenant: "a",
                text: "what",
                limit: 5,
            },
            until,
        )
        .await;
        let told: Vec<(&str, Result<usize, RetrieverError>)> = answers
            .iter()
            .map(|answer| {
                (
                    answer.lane,
                    answer.found.as_ref().map(Vec::len).map_err(Clone::clone),
                )
            })
            .collect();
        assert_eq!(told[0], ("one", Ok(1)));
        assert_eq!(told[1], ("silent", Err(RetrieverError::TimedOut)));
        assert_eq!(
            told[2],
            (
                "failing",
                Err(RetrieverError::Store(StoreError::Unavailable(
                    "gone".into()
                )))
            )
        );
        assert_eq!(told[3], ("other", Ok(1)));
    }
}
