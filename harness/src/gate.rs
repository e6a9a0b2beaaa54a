//! Gates, rendezvous, interlocks and the hang guard: how a suite proves order without a clock.

/// The gates of one case, by name.
#[derive(Clone, Debug, Default)]
pub struct Gates {}
