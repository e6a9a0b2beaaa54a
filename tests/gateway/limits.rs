//! Bounds on what a client may cost: requests in flight, bodies, slow clients, and requests that no
//! route takes.

use gauntlet_harness::client::Client;
use gauntlet_harness::gate::guard;
use gauntlet_harness::plan::{Plan, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::gateway::{CHAT, TestGateway, code, completion, question, streamed_by};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Writes the bytes and reads until the gateway closes the connection.
async fn until_closed(client: &Client, bytes: &[u8]) -> String {
    let mut stream = client.raw().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    let reading = stream.read_to_end(&mut text);
    // a reset closes the connection as well
    let _ = guard("hang.connection", "the end of the connection", reading)
        .await
        .unwrap();
    String::from_utf8(text).unwrap()
}

/// The head of a chat request with these further headers, and this much of its body.
fn chat_bytes(client: &Client, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    client.request_bytes("POST", CHAT, &[&[JSON], headers].concat(), body)
}

#[tokio::test]
async fn beyond_the_limit_requests_are_refused_at_once_and_health_still_answers() {
    let gateway = TestGateway::start("[server]\nmax_in_flight = 1\n").await;
    gateway.stub.answers(completion().plan(Plan::held("first")));
    let first = gateway.client.send_chat(question()).await.unwrap();
    gateway.stub.held(1).await.unwrap();

    let refused = gateway.chat().await;
    assert_eq!(
        (
            refused.status,
            code(&refused).as_str(),
            refused.header("retry-after")
        ),
        (503, "too_many_in_flight", Some("1"))
    );
    assert_eq!(gateway.get("/health/live").await.status, 200);
    assert_eq!(gateway.get("/v1/models").await.status, 200);

    gateway.gates.gate("first").open();
    assert_eq!(first.reply().await.unwrap().status, 200);
    assert_eq!(gateway.chat().await.status, 200);
}

#[tokio::test]
async fn a_stream_holds_its_permit_until_it_ends_or_its_client_leaves() {
    let gateway = TestGateway::start("[server]\nmax_in_flight = 1\n").await;
    let plan = Plan::events_then(1, Step::Stall);
    gateway.stub.answers(streamed_by(&["one", "two"], plan));
    let mut stream = gateway.client.stream(question()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(gateway.chat().await.status, 503);
    stream.leave();
    gateway.stub.peer_closed(1).await.unwrap();
    gateway.stub.answers(completion());
    assert_eq!(gateway.chat().await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let gateway = TestGateway::start("[server]\nbody_limit_bytes = 1000\n").await;
    let bytes = chat_bytes(&gateway.client, &[("content-length", "1001")], b"");
    let answer = until_closed(&gateway.client, &bytes).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_without_a_length_is_refused_where_it_passes_the_limit() {
    let gateway = TestGateway::start("[server]\nbody_limit_bytes = 1000\n").await;
    let body = format!("3e9\r\n{}\r\n", "x".repeat(1001));
    let chunked = [("transfer-encoding", "chunked")];
    let bytes = chat_bytes(&gateway.client, &chunked, body.as_bytes());
    let answer = until_closed(&gateway.client, &bytes).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_the_connection_is_closed() {
    let gateway = TestGateway::start("[server]\nbody_timeout_ms = 50\n").await;
    let bytes = chat_bytes(&gateway.client, &[("content-length", "100")], b"{");
    let answer = until_closed(&gateway.client, &bytes).await;
    assert!(
        answer.starts_with("HTTP/1.1 408 ")
            && answer.contains("body_timeout")
            && answer.contains("connection: close"),
        "{answer}"
    );
}

#[tokio::test]
async fn headers_that_do_not_come_whole_close_the_connection() {
    let gateway = TestGateway::start("[server]\nheader_timeout_ms = 50\n").await;
    let begun = format!("POST {CHAT} HTTP/1.1\r\nhost: ");
    assert_eq!(until_closed(&gateway.client, begun.as_bytes()).await, "");
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_provider_and_is_disconnected() {
    let gateway = TestGateway::start("[server]\nwrite_timeout_ms = 100\nmax_in_flight = 1\n").await;
    let text = "x".repeat(64 << 10);
    let plan = Plan::events_then(1, Step::RepeatForever { every_ms: 0 });
    gateway.stub.answers(streamed_by(&[&text], plan));
    let client = gateway.client.with_receive_buffer(16 << 10);
    let stream = client.stream(question()).await.unwrap();
    gateway.stub.peer_closed(1).await.unwrap();
    let sent = gateway.stub.sent_settles().await.unwrap();
    assert!(
        sent < 64 << 20,
        "the gateway took {sent} bytes from the provider while its client read nothing"
    );
    drop(stream);
    gateway.stub.answers(completion());
    assert_eq!(gateway.chat().await.status, 200);
}

#[tokio::test]
async fn a_request_that_no_route_takes_gets_the_right_4xx_in_the_same_envelope() {
    let gateway = TestGateway::start("").await;
    let valid = question().to_string();
    let no_model = valid.replace("solo", "none");
    let text = ("content-type", "text/plain");
    let charset = ("content-type", "application/json; charset=utf-8");
    for (method, path, header, body, status, expected) in [
        ("POST", CHAT, charset, "{", 400, "invalid_request"),
        ("POST", CHAT, JSON, "", 400, "invalid_request"),
        (
            "POST",
            CHAT,
            JSON,
            r#"{"model":"solo","messages":"hi"}"#,
            400,
            "invalid_request",
        ),
        ("POST", CHAT, JSON, &no_model, 404, "model_not_found"),
        ("POST", CHAT, text, &valid, 415, "unsupported_media_type"),
        (
            "POST",
            "/v1/completions",
            JSON,
            "{}",
            404,
            "route_not_found",
        ),
        ("GET", CHAT, JSON, "", 405, "method_not_allowed"),
        ("GET", "/v1/models/%FF", JSON, "", 404, "model_not_found"),
        ("GET", "/v1/models/none", JSON, "", 404, "model_not_found"),
        (
            "GET",
            "/v1/models/org/none",
            JSON,
            "",
            404,
            "model_not_found",
        ),
    ] {
        let headers = [header];
        let reply = gateway
            .client
            .request(method, path, &headers, body.as_bytes());
        let reply = reply.await.unwrap();
        assert_eq!(
            (reply.status, code(&reply).as_str()),
            (status, expected),
            "{method} {path} {body}: {reply:?}"
        );
        assert!(reply.header("x-request-id").is_some());
        assert!(reply.json()["error"]["message"].is_string());
        assert_eq!(reply.error_type().as_deref(), Some("invalid_request_error"));
        assert_eq!(reply.header("allow").is_some(), status == 405);
    }
}

#[tokio::test]
async fn the_time_that_a_body_takes_is_part_of_the_deadline() {
    let gateway = TestGateway::start("[timeouts]\ntotal_ms = 200\n").await;
    gateway.stub.answers(completion().plan(Plan::silent()));
    let body = question().to_string();
    let length = body.len().to_string();
    let headers = [("content-length", length.as_str()), ("connection", "close")];
    let head = chat_bytes(&gateway.client, &headers, b"");
    let mut slow = gateway.client.raw().await.unwrap();
    slow.write_all(&head).await.unwrap();
    // an exchange that began after the head was sent has ended: the gateway has read the head by
    // then
    assert_eq!(gateway.get("/health/live").await.status, 200);
    // the deadline of this request is later, and has passed when it is answered
    assert_eq!(gateway.chat().await.status, 504);
    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let reading = slow.read_to_string(&mut answer);
    guard("hang.answer", "the answer to the slow client", reading)
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 504 ")
            && answer.contains("deadline_exceeded")
            && answer.contains("x-gauntlet-attempts: 0"),
        "{answer}"
    );
}

/// A request of HTTP/1.1 names one host (RFC 9112 section 3.2); no provider is asked for another.
#[tokio::test]
async fn a_host_that_is_missing_doubled_or_invalid_is_refused() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion());
    let body = question().to_string();
    let ask = async |hosts: &str, version: &str| {
        let head = format!(
            "POST {CHAT} {version}\r\n{hosts}content-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        );
        until_closed(&gateway.client, head.as_bytes()).await
    };
    for hosts in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a b/\r\n",
        "host: u@a\r\n",
        "host: a:port\r\n",
        "host: [::1]:port\r\n",
    ] {
        let answer = ask(hosts, "HTTP/1.1").await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("invalid_host"),
            "{hosts:?}: {answer}"
        );
    }
    assert_eq!(gateway.stub.requests().len(), 0);
    for (hosts, version) in [
        ("host: a:80\r\n", "HTTP/1.1"),
        ("host: [::1]:80\r\n", "HTTP/1.1"),
        ("host: [::1]\r\n", "HTTP/1.1"),
        ("host: a:\r\n", "HTTP/1.1"),
        ("host:\r\n", "HTTP/1.1"),
        ("", "HTTP/1.0"),
    ] {
        let answer = ask(hosts, version).await;
        assert!(answer.contains(" 200 OK"), "{hosts:?}: {answer}");
    }
}

/// A coded body is refused with the codings that are accepted, and never forwarded.
#[tokio::test]
async fn a_coded_body_is_refused_with_what_is_accepted() {
    let gateway = TestGateway::start("").await;
    gateway.stub.answers(completion());
    for coding in ["gzip", "zstd"] {
        let reply = gateway.chat_with(&[("content-encoding", coding)]).await;
        assert_eq!(
            (
                reply.status,
                code(&reply).as_str(),
                reply.header("accept-encoding")
            ),
            (415, "unsupported_content_coding", Some("identity"))
        );
    }
    assert_eq!(gateway.stub.requests().len(), 0);
    let plain = gateway.chat_with(&[("content-encoding", "identity")]).await;
    assert_eq!(plain.status, 200);
}

/// Clients that send their bodies slowly hold no permit: with as many of them as there are permits,
/// a whole request is still served.
#[tokio::test]
async fn slow_bodies_hold_no_permit() {
    let gateway = TestGateway::start("[server]\nmax_in_flight = 2\n").await;
    gateway.stub.answers(completion());
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = gateway.client.raw().await.unwrap();
        let headers = [("content-length", "100"), ("expect", "100-continue")];
        let bytes = chat_bytes(&gateway.client, &headers, b"");
        stream.write_all(&bytes).await.unwrap();
        // the gateway asks for the body when it begins to read it
        let mut asked = [0; 12];
        let reading = stream.read_exact(&mut asked);
        let _ = guard("hang.connection", "the request for the body", reading)
            .await
            .unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100");
        slow.push(stream);
    }
    assert_eq!(gateway.chat().await.status, 200);
}

/// What a client sends is shown at its start alone.
#[tokio::test]
async fn a_long_method_or_timeout_is_not_echoed_whole() {
    let gateway = TestGateway::start("").await;
    let long = "X".repeat(20_000);
    for path in ["/v1/nothing", CHAT] {
        let head = format!("{long} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = until_closed(&gateway.client, head.as_bytes()).await;
        assert!(answer.contains(" 40") && answer.len() < 1_500, "{answer}");
    }
    let reply = gateway.chat_with(&[("x-request-timeout-ms", &long)]).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().len() < 600, "{}", reply.text());
}

/// Idle connections take nothing from others: for a further connection the oldest idle one ends.
#[tokio::test]
async fn an_idle_connection_ends_for_a_further_one() {
    let gateway = TestGateway::start("[server]\nmax_connections = 8\n").await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(gateway.client.raw().await.unwrap());
    }
    for _ in 0..4 {
        assert_eq!(gateway.get("/health/live").await.status, 200);
    }
    let mut text = Vec::new();
    let reading = idle[0].read_to_end(&mut text);
    let _ = guard(
        "hang.connection",
        "the end of the oldest connection",
        reading,
    )
    .await
    .unwrap();
    assert_eq!(text, b"");
}

/// A request that its route does not take is refused for that, whatever its deadline is.
#[tokio::test]
async fn a_wrong_method_comes_before_a_wrong_deadline() {
    let gateway = TestGateway::start("").await;
    for (method, status) in [("POST", 400), ("PUT", 405)] {
        let headers = [JSON, ("x-request-timeout-ms", "soon")];
        let body = question().to_string();
        let reply = gateway
            .client
            .request(method, CHAT, &headers, body.as_bytes());
        assert_eq!(reply.await.unwrap().status, status, "{method}");
    }
}
