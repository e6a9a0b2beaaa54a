//! Opens the store that the configuration names: connects, brings the schema up to date, hands out the trait.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::checked::Checked;
use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{Store, StoreError};
use crate::config::StoreConfig;

/// Opens the store and migrates it.
///
/// # Errors
/// [`StoreError::Unavailable`] when it cannot be reached within the acquire time-out, [`StoreError::Failed`] when the URL is not
/// understood or the schema is not this program's. Messages name the host and the database, never credentials.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    let url = config.url.expose_secret();
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => {
            Ok(Arc::new(Checked(PostgresStore::open(config).await?)))
        }
        Some("sqlite") => Ok(Arc::new(Checked(SqliteStore::open(config).await?))),
        scheme => Err(StoreError::Failed(format!(
            "store.url begins with `{}`: use postgres://user@host/database, sqlite://path or sqlite::memory:",
            scheme.unwrap_or("no scheme")
        ))),
    }
}
