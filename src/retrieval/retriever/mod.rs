//! The lanes, in their declared order. One file each.

mod keyword;

use std::sync::Arc;

use super::Retriever;
use crate::store::Documents;

/// Every lane: add a line for a new one.
#[must_use]
pub fn all(documents: &Arc<dyn Documents>) -> Vec<Box<dyn Retriever>> {
    vec![Box::new(keyword::Keyword::new(documents.clone()))]
}
