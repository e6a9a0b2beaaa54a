//! The store does the same on both databases: each operation runs on SQLite and on Postgres. What
//! only Postgres can suffer stands in `store_faults.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod databases;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;

use databases::{On, Server, TestStore, Tests, add, config, empty, migrated};
use futures::future::join_all;
use gauntlet::store::{
    self as stores, KeyRecord, Listing, NewDocument, QueryRecord, Store, StoreError,
};
use serde_json::json;
use uuid::Uuid;

fn main() -> ExitCode {
    let mut tests = Tests::default();
    for (name, text) in TEXTS {
        let name = format!("a_document_comes_back_as_it_was::{name}");
        tests.both(&name, move |db| a_document_comes_back_as_it_was(db, text()));
    }
    add!(tests.both:
        tenants_do_not_see_each_other,
        a_deleted_document_is_not_found,
        text_with_a_nul_is_refused_and_leaves_nothing,
        no_query_is_a_syntax_error,
        a_query_is_recorded_once_and_as_it_was_sent,
        queries_are_listed_newest_first,
        a_listing_that_grows_has_no_row_twice_and_none_missing,
        keys_are_found_by_hash_until_they_are_revoked,
        many_writers_lose_nothing,
        a_closed_store_is_unavailable,
    );
    for on in [On::Sqlite, On::Postgres] {
        add!(tests.with_server(on): replicas_that_start_together_migrate_once);
    }
    add!(tests.with_servers: both_databases_find_the_same_in_the_same_order);
    add!(tests.plain: memory_is_one_database_for_every_call);
    for (name, url, reason) in WRONG_URLS {
        let name = format!("a_wrong_url_is_refused_without_its_password::{name}");
        tests.plain(&name, move || {
            a_wrong_url_is_refused_without_its_password(url, reason)
        });
    }
    tests.run()
}

fn new(title: &str, text: &str) -> NewDocument {
    NewDocument {
        title: title.into(),
        text: text.into(),
    }
}

fn record(created_at: i64, status: &str) -> QueryRecord {
    QueryRecord {
        id: Uuid::now_v7(),
        tenant: "a".into(),
        status: status.into(),
        created_at,
        document: json!({"n": created_at}),
    }
}

fn page(page: u32, size: u32) -> Listing {
    Listing {
        page,
        size,
        status: None,
        before: None,
    }
}

/// The name of a text, and what makes it.
type Text = (&'static str, fn() -> String);

const TEXTS: [Text; 7] = [
    ("plain", || "plain text".into()),
    ("quotes", || {
        r#"it's "quoted" \ -- %s $1 ?1 ; DROP TABLE documents; {} <b>"#.into()
    }),
    ("emoji", || {
        "👩‍👩‍👧‍👦 naïve Ελλάδα 日本語 ‏עברית \u{1F1E9}\u{1F1EA}".into()
    }),
    ("controls", || {
        "tab\tline\r\nbell\u{7} delete\u{7f} bom\u{feff} end".into()
    }),
    ("large", || "wort, ".repeat(180_000)),
    ("one_long_word", || "x".repeat(1 << 20)),
    ("many_words", || {
        (0..150_000).map(|n| format!("w{n} ")).collect()
    }),
];

/// DATA-08, DATA-09
async fn a_document_comes_back_as_it_was(db: TestStore, text: String) {
    let text = text.as_str();
    let added = db
        .store
        .add_document("a", new("Title ' \u{1F426}", text))
        .await
        .unwrap();
    assert_eq!(added.text, text);
    assert_eq!(
        db.store.document("a", added.id).await.unwrap(),
        Some(added.clone())
    );
    let word = text
        .split(|c: char| !c.is_alphanumeric())
        .find(|word| !word.is_empty())
        .unwrap();
    let found = db.store.search("a", word, 3).await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|passage| passage.document)
            .collect::<Vec<_>>(),
        [added.id]
    );
    assert!(found[0].text.len() <= 1_200, "a passage is bounded");
    db.end().await;
}

async fn tenants_do_not_see_each_other(db: TestStore) {
    let (store, document) = (
        &db.store,
        db.store.add_document("a", new("t", "heron")).await.unwrap(),
    );
    let query = record(1, "complete");
    store.record_query(query.clone()).await.unwrap();
    assert_eq!(store.document("b", document.id).await.unwrap(), None);
    assert!(!store.delete_document("b", document.id).await.unwrap());
    assert_eq!(store.search("b", "heron", 5).await.unwrap(), []);
    assert_eq!(store.query("b", query.id).await.unwrap(), None);
    assert_eq!(store.queries("b", page(1, 5)).await.unwrap().total, 0);
    assert_eq!(
        store
            .queries(
                "b",
                Listing {
                    before: Some(query.id),
                    ..page(1, 5)
                }
            )
            .await
            .unwrap()
            .total,
        0
    );
    assert!(store.document("a", document.id).await.unwrap().is_some());
    db.end().await;
}

async fn a_deleted_document_is_not_found(db: TestStore) {
    let (gone, stays) = (
        db.store
            .add_document("a", new("", "grey heron"))
            .await
            .unwrap(),
        db.store
            .add_document("a", new("", "grey cat"))
            .await
            .unwrap(),
    );
    assert!(db.store.delete_document("a", gone.id).await.unwrap());
    assert!(!db.store.delete_document("a", gone.id).await.unwrap());
    assert_eq!(db.store.document("a", gone.id).await.unwrap(), None);
    assert_eq!(db.store.search("a", "heron", 5).await.unwrap(), []);
    assert_eq!(
        db.store.search("a", "grey", 5).await.unwrap()[0].document,
        stays.id
    );
    assert_eq!(db.case.count("passages").await.unwrap(), 1);
    db.end().await;
}

/// DATA-08
async fn text_with_a_nul_is_refused_and_leaves_nothing(db: TestStore) {
    for document in [new("a\0b", "text"), new("t", "a\0b"), new("t", "\0")] {
        let refused = db.store.add_document("a", document).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Rejected(message) if message.contains("NUL")),
            "{refused}"
        );
    }
    let refused = db
        .store
        .add_document("a\0", new("t", "x"))
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Rejected(_)), "{refused}");
    for table in ["documents", "passages"] {
        assert_eq!(db.case.count(table).await.unwrap(), 0, "{table}");
    }
    assert!(matches!(
        db.store.document("\0", Uuid::nil()).await,
        Err(StoreError::Rejected(_))
    ));
    assert!(matches!(
        db.store
            .queries(
                "a",
                Listing {
                    status: Some("\0".into()),
                    ..page(1, 1)
                }
            )
            .await,
        Err(StoreError::Rejected(_))
    ));
    assert!(matches!(
        db.store.key_by_hash("\0").await,
        Err(StoreError::Rejected(_))
    ));
    db.end().await;
}

/// Any text is a valid query.
async fn no_query_is_a_syntax_error(db: TestStore) {
    let heron = db
        .store
        .add_document("a", new("Birds", "A heron stands in the water."))
        .await
        .unwrap();
    let hostile = [
        "",
        " ",
        "\0",
        "'",
        "\"",
        "\\",
        "* ^ : - + ~",
        "& | ! ( ) <->",
        "AND OR NOT NEAR",
        "NEAR(a b, 5)",
        "title:x",
        "a*",
        "🎉",
        "%",
        "'; DROP TABLE documents; --",
    ];
    for query in hostile {
        db.store
            .search("a", query, 5)
            .await
            .unwrap_or_else(|error| panic!("{query:?}: {error}"));
        let with_word = format!("{query} heron {query}");
        let found = db
            .store
            .search("a", &with_word, 5)
            .await
            .unwrap_or_else(|error| panic!("{with_word:?}: {error}"));
        assert_eq!(
            found.first().map(|passage| passage.document),
            Some(heron.id),
            "{with_word:?}"
        );
    }
    let long = "word ".repeat(50_000) + "heron";
    assert_eq!(db.store.search("a", &long, 5).await.unwrap().len(), 1);
    assert_eq!(db.store.search("a", "heron", 0).await.unwrap(), []);
    db.end().await;
}

/// DATA-09: the same documents, the same passages, the same order.
async fn both_databases_find_the_same_in_the_same_order(
    sqlite: &'static Server,
    postgres: &'static Server,
) {
    let (sqlite, postgres) = (migrated(sqlite).await, migrated(postgres).await);
    let corpus: Vec<NewDocument> = (0..60)
        .map(|n| {
            let animal = ["heron", "cat", "Otter", "Straße", "東京", "naïve"][n % 6];
            let location = ["river", "the house", "a reed bed"][n % 3];
            new(
                &format!("Note {n}"),
                &format!(
                    "The {animal} was seen at {location}. {}\n\nOn day {} it rained.",
                    "It was grey. ".repeat(n % 5 * 40),
                    n % 7
                ),
            )
        })
        .collect();
    for document in &corpus {
        sqlite
            .store
            .add_document("a", document.clone())
            .await
            .unwrap();
        postgres
            .store
            .add_document("a", document.clone())
            .await
            .unwrap();
    }
    let queries = [
        "heron",
        "HERON river",
        "the otter at the house",
        "strasse straße",
        "東京",
        "naïve naive",
        "day 3 rained",
        "note 17",
        "grey",
        "nothing of this",
        "a the it",
    ];
    for query in queries {
        let passages = async |store: &Arc<dyn Store>| -> Vec<(String, String, f64)> {
            let found = store.search("a", query, 100).await.unwrap();
            found
                .into_iter()
                .map(|passage| (passage.title, passage.text, passage.score))
                .collect()
        };
        let (one, other) = (
            passages(&sqlite.store).await,
            passages(&postgres.store).await,
        );
        assert_eq!(one, other, "{query:?}");
        assert_eq!(
            one.is_empty(),
            query == "nothing of this",
            "{query:?} finds {} documents",
            one.len()
        );
    }
    sqlite.end().await;
    postgres.end().await;
}

/// DATA-01
async fn a_query_is_recorded_once_and_as_it_was_sent(db: TestStore) {
    let numbers = json!([
        0.1,
        -0.0,
        1e300,
        1.0 / 65.0,
        1.0 / 70.0,
        1.0 / 71.0,
        u64::MAX,
        i64::MIN
    ]);
    let document = json!({
        "z": 1,
        "a": numbers,
        "text": "\u{0} \u{1F426} ' \" \\",
        "nested": {"b": null, "a": true}
    });
    let record = QueryRecord {
        document: document.clone(),
        ..record(7, "degraded")
    };
    let (one, other) = tokio::join!(
        db.store.record_query(record.clone()),
        db.store.record_query(record.clone())
    );
    assert_eq!((one, other), (Ok(()), Ok(())));
    db.store
        .record_query(QueryRecord {
            status: "failed".into(),
            document: json!(null),
            ..record.clone()
        })
        .await
        .unwrap();
    let kept = db.store.query("a", record.id).await.unwrap().unwrap();
    assert_eq!(
        kept.document.to_string(),
        document.to_string(),
        "to the byte"
    );
    assert_eq!(kept, record);
    assert_eq!(db.case.count("queries").await.unwrap(), 1);
    db.end().await;
}

async fn queries_are_listed_newest_first(db: TestStore) {
    // pairs of the same moment: the id decides
    let records: Vec<QueryRecord> = (0..7)
        .map(|n| record(n / 2, if n == 3 { "degraded" } else { "complete" }))
        .collect();
    for record in records.iter().rev() {
        db.store.record_query(record.clone()).await.unwrap();
    }
    let newest: Vec<QueryRecord> = records.iter().rev().cloned().collect();
    let list = async |listing: Listing| db.store.queries("a", listing).await.unwrap();
    for size in 1..=8_u32 {
        let mut listed = Vec::new();
        for number in 1..=8 {
            let page = list(page(number, size)).await;
            assert_eq!(page.total, 7);
            listed.extend(page.records);
        }
        assert!(
            listed.starts_with(&newest) && listed.len() == 7,
            "pages of {size}"
        );
    }
    let degraded = list(Listing {
        status: Some("degraded".into()),
        ..page(1, 9)
    })
    .await;
    assert_eq!(
        (degraded.records.as_slice(), degraded.total),
        (&records[3..4], 1)
    );
    let after = list(Listing {
        before: Some(records[3].id),
        ..page(1, 9)
    })
    .await;
    assert_eq!((after.records.as_slice(), after.total), (&newest[4..], 7));
    for (number, size) in [(0, 3), (u32::MAX, u32::MAX), (1, 0)] {
        let page = list(page(number, size)).await;
        assert_eq!(page.total, 7, "page {number} of size {size}");
    }
    db.end().await;
}

/// DATA-08: a reader goes through the listing with `before` while others record; each page is asked
/// for only after a record.
async fn a_listing_that_grows_has_no_row_twice_and_none_missing(db: TestStore) {
    let there: Vec<QueryRecord> = (0..20).map(|n| record(n, "complete")).collect();
    for record in &there {
        db.store.record_query(record.clone()).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut before = None;
    for n in 0.. {
        // newer ones, and one that was accepted long ago and is recorded only now
        db.store
            .record_query(record(100 + n, "complete"))
            .await
            .unwrap();
        db.store
            .record_query(record(n % 20, "complete"))
            .await
            .unwrap();
        let page = db
            .store
            .queries(
                "a",
                Listing {
                    before,
                    ..page(1, 3)
                },
            )
            .await
            .unwrap();
        let Some(last) = page.records.last() else {
            break;
        };
        before = Some(last.id);
        seen.extend(page.records.into_iter().map(|record| record.id));
    }
    assert_eq!(
        seen.len(),
        seen.iter().collect::<HashSet<_>>().len(),
        "twice"
    );
    assert!(
        there.iter().all(|record| seen.contains(&record.id)),
        "missing"
    );
    db.end().await;
}

async fn keys_are_found_by_hash_until_they_are_revoked(db: TestStore) {
    let key = |n: i64| KeyRecord {
        id: Uuid::now_v7(),
        tenant: "a".into(),
        hash: format!("hash{n}"),
        prefix: "gk-1".into(),
        created_at: n,
        revoked_at: None,
    };
    let (first, second) = (key(1), key(2));
    for key in [&second, &first, &first] {
        db.store.add_key(key.clone()).await.unwrap();
    }
    assert_eq!(
        db.store.keys().await.unwrap(),
        [first.clone(), second.clone()]
    );
    let twice = db
        .store
        .add_key(KeyRecord {
            id: Uuid::now_v7(),
            ..first.clone()
        })
        .await
        .unwrap_err();
    assert!(matches!(twice, StoreError::Rejected(_)), "{twice}");
    assert_eq!(
        db.store.key_by_hash("hash1").await.unwrap(),
        Some(first.clone())
    );
    assert!(db.store.revoke_key(first.id, 9).await.unwrap());
    assert!(!db.store.revoke_key(first.id, 10).await.unwrap());
    assert_eq!(db.store.key_by_hash("hash1").await.unwrap(), None);
    assert_eq!(db.store.keys().await.unwrap()[0].revoked_at, Some(9));
    assert!(!db.store.revoke_key(Uuid::now_v7(), 9).await.unwrap());
    db.end().await;
}

/// DATA-07
async fn replicas_that_start_together_migrate_once(server: &'static Server) {
    let case = empty(server).await;
    let config = config(case.url());
    let opened = join_all((0..6).map(|_| stores::open(&config))).await;
    let replicas: Vec<Arc<dyn Store>> = opened
        .into_iter()
        .map(|opened| opened.unwrap_or_else(|error| panic!("{error}")))
        .collect();
    assert_eq!(case.count("schema_migrations").await.unwrap(), 1);
    let added = replicas[0]
        .add_document("a", new("t", "heron"))
        .await
        .unwrap();
    assert_eq!(
        replicas[5].document("a", added.id).await.unwrap(),
        Some(added)
    );
    join_all(replicas.iter().map(|replica| replica.close())).await;
    let again = stores::open(&config).await.unwrap();
    assert_eq!(
        case.count("documents").await.unwrap(),
        1,
        "what was there stays"
    );
    again.close().await;
    case.finish(gauntlet_harness::database::End::Drop)
        .await
        .unwrap();
}

async fn many_writers_lose_nothing(db: TestStore) {
    let writes = (0..64).map(|n| {
        let store = db.store.clone();
        async move {
            store
                .add_document("a", new(&n.to_string(), "heron"))
                .await
                .unwrap();
            store.record_query(record(n, "complete")).await.unwrap();
        }
    });
    join_all(writes).await;
    assert_eq!(db.case.count("documents").await.unwrap(), 64);
    assert_eq!(db.store.queries("a", page(1, 1)).await.unwrap().total, 64);
    assert_eq!(db.store.search("a", "heron", 100).await.unwrap().len(), 64);
    db.end().await;
}

async fn a_closed_store_is_unavailable(db: TestStore) {
    db.store.ping().await.unwrap();
    db.store.close().await;
    assert!(matches!(
        db.store.ping().await,
        Err(StoreError::Unavailable(_))
    ));
    db.end().await;
}

async fn memory_is_one_database_for_every_call() {
    let store = stores::open(&config("sqlite::memory:")).await.unwrap();
    let other = stores::open(&config("sqlite::memory:")).await.unwrap();
    let added = store.add_document("a", new("t", "heron")).await.unwrap();
    let reads = join_all((0..8).map(|_| store.document("a", added.id))).await;
    assert!(
        reads
            .into_iter()
            .all(|read| read == Ok(Some(added.clone())))
    );
    assert_eq!(
        other.document("a", added.id).await.unwrap(),
        None,
        "two stores in memory are two databases"
    );
}

const WRONG_URLS: [(&str, &str, &str); 5] = [
    ("scheme", "mysql://me:s3cret@h/d", "mysql"),
    ("nothing", "", "no scheme"),
    (
        "refused",
        "postgres://me:s3cret@127.0.0.1:1/d",
        "127.0.0.1:1/d",
    ),
    (
        "port",
        "postgres://me:s3cret@127.0.0.1:port/d",
        "not a Postgres URL",
    ),
    ("folder", "sqlite:///proc/nowhere/x.db", "/proc/nowhere"),
];

async fn a_wrong_url_is_refused_without_its_password(url: &str, reason: &str) {
    let error = stores::open(&config(url)).await.err().unwrap().to_string();
    assert!(
        error.contains(reason) && !error.contains("s3cret"),
        "{error}"
    );
}
