//! `/api/v1/queries`: ask a question, read a recorded query, list recorded queries.

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::Uri;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, BodyErrors, Envelope, ErrorBody, KeyErrors, SHOWN, quoted};
use super::state::AppState;
use crate::llm::chat::InvalidRequest;
use crate::llm::content::clip;
use crate::orchestrator::outcome::Status;
use crate::orchestrator::{Ask, QueryDocument};
use crate::resilience::deadline::saturating_add;
use crate::server::{Payload, RequestContext, Tenant};
use crate::store::Listing;

/// The longest question, in characters.
const QUESTION_CHARS: usize = 8_192;
/// The most queries on a page of a listing.
const PAGE_SIZE: u32 = 100;
/// The queries on a page where the client gives no size.
const DEFAULT_PAGE_SIZE: u32 = 20;

/// A question to answer.
#[derive(Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) struct Question {
    /// The question: 1 to 8192 characters, not only white space, and without NUL.
    #[schema(min_length = 1, max_length = 8192)]
    question: String,
    /// Your deadline in milliseconds from the arrival of the request. It can only shorten the
    /// configured one.
    #[schema(minimum = 1)]
    deadline_ms: Option<u64>,
}

/// A query without an answer: the error, and beside it the query, unless none was accepted.
#[derive(Serialize, ToSchema)]
pub(super) struct FailedQuery {
    /// Why there is no answer.
    error: ErrorBody,
    /// The query as it is recorded.
    #[schema(value_type = Option<QueryDocument>)]
    query: Value,
}

/// One page of a tenant's queries, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct QueryPage {
    /// The queries, each as it was sent to its client.
    #[schema(value_type = Vec<QueryDocument>)]
    queries: Vec<Value>,
    /// The number of the page, from 1.
    page: u32,
    /// The largest number of queries on a page.
    size: u32,
    /// The number of queries that match, on all pages together.
    total: u64,
}

/// Answers a question. Several agents work on it together until the deadline. The status is 200
/// whenever there is an answer, and `degraded` lists what it lacks; it is 503, with the query
/// beside the error, where there is none.
#[utoipa::path(
    post,
    path = "/api/v1/queries",
    operation_id = "createQuery",
    tag = "query",
    request_body(content = Question, description = "The question to answer."),
    params(
        (
            "x-request-id" = Option<String>,
            Header,
            description = "Your id of the request, at most 128 visible ASCII characters. It is \
                           returned, logged and forwarded to the providers."
        ),
        (
            "x-request-timeout-ms" = Option<u64>,
            Header,
            minimum = 1,
            description = "Your deadline in milliseconds from the arrival of the request. It can \
                           only shorten the configured one."
        ),
    ),
    responses(
        (status = 200, description = "The query and its answer.", body = QueryDocument),
        BodyErrors,
        KeyErrors,
        (
            status = 503,
            description = "There is no answer: every step that could give one failed, or the \
                           gateway takes no more requests at the moment, or the database is \
                           unavailable.",
            body = FailedQuery
        ),
    )
)]
pub(super) async fn create(
    State(app): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Extension(context): Extension<RequestContext>,
    Payload(body): Payload,
) -> Result<Response, ApiError> {
    let Question {
        question,
        deadline_ms,
    } = question(&body)?;
    app.orchestrator
        .configured()
        .map_err(|error| ApiError::NotConfigured(error.to_string()))?;
    let asked = deadline_ms
        .map(|ms| saturating_add(context.arrived, Duration::from_millis(ms)))
        .into_iter()
        .chain(context.deadline)
        .min();
    let ask = Ask {
        tenant: tenant.0.to_string(),
        question,
        deadline: app.orchestrator.deadline(context.arrived, asked),
        request_id: context.request_id.to_string(),
        traceparent: context.traceparent.clone(),
    };
    Ok(respond(&app.orchestrator.answer(ask).await))
}

/// Returns a recorded query as it was sent to its client.
#[utoipa::path(
    get,
    path = "/api/v1/queries/{id}",
    operation_id = "getQuery",
    tag = "query",
    params(("id" = String, Path, description = "The query's id.")),
    responses(
        (status = 200, description = "The query.", body = QueryDocument),
        (status = 404, description = "The tenant has no query of that id.", body = Envelope),
        KeyErrors,
    )
)]
pub(super) async fn one(
    State(app): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    uri: Uri,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, ApiError> {
    // a path that is no UUID names no query either
    let missing = || ApiError::Missing {
        what: "query",
        id: uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
    };
    let Ok(Path(id)) = id else {
        return Err(missing());
    };
    let record = app.store.query(&tenant.0, id).await?.ok_or_else(missing)?;
    Ok(Json(record.document).into_response())
}

/// Lists the tenant's queries, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/queries",
    operation_id = "listQueries",
    tag = "query",
    params(
        (
            "page" = Option<u32>,
            Query,
            description = "The number of the page, from 1. The default is 1.",
            minimum = 1
        ),
        (
            "size" = Option<u32>,
            Query,
            description = "The largest number of queries on a page, 1 to 100. The default is 20.",
            minimum = 1,
            maximum = 100
        ),
        ("status" = Option<Status>, Query, description = "Lists only queries of this status."),
        (
            "before" = Option<String>,
            Query,
            format = "uuid",
            description = "Lists only queries that are older than the query of this id, so that \
                           none is listed twice while others are recorded."
        ),
    ),
    responses(
        (status = 200, description = "One page of the queries.", body = QueryPage),
        (
            status = 400,
            description = "A parameter is invalid. `error.param` names it, and `error.message` \
                           says what to send instead.",
            body = Envelope
        ),
        KeyErrors,
    )
)]
pub(super) async fn list(
    State(app): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(parameters) = parameters.map_err(|error| {
        invalid(
            None,
            format!(
                "The query string is invalid: {}. Send 'name=value' pairs.",
                error.body_text()
            ),
        )
    })?;
    let listing = listing(&parameters)?;
    let (page, size) = (listing.page, listing.size);
    let found = app.store.queries(&tenant.0, listing).await?;
    let queries = found
        .records
        .into_iter()
        .map(|record| record.document)
        .collect();
    Ok(Json(QueryPage {
        queries,
        page,
        size,
        total: found.total,
    })
    .into_response())
}

fn respond(document: &QueryDocument) -> Response {
    if document.status < Status::Failed {
        return Json(document.to_json()).into_response();
    }
    let failed: Vec<_> = document
        .degraded
        .iter()
        .map(|entry| format!("{} ({})", entry.step.name(), entry.cause.name()))
        .collect();
    let problem = ApiError::NoAnswer(failed.join(", ")).problem();
    (
        problem.status,
        Json(FailedQuery {
            error: problem.envelope.error,
            query: document.to_json(),
        }),
    )
        .into_response()
}

/// Parses the body of a question. An error names the member that is wrong.
fn question(body: &[u8]) -> Result<Question, InvalidRequest> {
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        invalid(
            None,
            format!("The request body is not valid JSON: {error}."),
        )
    })?;
    let Value::Object(fields) = value else {
        return Err(invalid(
            None,
            "The request body is not a JSON object: send {\"question\": \"…\"}.".into(),
        ));
    };
    let mut question = None;
    let mut deadline_ms = None;
    for (name, value) in fields {
        match name.as_str() {
            "question" => question = Some(text(value)?),
            "deadline_ms" => deadline_ms = milliseconds(&value)?,
            _ => {
                let name: String = name.chars().take(SHOWN).collect();
                return Err(invalid(
                    Some(&name),
                    format!("Unknown field {name:?}: expected 'question' or 'deadline_ms'."),
                ));
            }
        }
    }
    let question = question.ok_or_else(|| {
        invalid(
            Some("question"),
            "Missing required field 'question': a string was expected.".into(),
        )
    })?;
    Ok(Question {
        question,
        deadline_ms,
    })
}

fn text(value: Value) -> Result<String, InvalidRequest> {
    let wrong = |expected: &str, got: &str| Err(wrong("question", expected, got));
    let Value::String(text) = value else {
        return wrong("a string", kind(&value));
    };
    let length = text.chars().count();
    match () {
        () if text.trim().is_empty() => wrong("at least one visible character", "none"),
        () if length > QUESTION_CHARS => wrong(
            &format!("at most {QUESTION_CHARS} characters"),
            &length.to_string(),
        ),
        () if text.contains('\0') => wrong("text without NUL characters", "one that has some"),
        () => Ok(text),
    }
}

fn milliseconds(value: &Value) -> Result<Option<u64>, InvalidRequest> {
    match value {
        Value::Null => Ok(None),
        value => match value.as_u64() {
            Some(millis) if millis > 0 => Ok(Some(millis)),
            _ => {
                let got = if value.is_number() {
                    value.to_string()
                } else {
                    kind(value).into()
                };
                Err(wrong("deadline_ms", "whole milliseconds, 1 or more", &got))
            }
        },
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn listing(parameters: &[(String, String)]) -> Result<Listing, InvalidRequest> {
    let mut listing = Listing {
        page: 1,
        size: DEFAULT_PAGE_SIZE,
        status: None,
        before: None,
    };
    for (name, value) in parameters {
        match name.as_str() {
            "page" => listing.page = number(name, value, u32::MAX)?,
            "size" => listing.size = number(name, value, PAGE_SIZE)?,
            "status" => {
                let known = Status::ALL
                    .into_iter()
                    .find(|status| status.name() == value);
                let names = Status::ALL.map(Status::name).join(", ");
                let known =
                    known.ok_or_else(|| wrong(name, &format!("one of {names}"), &quoted(value)))?;
                listing.status = Some(known.name().to_owned());
            }
            "before" => {
                let id = Uuid::parse_str(value)
                    .map_err(|_| wrong(name, "the id of a query", &quoted(value)))?;
                listing.before = Some(id);
            }
            _ => {
                let name = clip(name, SHOWN);
                return Err(invalid(
                    Some(&name),
                    format!(
                        "Unknown parameter {name:?}: expected 'page', 'size', 'status' or 'before'."
                    ),
                ));
            }
        }
    }
    Ok(listing)
}

fn number(name: &str, value: &str, largest: u32) -> Result<u32, InvalidRequest> {
    let number = value
        .parse::<u32>()
        .ok()
        .filter(|number| (1..=largest).contains(number));
    number.ok_or_else(|| {
        let bound = if largest == u32::MAX {
            "1 or more".to_owned()
        } else {
            format!("1 to {largest}")
        };
        let expected = format!("a whole number, {bound}");
        wrong(name, &expected, &quoted(value))
    })
}

fn wrong(name: &str, expected: &str, got: &str) -> InvalidRequest {
    let message = format!("Invalid value for '{name}': expected {expected}, got {got}.");
    invalid(Some(name), message)
}

fn invalid(param: Option<&str>, message: String) -> InvalidRequest {
    InvalidRequest {
        message,
        param: param.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_question_may_have_a_deadline() {
        let asked = |question: &str, deadline_ms| {
            Ok(Question {
                question: question.into(),
                deadline_ms,
            })
        };
        assert_eq!(question(br#"{"question":"why?"}"#), asked("why?", None));
        assert_eq!(
            question(br#"{"question":" why? ","deadline_ms":1}"#),
            asked(" why? ", Some(1))
        );
        let longest = "é".repeat(QUESTION_CHARS);
        assert_eq!(
            question(format!(r#"{{"question":"{longest}"}}"#).as_bytes()),
            asked(&longest, None)
        );
    }

    #[test]
    fn every_error_names_its_field() {
        let too_long = format!(r#"{{"question":"{}"}}"#, "é".repeat(QUESTION_CHARS + 1));
        for (body, param) in [
            ("", None),
            ("[]", None),
            ("\"why?\"", None),
            ("{", None),
            ("{}", Some("question")),
            (r#"{"question":""}"#, Some("question")),
            (r#"{"question":" \n"}"#, Some("question")),
            (r#"{"question":7}"#, Some("question")),
            (r#"{"question":null}"#, Some("question")),
            (r#"{"question":"a\u0000b"}"#, Some("question")),
            (&too_long, Some("question")),
            (
                r#"{"question":"why?","deadline_ms":0}"#,
                Some("deadline_ms"),
            ),
            (
                r#"{"question":"why?","deadline_ms":-5}"#,
                Some("deadline_ms"),
            ),
            (
                r#"{"question":"why?","deadline_ms":1.5}"#,
                Some("deadline_ms"),
            ),
            (
                r#"{"question":"why?","deadline_ms":"5"}"#,
                Some("deadline_ms"),
            ),
            (r#"{"question":"why?","stream":true}"#, Some("stream")),
        ] {
            assert_eq!(
                question(body.as_bytes()).unwrap_err().param.as_deref(),
                param,
                "{body}"
            );
        }
        assert!(question(b"{\"question\":\"\xff\"}").is_err(), "not UTF-8");
    }

    #[test]
    fn a_listing_is_bounded() {
        let given = |pairs: &[(&str, &str)]| {
            listing(
                &pairs
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            given(&[]),
            Ok(Listing {
                page: 1,
                size: 20,
                status: None,
                before: None
            })
        );
        assert_eq!(
            given(&[("page", "3"), ("size", "100"), ("status", "failed")]),
            Ok(Listing {
                page: 3,
                size: 100,
                status: Some("failed".into()),
                before: None
            })
        );
        for (name, value) in [
            ("page", "0"),
            ("page", "-1"),
            ("page", "x"),
            ("size", "0"),
            ("size", "101"),
            ("status", "done"),
            ("status", ""),
            ("before", "7"),
            ("sort", "id"),
        ] {
            assert_eq!(
                given(&[(name, value)]).unwrap_err().param.as_deref(),
                Some(name),
                "{name}={value}"
            );
        }
    }
}
