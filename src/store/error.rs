//! The store's error, and how a driver's error becomes one: one table for the SQLSTATEs of Postgres
//! and one for the result codes of SQLite.
//!
//! Messages are the server's own words. They name no credentials and quote no value of a client.

use std::time::Duration;

/// Why a call of the store failed.
///
/// Only [`StoreError::Rejected`] is the client's own error; a client never sees the text of another
/// variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached: it refuses or resets connections, or it restarts.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// No connection of the pool became free within the acquire timeout, which the value is.
    #[error("no connection to the store became free within {0:?}")]
    PoolExhausted(Duration),
    /// The database gave no answer within the statement timeout, which the value is.
    #[error("the store gave no answer within {0:?}")]
    Timeout(Duration),
    /// The database takes no writes: it is read-only, its disk is full, or a right is missing.
    #[error("the store takes no writes: {0}")]
    NotWritable(String),
    /// The database cannot keep the value, for example a text with a NUL character.
    #[error("{0}")]
    Rejected(String),
    /// Anything else: the schema belongs to another program, or a bug.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// What an error means for the connection that it came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionDisposition {
    /// The connection can be used again.
    Usable,
    /// The connection is dead or may be in the middle of something. It is closed.
    Lost,
    /// The connection works, but what was settled when it began, or what was prepared on it, may no
    /// longer hold. It is closed.
    Stale,
}

/// Returns what an error means for its connection.
pub(super) fn disposition(error: &sqlx::Error) -> ConnectionDisposition {
    match error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some(code) if is_postgres(database.as_ref()) => postgres_disposition(code),
            _ => ConnectionDisposition::Usable,
        },
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_) => ConnectionDisposition::Usable,
        _ => ConnectionDisposition::Lost,
    }
}

/// Returns why the call failed. `bound` is the timeout that held for the call.
pub(super) fn classify(error: &sqlx::Error, bound: Duration) -> StoreError {
    match error {
        sqlx::Error::Database(database) => {
            let message = database.message().to_owned();
            match database.code().as_deref() {
                Some(code) if is_postgres(database.as_ref()) => postgres(code, message, bound),
                Some(code) => sqlite(code, message, bound),
                None => StoreError::Failed(message),
            }
        }
        sqlx::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        sqlx::Error::Tls(error) => StoreError::Unavailable(format!("TLS: {error}")),
        sqlx::Error::WorkerCrashed => {
            StoreError::Unavailable("the connection's worker ended".into())
        }
        // the driver met the end of the connection, or noise, in the middle of a message
        sqlx::Error::Protocol(message) => StoreError::Unavailable(message.clone()),
        other => StoreError::Failed(other.to_string()),
    }
}

/// Returns whether SQLite refused because another connection holds a lock (SQLITE_BUSY).
pub(super) fn is_sqlite_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    primary_code(code.as_deref().unwrap_or_default()) == Some(5)
}

fn is_postgres(error: &(dyn sqlx::error::DatabaseError + 'static)) -> bool {
    error
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some()
}

/// The SQLSTATEs stand in appendix A of the documentation of PostgreSQL.
fn postgres_disposition(code: &str) -> ConnectionDisposition {
    match code {
        // admin shutdown, crash shutdown, cannot connect now, database dropped, idle session
        // timeout
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" => ConnectionDisposition::Lost,
        // cached plan must not change result type; a prepared statement is gone (a pooler between);
        // read-only: whether a session writes may have been settled when it began, so that only a
        // new session shows that writing is allowed again
        "0A000" | "26000" | "25006" => ConnectionDisposition::Stale,
        code if code.starts_with("08") => ConnectionDisposition::Lost,
        _ => ConnectionDisposition::Usable,
    }
}

fn postgres(code: &str, message: String, bound: Duration) -> StoreError {
    match code {
        // query canceled, lock not available
        "57014" | "55P03" => StoreError::Timeout(bound),
        // read-only transaction, disk full, insufficient privilege
        "25006" | "53100" | "42501" => StoreError::NotWritable(message),
        // not in repertoire, untranslatable character, truncation, program limit, unique violation
        "22021" | "22P05" | "22001" | "54000" | "23505" => StoreError::Rejected(message),
        // no connections allowed, no such database
        "55000" | "3D000" => StoreError::Unavailable(message),
        // 08: connection; 57P: operator; 53: resources, such as too many connections
        code if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") => {
            StoreError::Unavailable(message)
        }
        // 28: the password or the role is wrong, which the operator mends, never the client
        code if code.starts_with("28") => StoreError::Unavailable(message),
        code => StoreError::Failed(format!("{message} (SQLSTATE {code})")),
    }
}

/// The result codes stand in <https://www.sqlite.org/rescode.html>.
fn sqlite(code: &str, message: String, bound: Duration) -> StoreError {
    match (primary_code(code), code) {
        // busy, locked, interrupted
        (Some(5 | 6 | 9), _) => StoreError::Timeout(bound),
        // permission, read-only, full, authorization
        (Some(3 | 8 | 13 | 23), _) => StoreError::NotWritable(message),
        // input/output, cannot open
        (Some(10 | 14), _) => StoreError::Unavailable(message),
        // too big; a primary key or unique constraint
        (Some(18), _) | (_, "1555" | "2067") => StoreError::Rejected(message),
        _ => StoreError::Failed(format!("{message} (SQLite result code {code})")),
    }
}

/// The primary result code is the low byte of an extended one.
fn primary_code(code: &str) -> Option<i32> {
    code.parse::<i32>().ok().map(|code| code & 0xff)
}
