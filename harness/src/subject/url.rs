//! A gateway that somebody else started. Its providers listen on fixed addresses, to which its user
//! has pointed it.
//!
//! The user configures the gateway once: the alias `solo` is served by provider `p1`, the alias
//! `pair` by `p1` and then `p2`; the model at provider `p` is called `m-p`. The timeouts are those
//! of [`Spec::default`], unless `[settings]` in the file gives others. A case that needs other
//! providers or other settings is *not supported*, and the reason names them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::probe::{Seen, ask};
use super::{Capability, Deployment, Manifest, RunningTarget, Target, TargetError, TargetFile};
use crate::spec::{DatabaseNeed, Spec};
use crate::tape::{Event, Side};

/// A target whose file has `url`.
#[derive(Debug)]
pub struct UrlTarget {
    file: TargetFile,
    manifest: Manifest,
    address: String,
    path: String,
}

impl UrlTarget {
    /// Makes the target of that file.
    ///
    /// # Errors
    /// [`TargetError::Definition`] if the URL is not `http://host:port[/path]`.
    pub fn new(file: TargetFile) -> Result<Self, TargetError> {
        let url = file.url.clone().unwrap_or_default();
        let wrong = |why: &str| {
            TargetError::Definition(format!(
                "the target URL {url} {why}; give http://host:port, with the path that the gateway \
                 has before /v1, if any"
            ))
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong(
                "does not begin with http://, and only plain HTTP can be examined",
            ));
        }
        let host = uri.host().ok_or_else(|| wrong("has no host"))?;
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = format!(
            "{}{}",
            uri.path().trim_end_matches('/'),
            file.base_path.trim_end_matches('/')
        );
        let manifest = file.manifest();
        Ok(Self {
            file,
            manifest,
            address,
            path,
        })
    }
}

#[async_trait]
impl Target for UrlTarget {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn listen(&self, provider: &str) -> Option<SocketAddr> {
        self.file.listen.get(provider).copied()
    }

    fn one_at_a_time(&self) -> bool {
        true
    }

    fn accepts(&self, spec: &Spec) -> Result<(), String> {
        let fixed = self.file.settings.as_spec();
        if let Some(provider) = spec
            .providers
            .iter()
            .find(|provider| !self.file.listen.contains_key(&provider.name))
        {
            return Err(format!(
                "the case needs a provider {}, and [listen] of the target file gives it no address",
                provider.name
            ));
        }
        let known = [Spec::solo(), Spec::pair()];
        if let Some(model) = spec
            .models
            .iter()
            .find(|model| !known.iter().any(|known| known.models.contains(model)))
        {
            return Err(format!(
                "the case needs an alias {} that is configured for it alone; a gateway with a url has \
                 the aliases solo and pair as fixtures/targets/README.md describes them",
                model.alias
            ));
        }
        let settings = [
            ("timeouts", spec.timeouts == fixed.timeouts),
            ("retries", spec.retry == fixed.retry),
            ("circuit breakers", spec.breaker == fixed.breaker),
            ("limits", spec.limits == fixed.limits),
            ("keys", spec.keys.is_empty()),
            ("a database", spec.database == DatabaseNeed::None),
            ("orchestrator settings", spec.query.is_none()),
        ];
        match settings.iter().find(|(_, equal)| !equal) {
            Some((name, _)) => Err(format!(
                "the case needs {name} of its own, and the harness cannot configure a gateway that it \
                 does not start"
            )),
            None => Ok(()),
        }
    }

    fn why_not(&self, capability: Capability) -> Option<String> {
        self.file.not_supported_reason.get(&capability).cloned()
    }

    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError> {
        let bound = Duration::from_millis(self.file.ready.timeout_ms.min(10_000));
        let path = format!("{}{}", self.path, self.file.ready.path);
        let headers: Vec<(String, String)> = self
            .file
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        match ask(&self.address, &path, &headers, bound).await {
            Seen::Status(..) => {}
            seen => {
                return Err(TargetError::NotReady(format!(
                    "nothing answers at http://{}{path} ({seen}); start the gateway before the run, or \
                     correct the URL",
                    self.address
                )));
            }
        }
        deployment.tape.record(
            Side::Target,
            Event::Target {
                what: format!("answers at {}", self.address),
            },
        );
        Ok(RunningTarget {
            base_url: format!("http://{}{}", self.address, self.path),
            model_prefix: String::new(),
            headers,
            rendered: Arc::default(),
            process: None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_case_with_settings_of_its_own_is_not_accepted() {
        let target = UrlTarget::new(TargetFile::for_url("http://127.0.0.1:4000")).unwrap();
        assert_eq!(target.accepts(&Spec::pair()), Ok(()));
        let mut spec = Spec::solo();
        spec.retry.max_attempts = 3;
        assert!(target.accepts(&spec).unwrap_err().contains("retries"));
    }

    #[test]
    fn other_schemes_and_texts_that_are_no_url_are_refused_with_the_value() {
        for url in ["https://example.com", "not a url", "ftp://x"] {
            assert!(
                UrlTarget::new(TargetFile::for_url(url))
                    .unwrap_err()
                    .to_string()
                    .contains(url)
            );
        }
    }
}
