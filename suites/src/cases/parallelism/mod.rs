//! PARA: what can run together does.

pub(super) mod chat;
pub(super) mod query;
