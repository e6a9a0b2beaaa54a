//! `/v1/chat/completions`: bytes, headers, events, ends, and clients that leave.

use super::client::{Client, ask, get, question};
use super::gateway::start;
use super::provider::{COMPLETION, chunk};

#[tokio::test]
async fn a_plain_answer_is_the_providers_bytes_and_says_who_served() {
    let gateway = start("").await;
    let mut client = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    let response = client.response().await;
    assert_eq!((response.status, response.body.as_str()), (200, COMPLETION));
    assert_eq!(response.header("x-gauntlet-provider"), Some("p1"));
    assert_eq!(response.header("x-gauntlet-model"), Some("m-p1"));
    assert_eq!(response.header("x-gauntlet-attempts"), Some("1"));
    assert_eq!(response.header("x-gauntlet-fallbacks"), Some("0"));
    assert!(
        response
            .header("x-request-id")
            .is_some_and(|id| id.len() == 32)
    );
    assert!(!response.head.contains("canary"));
}

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_is_sent() {
    let gateway = start("").await;
    let mut client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    exchange.stream().await;
    for text in ["one", "two", "three"] {
        exchange.says(text).await;
        client.until(&format!("data: {}\n\n", chunk(text))).await;
    }
    exchange.ends().await;
    let response = client.response().await;
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    assert_eq!(response.body.matches("data: [DONE]\n\n").count(), 1);
    assert!(response.body.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_order_with_one_error_and_without_done() {
    let gateway = start("").await;
    let mut client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    exchange.stream().await;
    exchange.says("one").await;
    client.until("one").await;
    drop(exchange);
    // the chunked body ends with its terminator: `response` fails if it does not
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert!(!response.body.contains("[DONE]"));
    let events: Vec<&str> = response.body.split_terminator("\n\n").collect();
    let error: serde_json::Value =
        serde_json::from_str(events.last().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (events.len(), error["error"]["code"].as_str()),
        (2, Some("truncated"))
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_closes_the_providers_connection() {
    let gateway = start("").await;
    for mode in ["plain", "stream"] {
        let client = ask(gateway.address, mode).await;
        let exchange = gateway.provider.next().await;
        drop(client);
        exchange.closed().await;
    }
    let mut client = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    client.response().await;
    let metrics = get(gateway.address, "/metrics").await.body;
    assert!(
        metrics.contains(r#"gauntlet_requests_total{route="/v1/chat/completions",status="499"} 2"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(
            r#"gauntlet_attempts_total{provider="p1",model="m-p1",outcome="cancelled"} 2"#
        ),
        "{metrics}"
    );
    assert!(
        metrics
            .contains(r#"gauntlet_attempts_total{provider="p1",model="m-p1",outcome="success"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_closes_the_providers_connection() {
    let gateway = start("").await;
    let mut client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    exchange.stream().await;
    exchange.says("one").await;
    client.until("one").await;
    drop(client);
    exchange.closed().await;
}

#[tokio::test]
async fn a_request_id_is_returned_and_sent_on_and_a_bad_one_is_replaced() {
    let gateway = start("").await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut client = Client::connect(gateway.address).await;
    client
        .post(
            "/v1/chat/completions",
            &format!("x-request-id: mine-1\r\nidempotency-key: once\r\ntraceparent: {trace}\r\n"),
            &question("plain"),
        )
        .await;
    let exchange = gateway.provider.next().await;
    assert!(
        exchange.head.contains("x-request-id: mine-1"),
        "{}",
        exchange.head
    );
    assert!(
        exchange.head.contains("idempotency-key: once"),
        "{}",
        exchange.head
    );
    assert!(
        exchange
            .head
            .contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-"),
        "{}",
        exchange.head
    );
    exchange.json(200, COMPLETION).await;
    assert_eq!(
        client.response().await.header("x-request-id"),
        Some("mine-1")
    );

    let mut client = Client::connect(gateway.address).await;
    client
        .post(
            "/v1/chat/completions",
            &format!("x-request-id: {}\r\n", "x".repeat(129)),
            &question("plain"),
        )
        .await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(
        client.response().await.header("x-request-id").map(str::len),
        Some(32)
    );
}

#[tokio::test]
async fn a_clients_deadline_has_to_be_a_number() {
    let gateway = start("").await;
    let mut client = Client::connect(gateway.address).await;
    client
        .post(
            "/v1/chat/completions",
            "x-request-timeout-ms: soon\r\n",
            &question("plain"),
        )
        .await;
    let response = client.response().await;
    assert_eq!(
        (response.status, response.json()["error"]["param"].as_str()),
        (400, Some("x-request-timeout-ms"))
    );
}

#[tokio::test]
async fn a_clients_own_deadline_ends_the_request_that_a_provider_never_answers() {
    let gateway = start("").await;
    let mut client = Client::connect(gateway.address).await;
    client
        .post(
            "/v1/chat/completions",
            "x-request-timeout-ms: 50\r\n",
            &question("plain"),
        )
        .await;
    let response = client.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (504, "deadline_exceeded")
    );
}

#[tokio::test]
async fn a_failure_lists_its_attempts_without_secrets() {
    let gateway = start("[retry]\nmax_attempts = 1\n").await;
    let mut client = ask(gateway.address, "plain").await;
    gateway
        .provider
        .next()
        .await
        .json(
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-canary-provider"}}"#,
        )
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 502);
    let attempts = &response.json()["error"]["attempts"];
    assert_eq!(
        (
            attempts[0]["provider"].as_str(),
            attempts[0]["cause"].as_str(),
            attempts[0]["status"].as_u64()
        ),
        (Some("p1"), Some("provider_auth"), Some(401))
    );
    assert!(!response.body.contains("sk-canary"), "{}", response.body);
}

/// The end of a chunked body often comes in a segment of its own, behind `[DONE]`. The client does not wait for it, and the
/// connection is used again.
#[tokio::test]
async fn streams_in_turn_use_one_connection_to_the_provider() {
    let gateway = start("").await;
    let mut client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    for round in 0..2 {
        if round > 0 {
            client
                .post("/v1/chat/completions", "", &question("stream"))
                .await;
            // would wait for ever if another connection had been made
            exchange = exchange.again().await;
        }
        exchange.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let finish = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        for data in [&chunk("one"), finish, "[DONE]"] {
            let event = format!("data: {data}\n\n");
            exchange
                .send(&format!("{:x}\r\n{event}\r\n", event.len()))
                .await;
        }
        let response = client.response().await;
        assert!(
            response.body.ends_with("data: [DONE]\n\n"),
            "the whole answer, while the provider holds its last bytes"
        );
        exchange.send("0\r\n\r\n").await;
        // two whole exchanges of the one thread that runs the gateway, begun after these bytes: they have been read by then
        for _ in 0..2 {
            assert_eq!(get(gateway.address, "/health/live").await.status, 200);
        }
    }
}
