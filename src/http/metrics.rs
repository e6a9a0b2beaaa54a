//! `GET /metrics`: counters and gauges in Prometheus' text format.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use super::state::AppState;

/// Writes all of them.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn text(State(app): State<AppState>) -> Response {
    app.metrics.in_flight(app.admission.in_flight());
    app.router.update_metrics();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.render()).into_response()
}
