//! The store does the same on both databases: each operation runs on SQLite and on Postgres (Docker, else local binaries; without
//! either its half says that it is not run, and `GAUNTLET_REQUIRE=docker` makes that a failure). What only Postgres can suffer
//! stands in `store_faults.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod databases;

use std::collections::HashSet;
use std::sync::Arc;

use databases::{On, config, empty, store};
use futures::future::join_all;
use gauntlet::store::{
    self as stores, KeyRecord, Listing, NewDocument, QueryRecord, Store, StoreError,
};
use rstest::rstest;
use serde_json::json;
use uuid::Uuid;

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

/// DATA-08, DATA-09
#[rstest]
#[case::plain("plain text")]
#[case::quotes(r#"it's "quoted" \ -- %s $1 ?1 ; DROP TABLE documents; {} <b>"#)]
#[case::emoji("👩‍👩‍👧‍👦 naïve Ελλάδα 日本語 ‏עברית \u{1F1E9}\u{1F1EA}")]
#[case::controls("tab\tline\r\nbell\u{7} delete\u{7f} bom\u{feff} end")]
#[case::large(&"wort, ".repeat(180_000))]
#[case::one_long_word(&"x".repeat(1 << 20))]
#[case::many_words(&(0..150_000).map(|n| format!("w{n} ")).collect::<String>())]
#[tokio::test]
async fn a_document_comes_back_as_it_was(
    #[values(On::Sqlite, On::Postgres)] on: On,
    #[case] text: &str,
) {
    let Some(bed) = store(on).await else { return };
    let added = bed
        .store
        .add_document("a", new("Title ' \u{1F426}", text))
        .await
        .unwrap();
    assert_eq!(added.text, text);
    assert_eq!(
        bed.store.document("a", added.id).await.unwrap(),
        Some(added.clone())
    );
    let word = text
        .split(|c: char| !c.is_alphanumeric())
        .find(|word| !word.is_empty())
        .unwrap();
    let found = bed.store.search("a", word, 3).await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|passage| passage.document)
            .collect::<Vec<_>>(),
        [added.id]
    );
    assert!(found[0].text.len() <= 1_200, "a passage is bounded");
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn tenants_do_not_see_each_other(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    let (store, document) = (
        &bed.store,
        bed.store
            .add_document("a", new("t", "heron"))
            .await
            .unwrap(),
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
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn a_deleted_document_is_found_no_more(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    let (gone, stays) = (
        bed.store
            .add_document("a", new("", "grey heron"))
            .await
            .unwrap(),
        bed.store
            .add_document("a", new("", "grey cat"))
            .await
            .unwrap(),
    );
    assert!(bed.store.delete_document("a", gone.id).await.unwrap());
    assert!(!bed.store.delete_document("a", gone.id).await.unwrap());
    assert_eq!(bed.store.document("a", gone.id).await.unwrap(), None);
    assert_eq!(bed.store.search("a", "heron", 5).await.unwrap(), []);
    assert_eq!(
        bed.store.search("a", "grey", 5).await.unwrap()[0].document,
        stays.id
    );
    assert_eq!(bed.case.count("passages").await.unwrap(), 1);
    bed.end().await;
}

/// DATA-08
#[rstest]
#[tokio::test]
async fn text_with_a_nul_is_refused_and_leaves_nothing(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    for document in [new("a\0b", "text"), new("t", "a\0b"), new("t", "\0")] {
        let refused = bed.store.add_document("a", document).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Rejected(message) if message.contains("NUL")),
            "{refused}"
        );
    }
    let refused = bed
        .store
        .add_document("a\0", new("t", "x"))
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Rejected(_)), "{refused}");
    for table in ["documents", "passages"] {
        assert_eq!(bed.case.count(table).await.unwrap(), 0, "{table}");
    }
    assert!(matches!(
        bed.store.document("\0", Uuid::nil()).await,
        Err(StoreError::Rejected(_))
    ));
    assert!(matches!(
        bed.store
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
        bed.store.key_by_hash("\0").await,
        Err(StoreError::Rejected(_))
    ));
    bed.end().await;
}

/// Any text is a valid query.
#[rstest]
#[tokio::test]
async fn no_query_is_a_syntax_error(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    let heron = bed
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
        bed.store
            .search("a", query, 5)
            .await
            .unwrap_or_else(|error| panic!("{query:?}: {error}"));
        let with_word = format!("{query} heron {query}");
        let found = bed
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
    assert_eq!(bed.store.search("a", &long, 5).await.unwrap().len(), 1);
    assert_eq!(bed.store.search("a", "heron", 0).await.unwrap(), []);
    bed.end().await;
}

/// DATA-09: the same documents, the same passages, the same order.
#[tokio::test]
async fn both_databases_find_the_same_in_the_same_order() {
    let (Some(sqlite), Some(postgres)) = (store(On::Sqlite).await, store(On::Postgres).await)
    else {
        return;
    };
    let corpus: Vec<NewDocument> = (0..60)
        .map(|n| {
            let animal = ["heron", "cat", "Otter", "Straße", "東京", "naïve"][n % 6];
            let place = ["river", "the house", "a reed bed"][n % 3];
            new(
                &format!("Note {n}"),
                &format!(
                    "The {animal} was seen at {place}. {}\n\nOn day {} it rained.",
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
        let told = async |store: &Arc<dyn Store>| -> Vec<(String, String, f64)> {
            let found = store.search("a", query, 100).await.unwrap();
            found
                .into_iter()
                .map(|passage| (passage.title, passage.text, passage.score))
                .collect()
        };
        let (one, other) = (told(&sqlite.store).await, told(&postgres.store).await);
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
#[rstest]
#[tokio::test]
async fn a_query_is_recorded_once_and_as_it_was_sent(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    let document = json!({"z": 1, "a": [0.1, -0.0, 1e300, 1.0 / 65.0, 1.0 / 70.0, 1.0 / 71.0, u64::MAX, i64::MIN], "text": "\u{0} \u{1F426} ' \" \\", "nested": {"b": null, "a": true}});
    let record = QueryRecord {
        document: document.clone(),
        ..record(7, "degraded")
    };
    let (one, other) = tokio::join!(
        bed.store.record_query(record.clone()),
        bed.store.record_query(record.clone())
    );
    assert_eq!((one, other), (Ok(()), Ok(())));
    bed.store
        .record_query(QueryRecord {
            status: "failed".into(),
            document: json!(null),
            ..record.clone()
        })
        .await
        .unwrap();
    let kept = bed.store.query("a", record.id).await.unwrap().unwrap();
    assert_eq!(
        kept.document.to_string(),
        document.to_string(),
        "to the byte"
    );
    assert_eq!(kept, record);
    assert_eq!(bed.case.count("queries").await.unwrap(), 1);
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn queries_are_listed_newest_first(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    // pairs of the same moment: the id decides
    let records: Vec<QueryRecord> = (0..7)
        .map(|n| record(n / 2, if n == 3 { "degraded" } else { "complete" }))
        .collect();
    for record in records.iter().rev() {
        bed.store.record_query(record.clone()).await.unwrap();
    }
    let newest: Vec<QueryRecord> = records.iter().rev().cloned().collect();
    let list = async |listing: Listing| bed.store.queries("a", listing).await.unwrap();
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
    bed.end().await;
}

/// DATA-08: a reader goes through the listing with `before` while others record; each page is asked for only after a record.
#[rstest]
#[tokio::test]
async fn a_listing_that_grows_has_no_row_twice_and_none_missing(
    #[values(On::Sqlite, On::Postgres)] on: On,
) {
    let Some(bed) = store(on).await else { return };
    let there: Vec<QueryRecord> = (0..20).map(|n| record(n, "complete")).collect();
    for record in &there {
        bed.store.record_query(record.clone()).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut before = None;
    for n in 0.. {
        // newer ones, and one that was accepted long ago and is recorded only now
        bed.store
            .record_query(record(100 + n, "complete"))
            .await
            .unwrap();
        bed.store
            .record_query(record(n % 20, "complete"))
            .await
            .unwrap();
        let page = bed
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
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn keys_are_found_by_hash_until_they_are_revoked(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
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
        bed.store.add_key(key.clone()).await.unwrap();
    }
    assert_eq!(
        bed.store.keys().await.unwrap(),
        [first.clone(), second.clone()]
    );
    let twice = bed
        .store
        .add_key(KeyRecord {
            id: Uuid::now_v7(),
            ..first.clone()
        })
        .await
        .unwrap_err();
    assert!(matches!(twice, StoreError::Rejected(_)), "{twice}");
    assert_eq!(
        bed.store.key_by_hash("hash1").await.unwrap(),
        Some(first.clone())
    );
    assert!(bed.store.revoke_key(first.id, 9).await.unwrap());
    assert!(!bed.store.revoke_key(first.id, 10).await.unwrap());
    assert_eq!(bed.store.key_by_hash("hash1").await.unwrap(), None);
    assert_eq!(bed.store.keys().await.unwrap()[0].revoked_at, Some(9));
    assert!(!bed.store.revoke_key(Uuid::now_v7(), 9).await.unwrap());
    bed.end().await;
}

/// DATA-07
#[rstest]
#[tokio::test]
async fn replicas_that_start_together_migrate_once(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(case) = empty(on).await else { return };
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

#[rstest]
#[tokio::test]
async fn many_writers_lose_nothing(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    let writes = (0..64).map(|n| {
        let store = bed.store.clone();
        async move {
            store
                .add_document("a", new(&n.to_string(), "heron"))
                .await
                .unwrap();
            store.record_query(record(n, "complete")).await.unwrap();
        }
    });
    join_all(writes).await;
    assert_eq!(bed.case.count("documents").await.unwrap(), 64);
    assert_eq!(bed.store.queries("a", page(1, 1)).await.unwrap().total, 64);
    assert_eq!(bed.store.search("a", "heron", 100).await.unwrap().len(), 64);
    bed.end().await;
}

#[rstest]
#[tokio::test]
async fn a_closed_store_says_so(#[values(On::Sqlite, On::Postgres)] on: On) {
    let Some(bed) = store(on).await else { return };
    bed.store.ping().await.unwrap();
    bed.store.close().await;
    assert!(matches!(
        bed.store.ping().await,
        Err(StoreError::Unavailable(_))
    ));
    bed.end().await;
}

#[tokio::test]
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

#[rstest]
#[case::scheme("mysql://me:s3cret@h/d", "mysql")]
#[case::nothing("", "no scheme")]
#[case::refused("postgres://me:s3cret@127.0.0.1:1/d", "127.0.0.1:1/d")]
#[case::port("postgres://me:s3cret@127.0.0.1:port/d", "not a Postgres URL")]
#[case::folder("sqlite:///proc/nowhere/x.db", "/proc/nowhere")]
#[tokio::test]
async fn a_wrong_url_is_told_without_its_password(#[case] url: &str, #[case] told: &str) {
    let error = stores::open(&config(url)).await.err().unwrap().to_string();
    assert!(error.contains(told) && !error.contains("s3cret"), "{error}");
}
