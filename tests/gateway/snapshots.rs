//! Snapshots of what clients and operators rely on: the table of errors, OpenAPI, metric names,
//! health documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use gauntlet::http::error::{ApiError, Problem, in_band};
use gauntlet::llm::cause::Cause;
use gauntlet::llm::chat::{
    Attempt, AttemptError, Candidate, ErrorDetail, InvalidRequest, LlmFailure,
};
use gauntlet::server::{BodyError, Refusal};
use gauntlet::store::StoreError;
use gauntlet_harness::llm::{openai, raw, sequence, with};
use http::Method;
use serde_json::json;

use super::support::gateway::{TestGateway, completion};

/// Snapshots lie in one folder, named after requirements.
pub fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

fn failure(
    cause: Cause,
    status: Option<u16>,
    detail: ErrorDetail,
    retry_after: Option<Duration>,
) -> ApiError {
    let candidate = Candidate {
        provider: "p1".into(),
        model: "m1".into(),
    };
    let error = AttemptError {
        cause,
        message: "what happened".into(),
        status,
        retry_after,
        no_retry: false,
        detail,
    };
    ApiError::Llm(LlmFailure {
        attempts: vec![Attempt {
            candidate,
            error: Some(error),
        }],
        cause,
        retry_after,
    })
}

fn line(name: &str, problem: &Problem) -> String {
    let error = &problem.envelope.error;
    let mut extra = Vec::new();
    extra.extend(
        problem
            .retry_after
            .map(|time| format!("retry-after {time:?}")),
    );
    extra.extend(
        problem
            .header
            .as_ref()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())),
    );
    extra.extend(problem.close.then(|| "closes".to_owned()));
    extra.extend(error.param.as_ref().map(|param| format!("param {param}")));
    let code = error.code.as_deref().unwrap_or("-");
    format!(
        "{name:<34} {} {:<26} {code:<24} {}\n    {}",
        problem.status.as_u16(),
        error.kind,
        extra.join(", "),
        error.message
    )
}

/// Does not compile when a variant is new: then it belongs into the table below.
fn is_in_the_table(error: &ApiError) {
    use ApiError as E;
    match error {
        E::Invalid(_)
        | E::UnknownModel(_)
        | E::Llm(_)
        | E::Route { .. }
        | E::Method { .. }
        | E::Missing { .. }
        | E::NotConfigured(_)
        | E::NoAnswer(_)
        | E::Internal => {}
        E::Store(error) | E::Refused(Refusal::Store(error)) => match error {
            StoreError::Unavailable(_) | StoreError::PoolExhausted(_) | StoreError::Timeout(_) => {}
            StoreError::NotWritable(_) | StoreError::Rejected(_) | StoreError::Failed(_) => {}
        },
        E::Refused(refusal) => match refusal {
            Refusal::MissingKey | Refusal::UnknownKey | Refusal::Store(_) => {}
            Refusal::Busy { .. } | Refusal::Share { .. } | Refusal::Draining => {}
        },
        E::Body(error) => match error {
            BodyError::TooLarge { .. } | BodyError::Timeout { .. } | BodyError::Broken => {}
            BodyError::MediaType { .. } | BodyError::Shape { .. } => {}
            BodyError::Coding { .. } | BodyError::TooManyBytes { .. } => {}
        },
    }
}

#[test]
fn err_01_the_whole_table() {
    let mut lines: Vec<String> = Cause::ALL
        .iter()
        .map(|cause| {
            line(
                &format!("{cause:?}"),
                &failure(*cause, None, ErrorDetail::default(), None).problem(),
            )
        })
        .collect();
    for status in [400, 401, 403, 407, 408, 413, 422, 451] {
        lines.push(line(
            &format!("Rejected by {status}"),
            &failure(Cause::Rejected, Some(status), ErrorDetail::default(), None).problem(),
        ));
    }
    let theirs = ErrorDetail {
        kind: Some("their_type".into()),
        code: Some("their_code".into()),
        param: Some("their_param".into()),
    };
    for &cause in Cause::ALL {
        let problem = failure(
            cause,
            Some(418),
            theirs.clone(),
            Some(Duration::from_millis(1_200)),
        )
        .problem();
        lines.push(line(&format!("{cause:?}, detailed, 1.2 s"), &problem));
    }
    let ten = Duration::from_millis(10);
    let others = [
        (
            "Invalid",
            ApiError::Invalid(InvalidRequest {
                message: "temperature is \"hot\": write a number".into(),
                param: Some("temperature".into()),
            }),
        ),
        ("UnknownModel", ApiError::UnknownModel("none".into())),
        (
            "Llm without attempts",
            ApiError::Llm(LlmFailure {
                attempts: Vec::new(),
                cause: Cause::DeadlineExceeded,
                retry_after: None,
            }),
        ),
        (
            "Store Unavailable",
            ApiError::Store(StoreError::Unavailable("canary".into())),
        ),
        (
            "Store PoolExhausted",
            ApiError::Store(StoreError::PoolExhausted(ten)),
        ),
        ("Store Timeout", ApiError::Store(StoreError::Timeout(ten))),
        (
            "Store NotWritable",
            ApiError::Store(StoreError::NotWritable("canary".into())),
        ),
        (
            "Store Rejected",
            ApiError::Store(StoreError::Rejected("the text holds a NUL".into())),
        ),
        (
            "Store Failed",
            ApiError::Store(StoreError::Failed("canary".into())),
        ),
        ("MissingKey", ApiError::Refused(Refusal::MissingKey)),
        ("UnknownKey", ApiError::Refused(Refusal::UnknownKey)),
        ("Busy", ApiError::Refused(Refusal::Busy { limit: 8 })),
        ("Share", ApiError::Refused(Refusal::Share { limit: 7 })),
        ("Draining", ApiError::Refused(Refusal::Draining)),
        (
            "BodyTooLarge",
            ApiError::Body(BodyError::TooLarge { limit: 1_000 }),
        ),
        (
            "BodyTimeout",
            ApiError::Body(BodyError::Timeout { after: ten }),
        ),
        ("BodyBroken", ApiError::Body(BodyError::Broken)),
        (
            "MediaType",
            ApiError::Body(BodyError::MediaType {
                got: "text/plain".into(),
            }),
        ),
        (
            "BodyCoding",
            ApiError::Body(BodyError::Coding { got: "gzip".into() }),
        ),
        (
            "BodyTooManyBytes",
            ApiError::Body(BodyError::TooManyBytes { limit: 1_000 }),
        ),
        (
            "BodyShape",
            ApiError::Body(BodyError::Shape {
                reason: "missing field `text` at line 1 column 2".into(),
            }),
        ),
        (
            "Route",
            ApiError::Route {
                method: Method::GET,
                path: "/nowhere".into(),
            },
        ),
        (
            "Method",
            ApiError::Method {
                method: Method::DELETE,
                path: "/v1/models".into(),
            },
        ),
        (
            "Missing",
            ApiError::Missing {
                what: "query",
                id: "7".into(),
            },
        ),
        (
            "NotConfigured",
            ApiError::NotConfigured("write [[models]]".into()),
        ),
        ("NoAnswer", ApiError::NoAnswer("synthesis: refused".into())),
        ("Internal", ApiError::Internal),
    ];
    others.iter().for_each(|(_, error)| is_in_the_table(error));
    lines.extend(
        others
            .iter()
            .map(|(name, error)| line(name, &error.problem())),
    );
    let table = lines.join("\n");
    assert!(!table.contains("canary"), "{table}");
    settings().bind(|| insta::assert_snapshot!("ERR-01__table", table));
}

#[test]
fn err_01_the_event_of_a_stream_that_broke() {
    let events: Vec<String> = Cause::ALL
        .iter()
        .map(|cause| {
            let detail = ErrorDetail {
                kind: Some("their_type".into()),
                code: None,
                param: None,
            };
            let event = in_band(&AttemptError {
                cause: *cause,
                message: "what happened".into(),
                status: None,
                retry_after: None,
                no_retry: false,
                detail,
            });
            format!(
                "{cause:<18?} {}",
                String::from_utf8(event.to_vec()).unwrap()
            )
        })
        .collect();
    settings().bind(|| insta::assert_snapshot!("ERR-01__in_band", events.join("\n")));
}

#[tokio::test]
async fn snap_01_openapi() {
    let gateway = TestGateway::start("").await;
    let document = gateway.get("/docs/openapi.json").await.json();
    settings().bind(|| {
        insta::assert_json_snapshot!("SNAP-01__openapi", document, {
            ".info.version" => "[version]"
        })
    });
}

#[tokio::test]
async fn snap_01_the_page_of_the_docs_loads_nothing_from_another_host() {
    let gateway = TestGateway::start("").await;
    let page = gateway.get("/docs").await;
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let text = page.text();
    for foreign in ["http://", "https://", "src="] {
        assert!(!text.contains(foreign), "{foreign}");
    }
}

#[tokio::test]
async fn snap_01_metric_names() {
    let retry = "[retry]\nmax_attempts = 2\nbase_ms = 1\nmax_ms = 1\n";
    let gateway = TestGateway::start(retry).await;
    let failure = raw(500, "application/json", "{}");
    gateway.stub.answers(sequence([failure, completion()]));
    let reply = gateway.chat().await;
    assert_eq!(reply.header("x-gauntlet-attempts"), Some("2"));
    let text = gateway.get("/metrics").await.text();
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("gauntlet_build_info"))
        .collect();
    lines.sort_unstable();
    settings().bind(|| insta::assert_snapshot!("SNAP-01__metrics", lines.join("\n")));
}

#[tokio::test]
async fn hlth_03_documents() {
    let gateway = TestGateway::start("[server]\nhealth_cache_ms = 0\n").await;
    let status = Arc::new(AtomicU16::new(200));
    let answered = status.clone();
    let probed = with(move |_| raw(answered.load(Ordering::SeqCst), "application/json", "{}"));
    gateway.stub.mount(openai::models(), probed).await;
    let mut documents = serde_json::Map::new();
    for (name, gone, answered) in [
        ("all well", false, 200),
        ("provider fails", false, 500),
        ("store gone", true, 200),
    ] {
        status.store(answered, Ordering::SeqCst);
        if gone {
            gateway.store.close().await;
        }
        let health = gateway.get("/health").await;
        let ready = gateway.get("/health/ready").await;
        let both = json!({
            "health": { "status": health.status, "body": health.json() },
            "ready": { "status": ready.status, "body": ready.json() },
        });
        documents.insert(name.into(), both);
    }
    documents.insert("live".into(), gateway.get("/health/live").await.json());
    settings().bind(|| {
        insta::assert_json_snapshot!("HLTH-03__documents", documents, {
            ".**.latency_ms" => "[ms]",
            ".**.version" => "[version]"
        })
    });
}
