//! THE table from error to response. Every failure that a client can see passes through [`ApiError::problem`], a total function;
//! a snapshot (ERR-01) holds the whole of it. Nothing here shows a secret, a database's own words, or a panic's text.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::llm::cause::Cause;
use crate::llm::chat::{Attempt, AttemptError, ErrorDetail, InvalidRequest, LlmFailure};
use crate::llm::content::clip;
use crate::llm::router::RouterError;
use crate::store::StoreError;

/// Whatever can go wrong between a request and its answer.
#[derive(Debug)]
pub enum ApiError {
    /// The request itself is wrong.
    Invalid(InvalidRequest),
    /// No alias of that name.
    UnknownModel(String),
    /// No candidate could serve.
    Llm(LlmFailure),
    /// The database.
    Store(StoreError),
    /// No key came.
    MissingKey,
    /// A key came that nobody has.
    UnknownKey,
    /// As many requests as are allowed are in flight.
    Busy {
        /// How many that is.
        limit: u32,
    },
    /// The gateway is shutting down.
    Draining,
    /// The body is too large.
    BodyTooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The body did not come in time.
    BodyTimeout {
        /// The time it had.
        after: Duration,
    },
    /// The body ended or broke inside.
    BodyBroken,
    /// The body is told to be something else than JSON.
    MediaType {
        /// What it is told to be.
        got: String,
    },
    /// No such route.
    Route {
        /// The method asked for.
        method: Method,
        /// The path asked for.
        path: String,
    },
    /// The route knows other methods.
    Method {
        /// The method asked for.
        method: Method,
        /// The path asked for.
        path: String,
    },
    /// No such thing (or it is another tenant's).
    Missing {
        /// `query`, `document`.
        what: &'static str,
        /// The id asked for.
        id: String,
    },
    /// Queries need a model, and none is configured: what to write.
    NotConfigured(String),
    /// A query has no answer: the steps that failed, with their causes.
    NoAnswer(String),
    /// A bug: a panic was caught.
    Internal,
}

/// The body of every error, in OpenAI's shape.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Envelope {
    /// The error.
    pub error: ErrorBody,
}

/// What is inside.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence for people.
    pub message: String,
    /// The class; clients may rely on it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter to blame, if there is one.
    pub param: Option<String>,
    /// The exact reason; clients may rely on it.
    pub code: Option<String>,
    /// What was tried, in order, for failures of the LLM path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Vec<AttemptBody>>,
}

/// One attempt of a failed request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AttemptBody {
    /// The provider's configured name.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// Why it failed.
    #[schema(value_type = Option<String>)]
    pub cause: Option<Cause>,
    /// The provider's status, if one came.
    pub status: Option<u16>,
    /// A sentence.
    pub message: Option<String>,
}

/// An error as it goes out.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub envelope: Envelope,
    /// How long the client should wait.
    pub retry_after: Option<Duration>,
    /// One further header, where the status asks for one.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// Whether the connection can't be used again.
    pub close: bool,
}

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "service_unavailable_error";
const UPSTREAM: &str = "upstream_error";
const TIMEOUT: &str = "timeout_error";
/// Characters of a client's own text that are told.
pub(super) const SHOWN: usize = 100;
/// What a client is asked to wait where nobody knows better.
const SOON: Duration = Duration::from_secs(1);

impl ApiError {
    /// The error as it goes out: the table.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(invalid) => {
                let mut problem =
                    Problem::new(400, INVALID, "invalid_request", invalid.message.clone());
                problem.envelope.error.param.clone_from(&invalid.param);
                problem
            }
            Self::UnknownModel(model) => {
                let mut problem = Problem::new(
                    404,
                    INVALID,
                    "model_not_found",
                    format!(
                        "the model {} does not exist: GET /v1/models lists those that do",
                        quoted(model)
                    ),
                );
                problem.envelope.error.param = Some("model".into());
                problem
            }
            Self::Llm(failure) => llm(failure),
            Self::Store(error) => store(error),
            Self::MissingKey => unauthorised(
                "missing_api_key",
                "no API key: send the header Authorization: Bearer KEY",
            ),
            Self::UnknownKey => {
                unauthorised("invalid_api_key", "the API key is not known or was revoked")
            }
            Self::Busy { limit } => Problem::new(
                503,
                UNAVAILABLE,
                "too_many_in_flight",
                format!("{limit} requests are in flight, and no more are taken: try again soon"),
            )
            .wait(SOON),
            Self::Draining => Problem::new(
                503,
                UNAVAILABLE,
                "shutting_down",
                "the gateway is shutting down: try again",
            )
            .wait(SOON)
            .closing(),
            Self::BodyTooLarge { limit } => Problem::new(
                413,
                INVALID,
                "body_too_large",
                format!("the body is larger than {limit} bytes"),
            )
            .closing(),
            Self::BodyTimeout { after } => Problem::new(
                408,
                INVALID,
                "body_timeout",
                format!(
                    "the body did not come whole within {} ms",
                    after.as_millis()
                ),
            )
            .closing(),
            Self::BodyBroken => Problem::new(
                400,
                INVALID,
                "body_broken",
                "the body broke off before its end",
            )
            .closing(),
            Self::MediaType { got } => Problem::new(
                415,
                INVALID,
                "unsupported_media_type",
                format!(
                    "the media type {} is not taken: send application/json",
                    quoted(got)
                ),
            ),
            Self::Route { method, path } => Problem::new(
                404,
                INVALID,
                "route_not_found",
                format!(
                    "there is no {method} {}: /docs lists what there is",
                    clip(path, SHOWN)
                ),
            ),
            Self::Method { method, path } => Problem::new(
                405,
                INVALID,
                "method_not_allowed",
                format!(
                    "{} does not take {method}: the header Allow lists what it takes",
                    clip(path, SHOWN)
                ),
            ),
            Self::Missing { what, id } => Problem::new(
                404,
                INVALID,
                &format!("{what}_not_found"),
                format!("there is no {what} {}", quoted(id)),
            ),
            Self::NotConfigured(what) => {
                Problem::new(503, UNAVAILABLE, "not_configured", what.clone())
            }
            Self::NoAnswer(lost) => Problem::new(
                503,
                UNAVAILABLE,
                "no_answer",
                format!("there is no answer, because these steps failed: {lost}"),
            ),
            Self::Internal => Problem::new(
                500,
                "server_error",
                "internal_error",
                "the gateway failed: this is a bug; tell its operator the request id",
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Store(error) = &self {
            tracing::warn!(%error, "the store failed a request");
        }
        self.problem().into_response()
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::Invalid(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RouterError> for ApiError {
    fn from(error: RouterError) -> Self {
        match error {
            RouterError::UnknownModel(model) => Self::UnknownModel(model),
            RouterError::Failed(failure) => Self::Llm(failure),
        }
    }
}

impl Problem {
    fn new(status: u16, kind: &str, code: &str, message: impl Into<String>) -> Self {
        let error = ErrorBody {
            message: message.into(),
            kind: kind.into(),
            param: None,
            code: Some(code.into()),
            attempts: None,
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        Self {
            status,
            envelope: Envelope { error },
            retry_after: None,
            header: None,
            close: false,
        }
    }

    fn wait(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.envelope)).into_response();
        let headers = response.headers_mut();
        if let Some(time) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(time)));
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The JSON text of the one in-band event that tells a committed stream's failure (what stands behind `data: `).
pub fn in_band(error: &AttemptError) -> Bytes {
    text(
        &cause(
            error.cause,
            error.status,
            &error.detail,
            error.message.clone(),
        )
        .envelope,
    )
}

/// The same where the gateway itself ends the stream.
pub fn in_band_of(error: &ApiError) -> Bytes {
    text(&error.problem().envelope)
}

fn text(envelope: &Envelope) -> Bytes {
    serde_json::to_vec(envelope).map_or_else(
        |_| Bytes::from_static(br#"{"error":{"message":"the stream failed","type":"server_error","param":null,"code":null}}"#),
        Bytes::from,
    )
}

/// A failure of the LLM path: its status by the cause that decides, its message by the attempt that had it, and all attempts.
fn llm(failure: &LlmFailure) -> Problem {
    let decisive = failure.attempts.iter().rev().find_map(|attempt| {
        attempt
            .error
            .as_ref()
            .filter(|error| error.cause == failure.cause)
            .map(|error| (attempt, error))
    });
    let mut problem = match decisive {
        // the client's own mistake, in the provider's words
        Some((_, error)) if matches!(error.cause, Cause::Rejected | Cause::Unsupported) => cause(
            error.cause,
            error.status,
            &error.detail,
            error.message.clone(),
        ),
        Some((attempt, error)) => {
            let many = if failure.attempts.len() > 1 {
                format!(
                    "{} attempts failed; the one that decides: ",
                    failure.attempts.len()
                )
            } else {
                String::new()
            };
            cause(
                error.cause,
                error.status,
                &error.detail,
                format!("{many}{}: {}", attempt.candidate, error.message),
            )
        }
        None => cause(
            failure.cause,
            None,
            &ErrorDetail::default(),
            "the time allowed was over before a provider could be asked".into(),
        ),
    };
    problem.retry_after = failure
        .retry_after
        .or(problem.retry_after)
        .filter(|_| matches!(problem.status.as_u16(), 429 | 503));
    problem.envelope.error.attempts = Some(failure.attempts.iter().map(attempt_body).collect());
    problem
}

fn attempt_body(attempt: &Attempt) -> AttemptBody {
    let error = attempt.error.as_ref();
    AttemptBody {
        provider: attempt.candidate.provider.clone(),
        model: attempt.candidate.model.clone(),
        cause: error.map(|error| error.cause),
        status: error.and_then(|error| error.status),
        message: error.map(|error| error.message.clone()),
    }
}

/// One cause: its status, type and code.
fn cause(
    cause: Cause,
    provider_status: Option<u16>,
    detail: &ErrorDetail,
    message: String,
) -> Problem {
    let named = |status, kind, code| Problem::new(status, kind, code, message.clone());
    match cause {
        Cause::Refused => named(502, UPSTREAM, "provider_unreachable"),
        Cause::Reset => named(502, UPSTREAM, "provider_disconnected"),
        Cause::ConnectTimeout => named(504, TIMEOUT, "connect_timeout"),
        Cause::FirstTokenTimeout => named(504, TIMEOUT, "first_token_timeout"),
        Cause::IdleTimeout => named(504, TIMEOUT, "idle_timeout"),
        Cause::DeadlineExceeded => named(504, TIMEOUT, "deadline_exceeded"),
        Cause::RateLimited => named(429, "rate_limit_error", "rate_limit_exceeded").wait(SOON),
        Cause::QuotaExhausted => named(429, "insufficient_quota", "insufficient_quota"),
        Cause::Overloaded => named(503, UNAVAILABLE, "provider_overloaded").wait(SOON),
        Cause::ServerError => named(502, UPSTREAM, "provider_error"),
        Cause::ProviderAuth => named(502, UPSTREAM, "provider_auth"),
        Cause::NotFound => named(502, UPSTREAM, "provider_not_found"),
        // a provider's 4xx is the client's own, but for those that speak of the gateway's key or connection
        Cause::Rejected => match provider_status {
            Some(401 | 403 | 407) => named(502, UPSTREAM, "provider_auth"),
            Some(status @ 400..=499) => theirs(named(status, INVALID, "rejected"), detail),
            _ => theirs(named(400, INVALID, "rejected"), detail),
        },
        Cause::BadResponse => named(502, UPSTREAM, "bad_response"),
        Cause::Truncated => named(502, UPSTREAM, "truncated"),
        Cause::Oversized => named(502, UPSTREAM, "oversized"),
        Cause::InBand => theirs(named(502, UPSTREAM, "in_band_error"), detail),
        Cause::BreakerOpen => named(503, UNAVAILABLE, "breaker_open").wait(SOON),
        Cause::BulkheadFull => named(503, UNAVAILABLE, "provider_busy").wait(SOON),
        Cause::Unsupported => theirs(named(400, INVALID, "unsupported"), detail),
    }
}

/// The provider's own class, code and param, where it gave them.
fn theirs(mut problem: Problem, detail: &ErrorDetail) -> Problem {
    let error = &mut problem.envelope.error;
    if let Some(kind) = &detail.kind {
        error.kind.clone_from(kind);
    }
    if detail.code.is_some() {
        error.code.clone_from(&detail.code);
    }
    error.param.clone_from(&detail.param);
    problem
}

fn store(error: &StoreError) -> Problem {
    let unavailable =
        |code, message: String| Problem::new(503, UNAVAILABLE, code, message).wait(SOON);
    match error {
        StoreError::Unavailable(_) => unavailable(
            "store_unavailable",
            "the database cannot be reached: try again soon".into(),
        ),
        StoreError::PoolExhausted(time) => unavailable(
            "store_busy",
            format!(
                "no connection to the database became free within {} ms: try again soon",
                time.as_millis()
            ),
        ),
        StoreError::Timeout(time) => unavailable(
            "store_timeout",
            format!(
                "the database did not answer within {} ms: try again soon",
                time.as_millis()
            ),
        ),
        StoreError::NotWritable(_) => unavailable(
            "store_not_writable",
            "the database takes no writes at the moment".into(),
        ),
        StoreError::Rejected(message) => {
            Problem::new(400, INVALID, "invalid_request", message.clone())
        }
        StoreError::Failed(_) => unavailable("store_failed", "the database failed".into()),
    }
}

fn unauthorised(code: &str, message: &str) -> Problem {
    let mut problem = Problem::new(401, "authentication_error", code, message);
    problem.header = Some((
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"gauntlet\""),
    ));
    problem
}

/// `Retry-After` counts whole seconds (RFC 9110 section 10.2.3); too early is worse than too late.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A client's own text in a message: bounded, quoted.
fn quoted(text: &str) -> String {
    format!("{:?}", clip(text, SHOWN))
}
