//! `GET /v1/models`: the configured aliases, in the shape of OpenAI's API.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::Uri;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Envelope, KeyErrors};
use super::state::AppState;

/// A configured alias.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    /// The alias, which requests name as their `model`.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// Always 0: an alias has no date.
    created: u64,
    /// Always `gauntlet`.
    owned_by: &'static str,
}

/// All configured aliases.
#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    /// Always `list`.
    object: &'static str,
    /// The aliases in the order of the configuration.
    data: Vec<Model>,
}

/// Lists the configured aliases.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "llm",
    responses(
        (status = 200, description = "The configured aliases.", body = Models),
        KeyErrors,
    )
)]
pub(super) async fn list(State(app): State<AppState>) -> Response {
    let data = app.config.models.keys().map(|alias| model(alias)).collect();
    Json(Models {
        object: "list",
        data,
    })
    .into_response()
}

/// Returns one alias.
#[utoipa::path(
    get,
    path = "/v1/models/{*id}",
    operation_id = "getModel",
    tag = "llm",
    params(("id" = String, Path, description = "The alias, which may contain slashes.")),
    responses(
        (status = 200, description = "The alias exists.", body = Model),
        (status = 404, description = "No alias has that name.", body = Envelope),
        KeyErrors,
    )
)]
pub(super) async fn one(
    State(app): State<AppState>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // a path that is not UTF-8 names no alias either
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
