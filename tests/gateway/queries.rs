//! `/api/v1/queries` from outside: the whole way over real sockets and SQLite, and each dependency
//! that can be missing.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gauntlet::config::Config;
use gauntlet::llm::router::Router;
use gauntlet::llm::transport_http::http_transport;
use gauntlet::orchestrator::{Ask, Orchestrator, Settings};
use gauntlet::store::{
    Document, Documents, Listing, NewDocument, Page, Passage, Queries, Store, StoreError,
};
use gauntlet::telemetry::Metrics;
use gauntlet::{Gateway, KINDS};
use gauntlet_harness::client::{Client, Reply};
use gauntlet_harness::llm::{Responder, Stub, StubRequest, error, reply, with};
use gauntlet_harness::plan::Plan;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::support::config::{auth_key, toml};
use super::support::gateway::{TestGateway, client_of, code, memory, open};

const ONCE: &str = "[retry]\nmax_attempts = 1\n";
const QUERIES: &str = "/api/v1/queries";
const QUOTE: &str = "discovered by Marie and Pierre Curie in 1898";

/// A gateway over a store that another can open again.
async fn start(directory: &Path, sections: &str) -> TestGateway {
    let store = open_in(directory).await;
    TestGateway::start_over(&format!("{ONCE}{sections}"), store).await
}

async fn open_in(directory: &Path) -> Arc<dyn Store> {
    open(&format!(
        "sqlite://{}",
        directory.join("gauntlet.db").display()
    ))
    .await
}

async fn add_document(client: &Client) {
    let document = json!({
        "title": "Radium",
        "text": "Radium was discovered by Marie and Pierre Curie in 1898.",
    });
    let added = client.post("/api/v1/documents", document).await.unwrap();
    assert_eq!(added.status, 201);
}

fn question() -> Value {
    json!({"question": "Who discovered radium?"})
}

async fn ask(client: &Client) -> Reply {
    client.post(QUERIES, question()).await.unwrap()
}

/// The step whose agent calls: the idempotency key ends with its name.
fn step_of(idempotency_key: Option<&str>) -> &str {
    idempotency_key
        .and_then(|key| key.rsplit_once('-'))
        .map_or("", |(_, step)| step)
}

/// Each step's agent gets its answer; a step without one gets an error.
fn answers(stub: &Stub, steps: &[(&'static str, Responder)]) {
    let steps = steps.to_vec();
    stub.answers(with(move |request: &StubRequest| {
        let step = step_of(request.header("idempotency-key"));
        steps.iter().find(|(name, _)| *name == step).map_or_else(
            || error(500).message("canary"),
            |(_, answer)| answer.clone(),
        )
    }));
}

fn json_reply(answer: &Value) -> Responder {
    reply(&answer.to_string()).usage(7, 3)
}

/// The steps whose agents have called, in order.
fn called(stub: &Stub) -> Vec<String> {
    stub.requests()
        .iter()
        .map(|request| step_of(request.header("idempotency-key")).to_owned())
        .collect()
}

async fn records(store: &dyn Store) -> Page {
    let listing = Listing {
        page: 1,
        size: 10,
        status: None,
        before: None,
    };
    store.queries("default", listing).await.unwrap()
}

#[tokio::test]
async fn a_question_is_answered_from_a_document_and_read_again_as_it_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = start(directory.path(), "").await;
    add_document(&gateway.client).await;
    let claim = json!({
        "claim": "The Curies discovered it.", "source": 1, "verdict": "supported", "quote": QUOTE,
    });
    let found = json!([{"name": "radium", "kind": "substance"}]);
    let citation = json!([{"sentence": 1, "source": 1, "quote": QUOTE}]);
    let scores = json!({"coherence": 1, "relevance": 1, "support": 1});
    // an agent that this test says nothing about gives the healthy answer of the suites' row
    let replies = KINDS
        .steps
        .iter()
        .filter(|step| step.asks_model)
        .map(|step| {
            let reply = match step.name {
                "entities" => json!({"entities": found}),
                "fact_check" => json!({"claims": [claim]}),
                "synthesis" => json!({"answer": "Marie and Pierre Curie discovered it [1]."}),
                "citation" => json!({"citations": citation}),
                "review" => scores.clone(),
                other => gauntlet_suites::agents::healthy(other),
            };
            (step.name, json_reply(&reply))
        });
    answers(&gateway.stub, &replies.collect::<Vec<_>>());
    let reply = ask(&gateway.client.with_header("x-request-id", "my-7")).await;
    let agents: Vec<_> = KINDS.steps.iter().filter(|step| step.asks_model).collect();
    assert_eq!(
        called(&gateway.stub),
        agents.iter().map(|step| step.name).collect::<Vec<_>>()
    );
    for request in gateway.stub.requests() {
        assert_eq!(request.header("x-request-id"), Some("my-7"));
    }
    let document = reply.json();
    assert_eq!(
        (reply.status, reply.header("x-request-id")),
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
    assert_eq!(
        document["answer"],
        "Marie and Pierre Curie discovered it [1]."
    );
    assert_eq!(document["citations"][0]["state"], "found");
    assert_eq!(
        document["usage"],
        json!({
            "prompt_tokens": 7 * agents.len(),
            "completion_tokens": 3 * agents.len(),
            "total_tokens": 10 * agents.len(),
        })
    );
    let id = document["id"].as_str().unwrap();
    let again = gateway.get(&format!("{QUERIES}/{id}")).await;
    assert_eq!((again.status, again.body), (200, reply.body));
    let listed = gateway
        .get("/api/v1/queries?status=complete&page=1&size=10")
        .await;
    assert_eq!(
        listed.json(),
        json!({"queries": [document], "page": 1, "size": 10, "total": 1})
    );
    let metrics = gateway.get("/metrics").await.text();
    assert!(
        metrics.contains("gauntlet_queries_total{status=\"complete\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn degr_07_without_an_answer_the_error_and_the_query_stand_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = start(directory.path(), "").await;
    answers(&gateway.stub, &[]);
    let reply = ask(&gateway.client).await;
    assert_eq!((reply.status, code(&reply).as_str()), (503, "no_answer"));
    assert!(!reply.text().contains("canary"), "{}", reply.text());
    assert_eq!(
        reply.json()["error"]["message"],
        "The query has no answer, because these steps failed: entities (error), synthesis (error). \
         Try again, or see 'degraded' in the query for the effect of each."
    );
    let query = &reply.json()["query"];
    assert_eq!(
        (&query["status"], &query["answer"], &query["recorded"]),
        (&json!("failed"), &Value::Null, &json!(true))
    );
    let id = query["id"].as_str().unwrap();
    let again = gateway.get(&format!("{QUERIES}/{id}")).await;
    assert_eq!((again.status, &again.json()), (200, query));
}

#[rstest]
#[case::while_extracting("entities")]
#[case::while_writing("synthesis")]
#[tokio::test]
async fn canc_03_a_client_who_leaves_ends_the_call_at_the_provider(#[case] step: &'static str) {
    let directory = tempfile::tempdir().unwrap();
    let gateway = start(directory.path(), "").await;
    answers(
        &gateway.stub,
        &[(step, reply("late").plan(Plan::held("late")))],
    );
    let body = question().to_string();
    let json = [("content-type", "application/json")];
    let asked = gateway.client.send("POST", QUERIES, &json, body.as_bytes());
    let asked = asked.await.unwrap();
    gateway.stub.held(1).await.unwrap();
    asked.leave();
    gateway.stub.peer_closed(1).await.unwrap();
    gateway.running.drain().await;
    // the drain has waited for the record
    let page = records(&*open_in(directory.path()).await).await;
    assert_eq!(
        (page.total, page.records[0].status.as_str()),
        (1, "cancelled")
    );
}

#[tokio::test]
async fn a_query_cut_at_the_drain_deadline_is_recorded_as_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = start(directory.path(), "[server]\ndrain_ms = 20\n").await;
    answers(
        &gateway.stub,
        &[("entities", reply("late").plan(Plan::silent()))],
    );
    let client = gateway.client.clone();
    let asked = tokio::spawn(async move { ask(&client).await });
    gateway.stub.seen(1).await.unwrap();
    gateway.running.drain().await;
    gateway.stub.peer_closed(1).await.unwrap();
    assert_eq!(code(&asked.await.unwrap()), "shutting_down");
    let page = records(&*open_in(directory.path()).await).await;
    assert_eq!(
        (page.total, page.records[0].status.as_str()),
        (1, "cancelled")
    );
}

#[rstest]
#[case::in_the_body(None, 1_000)]
#[case::in_a_header(Some("1000"), 60_000)]
#[tokio::test]
async fn canc_04_the_clients_deadline_ends_the_call_and_evidence_is_still_answered(
    #[case] header: Option<&str>,
    #[case] deadline_ms: u64,
) {
    let directory = tempfile::tempdir().unwrap();
    let steps = ["entities", "fact_check", "synthesis"]
        .map(|step| format!("[orchestrator.steps.{step}]\nminimum_ms = 20\n"))
        .concat();
    let gateway = start(directory.path(), &steps).await;
    add_document(&gateway.client).await;
    answers(
        &gateway.stub,
        &[("entities", reply("late").plan(Plan::silent()))],
    );
    let client = match header {
        Some(value) => gateway.client.with_header("x-request-timeout-ms", value),
        None => gateway.client.clone(),
    };
    let question = json!({"question": "Who discovered radium?", "deadline_ms": deadline_ms});
    let reply = client.post(QUERIES, question).await.unwrap();
    gateway.stub.peer_closed(1).await.unwrap();
    let document = reply.json();
    assert_eq!(
        (reply.status, &document["status"]),
        (200, &json!("degraded"))
    );
    let answer = document["answer"].as_str().unwrap();
    assert!(answer.contains("Marie and Pierre Curie"), "{document}");
    assert_eq!(document["degraded"][0]["cause"], "timeout");
}

#[tokio::test]
async fn degr_08_without_the_database_a_query_is_answered_and_says_that_it_is_not_recorded() {
    let gateway = TestGateway::start(ONCE).await;
    gateway.store.close().await;
    let replies = KINDS
        .steps
        .iter()
        .filter(|step| step.asks_model)
        .map(|step| {
            let reply = match step.name {
                "entities" => json!({"entities": []}),
                "synthesis" => json!({"answer": "Marie and Pierre Curie discovered it."}),
                other => gauntlet_suites::agents::healthy(other),
            };
            (step.name, json_reply(&reply))
        });
    answers(&gateway.stub, &replies.collect::<Vec<_>>());
    let reply = ask(&gateway.client).await;
    let document = reply.json();
    let called = called(&gateway.stub);
    assert!(
        called
            .iter()
            .all(|step| step != "fact_check" && step != "citation"),
        "without sources there is nothing to check and to cite: {called:?}"
    );
    assert_eq!(
        (reply.status, &document["status"], &document["recorded"]),
        (200, &json!("degraded"), &json!(false))
    );
    let failed: Vec<_> = document["degraded"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["step"].as_str().unwrap(),
                entry["cause"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        failed,
        [
            ("retrieval", "store_unavailable"),
            ("record", "store_unavailable")
        ]
    );
    let id = document["id"].as_str().unwrap();
    let again = gateway.get(&format!("{QUERIES}/{id}")).await;
    assert_eq!(
        (again.status, code(&again).as_str()),
        (503, "store_unavailable")
    );
}

#[tokio::test]
async fn bad_questions_and_listings_are_refused_with_the_field_before_a_model_is_asked() {
    let gateway = TestGateway::start(ONCE).await;
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
        let json = [("content-type", "application/json")];
        let refused = gateway
            .client
            .request("POST", QUERIES, &json, body.as_bytes());
        assert_refused(&refused.await.unwrap(), &param);
    }
    for (query, param) in [
        ("page=0", "page"),
        ("size=101", "size"),
        ("size=", "size"),
        ("status=done", "status"),
        ("before=x", "before"),
        ("order=asc", "order"),
    ] {
        let refused = gateway.get(&format!("{QUERIES}?{query}")).await;
        assert_refused(&refused, &json!(param));
    }
    for id in ["7", "01890a5d-ac96-774b-bcce-b302099a8057", "%00", "%ff"] {
        let missing = gateway.get(&format!("{QUERIES}/{id}")).await;
        assert_eq!(
            (missing.status, code(&missing).as_str()),
            (404, "query_not_found"),
            "{id}"
        );
    }
    assert!(gateway.stub.requests().is_empty());
}

fn assert_refused(reply: &Reply, param: &Value) {
    assert_eq!(
        (
            reply.status,
            code(reply).as_str(),
            &reply.json()["error"]["param"]
        ),
        (400, "invalid_request", param),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn auth_02_another_tenants_query_is_not_there() {
    let keys = auth_key("acme", "gk-acme") + &auth_key("other", "gk-other");
    let gateway = TestGateway::start(&format!("{ONCE}{keys}")).await;
    answers(&gateway.stub, &[]);
    let failed = ask(&gateway.client.with_bearer("gk-acme")).await.json();
    let query = format!("{QUERIES}/{}", failed["query"]["id"].as_str().unwrap());
    for (token, status, total) in [("gk-acme", 200, 1), ("gk-other", 404, 0)] {
        let client = gateway.client.with_bearer(token);
        assert_eq!(client.get(&query).await.unwrap().status, status, "{token}");
        let listed = client.get(QUERIES).await.unwrap().json();
        assert_eq!(listed["total"], total, "{token}");
    }
    assert_eq!(gateway.get(&query).await.status, 401);
}

#[tokio::test]
async fn without_a_model_queries_say_what_to_configure() {
    let config = Config::from_toml(&toml(&[], "")).unwrap();
    let gateway = Gateway::start(config).await.unwrap();
    let reply = ask(&client_of(&gateway, &Default::default())).await;
    assert_eq!(
        (reply.status, code(&reply).as_str()),
        (503, "not_configured")
    );
    let message = reply.json()["error"]["message"].to_string();
    assert!(
        message.contains("[[models]]") && message.contains("[orchestrator.models]"),
        "{message}"
    );
}

#[tokio::test]
async fn a_title_is_bounded_since_its_words_are_stored_with_every_passage() {
    let gateway = TestGateway::start("").await;
    let submit = async |title: &str| {
        let document = json!({"title": title, "text": "a heron"});
        gateway
            .client
            .post("/api/v1/documents", document)
            .await
            .unwrap()
    };
    let longest = "é".repeat(1_000);
    assert_eq!(submit(&longest).await.status, 201);
    let refused = submit(&format!("{longest}x")).await;
    assert_eq!(refused.status, 400);
    let error = refused.json()["error"].clone();
    assert_eq!(error["param"], "title");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("at most 1000 characters, got 1001"),
        "{message}"
    );
}

/// The documents of a store that has a bug.
struct Panicking;

#[async_trait]
impl Documents for Panicking {
    async fn add_document(&self, _: &str, _: NewDocument) -> Result<Document, StoreError> {
        panic!("canary-panic")
    }
    async fn document(&self, _: &str, _: Uuid) -> Result<Option<Document>, StoreError> {
        panic!("canary-panic")
    }
    async fn delete_document(&self, _: &str, _: Uuid) -> Result<bool, StoreError> {
        panic!("canary-panic")
    }
    async fn search(&self, _: &str, _: &str, _: u32) -> Result<Vec<Passage>, StoreError> {
        panic!("canary-panic")
    }
}

#[tokio::test]
async fn a_bug_in_a_step_is_recorded_as_failed_and_not_as_cancelled_by_the_client() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(reply("late").plan(Plan::silent()));
    let config = super::support::gateway::config(&[&gateway.stub], "");
    let metrics = Arc::new(Metrics::default());
    let router = Arc::new(Router::new(&config, http_transport, &metrics));
    let store: Arc<dyn Queries> = memory().await;
    let settings = Settings::of(&config);
    let orchestrator = Orchestrator::new(
        settings,
        router,
        Arc::new(Panicking),
        store.clone(),
        metrics,
    );
    let orchestrator = Arc::new(orchestrator);
    let ask = Ask {
        tenant: "default".into(),
        question: "Who discovered radium?".into(),
        deadline: orchestrator.deadline(Instant::now(), None),
        request_id: "r".into(),
        traceparent: None,
    };
    let answering = orchestrator.clone();
    let ended = tokio::spawn(async move { answering.answer(ask).await }).await;
    assert!(ended.unwrap_err().is_panic());
    orchestrator.drained().await;
    let listing = Listing {
        page: 1,
        size: 10,
        status: None,
        before: None,
    };
    let page = store.queries("default", listing).await.unwrap();
    assert_eq!((page.total, page.records[0].status.as_str()), (1, "failed"));
}
