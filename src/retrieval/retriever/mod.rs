//! The retrievers, one file each.

mod keyword;

use std::sync::Arc;

use super::Retriever;
use crate::store::Documents;

/// Builds every retriever over the store, in their declared order: results of equal rank are listed
/// in it. A new retriever is one line here.
#[must_use]
pub fn all(documents: &Arc<dyn Documents>) -> Vec<Box<dyn Retriever>> {
    vec![Box::new(keyword::Keyword::new(documents.clone()))]
}
