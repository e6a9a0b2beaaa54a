//! The kinds of this gateway that bring configuration keys of their own, and the configuration
//! that is read with them.

use std::path::Path;

use crate::config::kinds::Kinds;
use crate::config::{Config, ConfigError, Loaded};
use crate::llm::provider::PROTOCOL_SETTINGS;
use crate::orchestrator::step;

/// The steps and protocols that this gateway has.
pub static KINDS: Kinds = Kinds {
    steps: step::SETTINGS,
    protocols: PROTOCOL_SETTINGS,
};

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
