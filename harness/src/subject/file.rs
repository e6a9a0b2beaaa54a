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

use super::keys::KeyCommands;
use super::prepare::Prepare;
use super::probe::Statuses;
use super::words::{line_of, of_toml};
use super::{
    AliasSetting, Behaviour, Capability, CommandTarget, Manifest, MetricNames, Paths, Target,
    TargetError, UrlTarget,
};
use crate::spec::{BreakerSpec, RetrySpec, Spec, Timeouts};

/// The largest unit of timeouts, in milliseconds.
const MOST_UNIT: u64 = 60_000;

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
    /// What the gateway always does, whatever is configured.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// Headers that every request to the gateway needs. Each value of a gateway with `[start]` is a
    /// template; line breaks in it are removed, with the blanks around them.
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
    /// What a started gateway is asked once it is ready, in this order.
    #[serde(default)]
    pub prepare: Vec<Prepare>,
    /// How an operator makes and revokes keys of clients while the gateway runs.
    #[serde(default)]
    pub keys: Option<KeyCommands>,
    /// Where the gateway answers about itself.
    #[serde(default)]
    pub paths: Paths,
    /// The names of its metrics.
    #[serde(default)]
    pub metrics: MetricNames,
    /// The name of the file, for messages.
    #[serde(skip)]
    pub(super) origin: String,
    /// The text of the file, in which messages find the lines of templates.
    #[serde(skip)]
    pub(super) source: String,
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
            spec.timeouts = timeouts.or(spec.timeouts);
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
    /// More variables: one template that yields a line `NAME=value` for each, so that it can loop.
    #[serde(default)]
    pub env_template: String,
    /// Ports by their name; 0 stands for any free port. The port `main`, at which clients ask the
    /// gateway, exists always. Cases run one after another if a port is fixed.
    #[serde(default)]
    pub ports: IndexMap<String, u16>,
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
    /// The name of the file in the folder of the deployment, a template; folders in it are made.
    pub name: String,
    /// The list for each of whose elements one file is rendered; without it there is one file.
    #[serde(default)]
    pub each: Option<Each>,
    /// The text of the file, a template.
    pub template: String,
}

/// The lists for whose elements files can be rendered. A template knows the element by the name of
/// the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Each {
    /// One file for each stubbed provider.
    Provider,
    /// One file for each alias.
    Model,
    /// One file for each key of a client.
    Key,
}

impl Each {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Key => "key",
        }
    }

    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Provider => "providers",
            Self::Model => "models",
            Self::Key => "keys",
        }
    }
}

impl Start {
    /// Returns whether the gateway has a port that the target file fixes.
    pub(super) fn has_fixed_ports(&self) -> bool {
        self.ports.values().any(|port| *port != 0)
    }
}

/// How the harness finds out that a gateway is ready.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ready {
    /// The words after which the program writes its URL (`listening on `); without them the
    /// gateway has to listen on the port that the template was given.
    pub announced: Option<String>,
    /// The path that is requested, with the headers of the target file, until it answers with
    /// `status`.
    pub path: String,
    /// The status, or a list of statuses, that means that the gateway is ready.
    pub status: Statuses,
    /// The longest wait for readiness, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            announced: None,
            path: "/health/live".into(),
            status: Statuses::One(200),
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
                "cannot read the target file {}: {error}; give bundled, litellm, \
                 portkey, lm-proxy, modelswitch, crabllm, a TOML file or a URL",
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
        let file = Self::read(text, &format!("target file {origin}"), origin)?;
        match (&file.start, &file.url) {
            (None, None) => Err(file.wrong(
                "it has neither [start] nor url; add [start] to have the gateway started, or url if it \
                 runs already",
            )),
            (Some(_), Some(_)) => Err(file.wrong("it has both [start] and url; remove one of them")),
            _ => file.checked(),
        }
    }

    /// Reads the keys, and nothing more; `what` names the file in errors.
    fn read(text: &str, what: &str, origin: &str) -> Result<Self, TargetError> {
        let mut file: Self = toml::from_str(text)
            .map_err(|error| TargetError::Definition(format!("{what}{}", of_toml(text, &error))))?;
        file.origin = origin.to_string();
        file.source = text.to_string();
        Ok(file)
    }

    fn wrong(&self, what: impl std::fmt::Display) -> TargetError {
        TargetError::Definition(format!("target file {}: {what}", self.origin))
    }

    /// Checks what the types of the keys cannot.
    fn checked(self) -> Result<Self, TargetError> {
        let line = |text: &str| {
            self.offset_of(text)
                .map(|offset| format!("line {}, ", line_of(&self.source, offset)))
                .unwrap_or_default()
        };
        let unit = self.behaviour.timeout_unit_ms;
        if unit == 0 || unit > MOST_UNIT {
            return Err(self.wrong(format!(
                "behaviour.timeout_unit_ms is {unit}; give the milliseconds of which each timeout is a \
                 multiple, from 1 to {MOST_UNIT}, or remove it"
            )));
        }
        let of_steps = self.prepare.iter().flat_map(|step| step.headers.keys());
        for name in self.headers.keys().chain(of_steps) {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err(self.wrong(format!(
                    "{}a header cannot be named `{name}`; write letters, digits and hyphens",
                    line(name)
                )));
            }
        }
        for step in &self.prepare {
            let method = step.method.as_str();
            if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
                return Err(self.wrong(format!(
                    "{}prepare.method is `{method}`; write a method such as POST",
                    line(method)
                )));
            }
        }
        if let (Some(step), None) = (self.prepare.first(), &self.start) {
            return Err(self.wrong(format!(
                "{}[[prepare]] belongs to a gateway with [start]; remove it, and prepare the gateway \
                 before the run",
                line(&step.path)
            )));
        }
        let paths = [
            ("ready.path", &self.ready.path),
            ("paths.live", &self.paths.live),
            ("paths.ready", &self.paths.ready),
            ("paths.health", &self.paths.health),
            ("paths.metrics", &self.paths.metrics),
        ];
        if let Some((key, path)) = paths.iter().find(|(_, path)| !path.starts_with('/')) {
            return Err(self.wrong(format!(
                "{}{key} is `{path}`; write a path that begins with a slash",
                line(path)
            )));
        }
        let revocable = self.capabilities.contains(&Capability::RevocableKeys);
        if revocable && (self.keys.is_none() || self.start.is_none()) {
            return Err(self.wrong(
                "it declares revocable_keys, and has no [keys] beside [start]; add the commands that make \
                 and revoke a key, or remove the capability",
            ));
        }
        let Some(start) = &self.start else {
            return match self
                .headers
                .iter()
                .find(|(_, value)| value.contains("{{") || value.contains("{%"))
            {
                Some((name, value)) => Err(self.wrong(format!(
                    "{}headers.{name} holds the template `{value}`, and only the headers of a gateway \
                     with [start] are templates; write the value itself",
                    line(value)
                ))),
                None => Ok(self),
            };
        };
        if start.command.is_empty() {
            return Err(self.wrong("start.command is empty; give the program and its arguments"));
        }
        if !self.listen.is_empty() {
            return Err(self.wrong(
                "[listen] belongs to a gateway with a url; remove it, since the templates of [start] \
                 are given the addresses of the stubs (start.ports.main fixes the port of the gateway)",
            ));
        }
        for (n, file) in start.files.iter().enumerate() {
            let path = Path::new(&file.name);
            if path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
                return Err(self.wrong(format!(
                    "{}the file name `{}` leaves the folder of the deployment; give a relative path \
                     without `..`",
                    line(&file.name),
                    file.name
                )));
            }
            let known = &start.files[..n];
            if file.each.is_none() && known.iter().any(|known| known.name == file.name) {
                return Err(self.wrong(format!(
                    "two files are named `{}`; give each a name of its own",
                    file.name
                )));
            }
        }
        Ok(self)
    }

    /// Returns where this text stands in the file, if it stands there without escapes.
    pub(super) fn offset_of(&self, text: &str) -> Option<usize> {
        self.source.find(text).filter(|_| !text.is_empty())
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
        let mut file = Self::read(&text, &format!("manifest {origin}"), &origin)?;
        if file.start.is_some() {
            return Err(TargetError::Definition(format!(
                "manifest {origin}: it has [start], and the gateway at {url} runs already; remove \
                 [start], or give the file to --target"
            )));
        }
        file.url = Some(url.to_string());
        file.checked()
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
            behaviour: Behaviour::default(),
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
            prepare: Vec::new(),
            keys: None,
            paths: Paths::default(),
            metrics: MetricNames::default(),
            origin: url.to_string(),
            source: String::new(),
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
        let fixed_timeouts = self
            .settings
            .timeouts
            .filter(|_| self.url.is_some())
            .map(|_| self.settings.as_spec().timeouts);
        let implied = self.capabilities.iter().flat_map(|one| one.implies());
        Manifest {
            name: self.name.clone(),
            version: self.version.clone(),
            capabilities: self.capabilities.iter().chain(implied).copied().collect(),
            behaviour: self.behaviour,
            paths: self.paths.clone(),
            metrics: self.metrics.clone(),
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

    #[test]
    fn a_misspelt_key_is_one_sentence_with_its_line_and_the_nearest_key() {
        let error = TargetFile::parse("name = \"x\"\ncapabilites = []\n", "x.toml");
        assert_eq!(
            error.unwrap_err().to_string(),
            "target file x.toml, line 2: the key `capabilites` is unknown; the nearest known key is \
             `capabilities`"
        );
        let error = TargetFile::parse("name = 3\n", "x.toml");
        assert_eq!(
            error.unwrap_err().to_string(),
            "target file x.toml, line 1: it holds the number 3; write a text in quotes instead"
        );
    }

    #[test]
    fn a_template_in_the_headers_of_a_gateway_with_a_url_is_refused() {
        let text = "name = \"x\"\nurl = \"http://h\"\n[headers]\na = \"1\"\nb = \"{{ port }}\"\n";
        let error = TargetFile::parse(text, "x.toml").unwrap_err().to_string();
        for words in [
            "line 5",
            "headers.b",
            "{{ port }}",
            "write the value itself",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let started = "name = \"x\"\n[start]\ncommand = [\"x\"]\n[headers]\nb = \"{{ port }}\"\n";
        assert!(TargetFile::parse(started, "x.toml").is_ok());
    }

    #[test]
    fn a_file_outside_of_the_folder_and_a_second_file_of_one_name_are_refused() {
        let with = |names: [&str; 2]| {
            let files =
                names.map(|name| format!("[[start.files]]\nname = \"{name}\"\ntemplate = \"\"\n"));
            let text = format!(
                "name = \"x\"\n[start]\ncommand = [\"x\"]\n{}",
                files.concat()
            );
            TargetFile::parse(&text, "x.toml").map(|_| ())
        };
        for name in ["/etc/passwd", "../x", "a/../../x"] {
            let error = with(["a", name]).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("relative"),
                "{error}"
            );
        }
        let error = with(["a", "a"]).unwrap_err().to_string();
        assert!(error.contains("two files are named `a`"), "{error}");
        assert!(with(["a", "b/c.toml"]).is_ok());
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_with_the_value_and_the_remedy() {
        for (lines, words) in [
            ("[behaviour]\ntimeout_unit_ms = 0", "timeout_unit_ms is 0"),
            (
                "[behaviour]\ntimeout_unit_ms = 9000000000000000000",
                "from 1 to 60000",
            ),
            (
                "[headers]\n\"a b\" = \"1\"",
                "line 5, a header cannot be named `a b`",
            ),
            (
                "[ready]\nstatus = \"ok\"",
                "neither a status such as 200 nor a list",
            ),
            ("[paths]\nlive = \"healthz\"", "paths.live is `healthz`"),
            (
                "[[prepare]]\npath = \"/\"\nmethod = \"post\"",
                "prepare.method is `post`",
            ),
            (
                "[[start.files]]\nname = \"a\"\ntemplate = \"\"\neach = \"providers\"",
                "the value `providers` is unknown; the nearest known value is `provider`",
            ),
        ] {
            let text = format!("name = \"x\"\n[start]\ncommand = [\"x\"]\n{lines}\n");
            let error = TargetFile::parse(&text, "x.toml").unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
            assert!(
                error.starts_with("target file x.toml") && !error.contains('\n'),
                "{error}"
            );
        }
        let prepared = "name = \"x\"\nurl = \"http://h\"\n[[prepare]]\npath = \"/key\"\n";
        let error = TargetFile::parse(prepared, "x.toml")
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 4, [[prepare]] belongs"), "{error}");
    }

    #[test]
    fn who_declares_a_first_token_timeout_declares_a_timeout_for_the_headers() {
        let text = "name = \"x\"\nurl = \"http://h\"\ncapabilities = [\"first_token_timeout\"]\n\
                    [behaviour]\nretries_built_in = 2\n";
        let manifest = TargetFile::parse(text, "x.toml").unwrap().manifest();
        assert!(manifest.capabilities.contains(&Capability::HeadersTimeout));
        assert_eq!(manifest.behaviour.retries_built_in, 2);
    }
}
