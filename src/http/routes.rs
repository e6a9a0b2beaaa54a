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
use crate::server::Ingress;
use crate::server::middleware::{NewRequestId, admit, authenticate, observe, request_id};

/// Builds the whole service.
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
    let router = router
        .fallback(async |request: Request| ApiError::Route {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .method_not_allowed_fallback(async |request: Request| ApiError::Method {
            method: request.method().clone(),
            path: request.uri().path().into(),
        })
        .layer(Extension(ServedDocument::new(in_openapi(document))));
    surround(router, ingress).with_state(app)
}

/// Adds the layers that every request passes through, the outermost first.
fn surround<S: Clone + Send + Sync + 'static>(router: Router<S>, ingress: Ingress) -> Router<S> {
    let layers = ServiceBuilder::new()
        .layer(map_request(request_id))
        .layer(SetRequestIdLayer::x_request_id(NewRequestId))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(from_fn_with_state(ingress, observe))
        .layer(CatchPanicLayer::custom(panicked));
    router.layer(layers)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use http::StatusCode;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;
    use crate::server::{Admission, Bodies, BodyBounds, Keys, Shutdown};
    use crate::telemetry::Metrics;

    async fn ingress() -> Ingress {
        let memory = "[store]\nurl = \"sqlite::memory:\"\n";
        let config = Config::from_toml(memory).unwrap();
        let store = crate::store::open(&config.store).await.unwrap();
        Ingress {
            keys: Arc::new(Keys::new(&config.auth, false, store)),
            bodies: Bodies::new(BodyBounds {
                bytes: 1_000,
                time: Duration::from_secs(60),
            }),
            admission: Admission::new(1),
            shutdown: Shutdown::default(),
            metrics: Arc::new(Metrics::default()),
        }
    }

    async fn panics() -> &'static str {
        panic!("canary")
    }

    #[tokio::test]
    async fn a_panic_is_a_500_in_the_envelope_without_its_text() {
        let ingress = ingress().await;
        let router = surround(Router::new().route("/", get(panics)), ingress.clone());
        let request = Request::builder()
            .uri("/")
            .header("host", "a")
            .body(Body::empty())
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let id = response.headers().get("x-request-id").unwrap();
        assert_eq!(id.len(), 32);
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("internal_error"), "{text}");
        assert!(!text.contains("canary"), "{text}");
        let counted = r#"gauntlet_requests_total{route="/",status="500"} 1"#;
        let metrics = ingress.metrics.render();
        assert!(metrics.contains(counted), "{metrics}");
    }
}
