//! Keys are checked before any provider is asked, are known without the database, and are never
//! forwarded.

use gauntlet::Gateway;
use gauntlet::config::Config;
use gauntlet_harness::client::Reply;
use gauntlet_harness::gate::Gates;
use gauntlet_harness::llm::raw;
use gauntlet_harness::tape::Tape;

use super::support::config::{Provider, auth_key, toml};
use super::support::gateway::{
    PROVIDER_KEY, TestGateway, add_key, client_of, code, completion, memory, question, stub,
};

const NO_CACHE: &str = "[auth]\nrequired = true\ncache_ms = 0\n";

async fn chat_as(gateway: &TestGateway, token: &str) -> Reply {
    let authorization = format!("Bearer {token}");
    gateway
        .chat_with(&[("authorization", &authorization)])
        .await
}

/// A gateway whose provider answers and whose store knows the key `gk-stored`.
async fn with_stored_key(sections: &str) -> (TestGateway, uuid::Uuid) {
    let store = memory().await;
    let key = add_key(&*store, "acme", "gk-stored").await;
    let gateway = TestGateway::start_over(sections, store).await;
    gateway.stub.answers(completion());
    (gateway, key)
}

#[tokio::test]
async fn without_a_known_key_nothing_reaches_a_provider() {
    let gateway = TestGateway::start(&auth_key("acme", "gk-right")).await;
    gateway.stub.answers(completion());
    for (authorization, expected) in [
        (None, "missing_api_key"),
        (Some("Bearer gk-wrong"), "invalid_api_key"),
        (Some("Basic Z2s6"), "missing_api_key"),
        (Some("Bearer "), "missing_api_key"),
    ] {
        let header = authorization.map(|value| ("authorization", value));
        let reply = gateway.chat_with(header.as_slice()).await;
        assert_eq!((reply.status, code(&reply).as_str()), (401, expected));
        assert_eq!(
            reply.header("www-authenticate"),
            Some("Bearer realm=\"gauntlet\"")
        );
    }
    assert_eq!(gateway.get("/v1/models").await.status, 401);
    assert_eq!(gateway.get("/health/live").await.status, 200);
    assert!(gateway.stub.all_requests().is_empty());

    let right = [("authorization", "bearer gk-right")];
    let reply = gateway.chat_with(&right).await;
    assert_eq!(reply.status, 200);
    assert!(!format!("{:?}", reply.headers).contains("canary"));
    let request = &gateway.stub.requests()[0];
    let key = format!("Bearer {PROVIDER_KEY}");
    assert_eq!(request.header("authorization"), Some(key.as_str()));
    assert!(!format!("{:?}", request.headers).contains("gk-right"));
}

#[tokio::test]
async fn a_key_of_the_store_is_looked_up_once_while_it_is_cached() {
    let (gateway, key) = with_stored_key("[auth]\nrequired = true\ncache_ms = 60000\n").await;
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);
    assert!(gateway.store.revoke_key(key, 2).await.unwrap());
    // the store would refuse it now: it was not asked
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);
}

#[tokio::test]
async fn without_the_store_a_key_is_never_called_invalid() {
    let (gateway, _) = with_stored_key(NO_CACHE).await;
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);

    gateway.store.close().await;
    let unknown = chat_as(&gateway, "gk-never-seen").await;
    assert_eq!(
        (
            unknown.status,
            code(&unknown).as_str(),
            unknown.header("retry-after")
        ),
        (503, "store_unavailable", Some("1"))
    );
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);
}

/// AUTH-05: nobody can say any more whether the key was revoked.
#[tokio::test]
async fn without_the_store_a_key_is_remembered_for_the_stated_time_alone() {
    let no_time = format!("{NO_CACHE}without_store_ms = 0\n");
    let (gateway, _) = with_stored_key(&no_time).await;
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);
    gateway.store.close().await;
    let reply = chat_as(&gateway, "gk-stored").await;
    assert_eq!(
        (reply.status, code(&reply).as_str()),
        (503, "store_unavailable")
    );
}

#[tokio::test]
async fn a_revoked_key_is_unknown() {
    let (gateway, key) = with_stored_key(NO_CACHE).await;
    assert_eq!(chat_as(&gateway, "gk-stored").await.status, 200);
    assert!(gateway.store.revoke_key(key, 2).await.unwrap());
    let reply = chat_as(&gateway, "gk-stored").await;
    assert_eq!(
        (reply.status, code(&reply).as_str()),
        (401, "invalid_api_key")
    );
}

#[tokio::test]
async fn a_key_in_the_store_makes_keys_required_unless_the_configuration_decides() {
    for (stored, sections, status) in [
        (false, "", 200),
        (true, "", 401),
        (true, "[auth]\nrequired = false\n", 200),
        (false, "[auth]\nrequired = true\n", 401),
    ] {
        let store = memory().await;
        if stored {
            add_key(&*store, "acme", "gk-stored").await;
        }
        let gateway = TestGateway::start_over(sections, store).await;
        assert_eq!(gateway.get("/v1/models").await.status, status, "{sections}");
    }
}

/// ERR-04: the user and password of a provider's URL are sent with calls and probes, and no answer
/// of the gateway shows them.
#[tokio::test]
async fn user_and_password_of_a_providers_url_are_sent_and_never_shown() {
    let tape = Tape::new();
    let stub = stub("p1", &tape, &Gates::new(tape.clone())).await;
    let body = r#"{"error":{"message":"user:canary (dXNlcjpjYW5hcnk=) is not known"}}"#;
    stub.answers(raw(401, "application/json", body));
    let base_url = stub.base_url().replace("http://", "http://user:canary@");
    let provider = Provider {
        name: "p1",
        protocol: "openai",
        base_url: &base_url,
        api_key: None,
    };
    let config = toml(&[provider], "[retry]\nmax_attempts = 1\n");
    let gateway = Gateway::start(Config::from_toml(&config).unwrap())
        .await
        .unwrap();
    let client = client_of(&gateway, &tape);

    let refused = client.chat(question()).await.unwrap();
    let health = client.get("/health").await.unwrap();
    assert_eq!(
        (refused.status, health.json()["status"].as_str()),
        (502, Some("ok"))
    );
    let requests = stub.all_requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    for request in requests {
        let basic = Some("Basic dXNlcjpjYW5hcnk=");
        assert_eq!(request.header("authorization"), basic, "{}", request.path);
    }
    for text in [refused.text(), health.text()] {
        assert!(
            !text.contains("canary") && !text.contains("dXNlcjpjYW5hcnk"),
            "{text}"
        );
    }
}
