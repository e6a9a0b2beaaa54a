//! The keyword lane: the store's full-text search for the words of the question.

use std::sync::Arc;

use async_trait::async_trait;

use crate::retrieval::{Retriever, RetrieverError, Search};
use crate::store::{Passage, Store};

/// Finds passages by their words.
pub(super) struct Keyword {
    store: Arc<dyn Store>,
}

impl Keyword {
    /// The lane over a store.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Retriever for Keyword {
    fn name(&self) -> &'static str {
        "keyword"
    }

    async fn search(&self, search: Search<'_>) -> Result<Vec<Passage>, RetrieverError> {
        Ok(self
            .store
            .search(search.tenant, search.text, search.limit)
            .await?)
    }
}
