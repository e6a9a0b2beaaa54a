//! What can be read again: recorded queries and documents, those of the tenant alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::error::ErrorResponse;
use super::gateway::Gateway;
use super::ingress::{Body, Visit, json_response};
use super::store::{Document, Listing, Store, StoreError};
use crate::defect::Defect;

/// `GET /api/v1/queries/{id}`: as it was sent; another tenant's is not there (AUTH-02).
pub(super) async fn one(
    gateway: &Gateway,
    visit: &Visit,
    id: &str,
) -> Result<Response<Body>, ErrorResponse> {
    let missing = || {
        ErrorResponse::new(
            404,
            "invalid_request_error",
            "query_not_found",
            format!("there is no query {id:?}"),
        )
    };
    let id = uuid::Uuid::parse_str(id)
        .map_err(|_| missing())?
        .to_string();
    let text = store(gateway)?
        .query(&visit.tenant, &id)
        .await
        .map_err(|error| store_error(gateway, &error))?
        .ok_or_else(missing)?;
    Ok(json_response(
        200,
        &serde_json::from_str(&text).unwrap_or_default(),
    ))
}

/// `GET /api/v1/queries?page&size&status&before`.
pub(super) async fn list(
    gateway: &Gateway,
    visit: &Visit,
    query: &str,
) -> Result<Response<Body>, ErrorResponse> {
    let mut listing = Listing {
        page: 1,
        size: 20,
        ..Listing::default()
    };
    for (name, value) in query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let wrong = || invalid(name, format!("{name} cannot be {value:?}"));
        let number = |most| {
            value
                .parse()
                .ok()
                .filter(|number| (1..=most).contains(number))
                .ok_or_else(wrong)
        };
        match name {
            "page" => listing.page = number(1_000_000)?,
            "size" => listing.size = number(100)?,
            "status" if ["complete", "degraded", "failed", "cancelled"].contains(&value) => {
                value.clone_into(&mut listing.status)
            }
            "before" => {
                listing.before = uuid::Uuid::parse_str(value)
                    .map_err(|_| wrong())?
                    .to_string()
            }
            _ => return Err(wrong()),
        }
    }
    let (texts, total) = store(gateway)?
        .queries(&visit.tenant, &listing)
        .await
        .map_err(|error| store_error(gateway, &error))?;
    let documents: Vec<Value> = texts
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok())
        .collect();
    Ok(json_response(
        200,
        &json!({ "queries": documents, "page": listing.page, "size": listing.size, "total": total }),
    ))
}

/// `POST /api/v1/documents`.
pub(super) async fn add_document(
    gateway: &Gateway,
    visit: &Visit,
    fields: Map<String, Value>,
) -> Result<Response<Body>, ErrorResponse> {
    let document = Document {
        id: uuid::Uuid::now_v7().to_string(),
        title: fields
            .get("title")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into(),
        text: text(&fields, "text")?,
        created_at: now(),
    };
    match store(gateway)?.add_document(&visit.tenant, &document).await {
        Err(StoreError::Unavailable(_)) if gateway.has(Defect::ReportsLostAsStored) => {}
        stored => stored.map_err(|error| store_error(gateway, &error))?,
    }
    Ok(json_response(201, &shown(&document)))
}

/// `GET /api/v1/documents/{id}`.
pub(super) async fn document(
    gateway: &Gateway,
    visit: &Visit,
    id: &str,
) -> Result<Response<Body>, ErrorResponse> {
    let missing = || {
        ErrorResponse::new(
            404,
            "invalid_request_error",
            "document_not_found",
            format!("there is no document {id:?}"),
        )
    };
    let id = uuid::Uuid::parse_str(id)
        .map_err(|_| missing())?
        .to_string();
    let found = store(gateway)?
        .document(&visit.tenant, &id)
        .await
        .map_err(|error| store_error(gateway, &error))?;
    found
        .map(|document| json_response(200, &shown(&document)))
        .ok_or_else(missing)
}

/// `DELETE /api/v1/documents/{id}`.
pub(super) async fn delete_document(
    gateway: &Gateway,
    visit: &Visit,
    id: &str,
) -> Result<Response<Body>, ErrorResponse> {
    let missing = || {
        ErrorResponse::new(
            404,
            "invalid_request_error",
            "document_not_found",
            format!("there is no document {id:?}"),
        )
    };
    let id = uuid::Uuid::parse_str(id)
        .map_err(|_| missing())?
        .to_string();
    if !store(gateway)?
        .delete_document(&visit.tenant, &id)
        .await
        .map_err(|error| store_error(gateway, &error))?
    {
        return Err(missing());
    }
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn store(gateway: &Gateway) -> Result<&Store, ErrorResponse> {
    gateway.store.as_ref().ok_or_else(|| {
        ErrorResponse::new(
            503,
            "come_again",
            "store_unavailable",
            "there is no database",
        )
    })
}

/// A database's failure is never the client's own, unless the value cannot be stored (DATA-10).
pub(super) fn store_error(gateway: &Gateway, error: &StoreError) -> ErrorResponse {
    gateway.log(&format!("store: {error}"));
    if gateway.has(Defect::StoreFailureIs401) {
        return ErrorResponse::new(
            401,
            "authentication_error",
            "invalid_api_key",
            "the key is not known",
        );
    }
    let code = match error {
        StoreError::Rejected(message) => {
            return ErrorResponse::new(
                400,
                "invalid_request_error",
                "invalid_request",
                message.clone(),
            );
        }
        StoreError::Unavailable(_) => "store_unavailable",
        StoreError::Busy => "store_busy",
        StoreError::Timeout => "store_timeout",
        StoreError::NotWritable(_) => "store_not_writable",
        StoreError::Failed(_) => "store_failed",
    };
    let response = ErrorResponse::new(
        503,
        "come_again",
        code,
        format!("the database: {}", error.reason()),
    );
    ErrorResponse {
        retry_after: Some(Duration::from_secs(1)),
        ..response
    }
}

fn shown(document: &Document) -> Value {
    json!({ "id": document.id, "title": document.title, "text": document.text, "created_at": rfc3339(document.created_at) })
}

pub(super) fn text(fields: &Map<String, Value>, name: &str) -> Result<String, ErrorResponse> {
    let given = fields
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.trim().is_empty());
    given
        .map(str::to_owned)
        .ok_or_else(|| invalid(name, format!("{name} is missing, empty, or no text")))
}

pub(super) fn invalid(param: &str, message: String) -> ErrorResponse {
    ErrorResponse {
        param: Some(param.into()),
        ..ErrorResponse::new(400, "invalid_request_error", "invalid_request", message)
    }
}

pub(super) fn now() -> i64 {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros();
    i64::try_from(micros).unwrap_or(i64::MAX)
}

pub(super) fn rfc3339(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}
