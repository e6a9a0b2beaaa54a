//! Request bodies, read at the door: media type, size before and while reading, and time.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;
use super::state::AppState;
use crate::llm::chat::InvalidRequest;
use crate::llm::content::{self, Joined, clip};

/// A JSON body as the bytes that came.
pub struct Payload(pub Bytes);

/// A JSON body as a value; what does not fit is a 400 in our envelope.
pub struct Json<T>(pub T);

impl FromRequest<AppState> for Payload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let server = &app.config.server;
        media_type(request.headers())?;
        let limit = server.body_limit_bytes;
        if request.body().size_hint().lower() > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        match timeout(server.body_timeout, read(request.into_body(), limit)).await {
            Ok(read) => read.map(Self),
            Err(_) => Err(ApiError::BodyTimeout {
                after: server.body_timeout,
            }),
        }
    }
}

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let Payload(bytes) = Payload::from_request(request, app).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            ApiError::Invalid(InvalidRequest {
                message: format!(
                    "the body is not what is wanted here: {}",
                    clip(&error.to_string(), 300)
                ),
                param: None,
            })
        })
    }
}

/// Whatever is told to be something else than JSON is refused; a body without a type is taken for JSON.
fn media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if !headers.contains_key(header::CONTENT_TYPE) {
        return Ok(());
    }
    let essence = content::media_type(headers);
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        Ok(())
    } else {
        Err(ApiError::MediaType { got: essence })
    }
}

async fn read(mut body: Body, limit: u64) -> Result<Bytes, ApiError> {
    let mut joined = Joined::default();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else {
            continue;
        };
        if (joined.len() + data.len()) as u64 > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        joined.push(data);
    }
    Ok(joined.into_bytes())
}
