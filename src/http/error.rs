//! The one table from error to response. Every failure that a client can see passes through
//! [`ApiError::problem`], a total function, and a snapshot (ERR-01) holds all of it. No message
//! shows a secret, a database's own words, or the text of a panic.
//!
//! A message is a sentence that names the subject and the value and ends with what to do.

use std::any::Any;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::llm::cause::Cause;
use crate::llm::chat::{Attempt, AttemptError, ErrorDetail, InvalidRequest, LlmFailure};
use crate::llm::content::clip;
use crate::llm::router::RouterError;
use crate::server::{BodyError, InvalidHead, Refusal};
use crate::store::StoreError;

/// Every way in which a request can fail.
#[derive(Debug)]
pub enum ApiError {
    /// The request itself is wrong.
    Invalid(InvalidRequest),
    /// No alias has that name.
    UnknownModel(String),
    /// No candidate could serve the request.
    Llm(LlmFailure),
    /// The database failed.
    Store(StoreError),
    /// The request was refused before its handler saw it.
    Refused(Refusal),
    /// The request body was refused.
    Body(BodyError),
    /// No route has that path.
    Route {
        /// The method of the request.
        method: Method,
        /// The path of the request.
        path: String,
    },
    /// The route takes other methods.
    Method {
        /// The method of the request.
        method: Method,
        /// The path of the request.
        path: String,
    },
    /// The resource does not exist, or belongs to another tenant.
    Missing {
        /// What kind of resource it is: `query` or `document`.
        what: &'static str,
        /// The id in the request.
        id: String,
    },
    /// A query needs a model and none is configured. The text says what to configure.
    NotConfigured(String),
    /// A query has no answer. The text lists the steps that failed, with their causes.
    NoAnswer(String),
    /// A panic was caught, which is a bug of the gateway.
    Internal,
}

/// The body of every error response, in the shape of OpenAI's API.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Envelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong, for people (`message`) and for programs (`type`, `code`).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence that says what happened and what to do.
    pub message: String,
    /// The class of the error; it does not change between versions.
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter, member or header that is wrong, where the error is about one.
    pub param: Option<String>,
    /// The exact reason; it does not change between versions.
    pub code: Option<String>,
    /// The attempts at providers in their order, where a provider was to be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Vec<AttemptBody>>,
}

/// One attempt of a failed request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AttemptBody {
    /// The provider's configured name.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// Why the attempt failed; `null` where it succeeded.
    #[schema(value_type = Option<String>)]
    pub cause: Option<Cause>,
    /// The provider's HTTP status, where it sent one.
    pub status: Option<u16>,
    /// What happened, in words.
    pub message: Option<String>,
}

/// The responses of a route that asks for an API key.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only its OpenAPI description is used")]
pub(super) enum KeyErrors {
    /// The API key is missing, unknown or revoked. Where `auth.required` is off, no key is needed.
    #[response(status = 401)]
    Unauthorised(Envelope),
    /// The gateway takes no more requests at the moment, or its database is unavailable. The header
    /// `Retry-After` says when to try again.
    #[response(status = 503)]
    Unavailable(Envelope),
}

/// The responses of a route that reads a request body.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only its OpenAPI description is used")]
pub(super) enum BodyErrors {
    /// The request is invalid. `error.param` names the member that is wrong, and `error.message`
    /// says what to send instead.
    #[response(status = 400)]
    Invalid(Envelope),
    /// The request body was not complete within `server.body_timeout_ms`.
    #[response(status = 408)]
    Timeout(Envelope),
    /// The request body is larger than `server.body_limit_bytes`.
    #[response(status = 413)]
    TooLarge(Envelope),
    /// The `Content-Type` of the request is not JSON.
    #[response(status = 415)]
    MediaType(Envelope),
}

/// The responses of a route that asks a provider. `error.attempts` lists each attempt.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only its OpenAPI description is used")]
pub(super) enum ProviderErrors {
    /// No model has that name; `GET /v1/models` lists those that exist.
    #[response(status = 404)]
    UnknownModel(Envelope),
    /// The providers refuse the request for its rate or for a quota. The header `Retry-After` says
    /// when to try again, where a provider gave a time.
    #[response(status = 429)]
    RateLimited(Envelope),
    /// The provider could not be reached, or failed, or sent what is not an answer.
    #[response(status = 502)]
    BadGateway(Envelope),
    /// The gateway takes no more requests at the moment, or the provider is overloaded, or its
    /// breaker is open. The header `Retry-After` says when to try again.
    #[response(status = 503)]
    Unavailable(Envelope),
    /// A timeout of the provider, or the deadline of the request, has passed.
    #[response(status = 504)]
    Timeout(Envelope),
}

/// An error in the form in which it is sent.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// The response body.
    pub envelope: Envelope,
    /// How long the client should wait before it tries again.
    pub retry_after: Option<Duration>,
    /// One further header, where the status asks for one.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// Whether the connection is closed after the response.
    pub close: bool,
}

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "service_unavailable_error";
const UPSTREAM: &str = "upstream_error";
const TIMEOUT: &str = "timeout_error";
/// The most characters of a client's own text that a message repeats.
pub(super) const SHOWN: usize = 100;
/// How long a client is asked to wait where no provider has named a time.
const SOON: Duration = Duration::from_secs(1);

impl ApiError {
    /// Returns the status, the headers and the body of the error: this is the table.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(invalid) => {
                let message = invalid.message.clone();
                Problem::new(400, INVALID, "invalid_request", message).of(invalid.param.as_deref())
            }
            Self::UnknownModel(model) => Problem::new(
                404,
                INVALID,
                "model_not_found",
                format!(
                    "The model {} does not exist: GET /v1/models lists those that do.",
                    quoted(model)
                ),
            )
            .of(Some("model")),
            Self::Llm(failure) => llm(failure),
            Self::Store(error) => store(error),
            Self::Refused(refusal) => refused(refusal),
            Self::Body(error) => body(error),
            Self::Route { method, path } => Problem::new(
                404,
                INVALID,
                "route_not_found",
                format!(
                    "The route {} {} does not exist: GET /docs lists those that do.",
                    clip(method.as_str(), SHOWN),
                    clip(path, SHOWN)
                ),
            ),
            Self::Method { method, path } => Problem::new(
                405,
                INVALID,
                "method_not_allowed",
                format!(
                    "The route {} does not take {}: use a method that the header Allow lists.",
                    clip(path, SHOWN),
                    clip(method.as_str(), SHOWN)
                ),
            ),
            Self::Missing { what, id } => Problem::new(
                404,
                INVALID,
                &format!("{what}_not_found"),
                format!("The {what} {} does not exist: check its id.", quoted(id)),
            ),
            Self::NotConfigured(what) => {
                Problem::new(503, UNAVAILABLE, "not_configured", what.clone())
            }
            Self::NoAnswer(failed) => Problem::new(
                503,
                UNAVAILABLE,
                "no_answer",
                format!(
                    "The query has no answer, because these steps failed: {failed}. \
                     Try again, or see 'degraded' in the query for the effect of each."
                ),
            ),
            Self::Internal => Problem::new(
                500,
                "server_error",
                "internal_error",
                "The gateway failed because of a bug: report it to its operator with the request \
                 id of this response.",
            ),
        }
    }
}

/// What keeps a request from its handler.
fn refused(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::MissingKey => unauthorised(
            "missing_api_key",
            "The request has no API key: send the header 'Authorization: Bearer KEY'.",
        ),
        Refusal::UnknownKey => unauthorised(
            "invalid_api_key",
            "The API key is unknown or revoked: ask the operator of the gateway for another.",
        ),
        Refusal::Store(error) => store(error),
        Refusal::Busy { limit } => Problem::new(
            503,
            UNAVAILABLE,
            "too_many_in_flight",
            format!("The gateway serves {limit} requests, which is its limit: try again soon."),
        )
        .wait(SOON),
        Refusal::Share { limit } => Problem::new(
            503,
            UNAVAILABLE,
            "too_many_in_flight",
            format!(
                "The gateway serves {limit} requests of this tenant, which is the tenant's limit: \
                 try again soon."
            ),
        )
        .wait(SOON),
        Refusal::Draining => Problem::new(
            503,
            UNAVAILABLE,
            "shutting_down",
            "The gateway is shutting down: try again soon.",
        )
        .wait(SOON)
        .closing(),
    }
}

/// What is wrong with a request body.
fn body(error: &BodyError) -> Problem {
    match error {
        BodyError::TooLarge { limit } => Problem::new(
            413,
            INVALID,
            "body_too_large",
            format!("The request body is larger than {limit} bytes: send a smaller one."),
        )
        .closing(),
        BodyError::Timeout { after } => Problem::new(
            408,
            INVALID,
            "body_timeout",
            format!(
                "The request body was not complete within {} ms: send it without a pause.",
                after.as_millis()
            ),
        )
        .closing(),
        BodyError::Broken => Problem::new(
            400,
            INVALID,
            "body_broken",
            "The request body ended before its announced end: send it whole.",
        )
        .closing(),
        BodyError::MediaType { got } => Problem::new(
            415,
            INVALID,
            "unsupported_media_type",
            format!(
                "The media type {} is not supported: send application/json.",
                quoted(got)
            ),
        ),
        BodyError::Coding { got } => {
            let mut problem = Problem::new(
                415,
                INVALID,
                "unsupported_content_coding",
                format!(
                    "The content coding {} of the request body is not supported: send the body as it \
                     is, without Content-Encoding.",
                    quoted(got)
                ),
            );
            problem.header = Some((
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            ));
            problem
        }
        BodyError::TooManyBytes { limit } => Problem::new(
            503,
            UNAVAILABLE,
            "too_many_bytes",
            format!(
                "The gateway is reading request bodies of {limit} bytes, which is its limit: try \
                 again soon."
            ),
        )
        .wait(SOON)
        .closing(),
        BodyError::Shape { reason } => Problem::new(
            400,
            INVALID,
            "invalid_request",
            format!(
                "The request body is not what this route takes: {}. GET /docs shows its members.",
                clip(reason, 300)
            ),
        ),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Store(error) | Self::Refused(Refusal::Store(error)) = &self {
            tracing::warn!(%error, "the store failed a request");
        }
        self.problem().into_response()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        ApiError::Refused(self).into_response()
    }
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        ApiError::Body(self).into_response()
    }
}

impl IntoResponse for InvalidHead {
    fn into_response(self) -> Response {
        match self {
            Self::Timeout { value } => {
                let value = String::from_utf8_lossy(value.as_bytes());
                let message = format!(
                    "Invalid value for 'x-request-timeout-ms': expected whole milliseconds, 1 or \
                     more, got {}.",
                    quoted(&value)
                );
                let param = Some("x-request-timeout-ms".to_owned());
                ApiError::Invalid(InvalidRequest { message, param }).into_response()
            }
            Self::Host { count } => Problem::new(
                400,
                INVALID,
                "invalid_host",
                match count {
                    0 => "The request has no header Host: send one.".to_owned(),
                    1 => "The header Host names no host: send a host, with a port if there is one."
                        .to_owned(),
                    _ => format!("The request has {count} headers Host: send exactly one."),
                },
            )
            .of(Some("host"))
            .closing()
            .into_response(),
        }
    }
}

/// Returns the response to a request whose handler panicked. The text of the panic stays inside.
pub(super) fn panicked(_text: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::Internal.into_response()
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

    /// Names the parameter that is wrong.
    fn of(mut self, param: Option<&str>) -> Self {
        self.envelope.error.param = param.map(str::to_owned);
        self
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

/// Returns the JSON of the in-band error that ends a committed stream: the text after `data: `.
#[must_use]
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

/// Returns the same where the gateway itself ends the stream.
#[must_use]
pub fn in_band_of(error: &ApiError) -> Bytes {
    text(&error.problem().envelope)
}

fn text(envelope: &Envelope) -> Bytes {
    let fallback = || {
        let message = "The stream failed.";
        format!(r#"{{"error":{{"message":"{message}","type":"server_error","param":null}}}}"#)
    };
    serde_json::to_string(envelope)
        .unwrap_or_else(|_| fallback())
        .into()
}

/// A failure of the LLM path. The deciding cause gives the status, the last attempt with that cause
/// gives the message, and all attempts are listed.
fn llm(failure: &LlmFailure) -> Problem {
    let decisive = failure.attempts.iter().rev().find_map(|attempt| {
        attempt
            .error
            .as_ref()
            .filter(|error| error.cause == failure.cause)
            .map(|error| (attempt, error))
    });
    let mut problem = match decisive {
        // the request is at fault, and the provider's own words say why
        Some((_, error)) if matches!(error.cause, Cause::Rejected | Cause::Unsupported) => cause(
            error.cause,
            error.status,
            &error.detail,
            error.message.clone(),
        ),
        Some((attempt, error)) => {
            let many = if failure.attempts.len() > 1 {
                format!(
                    "{} attempts failed, and this one decides the status: ",
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
            "The deadline passed before a provider could be asked: allow more time.".into(),
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
        provider: attempt.candidate.provider.to_string(),
        model: attempt.candidate.model.to_string(),
        cause: error.map(|error| error.cause),
        status: error.and_then(|error| error.status),
        message: error.map(|error| error.message.clone()),
    }
}

/// The status, type and code of one cause.
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
        // a provider's 4xx is about the client's request, except those about the gateway's key
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
        Cause::Shortage => named(503, UNAVAILABLE, "gateway_shortage").wait(SOON),
        Cause::Unsupported => theirs(named(400, INVALID, "unsupported"), detail),
    }
}

/// Takes the provider's own type, code and param, where it gave them.
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
            "The database cannot be reached: try again soon.".into(),
        ),
        StoreError::PoolExhausted(time) => unavailable(
            "store_busy",
            format!(
                "No connection to the database became free within {} ms: try again soon.",
                time.as_millis()
            ),
        ),
        StoreError::Timeout(time) => unavailable(
            "store_timeout",
            format!(
                "The database gave no answer within {} ms: try again soon.",
                time.as_millis()
            ),
        ),
        StoreError::NotWritable(_) => unavailable(
            "store_not_writable",
            "The database takes no writes at the moment: try again soon.".into(),
        ),
        StoreError::Rejected(message) => {
            Problem::new(400, INVALID, "invalid_request", message.clone())
        }
        StoreError::Failed(_) => unavailable(
            "store_failed",
            "The database failed: try again soon.".into(),
        ),
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

/// Rounds up to whole seconds, the unit of `Retry-After` (RFC 9110 section 10.2.3): a client that
/// comes too early is refused again.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Quotes a client's own text for a message, at most [`SHOWN`] characters of it.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", clip(text, SHOWN))
}
