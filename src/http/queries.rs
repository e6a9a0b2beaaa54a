//! `/api/v1/queries`: ask a question, read an answer again, list what was asked.

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

use super::auth::Tenant;
use super::body::Payload;
use super::context::RequestContext;
use super::error::{ApiError, Envelope, ErrorBody, SHOWN};
use super::state::AppState;
use crate::llm::chat::InvalidRequest;
use crate::llm::content::clip;
use crate::orchestrator::outcome::Status;
use crate::orchestrator::{Ask, QueryDocument};
use crate::resilience::deadline::saturating_add;
use crate::store::Listing;

/// The longest question, in characters.
const QUESTION_CHARS: usize = 8_192;
/// The largest page of a listing.
const PAGE_SIZE: u32 = 100;
/// The page that is listed if none is asked for.
const DEFAULT_PAGE_SIZE: u32 = 20;

/// A question.
#[derive(Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) struct Question {
    /// 1 to 8192 characters, not only white space, no NUL.
    #[schema(min_length = 1, max_length = 8192)]
    question: String,
    /// In milliseconds; it can only shorten the configured deadline.
    #[schema(minimum = 1)]
    deadline_ms: Option<u64>,
}

/// A query without an answer: the error, and the query beside it, unless none was accepted.
#[derive(Serialize, ToSchema)]
pub(super) struct FailedQuery {
    error: ErrorBody,
    #[schema(value_type = Option<QueryDocument>)]
    query: Value,
}

/// A page of a listing, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct QueryPage {
    /// Each as it was sent.
    #[schema(value_type = Vec<QueryDocument>)]
    queries: Vec<Value>,
    page: u32,
    size: u32,
    /// All that match, on every page.
    total: u64,
}

/// Asks a question: several agents answer it together, by the deadline. 200 whenever there is an answer; what it lacks is in
/// `degraded`. 503 with the query beside the error if there is none.
#[utoipa::path(post, path = "/api/v1/queries", operation_id = "createQuery", tag = "query", request_body = Question,
    params(
        ("x-request-id" = Option<String>, Header, description = "Your id for the request, at most 128 visible ASCII characters; returned, logged and sent on"),
        ("x-request-timeout-ms" = Option<u64>, Header, description = "Your deadline; it can only shorten the configured one"),
    ),
    responses(
        (status = 200, body = QueryDocument), (status = 400, body = Envelope), (status = 401, body = Envelope), (status = 408, body = Envelope),
        (status = 413, body = Envelope), (status = 415, body = Envelope), (status = 503, body = FailedQuery),
    ))]
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

/// Reads a query again: the document that was sent.
#[utoipa::path(get, path = "/api/v1/queries/{id}", operation_id = "getQuery", tag = "query", params(("id" = String, Path, description = "The id of a query")),
    responses((status = 200, body = QueryDocument), (status = 401, body = Envelope), (status = 404, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn one(
    State(app): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    uri: Uri,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, ApiError> {
    // what is no id at all is missing just the same
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

/// Lists queries, newest first.
#[utoipa::path(get, path = "/api/v1/queries", operation_id = "listQueries", tag = "query",
    params(
        ("page" = Option<u32>, Query, description = "From 1; 1 if not given", minimum = 1),
        ("size" = Option<u32>, Query, description = "Queries a page, 1 to 100; 20 if not given", minimum = 1, maximum = 100),
        ("status" = Option<Status>, Query, description = "Only these"),
        ("before" = Option<String>, Query, description = "Only what is older than the query of this id: no query comes twice while others are recorded"),
    ),
    responses((status = 200, body = QueryPage), (status = 400, body = Envelope), (status = 401, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn list(
    State(app): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(parameters) = parameters.map_err(|error| {
        invalid(
            None,
            format!("the query string can't be read: {}", error.body_text()),
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
    let lost: Vec<_> = document
        .degraded
        .iter()
        .map(|lost| format!("{} ({})", lost.step.name(), lost.cause.name()))
        .collect();
    let problem = ApiError::NoAnswer(lost.join(", ")).problem();
    (
        problem.status,
        Json(FailedQuery {
            error: problem.envelope.error,
            query: document.to_json(),
        }),
    )
        .into_response()
}

/// Reads the body of a question: every mistake is told with its field.
fn question(body: &[u8]) -> Result<Question, InvalidRequest> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| invalid(None, format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(invalid(
            None,
            "the body is not a JSON object: send {\"question\": \"…\"}".into(),
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
                    format!(
                        "there is no field {name:?} here: the fields are question and deadline_ms"
                    ),
                ));
            }
        }
    }
    let question =
        question.ok_or_else(|| invalid(Some("question"), "question is missing".into()))?;
    Ok(Question {
        question,
        deadline_ms,
    })
}

fn text(value: Value) -> Result<String, InvalidRequest> {
    let wrong = |message: String| Err(invalid(Some("question"), message));
    let Value::String(text) = value else {
        return wrong(format!("question is {}: send a string", kind(&value)));
    };
    let length = text.chars().count();
    match () {
        () if text.trim().is_empty() => wrong("question is empty".into()),
        () if length > QUESTION_CHARS => wrong(format!(
            "question has {length} characters: at most {QUESTION_CHARS} are taken"
        )),
        () if text.contains('\0') => {
            wrong("question holds a NUL character, which no document can hold".into())
        }
        () => Ok(text),
    }
}

fn milliseconds(value: &Value) -> Result<Option<u64>, InvalidRequest> {
    match value {
        Value::Null => Ok(None),
        value => match value.as_u64() {
            Some(millis) if millis > 0 => Ok(Some(millis)),
            _ => {
                let told = if value.is_number() {
                    value.to_string()
                } else {
                    kind(value).into()
                };
                Err(invalid(
                    Some("deadline_ms"),
                    format!("deadline_ms is {told}: send whole milliseconds, 1 or more"),
                ))
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
                let known = known.ok_or_else(|| {
                    invalid(
                        Some(name),
                        format!("status is {:?}: it is one of {names}", clip(value, SHOWN)),
                    )
                })?;
                listing.status = Some(known.name().to_owned());
            }
            "before" => {
                let id = Uuid::parse_str(value).map_err(|_| {
                    invalid(
                        Some(name),
                        format!(
                            "before is {:?}: write the id of a query",
                            clip(value, SHOWN)
                        ),
                    )
                })?;
                listing.before = Some(id);
            }
            _ => {
                let name = clip(name, SHOWN);
                return Err(invalid(
                    Some(&name),
                    format!(
                        "there is no parameter {name:?} here: they are page, size, status and before"
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
        invalid(
            Some(name),
            format!(
                "{name} is {:?}: write a whole number, {bound}",
                clip(value, SHOWN)
            ),
        )
    })
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
    fn every_mistake_names_its_field() {
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
