//! `/api/v1/documents`: the texts that queries look into. A tenant sees its own alone.

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::Tenant;
use super::body::Json;
use super::error::{ApiError, Envelope};
use super::state::AppState;
use crate::llm::chat::InvalidRequest;
use crate::store::{self, NewDocument};

/// The longest title, in characters: its words count for every passage of the document, and are kept with each.
const TITLE_CHARS: usize = 1_000;

/// A document to keep.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    /// Names the document in citations; at most 1000 characters.
    #[serde(default)]
    #[schema(max_length = 1000)]
    title: String,
    /// Plain text; it must hold a word.
    text: String,
}

/// A document that is kept.
#[derive(Serialize, ToSchema)]
pub(super) struct Document {
    /// UUID v7.
    #[schema(value_type = String, format = "uuid")]
    id: Uuid,
    /// As it came.
    title: String,
    /// As it came.
    text: String,
    /// RFC 3339.
    created_at: String,
}

/// Keeps a document, so that queries find it from now on.
#[utoipa::path(post, path = "/api/v1/documents", operation_id = "createDocument", tag = "query", request_body = Submission,
    responses((status = 201, body = Document), (status = 400, body = Envelope), (status = 401, body = Envelope),
        (status = 408, body = Envelope), (status = 413, body = Envelope), (status = 415, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn create(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    Json(submission): Json<Submission>,
) -> Result<Response, ApiError> {
    let Submission { title, text } = submission;
    if !text.chars().any(char::is_alphanumeric) {
        let message = "text holds no word: there would be nothing to find".into();
        return Err(ApiError::Invalid(InvalidRequest {
            message,
            param: Some("text".into()),
        }));
    }
    let length = title.chars().count();
    if length > TITLE_CHARS {
        let message = format!(
            "title has {length} characters: the longest has {TITLE_CHARS}; what is longer belongs into text"
        );
        return Err(ApiError::Invalid(InvalidRequest {
            message,
            param: Some("title".into()),
        }));
    }
    let document = app
        .store
        .add_document(&tenant, NewDocument { title, text })
        .await?;
    let location = format!("/api/v1/documents/{}", document.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        axum::Json(shown(document)),
    )
        .into_response())
}

/// Tells a document.
#[utoipa::path(get, path = "/api/v1/documents/{id}", operation_id = "getDocument", tag = "query", params(("id" = String, Path, description = "The document's id")),
    responses((status = 200, body = Document), (status = 401, body = Envelope), (status = 404, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn one(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    uri: http::Uri,
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
    Ok(axum::Json(shown(document)).into_response())
}

/// Forgets a document: queries find it no more; records of earlier queries keep what they cited.
#[utoipa::path(delete, path = "/api/v1/documents/{id}", operation_id = "deleteDocument", tag = "query", params(("id" = String, Path, description = "The document's id")),
    responses((status = 204), (status = 401, body = Envelope), (status = 404, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn delete(
    State(app): State<AppState>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    uri: http::Uri,
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

/// What is no id at all is missing just the same.
fn missing(uri: &http::Uri) -> ApiError {
    ApiError::Missing {
        what: "document",
        id: uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

fn shown(document: store::Document) -> Document {
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
