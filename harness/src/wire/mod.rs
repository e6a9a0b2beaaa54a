//! The wire: a fault-injecting listener in front of a stub or of Postgres.
