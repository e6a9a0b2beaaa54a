//! What the configuration knows of each kind of thing that has a row elsewhere: the steps of a query and the provider protocols.
//!
//! The rows stand with their kinds (`orchestrator::step`, `llm::provider`). The gateway joins them into one [`Kinds`] and hands it
//! to the loader, so that a new step or protocol brings its own keys, defaults and documentation, and `config` imports neither.

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
    /// The default of the most time that the step may take.
    pub cap: Duration,
    /// The default of the least time with which the step is started.
    pub minimum: Duration,
    /// Whether the step asks a model, so that `orchestrator.models` names an alias for it.
    pub asks_model: bool,
}

/// The configurable part of a protocol's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolSettings {
    /// The protocol's name in configuration, JSON, logs and metrics: lower case.
    pub name: &'static str,
    /// The base URL that is usual for it.
    pub default_base_url: &'static str,
    /// One sentence for `--print-config`: what speaks this protocol.
    pub description: &'static str,
}
