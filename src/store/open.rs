//! Opens the store that the configuration names.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::{Store, StoreError, postgres, sqlite};
use crate::config::StoreConfig;

/// Opens the store: connects to the database and brings its schema up to date.
///
/// # Errors
/// [`StoreError::Unavailable`] when the database cannot be reached within the acquire timeout,
/// [`StoreError::Failed`] when the URL is not understood or the schema belongs to another program.
/// Messages name the host and the database, never credentials.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    let url = config.url.expose_secret();
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => Ok(Arc::new(postgres::open(config).await?)),
        Some("sqlite") => Ok(Arc::new(sqlite::open(config).await?)),
        scheme => Err(StoreError::Failed(format!(
            "store.url begins with `{}`: \
             use postgres://user@host/database, sqlite://path or sqlite::memory:",
            scheme.unwrap_or("no scheme")
        ))),
    }
}
