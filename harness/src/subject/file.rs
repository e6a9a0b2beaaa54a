//! Target files: how a gateway is described, so that the harness can configure, start, find and examine it.
//!
//! TOML with minijinja templates. A file with `[start]` is a program that the harness starts; a file with `url` is a gateway
//! that somebody else has started and pointed at the stubs' fixed addresses (`[listen]`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;

use super::{Capability, CommandTarget, Manifest, Target, TargetError, UrlTarget};
use crate::spec::{BreakerSpec, RetrySpec, Spec, Timeouts};

/// A target, as its file describes it. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetFile {
    /// `bundled`, `litellm`, …
    pub name: String,
    /// Its version, if it is fixed; otherwise see `version_command`.
    #[serde(default)]
    pub version: Option<String>,
    /// A command whose first line of output is the version.
    #[serde(default)]
    pub version_command: Vec<String>,
    /// Where it answers, for a gateway that the harness does not start.
    #[serde(default)]
    pub url: Option<String>,
    /// Put between the address and `/v1/…`.
    #[serde(default)]
    pub base_path: String,
    /// Whether one process serves many cases.
    #[serde(default)]
    pub shared: bool,
    /// What it can do.
    #[serde(default)]
    pub capabilities: BTreeSet<Capability>,
    /// Why it lacks a capability, for the report.
    #[serde(default)]
    pub not_supported_reason: IndexMap<Capability, String>,
    /// Headers that every request needs.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
    /// Fixed addresses of the stubbed providers, for a gateway that the harness does not configure.
    #[serde(default)]
    pub listen: IndexMap<String, SocketAddr>,
    /// How such a gateway is set up; cases that need other settings are *not supported*.
    #[serde(default)]
    pub settings: Settings,
    /// How it is started.
    #[serde(default)]
    pub start: Option<Start>,
    /// How it is found ready.
    #[serde(default)]
    pub ready: Ready,
}

/// The settings of a gateway that the harness cannot configure. Defaults: those of [`Spec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its time-outs, as far as they differ from the suite's.
    #[serde(default)]
    pub timeouts: Option<Timeouts>,
    /// Its retries.
    #[serde(default)]
    pub retry: Option<RetrySpec>,
    /// Its breakers.
    #[serde(default)]
    pub breaker: Option<BreakerSpec>,
}

impl Settings {
    /// What the gateway is set up like, in the words of a case.
    pub(super) fn as_spec(&self) -> Spec {
        let mut spec = Spec::default();
        if let Some(timeouts) = self.timeouts {
            spec.timeouts = timeouts;
        }
        if let Some(retry) = self.retry {
            spec.retry = retry;
        }
        if let Some(breaker) = self.breaker {
            spec.breaker = breaker;
        }
        spec
    }
}

/// How a program is started. Every text is a template.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub env: IndexMap<String, String>,
    /// Taken out of the environment.
    #[serde(default)]
    pub unset: Vec<String>,
    /// Files that are written before.
    #[serde(default)]
    pub files: Vec<StartFile>,
    /// What to do when the program is not there.
    #[serde(default)]
    pub hint: String,
}

/// A configuration file that is rendered from the case's specification.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFile {
    /// Its name in the folder of the deployment.
    pub name: String,
    /// Its text, a template.
    pub template: String,
}

/// How a target is found ready.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ready {
    /// The program writes its address after these words (`listening on `); without it the address is the reserved port.
    pub announced: Option<String>,
    /// StubRequest until it answers with `status`.
    pub path: String,
    /// The status that means ready.
    pub status: u16,
    /// Given up after that.
    pub timeout_ms: u64,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            announced: None,
            path: "/health/live".into(),
            status: 200,
            timeout_ms: 15_000,
        }
    }
}

impl TargetFile {
    /// Reads a target file.
    ///
    /// # Errors
    /// [`TargetError::Definition`] with path, place and remedy.
    pub fn load(path: &Path) -> Result<Self, TargetError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            TargetError::Definition(format!("cannot read the target file {}: {error}; give bundled, litellm, a TOML file or a URL", path.display()))
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a target file's text; `origin` names it in errors.
    ///
    /// # Errors
    /// [`TargetError::Definition`] with origin, place and remedy.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TargetError> {
        let wrong = |what: String| TargetError::Definition(format!("target file {origin}: {what}"));
        let file: Self = toml::from_str(text)
            .map_err(|error| wrong(error.to_string().trim_end().replace('\n', "\n  ")))?;
        match (&file.start, &file.url) {
            (None, None) => Err(wrong(
                "neither [start] nor url; say how to start the gateway, or where it answers".into(),
            )),
            (Some(_), Some(_)) => Err(wrong(
                "both [start] and url; keep the one that is meant".into(),
            )),
            (Some(start), None) if start.command.is_empty() => Err(wrong(
                "start.command is empty; give the program and its arguments".into(),
            )),
            (Some(_), None) if !file.listen.is_empty() => Err(wrong(
                "[listen] is for gateways with a url; one that is started is given the addresses"
                    .into(),
            )),
            _ => Ok(file),
        }
    }

    /// Reads a file that describes the gateway at `url`; the URL given here wins over the file's.
    ///
    /// # Errors
    /// As [`TargetFile::load`].
    pub fn load_for_url(path: &Path, url: &str) -> Result<Self, TargetError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            TargetError::Definition(format!("cannot read the manifest {origin}: {error}"))
        })?;
        let mut table: toml::Table = text
            .parse()
            .map_err(|error| TargetError::Definition(format!("manifest {origin}: {error}")))?;
        table.insert("url".into(), url.into());
        Self::parse(&table.to_string(), &origin)
    }

    /// A gateway that answers at `url` and declares the plain surface only; providers `p1`, `p2`, `p3` listen on 9101 to 9103.
    pub fn for_url(url: &str) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            name: url.to_string(),
            version: None,
            version_command: Vec::new(),
            url: Some(url.to_string()),
            base_path: String::new(),
            shared: false,
            capabilities: BTreeSet::from([Capability::Chat, Capability::Stream]),
            not_supported_reason: IndexMap::new(),
            headers: IndexMap::new(),
            listen: IndexMap::from([
                ("p1".to_string(), loopback(9101)),
                ("p2".to_string(), loopback(9102)),
                ("p3".to_string(), loopback(9103)),
            ]),
            settings: Settings::default(),
            start: None,
            ready: Ready {
                path: "/v1/models".into(),
                ..Ready::default()
            },
        }
    }

    /// The target that the file describes; `gauntlet` is the program that templates know by that name.
    ///
    /// # Errors
    /// [`TargetError::Definition`] for a URL that is none.
    pub fn into_target(self, gauntlet: PathBuf) -> Result<Arc<dyn Target>, TargetError> {
        match self.url {
            Some(_) => Ok(Arc::new(UrlTarget::new(self)?)),
            None => Ok(Arc::new(CommandTarget::new(self, gauntlet)?)),
        }
    }

    pub(super) fn manifest(&self) -> Manifest {
        let fixed_timeouts = if self.url.is_some() {
            self.settings.timeouts
        } else {
            None
        };
        Manifest {
            name: self.name.clone(),
            version: self.version.clone(),
            capabilities: self.capabilities.clone(),
            fixed_timeouts,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = TargetFile::parse("name = \"x\"\nurll = \"http://h\"\n", "x.toml")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("x.toml") && error.contains("urll"),
            "{error}"
        );
    }

    #[test]
    fn a_file_must_say_how_to_reach_the_gateway() {
        let error = TargetFile::parse("name = \"x\"\n", "x.toml")
            .unwrap_err()
            .to_string();
        assert!(error.contains("neither [start] nor url"), "{error}");
    }

    #[test]
    fn an_unknown_capability_is_named() {
        let error = TargetFile::parse(
            "name = \"x\"\nurl=\"http://h\"\ncapabilities = [\"fly\"]\n",
            "x.toml",
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("fly") && error.contains("first_token_timeout"),
            "{error}"
        );
    }
}
