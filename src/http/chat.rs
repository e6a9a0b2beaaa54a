//! `POST /v1/chat/completions`, plain and streamed.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use utoipa::ToSchema;

use super::error::{ApiError, BodyErrors, KeyErrors, ProviderErrors};
use super::events::Events;
use super::state::AppState;
use crate::llm::chat::{Answer, Attempt, CallContext, Candidate, ChatRequest, LlmFailure};
use crate::llm::router::RouterError;
use crate::resilience::deadline::Deadline;
use crate::server::{Payload, RequestContext};

const PROVIDER: HeaderName = HeaderName::from_static("x-gauntlet-provider");
const MODEL: HeaderName = HeaderName::from_static("x-gauntlet-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-gauntlet-attempts");
/// Marks a plain answer without any content, with the value `true`.
const EMPTY_ANSWER: HeaderName = HeaderName::from_static("x-gauntlet-empty-answer");
const FALLBACKS: HeaderName = HeaderName::from_static("x-gauntlet-fallbacks");

/// A chat request in the shape of OpenAI's API. Further members are forwarded to the provider as
/// they are.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "only its OpenAPI description is used")]
pub(super) struct ChatCompletionRequest {
    /// The name of a configured model, as `GET /v1/models` lists them.
    model: String,
    /// The conversation so far, oldest message first.
    #[schema(min_items = 1)]
    messages: Vec<serde_json::Value>,
    /// Whether the answer is sent as server-sent events.
    #[serde(default)]
    stream: bool,
}

/// Answers a conversation by the first candidate of the model that succeeds.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "createChatCompletion",
    tag = "llm",
    request_body(
        content = ChatCompletionRequest,
        description = "The model and the conversation so far."
    ),
    params(
        (
            "x-request-id" = Option<String>,
            Header,
            description = "Your id of the request, at most 128 visible ASCII characters. It is \
                           returned, logged and forwarded to the provider."
        ),
        (
            "x-request-timeout-ms" = Option<u64>,
            Header,
            minimum = 1,
            description = "Your deadline in milliseconds from the arrival of the request. It can \
                           only shorten the configured one."
        ),
        (
            "idempotency-key" = Option<String>,
            Header,
            description = "Forwarded to the provider with every attempt, at most 255 visible \
                           ASCII characters."
        ),
        (
            "traceparent" = Option<String>,
            Header,
            description = "W3C trace context, which is continued towards the provider."
        ),
    ),
    responses(
        (
            status = 200,
            description = "A `chat.completion`; or, with `stream`, events of type \
                           `chat.completion.chunk` and at last `data: [DONE]`. A failure after the \
                           first token is one event with the member `error`, and no `[DONE]`.",
            content(
                (serde_json::Value = "application/json"),
                (String = "text/event-stream"),
            )
        ),
        BodyErrors,
        KeyErrors,
        ProviderErrors,
    )
)]
pub(super) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    Payload(body): Payload,
) -> Response {
    match answer(&app, &context, &body).await {
        Ok(response) => response,
        Err(Failure::Api(error)) => error.into_response(),
        Err(Failure::Llm(failure)) => {
            let counts = attempt_counts(&failure.attempts);
            let mut response = ApiError::Llm(failure).into_response();
            response.headers_mut().extend(counts);
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
        .chat(request, call(context))
        .await
        .map_err(|error| match error {
            RouterError::Failed(failure) => Failure::Llm(failure),
            unknown @ RouterError::UnknownModel(_) => Failure::Api(unknown.into()),
        })?;
    let mut response = match served.answer {
        Answer::Plain(completion) => {
            let empty = mark(completion.is_empty);
            let kind = [(header::CONTENT_TYPE, "application/json")];
            let mut response = (kind, completion.body).into_response();
            response.headers_mut().extend(empty);
            response
        }
        Answer::Stream(stream) => {
            let headers = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
            ];
            let empty = mark(stream.is_empty);
            let events = Events::new(stream.items, app.ingress.shutdown.cut_token());
            let mut response = (headers, Body::new(events)).into_response();
            response.headers_mut().extend(empty);
            response
        }
    };
    response.headers_mut().extend(candidate(&served.by));
    response
        .headers_mut()
        .extend(attempt_counts(&served.attempts));
    Ok(response)
}

/// The mark of an answer without content.
fn mark(is_empty: bool) -> Option<(HeaderName, HeaderValue)> {
    is_empty.then(|| (EMPTY_ANSWER, HeaderValue::from_static("true")))
}

/// What the LLM path needs of the request's context.
fn call(context: &RequestContext) -> CallContext {
    CallContext {
        request_id: context.request_id.to_string(),
        arrived: context.arrived,
        deadline: context.deadline.map(Deadline::of_caller),
        idempotency_key: context.idempotency_key.to_string(),
        traceparent: context.traceparent.clone(),
    }
}

/// The headers that name the candidate. A name that no header can carry is left out.
fn candidate(by: &Candidate) -> HeaderMap {
    [(PROVIDER, &by.provider), (MODEL, &by.model)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?)))
        .collect()
}

/// The headers with the number of attempts, and of fallbacks to the next candidate.
fn attempt_counts(attempts: &[Attempt]) -> HeaderMap {
    let fallbacks = attempts
        .windows(2)
        .filter(|pair| matches!(pair, [one, next] if one.candidate != next.candidate))
        .count();
    HeaderMap::from_iter([
        (ATTEMPTS, HeaderValue::from(attempts.len())),
        (FALLBACKS, HeaderValue::from(fallbacks)),
    ])
}
