//! The API's description: OpenAPI as JSON, and a page that shows it without asking anything of any other host.

use axum::Json;
use axum::response::{Html, IntoResponse, Response};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The whole API.
#[derive(OpenApi)]
#[openapi(
    info(title = "Gauntlet", description = "An LLM gateway and query orchestrator. Every error has OpenAI's envelope."),
    paths(
        super::chat::create,
        super::models::list,
        super::models::one,
        super::documents::create,
        super::documents::one,
        super::documents::delete,
        super::queries::create,
        super::queries::one,
        super::queries::list,
        super::health::all,
        super::health::live,
        super::health::ready,
        super::metrics::text,
    ),
    modifiers(&ApiKey),
    security((), ("key" = [])),
    tags(
        (name = "llm", description = "OpenAI's API over the configured models"),
        (name = "query", description = "Questions that several agents answer together, and the documents they look into"),
        (name = "operation", description = "Health and metrics"),
    )
)]
struct Api;

/// How clients show their key; without `auth.required` they need none, which the empty requirement says.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key of `gauntlet keys add`, or of [[auth.keys]]"))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

const PAGE: &str = include_str!("docs.html");

/// The page.
pub(super) async fn page() -> Response {
    Html(PAGE).into_response()
}

/// The document.
pub(super) async fn document() -> Response {
    Json(Api::openapi()).into_response()
}
