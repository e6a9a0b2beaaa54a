//! The door: axum router, authentication, admission, resources, and THE table from error to response.
