//! What differs between the two databases, and how a statement with its values is run on either.

use std::borrow::Cow;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use sqlx::{
    Arguments, Connection, Database, Either, Encode, Executor, IntoArguments, SqlStr, Type,
};
use uuid::Uuid;

use super::row::Columns;

/// A database: its statements that the other one does not understand, and its driver.
pub(super) trait Dialect: Send + Sync + 'static {
    /// The name that health and metrics show.
    const KIND: &'static str;
    /// Whether the database takes one writer at a time: then writes of this process queue here.
    const ONE_WRITER: bool;
    /// Asks for an answer, and fails where the database takes no writes, as far as that shows.
    const PING: &'static str;
    /// Stores a document (`$1` id, `$2` tenant, `$3` title, `$4` text, `$5` time of creation) and
    /// its passages (`$6`: a JSON array of pairs of text and terms). Several statements are run in
    /// one transaction.
    const ADD_DOCUMENT: &'static [&'static str];
    /// Finds the tenant's (`$1`) passages that have any word of the full-text query (`$2`), at most
    /// `$3`, the best by the database's own rank first.
    const SEARCH: &'static str;

    /// The driver's connection.
    type Connection: Connection + 'static;
    /// The driver's row.
    type Row: Columns + Send + 'static;

    /// Writes a full-text query that matches any of the words.
    fn any_word(words: &[String]) -> String;

    /// Runs a call's statements on a connection.
    fn run<'c>(
        connection: &'c mut Self::Connection,
        call: &'c Call<'_>,
    ) -> BoxFuture<'c, Result<Answer<Self::Row>, sqlx::Error>>;
}

/// What a call does to the database, from which follows whether it may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The call changes nothing. It is repeated when its connection breaks.
    Read,
    /// A second call changes nothing and answers the same. It is repeated when its connection
    /// breaks.
    IdempotentWrite,
    /// A second call would answer otherwise. It is made once, on a connection known to be alive.
    Write,
}

/// Statements with their values. Statements are written as Postgres reads them, with `$1` to `$n`
/// for the values.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub effect: Effect,
    /// Whether the call leaves a part of the pool to the others; see [`Call::leaving_connections`].
    pub leaves_connections: bool,
    pub statements: &'a [&'static str],
    pub values: Vec<Value<'a>>,
}

impl<'a> Call<'a> {
    pub fn new(effect: Effect, statements: &'a [&'static str]) -> Self {
        Self {
            effect,
            leaves_connections: false,
            statements,
            values: Vec::new(),
        }
    }

    /// Leaves a part of the pool to calls that are short: records, keys and health. It is for calls
    /// whose time grows with what is stored, such as searches and listings.
    pub fn leaving_connections(mut self) -> Self {
        self.leaves_connections = true;
        self
    }

    /// Adds the next value.
    pub fn bind(mut self, value: impl Into<Value<'a>>) -> Self {
        self.values.push(value.into());
        self
    }
}

/// A value of a statement.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Number(Option<i64>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl From<Uuid> for Value<'_> {
    fn from(id: Uuid) -> Self {
        id.to_string().into()
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(Cow::from))
    }
}

impl From<Option<Uuid>> for Value<'_> {
    fn from(id: Option<Uuid>) -> Self {
        Self::Text(id.map(|id| id.to_string().into()))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

/// What a database answered to a call.
#[derive(Debug)]
pub(super) struct Answer<R> {
    /// The rows, of all statements together.
    pub rows: Vec<R>,
    /// The number of rows that the statements changed.
    pub changed: u64,
}

impl<R> Default for Answer<R> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            changed: 0,
        }
    }
}

/// Runs one statement and adds what the database answers to `answer`.
pub(super) async fn run<DB>(
    connection: &mut DB::Connection,
    sql: SqlStr,
    values: &[Value<'_>],
    changed: fn(&DB::QueryResult) -> u64,
    answer: &mut Answer<DB::Row>,
) -> Result<(), sqlx::Error>
where
    DB: Database,
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'v> &'v str: Type<DB>,
    for<'v> Option<&'v str>: Encode<'v, DB>,
    for<'v> Option<i64>: Encode<'v, DB> + Type<DB>,
{
    let mut arguments = DB::Arguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text.as_deref()),
            Value::Number(number) => arguments.add(*number),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    let mut answers = connection.fetch_many(sqlx::query_with(sql, arguments));
    while let Some(part) = answers.try_next().await? {
        match part {
            Either::Left(done) => answer.changed += changed(&done),
            Either::Right(row) => answer.rows.push(row),
        }
    }
    Ok(())
}
