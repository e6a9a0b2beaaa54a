//! What a database can suffer and what the store makes of it: a bounded wait, an error of its own
//! kind, never half a record, and recovery without a restart. Locks and the wire in front of the
//! database prove the order of events; nothing here sleeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod databases;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use databases::{On, TestStore, Tests, add, config};
use futures::future::join_all;
use gauntlet::config::StoreConfig;
use gauntlet::store::{self as stores, NewDocument, QueryRecord, Store, StoreError};
use gauntlet_harness::database::End;
use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::postgres::{AtStatement, DatabaseWire};
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

fn main() -> ExitCode {
    let mut tests = Tests::default();
    for fault in ["read only", "no right", "disk full"] {
        for write in [Write::Document, Write::Record] {
            let name = "a_database_that_takes_no_writes_is_reported_and_still_reads";
            let name = format!("{name}::{}::{write:?}", fault.replace(' ', "_"));
            tests.on(On::Postgres, &name, move |db| {
                a_database_that_takes_no_writes_is_reported_and_still_reads(db, fault, write)
            });
        }
    }
    for fault in [AtStatement::Cut, AtStatement::Reset, AtStatement::LoseReply] {
        for write in [Write::Document, Write::Record] {
            let name = format!("a_cut_connection_leaves_all_or_nothing::{fault:?}::{write:?}");
            let fault = fault.clone();
            tests.on(On::Postgres, &name, move |db| {
                a_cut_connection_leaves_all_or_nothing(db, fault, write)
            });
        }
    }
    for fault in [AtStatement::Cut, AtStatement::LoseReply] {
        let name = format!("a_call_that_is_not_idempotent_is_made_once::{fault:?}");
        tests.on(On::Postgres, &name, move |db| {
            a_call_that_is_not_idempotent_is_made_once(db, fault)
        });
    }
    for how in ["forbidden", "full"] {
        let name = format!("a_database_that_lets_nobody_in_is_unavailable::{how}");
        tests.on(On::Postgres, &name, move |db| {
            a_database_that_lets_nobody_in_is_unavailable(db, how)
        });
    }
    add!(tests.on(On::Postgres):
        connections_that_died_while_idle_are_replaced_without_an_error,
        a_database_that_cuts_every_call_is_unavailable,
        a_database_that_is_gone_is_reported_at_once_and_found_again,
        a_database_that_stalls_ends_every_call_in_time,
        a_stuck_statement_ends_in_time_and_writes_nothing_later,
        an_exhausted_pool_refuses_in_time_and_recovers,
        locked_documents_keep_no_query_from_being_recorded,
        a_dropped_call_frees_its_connection,
        a_changed_schema_costs_no_call,
        a_schema_of_another_program_is_refused_by_name,
        a_store_opens_on_a_read_only_database,
    );
    add!(tests.on(On::Sqlite): a_locked_file_ends_the_call_in_time);
    tests.run()
}

/// Bounds that a test reaches within its hang guard.
fn short(url: &str) -> StoreConfig {
    StoreConfig {
        acquire_timeout: Duration::from_millis(300),
        statement_timeout: Duration::from_millis(600),
        ..config(url)
    }
}

fn heron() -> NewDocument {
    NewDocument {
        title: "Birds".into(),
        text: "A heron stands in the water.".into(),
    }
}

fn record() -> QueryRecord {
    QueryRecord {
        id: Uuid::now_v7(),
        tenant: "a".into(),
        status: "complete".into(),
        created_at: 1,
        document: serde_json::json!({}),
    }
}

/// A store whose connections go through a wire.
struct Wired {
    db: TestStore,
    wire: DatabaseWire,
}

async fn wired(db: TestStore, bounds: fn(&str) -> StoreConfig) -> Wired {
    let TestStore { store, case } = db;
    store.close().await;
    let (host, port) = case.upstream().unwrap();
    let tape = Tape::new();
    let wire = DatabaseWire::bind(&format!("{host}:{port}"), tape.clone(), Gates::new(tape))
        .await
        .unwrap();
    let store = stores::open(&bounds(&wire.url(case.url()))).await.unwrap();
    Wired {
        db: TestStore { store, case },
        wire,
    }
}

/// No document without its passages, no passage without its document.
async fn documents(db: &TestStore) -> i64 {
    let whole = "SELECT count(*) FROM documents
        WHERE EXISTS (SELECT 1 FROM passages WHERE passages.document = documents.id)";
    let whole = db.case.scalar(whole).await.unwrap();
    assert_eq!(
        db.case.count("documents").await.unwrap(),
        whole,
        "a document without passages"
    );
    assert_eq!(
        db.case
            .scalar("SELECT count(DISTINCT document) FROM passages")
            .await
            .unwrap(),
        whole,
        "passages without a document"
    );
    whole
}

/// DATA-04: a restart kills every idle connection; no call fails, not even a write.
async fn connections_that_died_while_idle_are_replaced_without_an_error(db: TestStore) {
    // fills the pool
    assert!(
        join_all((0..4).map(|_| db.store.ping()))
            .await
            .into_iter()
            .all(|ping| ping.is_ok())
    );
    assert!(db.case.terminate_backends().await.unwrap() >= 1);
    db.store.ping().await.unwrap();
    db.case.terminate_backends().await.unwrap();
    let added = db.store.add_document("a", heron()).await.unwrap();
    db.case.terminate_backends().await.unwrap();
    db.store.record_query(record()).await.unwrap();
    db.case.terminate_backends().await.unwrap();
    assert!(
        db.store.delete_document("a", added.id).await.unwrap(),
        "the call is made once, on a connection that is checked before"
    );
    assert_eq!(db.case.count("queries").await.unwrap(), 1);
    db.end().await;
}

/// Makes more calls at once than the pool has connections.
async fn every_connection_serves(store: &Arc<dyn Store>) {
    for ping in join_all((0..12).map(|_| store.ping())).await {
        ping.unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Document,
    Record,
    Delete,
}

impl Write {
    async fn make(self, store: &Arc<dyn Store>, there: Uuid) -> Result<(), StoreError> {
        match self {
            Self::Document => store.add_document("a", heron()).await.map(|_| ()),
            Self::Record => store.record_query(record()).await,
            Self::Delete => store.delete_document("a", there).await.map(|_| ()),
        }
    }
}

/// DATA-10: the error has a kind of its own, and the write leaves nothing.
async fn a_database_that_takes_no_writes_is_reported_and_still_reads(
    db: TestStore,
    fault: &str,
    write: Write,
) {
    let there = db.store.add_document("a", heron()).await.unwrap();
    match fault {
        "read only" => db.case.read_only().await.unwrap(),
        "no right" => db.case.revoke_insert().await.unwrap(),
        _ => db.case.disk_full().await.unwrap(),
    }
    let error = write.make(&db.store, there.id).await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable(_)), "{error}");
    // HLTH-05
    let error = db.store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable(_)), "{error}");
    assert_eq!(
        db.store.document("a", there.id).await.unwrap(),
        Some(there.clone())
    );
    assert_eq!(db.store.search("a", "heron", 5).await.unwrap().len(), 1);
    assert_eq!(
        (
            documents(&db).await,
            db.case.count("queries").await.unwrap()
        ),
        (1, 0)
    );
    match fault {
        "read only" => db.case.read_write().await.unwrap(),
        "no right" => db.case.grant_insert().await.unwrap(),
        _ => db.case.disk_free().await.unwrap(),
    }
    write.make(&db.store, there.id).await.unwrap();
    db.store.ping().await.unwrap();
    db.end().await;
}

/// DATA-02: the reset comes before the statement, or after it and before its reply; both end in
/// exactly one record.
async fn a_cut_connection_leaves_all_or_nothing(db: TestStore, fault: AtStatement, write: Write) {
    let Wired { db, wire } = wired(db, config).await;
    wire.at_statement("insert into", fault);
    write.make(&db.store, Uuid::nil()).await.unwrap();
    assert_eq!(
        wire.statements("insert into", 2).await.unwrap().len(),
        2,
        "made again on a new connection"
    );
    match write {
        Write::Record => assert_eq!(db.case.count("queries").await.unwrap(), 1),
        _ => assert_eq!(documents(&db).await, 1),
    }
    db.end().await;
}

/// A call that must not be repeated is made once: the client has an error.
async fn a_call_that_is_not_idempotent_is_made_once(db: TestStore, fault: AtStatement) {
    let Wired { db, wire } = wired(db, config).await;
    let there = db.store.add_document("a", heron()).await.unwrap();
    wire.at_statement("delete from", fault.clone());
    let error = Write::Delete.make(&db.store, there.id).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let left = i64::from(fault == AtStatement::Cut);
    assert_eq!(documents(&db).await, left);
    assert_eq!(db.store.delete_document("a", there.id).await, Ok(left == 1));
    db.end().await;
}

/// A connection that keeps breaking is given up after one repetition.
async fn a_database_that_cuts_every_call_is_unavailable(db: TestStore) {
    let Wired { db, wire } = wired(db, config).await;
    db.store.ping().await.unwrap();
    for _ in 0..3 {
        wire.at_statement("insert into queries", AtStatement::Reset);
    }
    let error = db.store.record_query(record()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(db.case.count("queries").await.unwrap(), 0);
    db.store.record_query(record()).await.unwrap();
    db.end().await;
}

/// DATA-04: the database refuses and resets connections, and is back on the same address.
async fn a_database_that_is_gone_is_reported_at_once_and_found_again(db: TestStore) {
    let Wired { db, wire } = wired(db, config).await;
    db.store.ping().await.unwrap();
    wire.gone().await.unwrap();
    for error in [
        db.store.ping().await.unwrap_err(),
        db.store.record_query(record()).await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, StoreError::Unavailable(reason) if reason.contains("127.0.0.1")),
            "{error}"
        );
    }
    wire.resume().await.unwrap();
    every_connection_serves(&db.store).await;
    db.store.record_query(record()).await.unwrap();
    db.end().await;
}

async fn a_database_that_lets_nobody_in_is_unavailable(db: TestStore, how: &str) {
    match how {
        "forbidden" => db.case.forbid_connections().await.unwrap(),
        _ => db.case.limit_connections(0).await.unwrap(),
    }
    db.case.terminate_backends().await.unwrap();
    let error = db.store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    db.case.allow_connections().await.unwrap();
    db.case.limit_connections(-1).await.unwrap();
    db.store.ping().await.unwrap();
    db.end().await;
}

/// TIME-10: the database has the bytes and never answers; the call ends while it is still silent.
async fn a_database_that_stalls_ends_every_call_in_time(db: TestStore) {
    let Wired { db, wire } = wired(db, short).await;
    db.store.ping().await.unwrap();
    wire.stall();
    let calls = join_all((0..6).map(|_| db.store.ping()));
    for ended in guard("hang.test", "calls end by their own timeouts", calls)
        .await
        .unwrap()
    {
        let error = ended.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Timeout(_) | StoreError::Unavailable(_) | StoreError::PoolExhausted(_)
            ),
            "{error}"
        );
    }
    wire.resume().await.unwrap();
    every_connection_serves(&db.store).await;
    db.end().await;
}

/// TIME-10: a statement that waits for a lock ends while the lock is still held, and its connection
/// is free again.
async fn a_stuck_statement_ends_in_time_and_writes_nothing_later(db: TestStore) {
    let impatient = stores::open(&short(db.case.url())).await.unwrap();
    let lock = db.case.lock("queries").await.unwrap();
    let error = guard(
        "hang.test",
        "the call ends by its timeout",
        impatient.record_query(record()),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert_eq!(error, StoreError::Timeout(Duration::from_millis(600)));
    impatient.ping().await.unwrap();
    db.case.until_none_waits().await.unwrap();
    lock.release().await.unwrap();
    impatient.record_query(record()).await.unwrap();
    assert_eq!(
        db.case.count("queries").await.unwrap(),
        1,
        "what was given up is not there"
    );
    impatient.close().await;
    db.end().await;
}

/// DATA-03: the only connection waits for a lock; the second call is refused while it still waits;
/// after the lock is released both kinds of calls succeed.
async fn an_exhausted_pool_refuses_in_time_and_recovers(db: TestStore) {
    let bounds = StoreConfig {
        max_connections: 1,
        acquire_timeout: Duration::from_millis(300),
        ..config(db.case.url())
    };
    let narrow = stores::open(&bounds).await.unwrap();
    let lock = db.case.lock("queries").await.unwrap();
    let busy = tokio::spawn({
        let narrow = narrow.clone();
        async move { narrow.record_query(record()).await }
    });
    db.case.until_waiting(1).await.unwrap();
    let refused = guard("hang.test", "the second call is refused", narrow.ping())
        .await
        .unwrap();
    assert_eq!(
        refused,
        Err(StoreError::PoolExhausted(Duration::from_millis(300)))
    );
    assert!(!busy.is_finished());
    lock.release().await.unwrap();
    busy.await.unwrap().unwrap();
    narrow.ping().await.unwrap();
    narrow.close().await;
    db.end().await;
}

/// Searches and documents that wait for a lock leave connections for the records of queries.
async fn locked_documents_keep_no_query_from_being_recorded(db: TestStore) {
    let bounds = StoreConfig {
        max_connections: 5,
        acquire_timeout: Duration::from_millis(300),
        ..config(db.case.url())
    };
    let narrow = stores::open(&bounds).await.unwrap();
    let lock = db.case.lock("documents").await.unwrap();
    let stuck = tokio::spawn({
        let narrow = narrow.clone();
        async move { join_all((0..4).map(|_| narrow.add_document("a", heron()))).await }
    });
    db.case.until_waiting(4).await.unwrap();
    let refused = guard("hang.test", "a search is refused", async {
        narrow.search("a", "heron", 1).await
    });
    assert_eq!(
        refused.await.unwrap().unwrap_err(),
        StoreError::PoolExhausted(Duration::from_millis(300))
    );
    narrow.record_query(record()).await.unwrap();
    assert!(!stuck.is_finished());
    lock.release().await.unwrap();
    for added in stuck.await.unwrap() {
        added.unwrap();
    }
    narrow.close().await;
    db.end().await;
}

/// A dropped call frees its slot in the pool at once, and leaves everything or nothing.
async fn a_dropped_call_frees_its_connection(db: TestStore) {
    let narrow = stores::open(&StoreConfig {
        max_connections: 1,
        ..config(db.case.url())
    })
    .await
    .unwrap();
    let lock = db.case.lock("documents").await.unwrap();
    let call = tokio::spawn({
        let narrow = narrow.clone();
        async move { narrow.add_document("a", heron()).await }
    });
    db.case.until_waiting(1).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    guard("hang.test", "the pool has its slot back", narrow.ping())
        .await
        .unwrap()
        .unwrap();
    lock.release().await.unwrap();
    narrow.add_document("a", heron()).await.unwrap();
    documents(&db).await;
    narrow.close().await;
    db.end().await;
}

/// A schema that changes under prepared statements ("cached plan must not change result type")
/// gives the client no error.
async fn a_changed_schema_costs_no_call(db: TestStore) {
    let added = db.store.add_document("a", heron()).await.unwrap();
    db.store.document("a", added.id).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(db.case.url()).await.unwrap();
    let change =
        "ALTER TABLE documents ALTER COLUMN title TYPE varchar(500), ADD COLUMN language text";
    sqlx::raw_sql(change).execute(&mut admin).await.unwrap();
    assert_eq!(db.store.document("a", added.id).await.unwrap(), Some(added));
    db.end().await;
}

async fn a_schema_of_another_program_is_refused_by_name(db: TestStore) {
    let mut admin = sqlx::PgConnection::connect(db.case.url()).await.unwrap();
    // a newer replica has migrated further: this one goes on
    sqlx::raw_sql(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES (999, 'later', 'x')",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    stores::open(&config(db.case.url()))
        .await
        .unwrap()
        .close()
        .await;
    sqlx::raw_sql("UPDATE schema_migrations SET checksum = 'x'")
        .execute(&mut admin)
        .await
        .unwrap();
    let error = stores::open(&config(db.case.url())).await.err().unwrap();
    assert!(
        matches!(
            &error,
            StoreError::Failed(message)
                if message.contains("migration 1 (documents_queries_keys)")
        ),
        "{error}"
    );
    db.end().await;
}

/// A replica of the database, or a role that may only read, serves when the schema is up to date.
async fn a_store_opens_on_a_read_only_database(db: TestStore) {
    db.case.read_only().await.unwrap();
    let reader = stores::open(&config(db.case.url())).await.unwrap();
    assert_eq!(reader.search("a", "heron", 5).await.unwrap(), []);
    let ping = reader.ping().await;
    assert!(matches!(ping, Err(StoreError::NotWritable(_))), "{ping:?}");
    reader.close().await;
    db.end().await;
}

/// SQLite: another process writes. The call waits within its timeout, fails, and works again
/// afterwards.
async fn a_locked_file_ends_the_call_in_time(db: TestStore) {
    let TestStore { store, case } = db;
    store.close().await;
    let store = stores::open(&short(case.url())).await.unwrap();
    let mut other = SqliteConnection::connect(case.url()).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE; INSERT INTO queries VALUES ('x', 'b', 's', 1, '{}')")
        .execute(&mut other)
        .await
        .unwrap();
    let error = guard(
        "hang.test",
        "the call ends by its timeout",
        store.record_query(record()),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert!(matches!(error, StoreError::Timeout(_)), "{error}");
    assert_eq!(
        store
            .queries(
                "b",
                stores::Listing {
                    page: 1,
                    size: 5,
                    status: None,
                    before: None
                }
            )
            .await
            .unwrap()
            .total,
        0,
        "reads go on"
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    store.record_query(record()).await.unwrap();
    assert_eq!(case.count("queries").await.unwrap(), 1);
    store.close().await;
    case.finish(End::Drop).await.unwrap();
}
