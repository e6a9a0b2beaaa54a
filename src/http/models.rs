//! `GET /v1/models`: the configured aliases, in OpenAI's shape.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::Uri;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Envelope};
use super::state::AppState;

/// One alias.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// Lists the aliases.
#[utoipa::path(get, path = "/v1/models", operation_id = "listModels", tag = "llm", responses((status = 200, body = Models), (status = 401, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn list(State(app): State<AppState>) -> Response {
    let data = app.config.models.keys().map(|alias| model(alias)).collect();
    Json(Models {
        object: "list",
        data,
    })
    .into_response()
}

/// Tells one alias.
#[utoipa::path(get, path = "/v1/models/{id}", operation_id = "getModel", tag = "llm", params(("id" = String, Path, description = "The alias")),
    responses((status = 200, body = Model), (status = 401, body = Envelope), (status = 404, body = Envelope), (status = 503, body = Envelope)))]
pub(super) async fn one(
    State(app): State<AppState>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // what is no text at all is unknown just the same
    let Ok(Path(id)) = id else {
        return Err(ApiError::UnknownModel(
            uri.path().trim_start_matches("/v1/models/").to_owned(),
        ));
    };
    if app.config.models.contains_key(&id) {
        Ok(Json(model(&id)).into_response())
    } else {
        Err(ApiError::UnknownModel(id))
    }
}

fn model(alias: &str) -> Model {
    Model {
        id: alias.to_owned(),
        object: "model",
        created: 0,
        owned_by: "gauntlet",
    }
}
