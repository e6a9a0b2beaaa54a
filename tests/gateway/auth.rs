//! Keys: refused before any provider is asked, known without the database, and never passed on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gauntlet::Gateway;
use gauntlet::config::Config;

use super::client::{Client, ask, get, question};
use super::gateway::{start, start_over};
use super::memory::MemoryStore;
use super::provider::{COMPLETION, Provider};

async fn ask_with(address: std::net::SocketAddr, key: &str) -> Client {
    let mut client = Client::connect(address).await;
    let header = if key.is_empty() {
        String::new()
    } else {
        format!("authorization: {key}\r\n")
    };
    client
        .post("/v1/chat/completions", &header, &question("plain"))
        .await;
    client
}

fn configured(token: &str) -> String {
    format!(
        "[[auth.keys]]\ntenant = \"acme\"\nsha256 = \"{}\"\n",
        gauntlet::store::token_hash(token)
    )
}

#[tokio::test]
async fn without_a_known_key_nothing_reaches_a_provider() {
    let gateway = start(&configured("gk-right")).await;
    for (key, code) in [
        ("", "missing_api_key"),
        ("Bearer gk-wrong", "invalid_api_key"),
        ("Basic Z2s6", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
    ] {
        let response = ask_with(gateway.address, key).await.response().await;
        assert_eq!((response.status, response.code().as_str()), (401, code));
        assert_eq!(
            response.header("www-authenticate"),
            Some("bearer realm=\"gauntlet\"")
        );
    }
    assert_eq!(get(gateway.address, "/v1/models").await.status, 401);
    assert_eq!(get(gateway.address, "/health/live").await.status, 200);
    // the first request that the provider sees is the one with the right key; the client's key is not sent on, the provider's not back
    let mut client = ask_with(gateway.address, "bearer gk-right").await;
    let exchange = gateway.provider.next().await;
    assert!(
        exchange
            .head
            .contains("authorization: bearer sk-canary-provider")
            && !exchange.head.contains("gk-right"),
        "{}",
        exchange.head
    );
    exchange.json(200, COMPLETION).await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert!(!response.head.contains("canary"));
}

#[tokio::test]
async fn a_key_of_the_store_is_asked_for_once() {
    let gateway = start_over(
        "[auth]\nrequired = true\ncache_ms = 60000\n",
        MemoryStore::default().with_key("acme", "gk-stored"),
    )
    .await;
    for _ in 0..3 {
        let mut client = ask_with(gateway.address, "Bearer gk-stored").await;
        gateway.provider.next().await.json(200, COMPLETION).await;
        assert_eq!(client.response().await.status, 200);
    }
    assert_eq!(gateway.store.lookups.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn without_the_store_a_key_is_never_called_invalid() {
    let gateway = start_over(
        "[auth]\nrequired = true\ncache_ms = 0\n",
        MemoryStore::default().with_key("acme", "gk-stored"),
    )
    .await;
    let mut client = ask_with(gateway.address, "Bearer gk-stored").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(client.response().await.status, 200);

    gateway.store.gone(true);
    let unknown = ask_with(gateway.address, "Bearer gk-never-seen")
        .await
        .response()
        .await;
    assert_eq!(
        (
            unknown.status,
            unknown.code().as_str(),
            unknown.header("retry-after")
        ),
        (503, "store_unavailable", Some("1"))
    );
    assert!(!unknown.body.contains("canary"));
    let mut known = ask_with(gateway.address, "Bearer gk-stored").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(known.response().await.status, 200);
}

#[tokio::test]
async fn a_revoked_key_is_unknown() {
    use gauntlet::store::Keys;
    let gateway = start_over(
        "[auth]\nrequired = true\ncache_ms = 0\n",
        MemoryStore::default().with_key("acme", "gk-stored"),
    )
    .await;
    let mut client = ask_with(gateway.address, "Bearer gk-stored").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(client.response().await.status, 200);
    let id = gateway.store.keys().await.unwrap()[0].id;
    assert!(gateway.store.revoke_key(id, 2).await.unwrap());
    assert_eq!(
        ask_with(gateway.address, "Bearer gk-stored")
            .await
            .response()
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_panic_is_a_500_in_the_envelope_without_its_text() {
    let gateway = start_over(
        "[auth]\nrequired = true\n",
        MemoryStore::default().with_key("acme", "gk-stored"),
    )
    .await;
    gateway.store.panics.store(true, Ordering::SeqCst);
    let response = ask_with(gateway.address, "Bearer gk-stored")
        .await
        .response()
        .await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (500, "internal_error")
    );
    assert!(response.header("x-request-id").is_some() && !response.body.contains("canary"));
    gateway.store.panics.store(false, Ordering::SeqCst);
    let mut client = ask_with(gateway.address, "Bearer gk-stored").await;
    gateway.provider.next().await.json(200, COMPLETION).await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_key_in_the_store_shuts_the_door_unless_the_configuration_opens_it() {
    for (store, further, status) in [
        (MemoryStore::default(), "", 200),
        (
            MemoryStore::default().with_key("acme", "gk-stored"),
            "",
            401,
        ),
        (
            MemoryStore::default().with_key("acme", "gk-stored"),
            "[auth]\nrequired = false\n",
            200,
        ),
        (MemoryStore::default(), "[auth]\nrequired = true\n", 401),
    ] {
        let gateway = start_over(further, store).await;
        assert_eq!(
            get(gateway.address, "/v1/models").await.status,
            status,
            "{further}"
        );
    }
}

/// ERR-04: user and password of a provider's URL are sent with calls and probes, and are in no answer.
#[tokio::test]
async fn user_and_password_of_a_providers_url_are_sent_and_never_told() {
    let provider = Provider::start().await;
    let base_url = provider.base_url.replace("http://", "http://user:canary@");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[retry]\nmax_attempts = 1\n[[providers]]\nname = \"p1\"\nprotocol = \"openai\"\nbase_url = \"{base_url}\"\n[[models]]\nalias = \"solo\"\ncandidates = [{{ provider = \"p1\", model = \"m\" }}]\n"
    );
    let gateway = Gateway::start_with(
        Config::from_toml(&text).unwrap(),
        Arc::new(MemoryStore::default()),
    )
    .await
    .unwrap();
    let basic = "authorization: basic dxnlcjpjyw5hcnk=";
    let mut client = ask(gateway.addr, "plain").await;
    let exchange = provider.next().await;
    assert!(exchange.head.contains(basic), "{}", exchange.head);
    exchange
        .json(
            401,
            r#"{"error":{"message":"user:canary (dXNlcjpjYW5hcnk=) is not known"}}"#,
        )
        .await;
    let told = client.response().await;
    let asked = tokio::spawn(get(gateway.addr, "/health"));
    let probe = provider.next().await;
    assert!(probe.head.contains(basic), "{}", probe.head);
    probe.json(200, "{}").await;
    let health = asked.await.unwrap();
    assert_eq!(
        (told.status, health.json()["status"].as_str()),
        (502, Some("ok"))
    );
    for text in [told.body, health.body] {
        assert!(
            !text.contains("canary") && !text.contains("dXNlcjpjYW5hcnk"),
            "{text}"
        );
    }
}
