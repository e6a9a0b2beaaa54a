//! What the configuration knows of the kinds of things whose rows are elsewhere: the steps of a
//! query and the protocols of providers.
//!
//! The rows stand with their kinds (`orchestrator::step`, `llm::provider`). The gateway joins them
//! into one [`Kinds`] and hands it to the loader, so that a new step or protocol brings its own
//! keys, defaults and documentation, and `config` imports neither.

use std::time::Duration;

/// All kinds that bring keys of their own.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// The steps of a query, in the order in which their results are listed.
    pub steps: &'static [StepSettings],
    /// The protocols that a provider can speak.
    pub protocols: &'static [ProtocolSettings],
}

/// The configurable part of a step's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSettings {
    /// The step's name in configuration, JSON, logs and metrics: snake_case.
    pub name: &'static str,
    /// The default of `cap_ms`: the step must end within this time.
    pub cap: Duration,
    /// The default of `minimum_ms`: with less time left the step is skipped.
    pub minimum: Duration,
    /// Whether the step asks a model, so that `orchestrator.models` names an alias for it.
    pub asks_model: bool,
}

/// The configurable part of a protocol's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolSettings {
    /// The protocol's name in configuration, JSON, logs and metrics: lower case.
    pub name: &'static str,
    /// The base URL of a provider that writes none.
    pub default_base_url: &'static str,
    /// The servers that speak it, for `--print-config`: a phrase without a full stop.
    pub description: &'static str,
}
