//! The preflight: before a gateway is judged, healthy requests go through it to the stubs. If one
//! fails, the gateway is not wired to the stubs as the cases assume, and a verdict on it would
//! accuse its author of a mistake of its user.

use std::sync::Arc;
use std::time::Duration;

use super::examine::{DYING, unmatched};
use super::fixture::CaseFixture;
use crate::case::Case;
use crate::client::{Client, Transcript};
use crate::gate::{bounded, pace};
use crate::llm::{Protocol, reply};
use crate::spec::{KeySpec, Spec};
use crate::subject::{Capability, Manifest, RunningTarget, Target};
use crate::tape::Tape;
use crate::verdict::{Failure, FailureMode};

/// How often a healthy request is sent before it counts as failed: a gateway may become ready a
/// moment after its health says so.
const TRIES: u32 = 3;
/// The time between two of these tries.
const PAUSE: Duration = Duration::from_millis(500);
/// The largest part of a body, in characters, that a message shows.
const MOST_SHOWN: usize = 400;

/// The stubs that the healthy requests reach, and the aliases that are asked.
pub(super) struct Preflight {
    fixture: CaseFixture,
    /// Whether the target decides the addresses of the stubs: its user has wired it by hand.
    by_hand: bool,
}

impl Preflight {
    /// Binds stubs for one alias of each kind that the cases ask: by the protocol of its first
    /// candidate, and by whether it has several. Returns `None` if no case sends a chat request.
    ///
    /// # Errors
    /// As [`CaseFixture::prepare`].
    pub(super) async fn prepare(
        target: &Arc<dyn Target>,
        cases: impl Iterator<Item = &Case>,
    ) -> Result<Option<Self>, Failure> {
        let spec = spec(target.manifest(), cases);
        let by_hand = spec
            .providers
            .iter()
            .any(|provider| target.listen(&provider.name).is_some());
        if spec.models.is_empty() {
            return Ok(None);
        }
        let fixture = CaseFixture::prepare(target, "preflight", spec, None).await?;
        Ok(Some(Self { fixture, by_hand }))
    }

    /// Returns the fixture, with which a gateway is started.
    pub(super) fn fixture(&self) -> &CaseFixture {
        &self.fixture
    }

    /// Sends a plain request and, where the target declares it, a streamed one to each alias.
    ///
    /// # Errors
    /// A text for the user of the run: the request that failed, what came instead of an answer,
    /// and what to do.
    pub(super) async fn check(
        &self,
        running: &RunningTarget,
        manifest: &Manifest,
        keys: &[KeySpec],
    ) -> Result<(), String> {
        let client = Client::of(running, Tape::new()).map_err(|failure| failure.to_string())?;
        let client = match token(manifest, keys) {
            Some(token) => client.with_bearer(token),
            None => client,
        };
        let text = format!("healthy-{}", self.fixture.nonce);
        for stub in self.fixture.stubs.values() {
            stub.answers(reply(&text));
        }
        let streams = manifest.capabilities.contains(&Capability::Stream);
        for model in &self.fixture.spec.models {
            for streamed in [false, true] {
                if streamed && !streams {
                    continue;
                }
                let request = Request {
                    client: &client,
                    model: running.model(&model.alias),
                    text: &text,
                    streamed,
                };
                let Err(seen) = request.healthy().await else {
                    continue;
                };
                let provider = model.candidates.first();
                let provider = provider.map_or("", |candidate| candidate.provider.as_str());
                let mut why = self.explained(&request, &model.alias, provider, seen, running);
                if let Some(ended) = ended(running).await {
                    why = format!("{ended}; {why}");
                }
                return Err(self.masked(&why, running, keys));
            }
        }
        Ok(())
    }

    /// Stops the stubs.
    pub(super) async fn close(self) {
        self.fixture.close().await;
    }

    /// Stops the stubs, and keeps the folder of the gateway, whose path is returned.
    pub(super) async fn keep(self) -> std::path::PathBuf {
        self.fixture.keep().await
    }

    fn explained(
        &self,
        request: &Request<'_>,
        alias: &str,
        provider: &str,
        seen: Seen,
        running: &RunningTarget,
    ) -> String {
        let form = if request.streamed {
            "streamed"
        } else {
            "plain"
        };
        let stub = self.fixture.stubs.get(provider);
        let url = stub.map(|stub| stub.base_url()).unwrap_or_default();
        let asked = stub.is_some_and(|stub| !stub.requests().is_empty());
        let (at_provider, remedy) = match (unmatched(&self.fixture.tape), asked) {
            (Some(reason), _) => (
                format!("the stub was sent a request that no provider answers: {reason}"),
                format!("configure the base URL {url} for the provider {provider}"),
            ),
            (None, true) => (
                format!("the provider {provider} ({url}) was asked, and its answer was healthy"),
                "look into the log of the gateway for what it minds in the provider's answer"
                    .to_string(),
            ),
            (None, false) => (
                format!("the provider {provider} ({url}) was not asked"),
                self.wiring(alias, provider, &url, seen.status),
            ),
        };
        let log = running.process.as_ref().map(|process| process.log_tail());
        let log = log.filter(|log| !log.trim().is_empty());
        let log = log.map_or(String::new(), |log| {
            let lines: Vec<String> = log.lines().map(|line| format!("  {line}")).collect();
            format!("\nThe last lines of the gateway:\n{}", lines.join("\n"))
        });
        format!(
            "the preflight failed, so that no verdict is possible: to a healthy {form} request for \
             the model {}, {}; {at_provider}. What to do: {remedy}{log}",
            request.model, seen.what
        )
    }

    /// Returns what the user can do where the gateway has not asked its provider.
    fn wiring(&self, alias: &str, provider: &str, url: &str, status: Option<u16>) -> String {
        match (status, self.by_hand) {
            (Some(401 | 403), true) => "give the key that the gateway wants of its clients in \
                                        [headers] of a target file, and the file with --manifest"
                .into(),
            (Some(401 | 403), false) => "give the key that the gateway wants of its clients in \
                                         [headers] of the target file"
                .into(),
            (_, true) => format!(
                "point the alias {alias} at the model m-{provider} of {url}, as \
                 `gauntlet run --help` describes it, and give headers that the gateway wants of \
                 its clients in [headers] of a target file (--manifest)"
            ),
            (_, false) => {
                "correct the templates of [start] and the [headers] in the target file".into()
            }
        }
    }

    /// Replaces the keys of clients and providers by a mark.
    fn masked(&self, text: &str, running: &RunningTarget, keys: &[KeySpec]) -> String {
        let headers = running.headers.iter().map(|(_, value)| {
            let last = value.rsplit(' ').next();
            last.unwrap_or(value).to_string()
        });
        let providers = self.fixture.spec.providers.iter();
        let secrets = headers
            .chain(providers.map(|provider| provider.api_key.clone()))
            .chain(keys.iter().map(|key| key.token.clone()))
            .filter(|secret| secret.len() >= 8);
        secrets.fold(text.to_string(), |text, secret| {
            text.replace(&secret, "[secret]")
        })
    }
}

/// The key that a client presents: one of the specification where the target declares keys. Any
/// other gateway is asked with the headers of its target file alone.
fn token<'k>(manifest: &Manifest, keys: &'k [KeySpec]) -> Option<&'k str> {
    let declared = manifest.capabilities.contains(&Capability::Keys);
    keys.first()
        .filter(|_| declared)
        .map(|key| key.token.as_str())
}

/// A healthy request.
struct Request<'a> {
    client: &'a Client,
    model: String,
    text: &'a str,
    streamed: bool,
}

/// What came instead of a healthy answer.
struct Seen {
    status: Option<u16>,
    what: String,
    /// Whether nothing came within the hang guard, so that another try would only take as long.
    hung: bool,
}

impl Request<'_> {
    async fn healthy(&self) -> Result<(), Seen> {
        let mut tried = 1;
        loop {
            match self.once().await {
                Err(seen) if tried < TRIES && !seen.hung => tried += 1,
                other => return other,
            }
            pace(PAUSE).await;
        }
    }

    async fn once(&self) -> Result<(), Seen> {
        let body = serde_json::json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": "Are you ready?" }],
        });
        let answer = if self.streamed {
            let read = self.client.streamed(body).await;
            read.map(|stream| (stream.status, stream_text(&stream), stream.body))
        } else {
            let read = self.client.chat(body).await;
            read.map(|reply| (reply.status, reply.content(), reply.body))
        };
        match answer {
            Ok((200, text, _)) if text.contains(self.text) => Ok(()),
            Ok((status, _, body)) => Err(Seen {
                status: Some(status),
                what: format!(
                    "the gateway answered with status {status} and the body {}",
                    shown(&body)
                ),
                hung: false,
            }),
            Err(failure) => Err(Seen {
                status: None,
                hung: matches!(
                    failure,
                    Failure::Violated {
                        mode: FailureMode::Hang,
                        ..
                    }
                ),
                what: match failure {
                    Failure::Violated { observed, .. } => {
                        format!("the gateway gave no whole answer ({observed})")
                    }
                    other => other.to_string(),
                },
            }),
        }
    }
}

/// How the process of the gateway ended, if it has; its sockets close a moment before.
async fn ended(running: &RunningTarget) -> Option<String> {
    let process = running.process.as_ref()?;
    match bounded(DYING, process.wait()).await? {
        Ok(Some(code)) => Some(format!("the gateway exited with code {code}")),
        Ok(None) => Some("a signal ended the gateway".into()),
        Err(_) => None,
    }
}

/// The text of a stream, if it reports no error.
fn stream_text(stream: &Transcript) -> String {
    match &stream.error {
        None => stream.text.clone(),
        Some(_) => String::new(),
    }
}

/// The beginning of a body on one line.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return "(empty)".into();
    }
    let cut = text.chars().count() > MOST_SHOWN;
    let text: String = text.chars().take(MOST_SHOWN).collect();
    format!("{text}{}", if cut { "…" } else { "" })
}

/// A specification with one alias of each kind. Where only the usual aliases occur it has exactly
/// those that a gateway with a URL has: `solo` at `p1`, and `pair` at `p1` and `p2`.
fn spec<'a>(manifest: &Manifest, cases: impl Iterator<Item = &'a Case>) -> Spec {
    let mut kinds: Vec<(Protocol, bool)> = Vec::new();
    if !manifest.capabilities.contains(&Capability::Chat) {
        return Spec::default();
    }
    for case in cases.filter(|case| case.needs.contains(&Capability::Chat)) {
        let spec = (case.spec)();
        if spec.query.is_some() {
            continue;
        }
        for model in spec.models.iter().filter(|model| !model.optional) {
            let first = model.candidates.first();
            let first = first.and_then(|candidate| spec.provider_of(candidate));
            let kind = first.map(|first| (first.protocol, model.candidates.len() > 1));
            if let Some(kind) = kind.filter(|kind| !kinds.contains(kind)) {
                kinds.push(kind);
            }
        }
    }
    let mut spec = Spec::default();
    for (protocol, several) in kinds {
        let openai = protocol == Protocol::OPENAI;
        let prefix = if openai {
            String::new()
        } else {
            format!("{}-", protocol.name())
        };
        let names: Vec<String> = ["p1", "p2"]
            .iter()
            .take(if several { 2 } else { 1 })
            .map(|name| format!("{prefix}{name}"))
            .collect();
        for name in &names {
            if !spec.providers.iter().any(|known| known.name == *name) {
                spec = spec.provider(name, protocol);
            }
        }
        let alias = format!("{prefix}{}", if several { "pair" } else { "solo" });
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        spec = spec.model(&alias, &names);
    }
    spec
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_key_of_the_case_is_presented_only_where_the_target_has_keys() {
        let keys = Spec::solo().key("a", "sk-of-a-client").keys;
        let declaring = |capabilities| Manifest {
            capabilities,
            ..Manifest::default()
        };
        let keyed = declaring(BTreeSet::from([Capability::Keys]));
        assert_eq!(token(&keyed, &keys), Some("sk-of-a-client"));
        assert_eq!(token(&keyed, &[]), None);
        // its master key in [headers] must stay
        assert_eq!(token(&declaring(BTreeSet::new()), &keys), None);
    }
}
