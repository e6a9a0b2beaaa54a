//! `GET /metrics`: the counters and gauges, in the OpenMetrics text format.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;

use super::state::AppState;

/// Returns the counters and gauges.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    tag = "operation",
    responses((
        status = 200,
        description = "The counters and gauges in the OpenMetrics text format.",
        body = String,
        content_type = "application/openmetrics-text"
    ))
)]
pub(super) async fn text(State(app): State<AppState>) -> Response {
    app.metrics.in_flight(app.ingress.admission.in_flight());
    app.router.update_metrics();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.render()).into_response()
}
