//! Bounds at the door: requests in flight, bodies, slow clients, and requests that are none.

use super::client::{Client, ask, get, question};
use super::gateway::start;
use super::provider::COMPLETION;

#[tokio::test]
async fn beyond_the_limit_requests_are_refused_at_once_and_health_still_answers() {
    let gateway = start("[server]\nmax_in_flight = 1\n").await;
    let mut first = ask(gateway.address, "plain").await;
    let held = gateway.provider.next().await;

    let refused = ask(gateway.address, "plain").await.response().await;
    assert_eq!(
        (
            refused.status,
            refused.code().as_str(),
            refused.header("retry-after")
        ),
        (503, "too_many_in_flight", Some("1"))
    );
    assert_eq!(get(gateway.address, "/health/live").await.status, 200);
    assert_eq!(get(gateway.address, "/v1/models").await.status, 200);

    held.json(200, COMPLETION).await;
    assert_eq!(first.response().await.status, 200);
    let mut next = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(next.response().await.status, 200);
}

#[tokio::test]
async fn a_stream_holds_its_place_until_it_ends_or_its_client_leaves() {
    let gateway = start("[server]\nmax_in_flight = 1\n").await;
    let mut client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    exchange.stream().await;
    exchange.says("one").await;
    client.until("one").await;
    assert_eq!(
        ask(gateway.address, "plain").await.response().await.status,
        503
    );
    drop(client);
    exchange.closed().await;
    let mut next = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(next.response().await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let gateway = start("[server]\nbody_limit_bytes = 1000\n").await;
    let mut client = Client::connect(gateway.address).await;
    client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 1001\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (413, "body_too_large")
    );
    assert_eq!(client.closed().await, "");
}

#[tokio::test]
async fn a_body_without_a_length_is_refused_where_it_passes_the_limit() {
    let gateway = start("[server]\nbody_limit_bytes = 1000\n").await;
    let mut client = Client::connect(gateway.address).await;
    client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client
        .send(&format!("3e9\r\n{}\r\n", "x".repeat(1001)))
        .await;
    assert_eq!(client.response().await.status, 413);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_the_connection_is_closed() {
    let gateway = start("[server]\nbody_timeout_ms = 50\n").await;
    let mut client = Client::connect(gateway.address).await;
    client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").await;
    let response = client.response().await;
    assert_eq!(
        (
            response.status,
            response.code().as_str(),
            response.header("connection")
        ),
        (408, "body_timeout", Some("close"))
    );
    assert_eq!(client.closed().await, "");
}

#[tokio::test]
async fn headers_that_do_not_come_whole_close_the_connection() {
    let gateway = start("[server]\nheader_timeout_ms = 50\n").await;
    let mut client = Client::connect(gateway.address).await;
    client
        .send("POST /v1/chat/completions HTTP/1.1\r\nhost: ")
        .await;
    assert_eq!(client.closed().await, "");
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_provider_and_is_given_up() {
    let gateway = start("[server]\nwrite_timeout_ms = 100\nmax_in_flight = 1\n").await;
    let client = ask(gateway.address, "stream").await;
    let mut exchange = gateway.provider.next().await;
    exchange.stream().await;
    let text = "x".repeat(64 << 10);
    let mut sent = 0;
    // ends when the gateway has closed the provider's connection
    while exchange.try_says(&text).await.is_ok() {
        sent += text.len();
        assert!(
            sent < 256 << 20,
            "the gateway takes without bound from the provider what its client does not read"
        );
    }
    drop(client);
    let mut next = ask(gateway.address, "plain").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(next.response().await.status, 200);
}

#[tokio::test]
async fn what_is_no_request_gets_the_right_4xx_in_the_same_envelope() {
    let gateway = start("").await;
    let post = |path: &'static str, kind: &'static str, body: String| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: g\r\n{kind}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "content-type: application/json; charset=utf-8\r\n";
    let cases = [
        (
            post("/v1/chat/completions", json, "{".into()),
            400,
            "invalid_request",
        ),
        (
            post("/v1/chat/completions", json, String::new()),
            400,
            "invalid_request",
        ),
        (
            post(
                "/v1/chat/completions",
                json,
                r#"{"model":"solo","messages":"hi"}"#.into(),
            ),
            400,
            "invalid_request",
        ),
        (
            post(
                "/v1/chat/completions",
                json,
                question("plain").replace("solo", "none"),
            ),
            404,
            "model_not_found",
        ),
        (
            post(
                "/v1/chat/completions",
                "content-type: text/plain\r\n",
                question("plain"),
            ),
            415,
            "unsupported_media_type",
        ),
        (
            post("/v1/completions", json, "{}".into()),
            404,
            "route_not_found",
        ),
        (
            "GET /v1/chat/completions HTTP/1.1\r\nhost: g\r\n\r\n".into(),
            405,
            "method_not_allowed",
        ),
        (
            "GET /v1/models/%FF HTTP/1.1\r\nhost: g\r\n\r\n".into(),
            404,
            "model_not_found",
        ),
        (
            "GET /v1/models/none HTTP/1.1\r\nhost: g\r\n\r\n".into(),
            404,
            "model_not_found",
        ),
    ];
    for (request, status, code) in cases {
        let mut client = Client::connect(gateway.address).await;
        client.send(&request).await;
        let response = client.response().await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (status, code),
            "{request}: {response:?}"
        );
        assert!(response.header("x-request-id").is_some());
        assert!(
            response.json()["error"]["message"].is_string()
                && response.json()["error"]["type"] == "invalid_request_error"
        );
        assert_eq!(response.header("allow").is_some(), status == 405);
    }
}

#[tokio::test]
async fn the_time_that_a_body_takes_is_part_of_the_deadline() {
    let gateway = start("[timeouts]\ntotal_ms = 200\n").await;
    let mut client = Client::connect(gateway.address).await;
    let body = question("plain");
    client
        .send(&format!("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len()))
        .await;
    // begun after that head and answered: the head has been read by then
    assert_eq!(get(gateway.address, "/health/live").await.status, 200);
    // whoever comes later has the later deadline: it has passed, and so has the first one's
    let mut clock = ask(gateway.address, "plain").await;
    let _held = gateway.provider.next().await;
    assert_eq!(clock.response().await.status, 504);
    client.send(&body).await;
    let response = client.response().await;
    assert_eq!(
        (
            response.status,
            response.code().as_str(),
            response.header("x-gauntlet-attempts")
        ),
        (504, "deadline_exceeded", Some("0"))
    );
}
