//! Target files: how a gateway is described, so that the harness can configure, start and examine
//! it.
//!
//! A target file is TOML with minijinja templates. A file with `[start]` describes a program that
//! the harness starts; a file with `url` describes a gateway that somebody else has started and
//! pointed at the fixed addresses of the stubs (`[listen]`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;

use super::{AliasSetting, Capability, CommandTarget, Manifest, Target, TargetError, UrlTarget};
use crate::spec::{BreakerSpec, RetrySpec, Spec, Timeouts};

/// A target file. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetFile {
    /// The name that reports use: `bundled`, `litellm`, …
    pub name: String,
    /// The version of the gateway; without it, `version_command` is asked.
    #[serde(default)]
    pub version: Option<String>,
    /// A command whose first line of output holds the version.
    #[serde(default)]
    pub version_command: Vec<String>,
    /// The URL of a gateway that the harness does not start.
    #[serde(default)]
    pub url: Option<String>,
    /// The path between the address and `/v1/…`.
    #[serde(default)]
    pub base_path: String,
    /// Whether one process serves all cases with equal settings.
    #[serde(default)]
    pub shared: bool,
    /// The settings that the templates give to each alias by itself, so that cases which differ in
    /// them share a process.
    #[serde(default)]
    pub per_alias: BTreeSet<AliasSetting>,
    /// The capabilities that the target declares.
    #[serde(default)]
    pub capabilities: BTreeSet<Capability>,
    /// For each capability that it lacks, a sentence that says why, for the report.
    #[serde(default)]
    pub not_supported_reason: IndexMap<Capability, String>,
    /// Headers that every request to the gateway needs.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
    /// The fixed addresses of the stubbed providers, for a gateway with a `url`.
    #[serde(default)]
    pub listen: IndexMap<String, SocketAddr>,
    /// The settings of a gateway with a `url`; cases that need other settings are *not supported*.
    #[serde(default)]
    pub settings: FixedSettings,
    /// How the gateway is started.
    #[serde(default)]
    pub start: Option<Start>,
    /// How the harness finds out that the gateway is ready.
    #[serde(default)]
    pub ready: Ready,
}

/// The settings of a gateway that the harness cannot configure. What the file leaves out has the
/// default of [`Spec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedSettings {
    /// Its timeouts, if they differ from the suite's.
    #[serde(default)]
    pub timeouts: Option<Timeouts>,
    /// Its retries, if they differ from the suite's.
    #[serde(default)]
    pub retry: Option<RetrySpec>,
    /// Its circuit breakers, if they differ from the suite's.
    #[serde(default)]
    pub breaker: Option<BreakerSpec>,
}

impl FixedSettings {
    /// Returns the settings as a specification.
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

/// How a program is started. Every text in it is a template.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables that are added to its environment.
    #[serde(default)]
    pub env: IndexMap<String, String>,
    /// Variables that are removed from its environment.
    #[serde(default)]
    pub unset: Vec<String>,
    /// Files that are written before the start.
    #[serde(default)]
    pub files: Vec<StartFile>,
    /// What the user can do if the program is not installed.
    #[serde(default)]
    pub hint: String,
}

/// A configuration file that is rendered from the specification of the case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFile {
    /// The name of the file in the folder of the deployment.
    pub name: String,
    /// The text of the file, a template.
    pub template: String,
}

/// How the harness finds out that a gateway is ready.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ready {
    /// The words after which the program writes its URL (`listening on `); without them the
    /// gateway has to listen on the port that the template was given.
    pub announced: Option<String>,
    /// The path that is requested until it answers with `status`.
    pub path: String,
    /// The status that means that the gateway is ready.
    pub status: u16,
    /// The longest wait for readiness, in milliseconds.
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
    /// [`TargetError::Definition`] with the path, the line and the remedy.
    pub fn load(path: &Path) -> Result<Self, TargetError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            TargetError::Definition(format!(
                "cannot read the target file {}: {error}; give bundled, litellm, a TOML file or a URL",
                path.display()
            ))
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a target file; `origin` names the file in errors.
    ///
    /// # Errors
    /// [`TargetError::Definition`] with the origin, the line and the remedy.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TargetError> {
        let wrong = |what: String| TargetError::Definition(format!("target file {origin}: {what}"));
        let file: Self = toml::from_str(text)
            .map_err(|error| wrong(error.to_string().trim_end().replace('\n', "\n  ")))?;
        match (&file.start, &file.url) {
            (None, None) => Err(wrong(
                "it has neither [start] nor url; add [start] to have the gateway started, or url if it \
                 runs already"
                    .into(),
            )),
            (Some(_), Some(_)) => Err(wrong(
                "it has both [start] and url; remove one of them".into(),
            )),
            (Some(start), None) if start.command.is_empty() => Err(wrong(
                "start.command is empty; give the program and its arguments".into(),
            )),
            (Some(_), None) if !file.listen.is_empty() => Err(wrong(
                "[listen] belongs to a gateway with a url; remove it, since the templates of [start] \
                 are given the addresses of the stubs"
                    .into(),
            )),
            _ => Ok(file),
        }
    }

    /// Reads a file that describes the gateway at `url`; this URL replaces the one in the file.
    ///
    /// # Errors
    /// As [`TargetFile::load`].
    pub fn load_for_url(path: &Path, url: &str) -> Result<Self, TargetError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            TargetError::Definition(format!(
                "cannot read the manifest {origin}: {error}; give a target file without [start]"
            ))
        })?;
        let mut table: toml::Table = text
            .parse()
            .map_err(|error| TargetError::Definition(format!("manifest {origin}: {error}")))?;
        table.insert("url".into(), url.into());
        Self::parse(&table.to_string(), &origin)
    }

    /// Describes a gateway at `url` that declares chat and streaming alone; the providers `p1`,
    /// `p2` and `p3` listen on the ports 9101 to 9103.
    pub fn for_url(url: &str) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            name: url.to_string(),
            version: None,
            version_command: Vec::new(),
            url: Some(url.to_string()),
            base_path: String::new(),
            shared: false,
            per_alias: BTreeSet::new(),
            capabilities: BTreeSet::from([Capability::Chat, Capability::Stream]),
            not_supported_reason: IndexMap::new(),
            headers: IndexMap::new(),
            listen: IndexMap::from([
                ("p1".to_string(), loopback(9101)),
                ("p2".to_string(), loopback(9102)),
                ("p3".to_string(), loopback(9103)),
            ]),
            settings: FixedSettings::default(),
            start: None,
            ready: Ready {
                path: "/v1/models".into(),
                ..Ready::default()
            },
        }
    }

    /// Returns the target that the file describes; `gauntlet` is the path of this program, which
    /// templates know by that name.
    ///
    /// # Errors
    /// [`TargetError::Definition`] if the URL cannot be used or the version command is wrong.
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
    fn a_file_without_start_and_url_is_refused() {
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
