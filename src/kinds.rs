//! The kinds of this gateway that bring configuration keys of their own, and the configuration
//! that is read with them.

use std::path::Path;
use std::time::Duration;

use crate::config::kinds::{Kinds, StepSettings};
use crate::config::{Config, ConfigError, Loaded};
use crate::llm::provider::PROTOCOL_SETTINGS;

/// The steps and protocols that this gateway has.
pub static KINDS: Kinds = Kinds {
    steps: &[
        step("entities", 10_000, 100, true),
        step("retrieval", 15_000, 20, false),
        step("fact_check", 20_000, 200, true),
        step("synthesis", 30_000, 200, true),
        step("citation", 15_000, 100, true),
        step("review", 20_000, 100, true),
    ],
    protocols: PROTOCOL_SETTINGS,
};

const fn step(name: &'static str, cap_ms: u64, minimum_ms: u64, asks_model: bool) -> StepSettings {
    StepSettings {
        name,
        cap: Duration::from_millis(cap_ms),
        minimum: Duration::from_millis(minimum_ms),
        asks_model,
    }
}

impl Config {
    /// Reads the configuration of a gateway from the TOML `text` alone, without the environment.
    ///
    /// # Errors
    /// Every problem of the configuration; see [`ConfigError`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Loaded::from_text(text, "the configuration", Vec::new()).map(|loaded| loaded.config)
    }
}

impl Loaded {
    /// Reads the configuration of a gateway from `file`, with `environment` over it.
    ///
    /// # Errors
    /// Every problem of the configuration; see [`ConfigError`].
    pub fn from_file(file: &Path, environment: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            problems: vec![format!(
                "the configuration file {} cannot be read ({error}): write the path of a TOML file",
                file.display()
            )],
        })?;
        Self::from_text(&text, &file.display().to_string(), environment)
    }

    /// Reads the configuration of a gateway from the TOML `text`, with `environment` over it;
    /// `origin` names the text in messages.
    ///
    /// # Errors
    /// Every problem of the configuration; see [`ConfigError`].
    pub fn from_text(
        text: &str,
        origin: &str,
        environment: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::with_kinds(text, origin, &environment, &KINDS)
    }
}
