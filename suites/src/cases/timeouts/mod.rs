//! TIME: every wait has an end, and the gateway itself ends it.

pub(super) mod deadline;
pub(super) mod provider;
pub(super) mod store;
