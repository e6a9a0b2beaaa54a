//! The keyword retriever: the store's full-text search for the words of the question.

use std::sync::Arc;

use async_trait::async_trait;

use crate::retrieval::{Retriever, RetrieverError, Search};
use crate::store::{Documents, Passage};

/// Finds passages by their words.
pub(super) struct Keyword {
    documents: Arc<dyn Documents>,
}

impl Keyword {
    /// Builds the retriever over a store.
    pub(super) fn new(documents: Arc<dyn Documents>) -> Self {
        Self { documents }
    }
}

#[async_trait]
impl Retriever for Keyword {
    fn name(&self) -> &'static str {
        "keyword"
    }

    async fn search(&self, search: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
        Ok(self
            .documents
            .search(search.tenant, search.text, search.limit)
            .await?)
    }
}
