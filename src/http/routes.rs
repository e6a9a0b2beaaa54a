//! Every route of the gateway, once. The `utoipa::path` of a handler declares method, path and
//! documentation; [`routes`] lists the handlers by the middleware that guards them. The router, the
//! OpenAPI document and the route label of metrics and logs follow from that.
//!
//! A new route is a handler with its `utoipa::path`, and one line here.

use axum::extract::Request;
use axum::middleware::{from_fn_with_state, map_request};
use axum::{Extension, Router};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};
use utoipa::openapi::OpenApi as OpenApiDocument;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::docs::ServedDocument;
use super::error::{ApiError, Envelope, panicked};
use super::state::AppState;
use super::{chat, docs, documents, health, metrics, models, queries};
use crate::server::middleware::{NewRequestId, admit, authenticate, observe, request_id};

/// Builds the whole service.
#[must_use]
pub fn routes(app: AppState) -> Router {
    let ingress = app.ingress.clone();
    let work = OpenApiRouter::new()
        .routes(routes!(chat::create))
        .routes(routes!(documents::create))
        .routes(routes!(documents::one, documents::delete))
        .routes(routes!(queries::create))
        .layer(from_fn_with_state(ingress.clone(), admit));
    let reading = OpenApiRouter::new()
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        .routes(routes!(queries::list))
        .routes(routes!(queries::one))
        .layer(from_fn_with_state(ingress.clone(), authenticate));
    let operation = OpenApiRouter::new()
        .routes(routes!(health::all))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::text))
        .routes(routes!(docs::page))
        .routes(routes!(docs::document));
    let (router, document) = OpenApiRouter::with_openapi(Api::openapi())
        .merge(work)
        .merge(reading)
        .merge(operation)
        .split_for_parts();
    let surrounding = ServiceBuilder::new()
        .layer(map_request(request_id))
        .layer(SetRequestIdLayer::x_request_id(NewRequestId))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(from_fn_with_state(ingress, observe))
        .layer(Extension(ServedDocument::new(in_openapi(document))))
        .layer(CatchPanicLayer::custom(panicked));
    router
        .fallback(async |request: Request| ApiError::Route {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .method_not_allowed_fallback(async |request: Request| ApiError::Method {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .layer(surrounding)
        .with_state(app)
}

/// What the OpenAPI document says besides the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gauntlet",
        description = "An LLM gateway and query orchestrator. \
                       Every error has the envelope of OpenAI's API."
    ),
    components(schemas(Envelope)),
    modifiers(&ApiKey),
    security((), ("key" = [])),
    tags(
        (name = "llm", description = "OpenAI's API over the configured models."),
        (
            name = "query",
            description = "Questions that several agents answer together, and the documents that \
                           they search."
        ),
        (name = "operation", description = "Health, metrics and this documentation."),
    )
)]
struct Api;

/// How clients send their key. Where `auth.required` is off they need none, which is why the
/// document also lists the empty security requirement.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut OpenApiDocument) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "A key of `gauntlet keys add`, or one of `[[auth.keys]]`.",
            ))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// Writes the paths as OpenAPI does: axum's `{*id}`, which also matches slashes, is `{id}` there.
fn in_openapi(mut document: OpenApiDocument) -> OpenApiDocument {
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths
        .into_iter()
        .map(|(path, item)| (path.replace("{*", "{"), item))
        .collect();
    document
}
