//! The store does the same on both databases: every operation below runs on SQLite and on Postgres.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use gauntlet::config::StoreConfig;
use gauntlet::store::{self, KeyRecord, Listing, NewDocument, QueryRecord, Store, StoreError};
use uuid::Uuid;

fn config(url: &str) -> StoreConfig {
    StoreConfig {
        url: url.to_owned().into(),
        max_connections: 4,
        acquire_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn smoke() {
    let mut urls = vec!["sqlite::memory:".to_owned()];
    urls.extend(std::env::var("SMOKE_URL"));
    for url in urls {
        let store = store::open(&config(&url)).await.unwrap();
        println!("{}", store.kind());
        store.ping().await.unwrap();
        documents(&store).await;
        queries(&store).await;
        keys(&store).await;
        store.close().await;
        assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    }
}

async fn documents(store: &Arc<dyn Store>) {
    let text = "Der Reiher \u{1F426} steht im 'Wasser'; \"DROP TABLE documents\" -- \\ % _".to_owned();
    let document = store.add_document("a", NewDocument { title: "Vögel".into(), text: text.clone() }).await.unwrap();
    assert_eq!(store.document("a", document.id).await.unwrap().unwrap(), document);
    assert_eq!(store.document("b", document.id).await.unwrap(), None);
    assert_eq!(document.text, text);
    let large = "wort ".repeat(200_000) + "ende";
    let big = store.add_document("a", NewDocument { title: String::new(), text: large.clone() }).await.unwrap();
    assert_eq!(store.document("a", big.id).await.unwrap().unwrap().text, large);
    let found = store.search("a", "vögel?", 5).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].document, document.id);
    assert!(store.search("b", "vögel", 5).await.unwrap().is_empty());
    for hostile in ["", "\0", "'", "\"", "a AND NOT", "NEAR(", "* ^ : -", "& | !", "🎉"] {
        store.search("a", hostile, 5).await.unwrap();
    }
    assert!(store.delete_document("a", big.id).await.unwrap());
    assert!(!store.delete_document("a", big.id).await.unwrap());
    assert!(store.search("a", "ende", 5).await.unwrap().is_empty());
    let refused = store.add_document("a", NewDocument { title: String::new(), text: "a\0b".into() }).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))));
}

async fn queries(store: &Arc<dyn Store>) {
    let record = |n: i64, status: &str| QueryRecord {
        id: Uuid::now_v7(),
        tenant: "a".into(),
        status: status.into(),
        created_at: n,
        document: serde_json::json!({"z": n, "a": "\u{0} 🎉 '\""}),
    };
    let records: Vec<QueryRecord> = (0..5).map(|n| record(n / 2, if n == 3 { "degraded" } else { "complete" })).collect();
    for record in &records {
        store.record_query(record.clone()).await.unwrap();
    }
    store.record_query(QueryRecord { status: "failed".into(), ..records[0].clone() }).await.unwrap();
    assert_eq!(store.query("a", records[0].id).await.unwrap().unwrap(), records[0]);
    let listing = |page, size| Listing { page, size, status: None, before: None };
    let page = store.queries("a", listing(1, 3)).await.unwrap();
    assert_eq!(page.total, 5);
    assert_eq!(page.records, [records[4].clone(), records[3].clone(), records[2].clone()]);
    assert_eq!(store.queries("a", listing(2, 3)).await.unwrap().records, [records[1].clone(), records[0].clone()]);
    let beyond = store.queries("a", listing(9, 3)).await.unwrap();
    assert_eq!((beyond.records.len(), beyond.total), (0, 5));
    let after = store.queries("a", Listing { before: Some(records[3].id), ..listing(1, 2) }).await.unwrap();
    assert_eq!(after.records, [records[2].clone(), records[1].clone()]);
    let degraded = store.queries("a", Listing { status: Some("degraded".into()), ..listing(1, 10) }).await.unwrap();
    assert_eq!((degraded.records.len(), degraded.total), (1, 1));
}

async fn keys(store: &Arc<dyn Store>) {
    let key = KeyRecord { id: Uuid::now_v7(), tenant: "a".into(), hash: "ab".into(), prefix: "sk-a".into(), created_at: 1, revoked_at: None };
    store.add_key(key.clone()).await.unwrap();
    store.add_key(key.clone()).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), std::slice::from_ref(&key));
    assert_eq!(store.key_by_hash("ab").await.unwrap(), Some(key.clone()));
    assert!(matches!(store.add_key(KeyRecord { id: Uuid::now_v7(), ..key.clone() }).await, Err(StoreError::Rejected(_))));
    assert!(store.revoke_key(key.id, 5).await.unwrap());
    assert!(!store.revoke_key(key.id, 6).await.unwrap());
    assert_eq!(store.key_by_hash("ab").await.unwrap(), None);
}
