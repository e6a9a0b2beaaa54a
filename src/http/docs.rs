//! `GET /docs`: the OpenAPI document, and a page that shows it. The page loads nothing from any
//! other host.

use axum::Extension;
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use http::header;
use utoipa::openapi::OpenApi;

const PAGE: &str = include_str!("docs.html");

/// The OpenAPI document in the form in which it is served.
#[derive(Clone)]
pub(super) struct ServedDocument(Bytes);

impl ServedDocument {
    pub(super) fn new(document: OpenApi) -> Self {
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// Shows this documentation.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "getDocumentation",
    tag = "operation",
    responses((
        status = 200,
        description = "A page that shows the OpenAPI document.",
        body = String,
        content_type = "text/html"
    ))
)]
pub(super) async fn page() -> Response {
    Html(PAGE).into_response()
}

/// Returns the OpenAPI document.
#[utoipa::path(
    get,
    path = "/docs/openapi.json",
    operation_id = "getOpenApi",
    tag = "operation",
    responses((
        status = 200,
        description = "The OpenAPI document of this gateway.",
        body = serde_json::Value
    ))
)]
pub(super) async fn document(Extension(document): Extension<ServedDocument>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.0).into_response()
}
