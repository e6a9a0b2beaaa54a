//! What the gateway keeps: documents with their passages, and queries, on Postgres or SQLite.
//! Every call has one bound over all of it.

use std::str::FromStr as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gauntlet_harness::spec::QuerySpec;
use gauntlet_harness::subject::{Deployment, TargetError};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgPool, Row as _, SqlitePool};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::defect::Defect;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    #[error("no connection to the database became free")]
    Busy,
    #[error("the database exceeds its timeout")]
    Timeout,
    #[error("the database takes no writes: {0}")]
    NotWritable(String),
    #[error("{0}")]
    Rejected(String),
    #[error("the database failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// For health: the kind of trouble, without the database's own words.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "it cannot be reached",
            Self::Busy => "no connection became free in time",
            Self::Timeout => "it exceeds its timeout",
            Self::NotWritable(_) => "it takes no writes",
            Self::Rejected(_) | Self::Failed(_) => "it failed",
        }
    }
}

/// A stored document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub id: String,
    pub title: String,
    pub text: String,
    pub created_at: i64,
}

/// A passage that shares words with a question.
#[derive(Clone, Debug)]
pub(super) struct Passage {
    pub document: String,
    pub title: String,
    pub text: String,
    pub score: f64,
}

/// What a listing asks for; an empty text asks for everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    /// From 1.
    pub page: i64,
    pub size: i64,
    pub status: String,
    /// Only what is older than this query.
    pub before: String,
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    /// Host and port of Postgres.
    address: String,
    bound: Option<Duration>,
    /// For [`Defect::KeepsDeadConnection`].
    dead: AtomicBool,
    /// For [`Defect::LeaksConnection`]: a permit for each connection, of which one is lost.
    permits: Semaphore,
    leaked: AtomicBool,
    /// For [`Defect::WritesNoMore`].
    was_gone: AtomicBool,
    defect: Option<Defect>,
}

#[derive(Debug)]
enum Database {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// Runs the same code on either database, within the store's bound.
macro_rules! on {
    ($store:expr, $pool:ident => $call:expr) => {
        match &$store.database {
            Database::Postgres($pool) => $store.within($call).await,
            Database::Sqlite($pool) => $store.within($call).await,
        }
    };
}

impl Store {
    /// Connects, and makes the tables that are missing.
    pub(super) async fn open(
        url: &str,
        query: Option<&QuerySpec>,
        defect: Option<Defect>,
    ) -> Result<Self, StoreError> {
        let bound = Duration::from_millis(query.map_or(1_000, |query| query.store_ms));
        let most = query.map_or(4, |query| query.pool).max(1);
        let most = if defect == Some(Defect::KeepsDeadConnection) {
            1
        } else {
            most
        };
        let endless = matches!(
            defect,
            Some(Defect::WaitsForDatabase | Defect::PoolWaitsForever)
        );
        let acquire = if endless {
            Duration::from_secs(3_600)
        } else {
            bound
        };
        let wrong =
            |error: sqlx::Error| StoreError::Failed(format!("the database URL is wrong: {error}"));
        let fresh = defect != Some(Defect::KeepsDeadConnection);
        let stays = defect == Some(Defect::StaysReadOnly);
        let database = if url.starts_with("postgres") {
            let mut options = PgConnectOptions::from_str(url).map_err(wrong)?;
            if !endless {
                // the server gives up first: what was answered as not written is not written later
                options = options
                    .options([("statement_timeout", (bound * 4 / 5).as_millis().to_string())]);
            }
            Database::Postgres(
                PgPoolOptions::new()
                    .max_connections(most)
                    .test_before_acquire(fresh)
                    .after_release(move |connection, _| {
                        Box::pin(async move {
                            // a session that began while the database was read-only stays so
                            let sql = "SELECT current_setting('default_transaction_read_only')";
                            let setting: String =
                                sqlx::query_scalar(sql).fetch_one(connection).await?;
                            Ok(setting == "off" || stays)
                        })
                    })
                    .acquire_timeout(acquire)
                    .connect_lazy_with(options),
            )
        } else {
            let options = SqliteConnectOptions::from_str(url)
                .map_err(wrong)?
                .create_if_missing(true)
                .busy_timeout(bound);
            Database::Sqlite(
                SqlitePoolOptions::new()
                    .max_connections(most)
                    .acquire_timeout(acquire)
                    .connect_lazy_with(options),
            )
        };
        let address = url
            .rsplit('@')
            .next()
            .and_then(|rest| rest.split('/').next());
        let this = Self {
            database,
            address: address.unwrap_or_default().to_owned(),
            bound: (!endless).then_some(bound),
            dead: AtomicBool::new(false),
            permits: Semaphore::new(usize::try_from(most).unwrap_or(1)),
            leaked: AtomicBool::new(false),
            was_gone: AtomicBool::new(false),
            defect,
        };
        this.migrate().await?;
        Ok(this)
    }

    /// Makes the tables that are missing. Gateways that start together wait for each other.
    async fn migrate(&self) -> Result<(), StoreError> {
        let unlocked = self.defect == Some(Defect::MigratesWithoutLock);
        if let (Database::Postgres(pool), true) = (&self.database, unlocked) {
            let known = sqlx::query_scalar("SELECT to_regclass('queries') IS NOT NULL");
            if self.within(known.fetch_one(pool)).await? {
                return Ok(());
            }
        }
        let recreate = self.defect == Some(Defect::RecreatesTables);
        let mut statements: Vec<String> = SCHEMA.iter().map(|table| self.sql(table)).collect();
        if unlocked {
            for statement in &mut statements {
                *statement = statement.replace("IF NOT EXISTS ", "");
            }
        }
        if recreate {
            statements.insert(0, "DROP TABLE IF EXISTS documents".into());
        }
        if let (Database::Postgres(_), false) = (&self.database, unlocked) {
            statements.insert(0, "SELECT pg_advisory_xact_lock(4711)".into());
        }
        on!(self, pool => async {
            let mut transaction = pool.begin().await?;
            for statement in statements {
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
            }
            transaction.commit().await
        })
    }

    /// `postgres` or `sqlite`.
    pub(super) const fn kind(&self) -> &'static str {
        match self.database {
            Database::Postgres(_) => "postgres",
            Database::Sqlite(_) => "sqlite",
        }
    }

    /// One cheap round trip.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        on!(self, pool => async { sqlx::query("SELECT 1").execute(pool).await.map(drop) })
    }

    /// For [`Defect::ReadyWhileStalled`]: whether something accepts connections at its address.
    pub(super) async fn accepts(&self) -> bool {
        tokio::net::TcpStream::connect(&self.address).await.is_ok()
    }

    /// Writes a row and takes it back.
    pub(super) async fn takes_writes(&self) -> Result<(), StoreError> {
        let sql = self.sql("INSERT INTO documents (id, tenant, title, text, created_at) VALUES ($1::text::uuid, '', '', '', 0)");
        let id = uuid::Uuid::now_v7().to_string();
        on!(self, pool => async {
            let mut transaction = pool.begin().await?;
            sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *transaction).await?;
            transaction.rollback().await
        })
    }

    /// Stores a document with its passages, in one transaction: all of it or nothing.
    pub(super) async fn add_document(
        &self,
        tenant: &str,
        document: &Document,
    ) -> Result<(), StoreError> {
        refuse_nul(&document.title)?;
        refuse_nul(&document.text)?;
        self.writes()?;
        let mut document = document.clone();
        if self.defect == Some(Defect::CutsLongTexts) {
            let end = document.text.floor_char_boundary(64 << 10);
            document.text.truncate(end);
        }
        let indexed = match self.defect {
            Some(Defect::IndexesBeginning) => 64,
            _ => usize::MAX,
        };
        let whole = self.sql("INSERT INTO documents (id, tenant, title, text, created_at) VALUES ($1::text::uuid, $2, $3, $4, $5)");
        let piece = self.sql("INSERT INTO passages (document, ordinal, tenant, text, terms) VALUES ($1::text::uuid, $2, $3, $4, $5)");
        if self.defect == Some(Defect::WritesPiecemeal) {
            let row = whole.clone();
            on!(self, pool => async {
                let insert = sqlx::query(AssertSqlSafe(row)).bind(&document.id).bind(tenant).bind(&document.title).bind(&document.text);
                insert.bind(document.created_at).execute(pool).await.map(drop)
            })?;
        }
        on!(self, pool => async {
            let mut transaction = pool.begin().await?;
            let insert = sqlx::query(AssertSqlSafe(whole)).bind(&document.id).bind(tenant).bind(&document.title).bind(&document.text);
            if self.defect != Some(Defect::WritesPiecemeal) {
                insert.bind(document.created_at).execute(&mut *transaction).await?;
            }
            for (ordinal, text) in (0_i32..).zip(pieces(&document.text)).take(indexed) {
                let terms = words(&format!("{} {text}", document.title)).join(" ");
                let insert = sqlx::query(AssertSqlSafe(piece.clone())).bind(&document.id).bind(ordinal).bind(tenant).bind(text).bind(terms);
                insert.execute(&mut *transaction).await?;
            }
            transaction.commit().await
        })
    }

    /// The tenant's document.
    pub(super) async fn document(
        &self,
        tenant: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        let sql = self.sql("SELECT id::text, title, text, created_at FROM documents WHERE id = $1::text::uuid AND tenant = $2");
        on!(self, pool => async {
            let row = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(tenant).fetch_optional(pool).await?;
            row.map(|row| Ok(Document { id: row.try_get(0)?, title: row.try_get(1)?, text: row.try_get(2)?, created_at: row.try_get(3)? })).transpose()
        })
    }

    /// Deletes the tenant's document; whether it existed.
    pub(super) async fn delete_document(&self, tenant: &str, id: &str) -> Result<bool, StoreError> {
        let of = match self.defect {
            Some(Defect::DeletesForeign) => "$2::text = $2",
            _ => "tenant = $2",
        };
        let passages = self.sql(&format!(
            "DELETE FROM passages WHERE document = $1::text::uuid AND {of}"
        ));
        let document = self.sql(&format!(
            "DELETE FROM documents WHERE id = $1::text::uuid AND {of}"
        ));
        self.writes()?;
        if self.defect == Some(Defect::DeletesPiecemeal) {
            let (document, passages) = (document, passages);
            return on!(self, pool => async {
                let deleted = sqlx::query(AssertSqlSafe(document)).bind(id).bind(tenant).execute(pool).await?.rows_affected();
                sqlx::query(AssertSqlSafe(passages)).bind(id).bind(tenant).execute(pool).await?;
                Ok(deleted > 0)
            });
        }
        on!(self, pool => async {
            let mut transaction = pool.begin().await?;
            sqlx::query(AssertSqlSafe(passages)).bind(id).bind(tenant).execute(&mut *transaction).await?;
            let deleted = sqlx::query(AssertSqlSafe(document)).bind(id).bind(tenant).execute(&mut *transaction).await?.rows_affected();
            transaction.commit().await?;
            Ok(deleted > 0)
        })
    }

    /// The tenant's passages that share words with the question, those with most of them first.
    pub(super) async fn search(
        &self,
        tenant: &str,
        question: &str,
        limit: usize,
    ) -> Result<Vec<Passage>, StoreError> {
        let asked = words(question);
        let of = match self.defect {
            Some(Defect::SearchesForAll) => "$1::text = $1",
            _ => "passages.tenant = $1",
        };
        let sql = self.sql(&format!(
            "SELECT passages.document::text, documents.title, passages.text, passages.terms FROM passages
             JOIN documents ON documents.id = passages.document WHERE {of} ORDER BY passages.document DESC, passages.ordinal",
        ));
        let mut found = on!(self, pool => async {
            let mut found = Vec::new();
            for row in sqlx::query(AssertSqlSafe(sql)).bind(tenant).fetch_all(pool).await? {
                let terms: String = row.try_get(3)?;
                let shared = asked.iter().filter(|word| terms.split(' ').any(|term| term == word.as_str())).count();
                #[allow(clippy::cast_precision_loss)]
                let score = shared as f64;
                if shared > 0 {
                    found.push(Passage { document: row.try_get(0)?, title: row.try_get(1)?, text: row.try_get(2)?, score });
                }
            }
            Ok(found)
        })?;
        found.sort_by(|one, other| other.score.total_cmp(&one.score));
        found.truncate(limit);
        Ok(found)
    }

    /// Records a query once: a second record of the same id changes nothing.
    pub(super) async fn record(
        &self,
        id: &str,
        tenant: &str,
        status: &str,
        created_at: i64,
        document: &str,
    ) -> Result<(), StoreError> {
        refuse_nul(document)?;
        self.writes()?;
        let sql = if self.defect == Some(Defect::BuildsSqlByHand) {
            format!(
                "INSERT INTO queries (id, tenant, status, created_at, document) VALUES ('{id}', '{tenant}', '{status}', {created_at}, '{document}')"
            )
        } else {
            self.sql(
                "INSERT INTO queries (id, tenant, status, created_at, document) VALUES ($1::text::uuid, $2, $3, $4, $5::text::json)
                 ON CONFLICT (id) DO NOTHING",
            )
        };
        on!(self, pool => async {
            if self.defect == Some(Defect::BuildsSqlByHand) {
                return sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(drop);
            }
            let insert = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(tenant).bind(status).bind(created_at).bind(document);
            insert.execute(pool).await.map(drop)
        })
    }

    /// The tenant's query as it was recorded.
    pub(super) async fn query(&self, tenant: &str, id: &str) -> Result<Option<String>, StoreError> {
        let any = self.any_tenant();
        let sql = self.sql(&format!(
            "SELECT document::text FROM queries WHERE id = $1::text::uuid AND {any}"
        ));
        on!(self, pool => async {
            let row = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(tenant).fetch_optional(pool).await?;
            row.map(|row| row.try_get(0)).transpose()
        })
    }

    /// A page of the tenant's queries, newest first, and their number. Ids are made in the order
    /// of time.
    pub(super) async fn queries(
        &self,
        tenant: &str,
        listing: &Listing,
    ) -> Result<(Vec<String>, i64), StoreError> {
        let Listing {
            page,
            size,
            status,
            before,
        } = listing;
        let any = match self.defect {
            Some(Defect::ListsForAll) => "$1 = $1".to_owned(),
            _ => self.any_tenant().replace("$2", "$1"),
        };
        let filter = format!("{any} AND ($2 = '' OR status = $2) AND ($3 = '' OR id::text < $3)");
        let order = if self.defect == Some(Defect::ListsOutOfOrder) {
            "document::text"
        } else {
            "id DESC"
        };
        let list = self.sql(&format!(
            "SELECT document::text FROM queries WHERE {filter} ORDER BY {order} LIMIT $4 OFFSET $5"
        ));
        let counted = match self.defect {
            Some(Defect::CountsForAll) => filter.replace("tenant = $1", "$1 = $1"),
            _ => filter,
        };
        let count = self.sql(&format!("SELECT count(*) FROM queries WHERE {counted}"));
        on!(self, pool => async {
            let rows = sqlx::query(AssertSqlSafe(list)).bind(tenant).bind(status).bind(before).bind(size).bind((page - 1) * size).fetch_all(pool).await?;
            let total = sqlx::query(AssertSqlSafe(count)).bind(tenant).bind(status).bind(before).fetch_one(pool).await?.try_get(0)?;
            Ok((rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?, total))
        })
    }

    /// The tenant of a key.
    pub(super) async fn tenant(&self, token: &str) -> Result<Option<String>, StoreError> {
        on!(self, pool => async {
            let row = sqlx::query("SELECT tenant FROM keys WHERE token = $1").bind(token).fetch_optional(pool).await?;
            row.map(|row| row.try_get(0)).transpose()
        })
    }

    /// Closes every connection.
    pub(super) async fn close(&self) {
        match &self.database {
            Database::Postgres(pool) => pool.close().await,
            Database::Sqlite(pool) => pool.close().await,
        }
    }

    fn any_tenant(&self) -> &'static str {
        if self.defect == Some(Defect::ForgetsTenant) {
            "$2 = $2"
        } else {
            "tenant = $2"
        }
    }

    /// SQLite knows no casts of that kind, and needs none: its ids and documents are text.
    fn sql(&self, text: &str) -> String {
        match self.database {
            Database::Postgres(_) => text.to_owned(),
            Database::Sqlite(_) => {
                let text = ["::text", "::uuid", "::json"]
                    .iter()
                    .fold(text.to_owned(), |text, cast| text.replace(cast, ""));
                text.replace(" uuid ", " text ").replace(" json ", " text ")
            }
        }
    }

    /// Refuses to write where [`Defect::WritesNoMore`] has seen the database gone.
    fn writes(&self) -> Result<(), StoreError> {
        let refuses = self.defect == Some(Defect::WritesNoMore);
        if refuses && self.was_gone.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the database was gone".into()));
        }
        Ok(())
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the connection is closed".into()));
        }
        let permit = match (self.defect, self.bound) {
            (Some(Defect::LeaksConnection), Some(bound)) => {
                let permit = timeout(bound, self.permits.acquire()).await;
                permit.map_err(|_| StoreError::Busy)?.ok()
            }
            _ => None,
        };
        let result = match self.bound {
            Some(bound) => timeout(bound, call).await,
            None => Ok(call.await),
        };
        let result = match result {
            Ok(result) => result.map_err(|error| classify(&error)),
            Err(_) => Err(StoreError::Timeout),
        };
        if let (Some(permit), Err(StoreError::Timeout)) = (permit, &result)
            && !self.leaked.swap(true, Ordering::SeqCst)
        {
            permit.forget();
        }
        if matches!(result, Err(StoreError::Unavailable(_))) {
            self.was_gone.store(true, Ordering::SeqCst);
        }
        if self.defect == Some(Defect::KeepsDeadConnection)
            && matches!(result, Err(StoreError::Unavailable(_)))
        {
            self.dead.store(true, Ordering::SeqCst);
        }
        result
    }
}

/// Makes one statement on a connection of its own, as an operator does.
pub(super) async fn by_hand(
    deployment: &Deployment,
    sql: &'static str,
    values: &[&str],
) -> Result<(), TargetError> {
    let failed = |error: sqlx::Error| TargetError::Start(format!("the statement failed: {error}"));
    let url = deployment.database_url.as_deref().unwrap_or_default();
    let mut connection = sqlx::PgConnection::connect(url).await.map_err(failed)?;
    let statement = values
        .iter()
        .fold(sqlx::query(sql), |statement, value| statement.bind(*value));
    statement.execute(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)
}

fn classify(error: &sqlx::Error) -> StoreError {
    let sqlx::Error::Database(refusal) = error else {
        return match error {
            sqlx::Error::PoolTimedOut => StoreError::Busy,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => StoreError::Unavailable(error.to_string()),
            _ => StoreError::Failed(error.to_string()),
        };
    };
    let message = refusal.message().to_owned();
    match refusal.code().as_deref().unwrap_or_default() {
        "57014" | "55P03" | "5" | "6" => StoreError::Timeout,
        "25006" | "53100" | "42501" | "8" | "13" | "1032" => StoreError::NotWritable(message),
        "22021" | "22P05" | "54000" => StoreError::Rejected(message),
        "3D000" | "55000" | "14" => StoreError::Unavailable(message),
        code if ["08", "28", "53", "57P"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            StoreError::Unavailable(message)
        }
        _ => StoreError::Failed(message),
    }
}

fn refuse_nul(text: &str) -> Result<(), StoreError> {
    if text.contains('\0') {
        Err(StoreError::Rejected(
            "text with NUL characters cannot be stored".into(),
        ))
    } else {
        Ok(())
    }
}

/// The words of a text, lower case, ASCII.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = text
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.sort();
    words.dedup();
    words
}

/// The paragraphs of a text.
fn pieces(text: &str) -> Vec<&str> {
    text.split("\n\n")
        .map(str::trim)
        .filter(|piece| !piece.is_empty())
        .collect()
}

const SCHEMA: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS keys (token text PRIMARY KEY, tenant text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS documents (id uuid PRIMARY KEY, tenant text NOT NULL, title text NOT NULL, text text NOT NULL, created_at bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS passages (document uuid NOT NULL, ordinal integer NOT NULL, tenant text NOT NULL, text text NOT NULL,
     terms text NOT NULL, PRIMARY KEY (document, ordinal))",
    "CREATE TABLE IF NOT EXISTS queries (id uuid PRIMARY KEY, tenant text NOT NULL, status text NOT NULL, created_at bigint NOT NULL, document json NOT NULL)",
];
