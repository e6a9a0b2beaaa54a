//! `/api/v1/queries` from outside: the whole way over real sockets and SQLite, and each thing that can be missing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gauntlet::config::{Config, StoreConfig};
use gauntlet::store::{self, Listing, Store};
use gauntlet::{Gateway, RunningGateway};
use rstest::rstest;
use serde_json::{Value, json};

use super::client::{Client, Response, get};
use super::gateway::{start, start_over, toml};
use super::memory::MemoryStore;
use super::provider::{Exchange, Provider};

const ONCE: &str = "[retry]\nmax_attempts = 1\n";
const DOCUMENT: &str =
    r#"{"title":"Radium","text":"Radium was discovered by Marie and Pierre Curie in 1898."}"#;

struct World {
    running: RunningGateway,
    address: SocketAddr,
    provider: Provider,
}

async fn world(directory: &Path, further: &str) -> World {
    let provider = Provider::start().await;
    let further = format!("[server]\nlisten = \"127.0.0.1:0\"\n{ONCE}{further}");
    let config = Config::from_toml(&toml(&[("p1", &provider.base_url)], &further)).unwrap();
    let running = Gateway::start_with(config, open(directory).await)
        .await
        .unwrap();
    World {
        address: running.addr,
        running,
        provider,
    }
}

async fn open(directory: &Path) -> Arc<dyn Store> {
    let url = format!("sqlite://{}", directory.join("gauntlet.db").display());
    let bounds = (Duration::from_secs(5), Duration::from_secs(10));
    store::open(&StoreConfig {
        url: url.into(),
        max_connections: 2,
        acquire_timeout: bounds.0,
        statement_timeout: bounds.1,
    })
    .await
    .unwrap()
}

async fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> Client {
    let mut client = Client::connect(address).await;
    client.post(path, headers, body).await;
    client
}

async fn ask(address: SocketAddr, headers: &str) -> Client {
    post(
        address,
        "/api/v1/queries",
        headers,
        r#"{"question":"Who discovered radium?"}"#,
    )
    .await
}

/// The next call, which must be the agent's of `step`.
async fn call(provider: &Provider, step: &str) -> Exchange {
    let exchange = provider.next().await;
    assert!(
        exchange.head.contains(&format!("-{step}\r\n")),
        "the idempotency key names the step {step}: {}",
        exchange.head
    );
    exchange
}

fn says(answer: &Value) -> String {
    json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer.to_string()}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    })
    .to_string()
}

async fn everything_works(provider: &Provider, request_id: &str) {
    let quote = "discovered by Marie and Pierre Curie in 1898";
    for (step, answer) in [
        (
            "entities",
            json!({"entities": [{"name": "radium", "kind": "substance"}]}),
        ),
        (
            "fact_check",
            json!({"claims": [{"claim": "The Curies did.", "source": 1, "verdict": "supported", "quote": quote}]}),
        ),
        (
            "synthesis",
            json!({"answer": "Marie and Pierre Curie did [1]."}),
        ),
        (
            "citation",
            json!({"citations": [{"sentence": 1, "source": 1, "quote": quote}]}),
        ),
        (
            "review",
            json!({"coherence": 1, "relevance": 1, "support": 1}),
        ),
    ] {
        let exchange = call(provider, step).await;
        assert!(
            exchange
                .head
                .contains(&format!("x-request-id: {request_id}")),
            "{}",
            exchange.head
        );
        exchange.json(200, &says(&answer)).await;
    }
}

#[tokio::test]
async fn a_question_is_answered_from_a_document_and_read_again_as_it_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let World {
        address,
        provider,
        running: _running,
    } = world(directory.path(), "").await;
    assert_eq!(
        post(address, "/api/v1/documents", "", DOCUMENT)
            .await
            .response()
            .await
            .status,
        201
    );
    let mut client = ask(address, "x-request-id: my-7\r\n").await;
    everything_works(&provider, "my-7").await;
    let response = client.response().await;
    let document = response.json();
    assert_eq!(
        (response.status, response.header("x-request-id")),
        (200, Some("my-7"))
    );
    assert_eq!(
        (
            &document["status"],
            &document["confidence"],
            &document["verified"]
        ),
        (&json!("complete"), &json!(1.0), &json!(true))
    );
    assert_eq!(document["answer"], "Marie and Pierre Curie did [1].");
    assert_eq!(document["citations"][0]["state"], "found");
    assert_eq!(
        document["usage"],
        json!({"prompt_tokens": 35, "completion_tokens": 15, "total_tokens": 50})
    );
    let again = get(
        address,
        &format!("/api/v1/queries/{}", document["id"].as_str().unwrap()),
    )
    .await;
    assert_eq!(
        (again.status, again.body),
        (200, response.body),
        "byte for byte"
    );
    let listed = get(address, "/api/v1/queries?status=complete&page=1&size=10")
        .await
        .json();
    assert_eq!(
        listed,
        json!({"queries": [document], "page": 1, "size": 10, "total": 1})
    );
    let metrics = get(address, "/metrics").await.body;
    assert!(
        metrics.contains("gauntlet_queries_total{status=\"complete\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn degr_07_without_an_answer_the_error_and_the_query_stand_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let World {
        address,
        provider,
        running: _running,
    } = world(directory.path(), "").await;
    let mut client = ask(address, "").await;
    for step in ["entities", "synthesis"] {
        call(&provider, step)
            .await
            .json(500, r#"{"error":{"message":"canary"}}"#)
            .await;
    }
    let response = client.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (503, "no_answer")
    );
    assert_eq!(
        response.json()["error"]["message"],
        "The query has no answer, because these steps failed: entities (error), synthesis (error). \
         Try again, or see 'degraded' in the query for the effect of each."
    );
    let query = &response.json()["query"];
    assert_eq!(
        (&query["status"], &query["answer"], &query["recorded"]),
        (&json!("failed"), &Value::Null, &json!(true))
    );
    let again = get(
        address,
        &format!("/api/v1/queries/{}", query["id"].as_str().unwrap()),
    )
    .await;
    assert_eq!((again.status, &again.json()), (200, query));
}

#[rstest]
#[case::while_extracting(&[])]
#[case::while_writing(&["entities"])]
#[tokio::test]
async fn canc_03_a_client_who_leaves_ends_the_call_at_the_provider(#[case] failed_before: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let World {
        address,
        provider,
        running,
    } = world(directory.path(), "").await;
    let client = ask(address, "").await;
    for step in failed_before {
        call(&provider, step).await.json(500, "{}").await;
    }
    let held = provider.next().await;
    drop(client);
    held.closed().await;
    running.drain().await;
    let records = open(directory.path())
        .await
        .queries(
            "default",
            Listing {
                page: 1,
                size: 10,
                status: None,
                before: None,
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (records.total, records.records[0].status.as_str()),
        (1, "cancelled"),
        "the drain waits for the record"
    );
}

#[tokio::test]
async fn a_query_cut_at_the_drain_deadline_is_recorded_as_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start().await;
    let further = "[server]\nlisten = \"127.0.0.1:0\"\ndrain_ms = 20\n";
    let config = Config::from_toml(&toml(&[("p1", &provider.base_url)], further)).unwrap();
    let running = Gateway::start_with(config, open(directory.path()).await)
        .await
        .unwrap();
    let mut client = ask(running.addr, "").await;
    let held = provider.next().await;
    running.drain().await;
    held.closed().await;
    assert_eq!(client.response().await.code(), "shutting_down");
    let records = open(directory.path())
        .await
        .queries(
            "default",
            Listing {
                page: 1,
                size: 10,
                status: None,
                before: None,
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (records.total, records.records[0].status.as_str()),
        (1, "cancelled")
    );
}

#[rstest]
#[case::in_the_body("", r#"{"question":"Who discovered radium?","deadline_ms":1000}"#)]
#[case::in_a_header(
    "x-request-timeout-ms: 1000\r\n",
    r#"{"question":"Who discovered radium?","deadline_ms":60000}"#
)]
#[tokio::test]
async fn canc_04_the_clients_deadline_ends_the_call_and_evidence_is_still_answered(
    #[case] headers: &str,
    #[case] body: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let steps = ["entities", "fact_check", "synthesis"]
        .map(|step| format!("[orchestrator.steps.{step}]\nminimum_ms = 20\n"))
        .concat();
    let World {
        address,
        provider,
        running: _running,
    } = world(directory.path(), &steps).await;
    assert_eq!(
        post(address, "/api/v1/documents", "", DOCUMENT)
            .await
            .response()
            .await
            .status,
        201
    );
    let mut client = post(address, "/api/v1/queries", headers, body).await;
    let held = call(&provider, "entities").await;
    let response = client.response().await;
    held.closed().await;
    let document = response.json();
    assert_eq!(
        (response.status, &document["status"]),
        (200, &json!("degraded"))
    );
    assert!(
        document["answer"]
            .as_str()
            .unwrap()
            .contains("Marie and Pierre Curie"),
        "{document}"
    );
    assert_eq!(document["degraded"][0]["cause"], "timeout");
}

#[tokio::test]
async fn degr_08_without_the_database_a_query_is_answered_and_says_that_it_is_not_recorded() {
    let gateway = start_over(ONCE, MemoryStore::default()).await;
    gateway.store.gone(true);
    let mut client = ask(gateway.address, "").await;
    for (step, answer) in [
        ("entities", json!({"entities": []})),
        (
            "synthesis",
            json!({"answer": "Marie and Pierre Curie did."}),
        ),
        (
            "review",
            json!({"coherence": 1, "relevance": 1, "support": 0}),
        ),
    ] {
        call(&gateway.provider, step)
            .await
            .json(200, &says(&answer))
            .await;
    }
    let response = client.response().await;
    let document = response.json();
    assert_eq!(
        (response.status, &document["status"], &document["recorded"]),
        (200, &json!("degraded"), &json!(false))
    );
    let lost: Vec<_> = document["degraded"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lost| {
            (
                lost["step"].as_str().unwrap(),
                lost["cause"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        lost,
        [
            ("retrieval", "store_unavailable"),
            ("record", "store_unavailable")
        ]
    );
    assert!(
        !response.body.contains("canary"),
        "the database's own words stay inside"
    );
    let again = get(
        gateway.address,
        &format!("/api/v1/queries/{}", document["id"].as_str().unwrap()),
    )
    .await;
    assert_eq!(
        (again.status, again.code().as_str()),
        (503, "store_unavailable")
    );
}

#[tokio::test]
async fn bad_questions_and_listings_are_refused_with_the_field_before_anybody_is_asked() {
    let gateway = start(ONCE).await;
    for (body, param) in [
        (r#"{"question":""}"#, json!("question")),
        (r#"{"question":["a"]}"#, json!("question")),
        (
            r#"{"question":"why?","deadline_ms":0}"#,
            json!("deadline_ms"),
        ),
        (r#"{"question":"why?","model":"solo"}"#, json!("model")),
        ("[", Value::Null),
    ] {
        refused(
            &post(gateway.address, "/api/v1/queries", "", body)
                .await
                .response()
                .await,
            &param,
        );
    }
    for (query, param) in [
        ("page=0", "page"),
        ("size=101", "size"),
        ("size=", "size"),
        ("status=done", "status"),
        ("before=x", "before"),
        ("order=asc", "order"),
    ] {
        refused(
            &get(gateway.address, &format!("/api/v1/queries?{query}")).await,
            &json!(param),
        );
    }
    for id in ["7", "01890a5d-ac96-774b-bcce-b302099a8057", "%00", "%ff"] {
        let response = get(gateway.address, &format!("/api/v1/queries/{id}")).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (404, "query_not_found"),
            "{id}"
        );
    }
    // the first call that the provider sees is that of the first good question
    let _client = ask(gateway.address, "").await;
    call(&gateway.provider, "entities").await;
}

fn refused(response: &Response, param: &Value) {
    assert_eq!(
        (
            response.status,
            response.code().as_str(),
            &response.json()["error"]["param"]
        ),
        (400, "invalid_request", param),
        "{}",
        response.body
    );
}

#[tokio::test]
async fn auth_02_another_tenants_query_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let key = |tenant: &str| {
        format!(
            "[[auth.keys]]\ntenant = \"{tenant}\"\nsha256 = \"{}\"\n",
            gauntlet::store::token_hash(&format!("gk-{tenant}"))
        )
    };
    let World {
        address,
        provider,
        running: _running,
    } = world(directory.path(), &(key("acme") + &key("other"))).await;
    let mut client = ask(address, "authorization: Bearer gk-acme\r\n").await;
    for step in ["entities", "synthesis"] {
        call(&provider, step).await.json(500, "{}").await;
    }
    let id = client.response().await.json()["query"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for (tenant, status, total) in [("acme", 200, 1), ("other", 404, 0)] {
        let read = async |path: String| {
            let mut client = Client::connect(address).await;
            client.send(&format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer gk-{tenant}\r\n\r\n")).await;
            client.response().await
        };
        assert_eq!(
            read(format!("/api/v1/queries/{id}")).await.status,
            status,
            "{tenant}"
        );
        assert_eq!(
            read("/api/v1/queries".into()).await.json()["total"],
            total,
            "{tenant}"
        );
    }
    assert_eq!(
        get(address, &format!("/api/v1/queries/{id}")).await.status,
        401
    );
}

#[tokio::test]
async fn without_a_model_queries_say_what_to_configure() {
    let config = Config::from_toml("[server]\nlisten = \"127.0.0.1:0\"\n").unwrap();
    let running = Gateway::start_with(config, Arc::new(MemoryStore::default()))
        .await
        .unwrap();
    let response = ask(running.addr, "").await.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (503, "not_configured")
    );
    let message = response.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("[[models]]") && message.contains("[orchestrator.models]"),
        "{message}"
    );
}

#[tokio::test]
async fn a_title_is_bounded_since_its_words_are_kept_with_every_passage() {
    let directory = tempfile::tempdir().unwrap();
    let World {
        address,
        running: _running,
        ..
    } = world(directory.path(), "").await;
    let submit = async |title: &str| {
        post(
            address,
            "/api/v1/documents",
            "",
            &json!({"title": title, "text": "a heron"}).to_string(),
        )
        .await
        .response()
        .await
    };
    let longest = "é".repeat(1_000);
    assert_eq!(submit(&longest).await.status, 201);
    let refused = submit(&format!("{longest}x")).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.body.contains("at most 1000 characters, got 1001")
            && refused.body.contains(r#""param":"title""#),
        "{}",
        refused.body
    );
}

#[tokio::test]
async fn a_bug_in_a_step_is_recorded_as_failed_and_not_as_the_clients_leaving() {
    let gateway = start_over("", MemoryStore::default()).await;
    gateway.store.panics.store(true, Ordering::SeqCst);
    let response = ask(gateway.address, "").await.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (500, "internal_error")
    );
    assert!(!response.body.contains("canary"), "{}", response.body);
    gateway.running.drain().await;
    let recorded = gateway.store.recorded.lock().unwrap();
    assert_eq!(
        recorded
            .iter()
            .map(|record| record.status.as_str())
            .collect::<Vec<_>>(),
        ["failed"]
    );
}
