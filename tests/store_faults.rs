//! What Postgres can suffer, and what the store makes of it: bounded, told apart, never half a record, and well again by itself.
//! Order is shown by locks and by the wire in front of the database; nothing here sleeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod databases;

use std::sync::Arc;
use std::time::Duration;

use databases::{Bed, On, config, store};
use futures::future::join_all;
use gauntlet::config::StoreConfig;
use gauntlet::store::{self as stores, NewDocument, QueryRecord, Store, StoreError};
use gauntlet_harness::database::End;
use gauntlet_harness::gate::{Gates, guard};
use gauntlet_harness::tape::Tape;
use gauntlet_harness::wire::postgres::{AtStatement, DatabaseWire};
use rstest::rstest;
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

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
    bed: Bed,
    wire: DatabaseWire,
}

async fn wired(bounds: fn(&str) -> StoreConfig) -> Option<Wired> {
    let Bed { store, case } = store(On::Postgres).await?;
    store.close().await;
    let (host, port) = case.upstream().unwrap();
    let tape = Tape::new();
    let wire = DatabaseWire::bind(&format!("{host}:{port}"), tape.clone(), Gates::new(tape))
        .await
        .unwrap();
    let store = stores::open(&bounds(&wire.url(case.url()))).await.unwrap();
    Some(Wired {
        bed: Bed { store, case },
        wire,
    })
}

/// No document without its passages, no passage without its document.
async fn documents(bed: &Bed) -> i64 {
    let whole = "SELECT count(*) FROM documents WHERE EXISTS (SELECT 1 FROM passages WHERE passages.document = documents.id)";
    let whole = bed.case.scalar(whole).await.unwrap();
    assert_eq!(
        bed.case.count("documents").await.unwrap(),
        whole,
        "a document without passages"
    );
    assert_eq!(
        bed.case
            .scalar("SELECT count(DISTINCT document) FROM passages")
            .await
            .unwrap(),
        whole,
        "passages without a document"
    );
    whole
}

/// DATA-04: a restart kills every idle connection; nobody feels it, not even a write.
#[tokio::test]
async fn connections_that_died_while_idle_are_replaced_in_silence() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    // fills the pool
    assert!(
        join_all((0..4).map(|_| bed.store.ping()))
            .await
            .into_iter()
            .all(|ping| ping.is_ok())
    );
    assert!(bed.case.terminate_backends().await.unwrap() >= 1);
    bed.store.ping().await.unwrap();
    bed.case.terminate_backends().await.unwrap();
    let added = bed.store.add_document("a", heron()).await.unwrap();
    bed.case.terminate_backends().await.unwrap();
    bed.store.record_query(record()).await.unwrap();
    bed.case.terminate_backends().await.unwrap();
    assert!(
        bed.store.delete_document("a", added.id).await.unwrap(),
        "not repeated: the connection is looked at before"
    );
    assert_eq!(bed.case.count("queries").await.unwrap(), 1);
    bed.end().await;
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

/// DATA-10: told apart from everything else, and nothing is left of it.
#[rstest]
#[tokio::test]
async fn a_database_that_takes_no_writes_says_so_and_still_reads(
    #[values("read only", "no right", "disk full")] fault: &str,
    #[values(Write::Document, Write::Record)] write: Write,
) {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let there = bed.store.add_document("a", heron()).await.unwrap();
    match fault {
        "read only" => bed.case.read_only().await.unwrap(),
        "no right" => bed.case.revoke_insert().await.unwrap(),
        _ => bed.case.disk_full().await.unwrap(),
    }
    let error = write.make(&bed.store, there.id).await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable(_)), "{error}");
    assert_eq!(
        bed.store.document("a", there.id).await.unwrap(),
        Some(there.clone())
    );
    assert_eq!(bed.store.search("a", "heron", 5).await.unwrap().len(), 1);
    assert_eq!(
        (
            documents(&bed).await,
            bed.case.count("queries").await.unwrap()
        ),
        (1, 0)
    );
    match fault {
        "read only" => bed.case.read_write().await.unwrap(),
        "no right" => bed.case.grant_insert().await.unwrap(),
        _ => bed.case.disk_free().await.unwrap(),
    }
    write.make(&bed.store, there.id).await.unwrap();
    bed.end().await;
}

/// DATA-02: the reset comes before the statement, or after it and before its reply; both end in exactly one record.
#[rstest]
#[tokio::test]
async fn a_cut_connection_leaves_all_or_nothing(
    #[values(AtStatement::Cut, AtStatement::Reset, AtStatement::LoseReply)] fault: AtStatement,
    #[values(Write::Document, Write::Record)] write: Write,
) {
    let Some(Wired { bed, wire }) = wired(config).await else {
        return;
    };
    wire.at_statement("insert into", fault);
    write.make(&bed.store, Uuid::nil()).await.unwrap();
    assert_eq!(
        wire.statements("insert into", 2).await.unwrap().len(),
        2,
        "made again on a new connection"
    );
    match write {
        Write::Record => assert_eq!(bed.case.count("queries").await.unwrap(), 1),
        _ => assert_eq!(documents(&bed).await, 1),
    }
    bed.end().await;
}

/// What must not be repeated is not: the client has an error, and the database one answer.
#[rstest]
#[tokio::test]
async fn a_call_that_must_not_be_repeated_is_not(
    #[values(AtStatement::Cut, AtStatement::LoseReply)] fault: AtStatement,
) {
    let Some(Wired { bed, wire }) = wired(config).await else {
        return;
    };
    let there = bed.store.add_document("a", heron()).await.unwrap();
    wire.at_statement("delete from", fault.clone());
    let error = Write::Delete.make(&bed.store, there.id).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let left = i64::from(fault == AtStatement::Cut);
    assert_eq!(documents(&bed).await, left);
    assert_eq!(
        bed.store.delete_document("a", there.id).await,
        Ok(left == 1)
    );
    bed.end().await;
}

/// A connection that keeps breaking is given up after one repetition.
#[tokio::test]
async fn a_database_that_cuts_every_call_is_unavailable() {
    let Some(Wired { bed, wire }) = wired(config).await else {
        return;
    };
    bed.store.ping().await.unwrap();
    for _ in 0..3 {
        wire.at_statement("insert into queries", AtStatement::Reset);
    }
    let error = bed.store.record_query(record()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(bed.case.count("queries").await.unwrap(), 0);
    bed.store.record_query(record()).await.unwrap();
    bed.end().await;
}

/// DATA-04: gone (refused and reset), and back on the same address.
#[tokio::test]
async fn a_database_that_is_gone_is_told_at_once_and_found_again() {
    let Some(Wired { bed, wire }) = wired(config).await else {
        return;
    };
    bed.store.ping().await.unwrap();
    wire.gone().await.unwrap();
    for error in [
        bed.store.ping().await.unwrap_err(),
        bed.store.record_query(record()).await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, StoreError::Unavailable(reason) if reason.contains("127.0.0.1")),
            "{error}"
        );
    }
    wire.resume().await.unwrap();
    bed.store.ping().await.unwrap();
    bed.store.record_query(record()).await.unwrap();
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn a_database_that_lets_nobody_in_is_unavailable(#[values("forbidden", "full")] how: &str) {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    match how {
        "forbidden" => bed.case.forbid_connections().await.unwrap(),
        _ => bed.case.limit_connections(0).await.unwrap(),
    }
    bed.case.terminate_backends().await.unwrap();
    let error = bed.store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    bed.case.allow_connections().await.unwrap();
    bed.case.limit_connections(-1).await.unwrap();
    bed.store.ping().await.unwrap();
    bed.end().await;
}

/// TIME-10: the database has the bytes and never answers; the call ends while it is still silent.
#[tokio::test]
async fn a_database_that_stalls_ends_every_call_in_time() {
    let Some(Wired { bed, wire }) = wired(short).await else {
        return;
    };
    bed.store.ping().await.unwrap();
    wire.stall();
    let calls = join_all((0..6).map(|_| bed.store.ping()));
    for ended in guard("hang.test", "calls end by their own time-outs", calls)
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
    bed.store.ping().await.unwrap();
    bed.end().await;
}

/// TIME-10: a statement that waits for a lock ends while the lock is still held, and its connection is free again.
#[tokio::test]
async fn a_stuck_statement_ends_in_time_and_writes_nothing_later() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let impatient = stores::open(&short(bed.case.url())).await.unwrap();
    let lock = bed.case.lock("queries").await.unwrap();
    let error = guard(
        "hang.test",
        "the call ends by its time-out",
        impatient.record_query(record()),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert_eq!(error, StoreError::Timeout(Duration::from_millis(600)));
    impatient.ping().await.unwrap();
    bed.case.until_none_waits().await.unwrap();
    lock.release().await.unwrap();
    impatient.record_query(record()).await.unwrap();
    assert_eq!(
        bed.case.count("queries").await.unwrap(),
        1,
        "what was given up is not there"
    );
    impatient.close().await;
    bed.end().await;
}

/// DATA-03: the only connection waits for a lock; the second call is refused while it still does; then all is well again.
#[tokio::test]
async fn an_exhausted_pool_refuses_in_time_and_recovers() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let bounds = StoreConfig {
        max_connections: 1,
        acquire_timeout: Duration::from_millis(300),
        ..config(bed.case.url())
    };
    let narrow = stores::open(&bounds).await.unwrap();
    let lock = bed.case.lock("queries").await.unwrap();
    let busy = tokio::spawn({
        let narrow = narrow.clone();
        async move { narrow.record_query(record()).await }
    });
    bed.case.until_waiting(1).await.unwrap();
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
    bed.end().await;
}

/// A call that is dropped gives its place in the pool back at once, and leaves everything or nothing.
#[tokio::test]
async fn a_dropped_call_frees_its_connection() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let narrow = stores::open(&StoreConfig {
        max_connections: 1,
        ..config(bed.case.url())
    })
    .await
    .unwrap();
    let lock = bed.case.lock("documents").await.unwrap();
    let call = tokio::spawn({
        let narrow = narrow.clone();
        async move { narrow.add_document("a", heron()).await }
    });
    bed.case.until_waiting(1).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    guard("hang.test", "the pool has its place back", narrow.ping())
        .await
        .unwrap()
        .unwrap();
    lock.release().await.unwrap();
    narrow.add_document("a", heron()).await.unwrap();
    documents(&bed).await;
    narrow.close().await;
    bed.end().await;
}

/// A schema that changed under prepared statements ("cached plan must not change result type") is no error of the client.
#[tokio::test]
async fn a_changed_schema_costs_no_call() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let added = bed.store.add_document("a", heron()).await.unwrap();
    bed.store.document("a", added.id).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(bed.case.url()).await.unwrap();
    let change =
        "ALTER TABLE documents ALTER COLUMN title TYPE varchar(500), ADD COLUMN language text";
    sqlx::raw_sql(change).execute(&mut admin).await.unwrap();
    assert_eq!(
        bed.store.document("a", added.id).await.unwrap(),
        Some(added)
    );
    bed.end().await;
}

#[tokio::test]
async fn a_schema_of_another_program_is_refused_in_words() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    let mut admin = sqlx::PgConnection::connect(bed.case.url()).await.unwrap();
    // a newer replica has migrated further: this one goes on
    sqlx::raw_sql(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES (999, 'later', 'x')",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    stores::open(&config(bed.case.url()))
        .await
        .unwrap()
        .close()
        .await;
    sqlx::raw_sql("UPDATE schema_migrations SET checksum = 'x'")
        .execute(&mut admin)
        .await
        .unwrap();
    let error = stores::open(&config(bed.case.url())).await.err().unwrap();
    assert!(
        matches!(&error, StoreError::Failed(message) if message.contains("migration 1 (documents_queries_keys)")),
        "{error}"
    );
    bed.end().await;
}

/// A replica of the database, or one whose role may only read, is good enough when the schema is there.
#[tokio::test]
async fn a_store_opens_on_a_read_only_database() {
    let Some(bed) = store(On::Postgres).await else {
        return;
    };
    bed.case.read_only().await.unwrap();
    let reader = stores::open(&config(bed.case.url())).await.unwrap();
    assert_eq!(reader.search("a", "heron", 5).await.unwrap(), []);
    reader.close().await;
    bed.end().await;
}

/// SQLite: another process writes. The call waits within its time-out, says so, and works again afterwards.
#[tokio::test]
async fn a_locked_file_ends_the_call_in_time() {
    let bed = store(On::Sqlite).await.unwrap();
    let Bed { store, case } = bed;
    store.close().await;
    let store = stores::open(&short(case.url())).await.unwrap();
    let mut other = SqliteConnection::connect(case.url()).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE; INSERT INTO queries VALUES ('x', 'b', 's', 1, '{}')")
        .execute(&mut other)
        .await
        .unwrap();
    let error = guard(
        "hang.test",
        "the call ends by its time-out",
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
