//! The routes, and which middleware stands before them.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::error::ApiError;
use super::state::AppState;
use super::{chat, context, docs, documents, health, metrics, models, queries};

/// Every path, as metrics name it.
pub(super) const ROUTES: [&str; 13] = [
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/{*id}",
    "/api/v1/queries",
    "/api/v1/queries/{id}",
    "/api/v1/documents",
    "/api/v1/documents/{id}",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
    "/docs/openapi.json",
];

/// The whole service.
pub fn routes(app: AppState) -> Router {
    let work = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/api/v1/documents", post(documents::create))
        .route(
            "/api/v1/documents/{id}",
            get(documents::one).delete(documents::delete),
        )
        .route("/api/v1/queries", post(queries::create))
        .layer(from_fn_with_state(app.clone(), admit));
    let reading = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/api/v1/queries", get(queries::list))
        .route("/api/v1/queries/{id}", get(queries::one))
        .layer(from_fn_with_state(app.clone(), authenticate));
    let operation = Router::new()
        .route("/health", get(health::all))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::text))
        .route("/docs", get(docs::page))
        .route("/docs/openapi.json", get(docs::document));
    work.merge(reading)
        .merge(operation)
        .fallback(async |request: Request| ApiError::Route {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .method_not_allowed_fallback(async |request: Request| ApiError::Method {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .layer(from_fn_with_state(app.clone(), context::surround))
        .with_state(app)
}

/// For what needs a key, and costs little: served while the gateway drains, and waited for.
async fn authenticate(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let reading = app.admission.read();
    let tenant = app.keys.tenant(request.headers()).await?;
    request.extensions_mut().insert(tenant);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(reading);
    Ok(response)
}

/// For work: a key, then a place among the requests in flight, held until the response has ended; when the drain deadline is
/// over, the handler is dropped with all that it does.
async fn admit(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = app.keys.tenant(request.headers()).await?;
    if app.shutdown.is_draining() {
        return Err(ApiError::Draining);
    }
    let in_flight = app.admission.enter()?;
    request.extensions_mut().insert(tenant);
    let cut = app.shutdown.cut_token();
    let mut response = tokio::select! {
        response = next.run(request) => response,
        () = cut.cancelled() => ApiError::Draining.into_response(),
    };
    response.extensions_mut().insert(in_flight);
    Ok(response)
}
