//! A gateway that somebody else started. Its providers listen on fixed addresses, to which its user
//! has pointed it.
//!
//! The user configures the gateway once: the alias `solo` is served by provider `p1`, the alias
//! `pair` by `p1` and then `p2`; the model at provider `p` is called `m-p`. The timeouts are those
//! of [`Spec::default`], unless `[settings]` in the file gives others; these replace the timeouts
//! of a case that needs none of its own. A case that needs other providers or other settings is
//! *not supported*, and the reason names them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::probe::{Seen, ask};
use super::{Capability, Deployment, Manifest, RunningTarget, Target, TargetError, TargetFile};
use crate::gate::hang_guard;
use crate::spec::{DatabaseNeed, ModelSpec, Protocol, Spec, Timeouts};
use crate::tape::{Event, Side};

/// The shortest timeout with which a healthy exchange fits on a busy machine, in milliseconds.
const SHORTEST: u64 = 500;

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

impl UrlTarget {
    /// Checks that the case can live with the timeouts of the gateway.
    ///
    /// A case without timeouts of its own waits for none: theirs may be any that a healthy exchange
    /// fits into. A case with timeouts of its own needs exactly these, except that those beyond the
    /// hang guard may be any others beyond it, and that those which it leaves at their default must
    /// not be shorter.
    fn has_timeouts_for(&self, spec: &Spec, has: &Timeouts) -> Result<(), String> {
        let usual = Spec::default().timeouts;
        let guard = u64::try_from(hang_guard().as_millis()).unwrap_or(u64::MAX);
        let mut differs: Vec<(String, u64, u64)> = Vec::new();
        let has_own = spec.timeouts != usual
            || (spec.models.iter().map(|model| model.timeouts))
                .chain(spec.providers.iter().map(|provider| provider.timeouts))
                .any(|timeouts| timeouts != Timeouts::default() && timeouts != Timeouts::UNHURRIED);
        for (model, needs) in spec.timeouts_in_force() {
            let has_own = has_own && model.timeouts != Timeouts::UNHURRIED;
            for (n, (name, needed)) in needs.named().into_iter().enumerate() {
                let (Some(needed), Some(has), Some(usual)) =
                    (needed, has.named()[n].1, usual.named()[n].1)
                else {
                    continue;
                };
                let fits = match (has_own, needed != usual) {
                    // whatever a case needs, it reaches its stubs at once
                    (_, false) if name == "connect_ms" => true,
                    (false, _) => has >= SHORTEST,
                    (true, true) => has == needed || (needed > guard && has > guard),
                    (true, false) => has >= needed,
                };
                if !fits {
                    let needed = if has_own { needed } else { SHORTEST };
                    let entry = (format!("{} needs {name}", model.alias), needed, has);
                    if !differs.contains(&entry) {
                        differs.push(entry);
                    }
                }
            }
        }
        if differs.is_empty() {
            return Ok(());
        }
        let source = match self.manifest.fixed_timeouts {
            Some(_) => "[settings.timeouts]",
            None => "the gateway, without [settings.timeouts],",
        };
        let differs: Vec<String> = differs
            .iter()
            .map(|(what, needed, has)| format!("{what} = {needed}, and {source} has {has}"))
            .collect();
        Err(differs.join("; "))
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
        for provider in &spec.providers {
            let name = &provider.name;
            let other = if !self.file.listen.contains_key(name) {
                ", and [listen] of the target file gives it no address".to_string()
            } else if provider.protocol != Protocol::OPENAI {
                let protocol = provider.protocol;
                format!(
                    " that speaks {protocol}, and a gateway with a url has providers of OpenAI's protocol"
                )
            } else if let Some(limit) = provider.max_in_flight {
                format!(" with max_in_flight = {limit}, and a gateway with a url has no such limit")
            } else {
                continue;
            };
            return Err(format!("the case needs a provider {name}{other}"));
        }
        let known = [Spec::solo(), Spec::pair()];
        let is_known = |model: &ModelSpec| {
            known
                .iter()
                .flat_map(|spec| &spec.models)
                .any(|known| known.alias == model.alias && known.candidates == model.candidates)
        };
        if let Some(model) = spec.models.iter().find(|model| !is_known(model)) {
            return Err(format!(
                "the case needs an alias {} with candidates of its own; a gateway with a url has the \
                 aliases solo and pair as fixtures/targets/README.md describes them",
                model.alias
            ));
        }
        self.has_timeouts_for(spec, &fixed.timeouts)?;
        let retry = |model: &ModelSpec| model.retry.is_none_or(|retry| retry == fixed.retry);
        let breaker = |model: &ModelSpec| model.breaker.is_none_or(|own| own == fixed.breaker);
        let settings = [
            (
                "retries",
                spec.retry == fixed.retry && spec.models.iter().all(retry),
            ),
            (
                "circuit breakers",
                spec.breaker == fixed.breaker && spec.models.iter().all(breaker),
            ),
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

    fn adapted(&self, mut spec: Spec) -> Spec {
        if !self.manifest().capabilities.contains(&Capability::Keys) {
            // its clients present what [headers] says
            spec.keys.clear();
        }
        let own = self.file.settings.as_spec().timeouts;
        spec.timeouts = own;
        for timeouts in spec
            .providers
            .iter_mut()
            .map(|provider| &mut provider.timeouts)
            .chain(spec.models.iter_mut().map(|model| &mut model.timeouts))
        {
            *timeouts = Timeouts::default();
        }
        spec
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
        let limited = |change: fn(&mut Spec)| {
            let mut spec = Spec::solo();
            change(&mut spec);
            target.accepts(&spec).unwrap_err()
        };
        assert_eq!(
            limited(|spec| spec.providers[0].max_in_flight = Some(3)),
            "the case needs a provider p1 with max_in_flight = 3, and a gateway with a url has no such \
             limit"
        );
        let other = limited(|spec| spec.providers[0].protocol = Protocol::OLLAMA);
        assert!(other.contains("speaks ollama"), "{other}");
    }

    /// A target with these lines in `[settings.timeouts]`.
    fn with_timeouts(stated: &str) -> UrlTarget {
        let text = format!(
            "name = \"mine\"\nurl = \"http://127.0.0.1:7140\"\ncapabilities = [\"chat\"]\n\
             [listen]\np1 = \"127.0.0.1:7141\"\np2 = \"127.0.0.1:7142\"\n\
             [settings.timeouts]\n{stated}"
        );
        UrlTarget::new(TargetFile::parse(&text, "mine.toml").unwrap()).unwrap()
    }

    #[test]
    fn the_timeouts_of_the_file_replace_those_of_a_case_that_has_none_of_its_own() {
        let usual = Spec::default().timeouts;
        let stated = Timeouts {
            connect_ms: Some(500),
            first_token_ms: Some(1_000),
            idle_ms: Some(1_100),
            total_ms: Some(4_000),
        };
        for (text, expected) in [
            ("", usual),
            ("total_ms = 8000\nfirst_token_ms = 3000", usual),
            (
                "connect_ms = 500\nfirst_token_ms = 1000\nidle_ms = 1100\ntotal_ms = 4000",
                stated,
            ),
            (
                "total_ms = 90000",
                Timeouts {
                    total_ms: Some(90_000),
                    ..usual
                },
            ),
        ] {
            let target = with_timeouts(text);
            for spec in [Spec::solo(), Spec::pair()] {
                assert_eq!(target.accepts(&spec), Ok(()), "{text}");
                assert_eq!(target.adapted(spec).timeouts, expected, "{text}");
            }
        }
        assert_eq!(
            with_timeouts("idle_ms = 40")
                .accepts(&Spec::solo())
                .unwrap_err(),
            "solo needs idle_ms = 500, and [settings.timeouts] has 40"
        );
    }

    #[test]
    fn a_case_with_timeouts_of_its_own_names_those_that_differ() {
        let own = |first_token_ms, total_ms| {
            let own = Timeouts {
                first_token_ms,
                total_ms,
                ..Timeouts::default()
            };
            Spec::solo().model_timeouts("solo", own)
        };
        let target = with_timeouts("first_token_ms = 1500\ntotal_ms = 60000");
        assert_eq!(target.accepts(&own(Some(1_500), None)), Ok(()));
        assert_eq!(target.accepts(&own(Some(1_500), Some(90_000))), Ok(()));
        assert_eq!(
            target.accepts(&own(Some(900), Some(2_000))).unwrap_err(),
            "solo needs first_token_ms = 900, and [settings.timeouts] has 1500; solo needs total_ms = \
             2000, and [settings.timeouts] has 60000"
        );
        // the first token would end what the case wants the deadline to end
        let short = with_timeouts("first_token_ms = 1000\ntotal_ms = 2000");
        assert_eq!(
            short.accepts(&own(None, Some(2_000))).unwrap_err(),
            "solo needs first_token_ms = 3000, and [settings.timeouts] has 1000"
        );
        let plain = UrlTarget::new(TargetFile::for_url("http://127.0.0.1:4000")).unwrap();
        let why = plain.accepts(&own(Some(900), None)).unwrap_err();
        assert!(
            why.contains("without [settings.timeouts], has 3000"),
            "{why}"
        );
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
