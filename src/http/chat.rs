//! `POST /v1/chat/completions`, plain and streamed.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::Payload;
use super::context::RequestContext;
use super::error::{ApiError, Envelope};
use super::events::Events;
use super::state::AppState;
use crate::llm::chat::{Answer, Attempt, Candidate, ChatRequest, LlmFailure};
use crate::llm::router::RouterError;

const PROVIDER: HeaderName = HeaderName::from_static("x-gauntlet-provider");
const MODEL: HeaderName = HeaderName::from_static("x-gauntlet-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-gauntlet-attempts");
const FALLBACKS: HeaderName = HeaderName::from_static("x-gauntlet-fallbacks");

/// What a client sends; further fields are passed on to the provider as they are.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code)]
pub(super) struct ChatCompletionRequest {
    /// An alias of `GET /v1/models`.
    model: String,
    /// The conversation so far.
    messages: Vec<serde_json::Value>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    stream: bool,
}

/// Answers by the first candidate that is known to be good.
#[utoipa::path(post, path = "/v1/chat/completions", operation_id = "createChatCompletion", tag = "llm", request_body = ChatCompletionRequest,
    params(
        ("x-request-id" = Option<String>, Header, description = "Your id for the request, at most 128 visible ASCII characters; returned, logged and sent on"),
        ("x-request-timeout-ms" = Option<u64>, Header, description = "Your deadline; it can only shorten the configured one"),
        ("idempotency-key" = Option<String>, Header, description = "Sent on with every attempt"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, continued towards the provider"),
    ),
    responses(
        (status = 200, description = "A chat.completion, or chat.completion.chunk events and `data: [DONE]`; a failure after the first token is one event with `error`, and no `[DONE]`", content_type = "application/json", body = serde_json::Value),
        (status = 400, body = Envelope), (status = 401, body = Envelope), (status = 404, body = Envelope), (status = 408, body = Envelope),
        (status = 413, body = Envelope), (status = 415, body = Envelope), (status = 429, body = Envelope), (status = 502, body = Envelope),
        (status = 503, body = Envelope), (status = 504, body = Envelope),
    ))]
pub(super) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    Payload(body): Payload,
) -> Response {
    match answer(&app, &context, &body).await {
        Ok(response) => response,
        Err(Failure::Api(error)) => error.into_response(),
        Err(Failure::Llm(failure)) => {
            let told = tried(&failure.attempts);
            let mut response = ApiError::Llm(failure).into_response();
            response.headers_mut().extend(told);
            response
        }
    }
}

enum Failure {
    Api(ApiError),
    Llm(LlmFailure),
}

async fn answer(
    app: &AppState,
    context: &RequestContext,
    body: &[u8],
) -> Result<Response, Failure> {
    let request = ChatRequest::parse(body).map_err(|error| Failure::Api(error.into()))?;
    let served = app
        .router
        .chat(request, context.call())
        .await
        .map_err(|error| match error {
            RouterError::Failed(failure) => Failure::Llm(failure),
            unknown @ RouterError::UnknownModel(_) => Failure::Api(unknown.into()),
        })?;
    let mut response = match served.answer {
        Answer::Plain(completion) => (
            [(header::CONTENT_TYPE, "application/json")],
            completion.body,
        )
            .into_response(),
        Answer::Stream(stream) => {
            let headers = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
            ];
            (
                headers,
                Body::new(Events::new(stream, app.shutdown.cut_token())),
            )
                .into_response()
        }
    };
    response.headers_mut().extend(served_by(&served.by));
    response.headers_mut().extend(tried(&served.attempts));
    Ok(response)
}

/// Who served. A name that no header can carry is left out.
fn served_by(by: &Candidate) -> HeaderMap {
    [(PROVIDER, &by.provider), (MODEL, &by.model)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?)))
        .collect()
}

/// How many attempts it took, and how often the next candidate was asked.
fn tried(attempts: &[Attempt]) -> HeaderMap {
    let fallbacks = attempts
        .windows(2)
        .filter(|pair| matches!(pair, [one, next] if one.candidate != next.candidate))
        .count();
    HeaderMap::from_iter([
        (ATTEMPTS, HeaderValue::from(attempts.len())),
        (FALLBACKS, HeaderValue::from(fallbacks)),
    ])
}
