//! `/api/v1/documents`: the texts that queries search. A tenant sees only its own.

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, BodyErrors, Envelope, KeyErrors};
use super::state::AppState;
use crate::llm::chat::InvalidRequest;
use crate::server::{Json, Tenant};
use crate::store::{self, NewDocument};

/// The longest title, in characters. The words of the title are stored with every passage of the
/// document, and count for each.
const TITLE_CHARS: usize = 1_000;

/// A document to store.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    /// Names the document in citations: at most 1000 characters.
    #[serde(default)]
    #[schema(max_length = 1000)]
    title: String,
    /// Plain text that contains at least one word.
    #[schema(min_length = 1)]
    text: String,
}

/// A stored document.
#[derive(Serialize, ToSchema)]
pub(super) struct Document {
    /// The document's id, a UUID v7.
    #[schema(value_type = String, format = "uuid")]
    id: Uuid,
    /// The title as it was submitted.
    title: String,
    /// The text as it was submitted.
    text: String,
    /// When the document was stored, as RFC 3339.
    created_at: String,
}

/// Stores a document, which queries search from now on.
#[utoipa::path(
    post,
    path = "/api/v1/documents",
    operation_id = "createDocument",
    tag = "query",
    request_body(content = Submission, description = "The document to store."),
    responses(
        (
            status = 201,
            description = "The document is stored. The header `Location` is its path.",
            body = Document
        ),
        BodyErrors,
        KeyErrors,
    )
)]
pub(super) async fn create(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    Json(submission): Json<Submission>,
) -> Result<Response, ApiError> {
    let Submission { title, text } = submission;
    if !text.chars().any(char::is_alphanumeric) {
        return Err(invalid(
            "text",
            "Invalid value for 'text': expected at least one word, got none.".into(),
        ));
    }
    let length = title.chars().count();
    if length > TITLE_CHARS {
        return Err(invalid(
            "title",
            format!(
                "Invalid value for 'title': expected at most {TITLE_CHARS} characters, got \
                 {length}. Move what is longer to 'text'."
            ),
        ));
    }
    let document = app
        .store
        .add_document(&tenant, NewDocument { title, text })
        .await?;
    let location = format!("/api/v1/documents/{}", document.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        axum::Json(response_body(document)),
    )
        .into_response())
}

/// Returns a document.
#[utoipa::path(
    get,
    path = "/api/v1/documents/{id}",
    operation_id = "getDocument",
    tag = "query",
    params(("id" = String, Path, description = "The document's id.")),
    responses(
        (status = 200, description = "The document.", body = Document),
        (status = 404, description = "The tenant has no document of that id.", body = Envelope),
        KeyErrors,
    )
)]
pub(super) async fn one(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    uri: Uri,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(missing(&uri));
    };
    let document = app
        .store
        .document(&tenant, id)
        .await?
        .ok_or_else(|| missing(&uri))?;
    Ok(axum::Json(response_body(document)).into_response())
}

/// Deletes a document. Queries no longer find it; the records of earlier queries keep what they
/// cited.
#[utoipa::path(
    delete,
    path = "/api/v1/documents/{id}",
    operation_id = "deleteDocument",
    tag = "query",
    params(("id" = String, Path, description = "The document's id.")),
    responses(
        (status = 204, description = "The document is deleted."),
        (status = 404, description = "The tenant has no document of that id.", body = Envelope),
        KeyErrors,
    )
)]
pub(super) async fn delete(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    uri: Uri,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(missing(&uri));
    };
    if app.store.delete_document(&tenant, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing(&uri))
    }
}

fn invalid(param: &str, message: String) -> ApiError {
    ApiError::Invalid(InvalidRequest {
        message,
        param: Some(param.to_owned()),
    })
}

/// A path that is no UUID names no document either.
fn missing(uri: &Uri) -> ApiError {
    ApiError::Missing {
        what: "document",
        id: uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

fn response_body(document: store::Document) -> Document {
    let store::Document {
        id,
        title,
        text,
        created_at,
    } = document;
    let created_at = Timestamp::from_microsecond(created_at)
        .map(|time| time.to_string())
        .unwrap_or_default();
    Document {
        id,
        title,
        text,
        created_at,
    }
}
