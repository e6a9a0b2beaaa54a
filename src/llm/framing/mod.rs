//! Bytes to events: total functions for SSE and NDJSON.
