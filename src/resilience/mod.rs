//! Resilience mechanisms, one file a mechanism, on tokio's clock only: deadline, retry (back-off and budget), breaker, bulkhead.
