//! Reads values from rows: both databases answer with the same columns in the same order.

use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

use super::text::Found;
use super::{Document, KeyRecord, Page, QueryRecord, StoreError};

/// The types of columns that the store has, read by position from 0.
pub(super) trait Columns {
    fn text(&self, at: usize) -> Result<String, StoreError>;
    fn optional_text(&self, at: usize) -> Result<Option<String>, StoreError>;
    fn number(&self, at: usize) -> Result<i64, StoreError>;
    fn optional_number(&self, at: usize) -> Result<Option<i64>, StoreError>;

    fn uuid(&self, at: usize) -> Result<Uuid, StoreError> {
        let text = self.text(at)?;
        Uuid::parse_str(&text).map_err(|error| {
            StoreError::Failed(format!("`{text}` in the store is not a UUID: {error}"))
        })
    }
}

impl<R: Row> Columns for R
where
    usize: ColumnIndex<R>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    fn text(&self, at: usize) -> Result<String, StoreError> {
        self.try_get(at).map_err(unreadable)
    }

    fn optional_text(&self, at: usize) -> Result<Option<String>, StoreError> {
        self.try_get(at).map_err(unreadable)
    }

    fn number(&self, at: usize) -> Result<i64, StoreError> {
        self.try_get(at).map_err(unreadable)
    }

    fn optional_number(&self, at: usize) -> Result<Option<i64>, StoreError> {
        self.try_get(at).map_err(unreadable)
    }
}

fn unreadable(error: sqlx::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// Reads id, title, text, created_at.
pub(super) fn document(row: &impl Columns) -> Result<Document, StoreError> {
    Ok(Document {
        id: row.uuid(0)?,
        title: row.text(1)?,
        text: row.text(2)?,
        created_at: row.number(3)?,
    })
}

/// Reads document, ordinal, title, text, terms.
pub(super) fn found(row: &impl Columns) -> Result<Found, StoreError> {
    Ok(Found {
        document: row.uuid(0)?,
        ordinal: row.number(1)?,
        title: row.text(2)?,
        text: row.text(3)?,
        terms: row.text(4)?,
    })
}

/// Reads id, tenant, status, created_at, document from the column `first` on.
pub(super) fn query_record(row: &impl Columns, first: usize) -> Result<QueryRecord, StoreError> {
    let document = row.text(first + 4)?;
    Ok(QueryRecord {
        id: row.uuid(first)?,
        tenant: row.text(first + 1)?,
        status: row.text(first + 2)?,
        created_at: row.number(first + 3)?,
        document: serde_json::from_str(&document).map_err(|error| {
            StoreError::Failed(format!("a recorded query is not JSON: {error}"))
        })?,
    })
}

/// Reads the total and then the columns of a record, which are null in the one row of a page
/// without records.
pub(super) fn page(rows: &[impl Columns]) -> Result<Page, StoreError> {
    let total = rows.first().map_or(Ok(0), |row| row.number(0))?;
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        if row.optional_text(1)?.is_some() {
            records.push(query_record(row, 1)?);
        }
    }
    Ok(Page {
        records,
        total: u64::try_from(total).unwrap_or(0),
    })
}

/// Reads id, tenant, hash, prefix, created_at, revoked_at.
pub(super) fn key_record(row: &impl Columns) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        id: row.uuid(0)?,
        tenant: row.text(1)?,
        hash: row.text(2)?,
        prefix: row.text(3)?,
        created_at: row.number(4)?,
        revoked_at: row.optional_number(5)?,
    })
}
