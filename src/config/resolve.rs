//! From the read values to the typed configuration: time-outs handed down from default over provider to model, references
//! looked up, and whatever spans several keys checked.

use std::collections::HashSet;
use std::time::Duration;

use http::Uri;
use indexmap::IndexMap;
use secrecy::SecretString;

use super::options::{AGENTS, STEPS, nearest};
use super::reader::{Reader, Section};
use super::value::split_user;
use super::{
    Auth, Breaker, CandidateConfig, Config, ConfiguredKey, LogFormat, ModelConfig,
    OrchestratorConfig, ProviderConfig, Retry, Server, StepConfig, StoreConfig, Telemetry,
    Timeouts,
};

/// The first back-off, unless it is written or the deadline is short.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(200);

/// The written time-outs of one level.
#[derive(Clone, Copy, Default)]
struct Level {
    connect: Option<Duration>,
    first_token: Option<Duration>,
    idle: Option<Duration>,
    total: Option<Duration>,
}

/// Reads the whole configuration. `variable` looks up the environment (for `api_key_env`). Complete only if the reader has no problems.
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Config {
    let server = server(reader);
    let defaults = Defaults::read(reader);
    let auth = auth(reader);
    let (providers, levels) = providers(reader, &defaults, variable);
    let models = models(reader, &defaults, &providers, &levels);
    let retry = retry(reader, defaults.total);
    let breaker = breaker(reader);
    let orchestrator = orchestrator(reader, &models);
    let store = store(reader, orchestrator.deadline);
    let telemetry = telemetry(reader);
    Config {
        server,
        store,
        auth,
        providers,
        models,
        retry,
        breaker,
        orchestrator,
        telemetry,
    }
}

fn server(reader: &mut Reader<'_>) -> Server {
    let section = reader.section("server");
    Server {
        listen: reader
            .text(&section, "listen")
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| ([127, 0, 0, 1], 8080).into()),
        body_limit_bytes: reader.integer(&section, "body_limit_bytes").unsigned_abs(),
        max_in_flight: reader.count(&section, "max_in_flight"),
        header_timeout: reader.millis(&section, "header_timeout_ms"),
        body_timeout: reader.millis(&section, "body_timeout_ms"),
        write_timeout: reader.millis(&section, "write_timeout_ms"),
        drain: reader.millis(&section, "drain_ms"),
        health_timeout: reader.millis(&section, "health_timeout_ms"),
        health_cache: reader.millis(&section, "health_cache_ms"),
    }
}

/// `[timeouts]`
struct Defaults {
    timeouts: Timeouts,
    total: Duration,
    reserve: Option<Duration>,
}

impl Defaults {
    fn read(reader: &mut Reader<'_>) -> Self {
        let section = reader.section("timeouts");
        let total = reader.millis(&section, "total_ms");
        let mut inner = |key: &str, outer_key: &str, outer| {
            let (value, written) = reader.millis_by(&section, key, outer);
            if written {
                within(
                    reader,
                    &format!("timeouts.{key}"),
                    value,
                    &format!("timeouts.{outer_key}"),
                    outer,
                );
            }
            value
        };
        let (first_token, idle) = (
            inner("first_token_ms", "total_ms", total),
            inner("idle_ms", "total_ms", total),
        );
        let connect = inner("connect_ms", "first_token_ms", first_token);
        let timeouts = Timeouts {
            connect,
            first_token,
            idle,
        };
        Self {
            timeouts,
            total,
            reserve: reader.millis_if_written(&section, "reserve_ms"),
        }
    }
}

fn auth(reader: &mut Reader<'_>) -> Auth {
    let section = reader.section("auth");
    let mut keys: Vec<ConfiguredKey> = Vec::new();
    for element in reader.elements(Some(&section), "keys") {
        let (Some(tenant), Some(sha256)) = (
            reader.text(&element, "tenant"),
            reader.text(&element, "sha256"),
        ) else {
            continue;
        };
        let sha256 = sha256.to_ascii_lowercase();
        if let Some(earlier) = keys.iter().find(|key| key.sha256 == sha256) {
            reader.wrong(format!(
                "{}.sha256 is the key of tenant {:?} already: give each tenant a key of its own",
                element.label, earlier.tenant
            ));
        }
        keys.push(ConfiguredKey { tenant, sha256 });
    }
    let required = reader.switch_or(&section, "required", (!keys.is_empty()).then_some(true));
    Auth {
        required,
        keys,
        cache: reader.millis(&section, "cache_ms"),
    }
}

fn providers(
    reader: &mut Reader<'_>,
    defaults: &Defaults,
    variable: &dyn Fn(&str) -> Option<String>,
) -> (IndexMap<String, ProviderConfig>, IndexMap<String, Level>) {
    let (mut providers, mut levels) = (IndexMap::new(), IndexMap::new());
    for element in reader.elements(None, "providers") {
        let name = reader.text(&element, "name");
        let protocol = reader
            .text(&element, "protocol")
            .map(|word| if word == "ollama" { "ollama" } else { "openai" });
        let base_url = reader
            .text(&element, "base_url")
            .and_then(|text| text.trim_end_matches('/').parse().ok());
        let api_key = api_key(reader, &element, variable);
        let base_url =
            base_url.and_then(|url| without_user(reader, &element, url, api_key.is_some()));
        let (max_in_flight, queue) = (
            reader.count(&element, "max_in_flight"),
            reader.count(&element, "queue"),
        );
        let section = reader.below(&element, "timeouts");
        let level = level(reader, &section);
        tell_defaults(reader, &section, defaults);
        let (Some(name), Some(protocol), Some((base_url, user))) = (name, protocol, base_url)
        else {
            continue;
        };
        if providers.contains_key(&name) {
            reader.wrong(format!(
                "providers.name = {name:?} stands twice: give each provider a name of its own"
            ));
        }
        levels.insert(name.clone(), level);
        providers.insert(
            name.clone(),
            ProviderConfig {
                name,
                protocol,
                base_url,
                api_key,
                user,
                max_in_flight,
                queue,
            },
        );
    }
    (providers, levels)
}

/// The URL, and `user:password` if it was written with them.
fn without_user(
    reader: &mut Reader<'_>,
    element: &Section<'_>,
    url: Uri,
    has_key: bool,
) -> Option<(Uri, Option<SecretString>)> {
    let Ok((url, user)) = split_user(url) else {
        reader.wrong(format!(
            "{}.base_url holds a user and password that can't be read: write them percent-encoded",
            element.label
        ));
        return None;
    };
    if user.is_some() && has_key {
        reader.wrong(format!("{}.base_url holds a user and password, and there is an api_key as well: write only one of them", element.label));
    }
    Some((url, user.map(Into::into)))
}

fn tell_defaults<'a>(reader: &mut Reader<'a>, section: &Section<'a>, defaults: &Defaults) {
    let Timeouts {
        connect,
        first_token,
        idle,
    } = defaults.timeouts;
    for (key, value) in [
        ("connect_ms", connect),
        ("first_token_ms", first_token),
        ("idle_ms", idle),
        ("total_ms", defaults.total),
    ] {
        reader.inherits(
            section,
            key,
            &format!("{} (from [timeouts])", value.as_millis()),
        );
    }
}

/// What a model does not write itself, as its candidates have it.
fn tell_inherited<'a>(
    reader: &mut Reader<'a>,
    section: &Section<'a>,
    candidates: &[CandidateConfig],
    total: Duration,
    reserve: Duration,
) {
    let mut by_candidate = |key, of: fn(&Timeouts) -> Duration| {
        let values: Vec<String> = candidates
            .iter()
            .map(|candidate| of(&candidate.timeouts).as_millis().to_string())
            .collect();
        let same = values.windows(2).all(|pair| pair[0] == pair[1]);
        let told = if same {
            values.first().cloned().unwrap_or_default()
        } else {
            format!("{} (candidate by candidate)", values.join(", "))
        };
        reader.inherits(section, key, &told);
    };
    by_candidate("connect_ms", |timeouts| timeouts.connect);
    by_candidate("first_token_ms", |timeouts| timeouts.first_token);
    by_candidate("idle_ms", |timeouts| timeouts.idle);
    reader.inherits(section, "total_ms", &total.as_millis().to_string());
    reader.inherits(section, "reserve_ms", &reserve.as_millis().to_string());
}

fn api_key<'a>(
    reader: &mut Reader<'a>,
    element: &Section<'a>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<SecretString> {
    let written = reader.text(element, "api_key");
    let from = reader.text(element, "api_key_env");
    match (written, from) {
        (Some(_), Some(name)) => {
            reader.wrong(format!(
                "{}.api_key_env = {name:?} stands beside api_key: write only one of them",
                element.label
            ));
            None
        }
        (Some(key), None) => Some(key.into()),
        (None, Some(name)) => match variable(&name).filter(|key| !key.is_empty()) {
            Some(key) if key.bytes().all(|byte| (0x21..0x7f).contains(&byte)) => Some(key.into()),
            Some(_) => {
                reader.wrong(format!("{}.api_key_env = {name:?} holds what can't be a key: set it to visible ASCII characters", element.label));
                None
            }
            None => {
                reader.wrong(format!(
                    "{}.api_key_env = {name:?} is not set: set that variable, or write api_key",
                    element.label
                ));
                None
            }
        },
        (None, None) => None,
    }
}

fn level<'a>(reader: &mut Reader<'a>, section: &Section<'a>) -> Level {
    Level {
        connect: reader.millis_if_written(section, "connect_ms"),
        first_token: reader.millis_if_written(section, "first_token_ms"),
        idle: reader.millis_if_written(section, "idle_ms"),
        total: reader.millis_if_written(section, "total_ms"),
    }
}

fn models(
    reader: &mut Reader<'_>,
    defaults: &Defaults,
    providers: &IndexMap<String, ProviderConfig>,
    levels: &IndexMap<String, Level>,
) -> IndexMap<String, ModelConfig> {
    let mut models = IndexMap::new();
    for element in reader.elements(None, "models") {
        let alias = reader.text(&element, "alias");
        let mut named = Vec::new();
        for candidate in reader.elements(Some(&element), "candidates") {
            if let (Some(provider), Some(model)) = (
                reader.text(&candidate, "provider"),
                reader.text(&candidate, "model"),
            ) {
                known_provider(
                    reader,
                    &format!("{}.provider", candidate.label),
                    &provider,
                    providers,
                );
                named.push((provider, model));
            }
        }
        let section = reader.below(&element, "timeouts");
        let own = level(reader, &section);
        let reserve = reader
            .millis_if_written(&section, "reserve_ms")
            .or(defaults.reserve);
        let Some(alias) = alias else { continue };
        if named.is_empty() {
            reader.wrong(format!("models.{alias} has no candidate: write candidates = [{{ provider = \"…\", model = \"…\" }}]"));
            continue;
        }
        let of_provider = |name: &str| levels.get(name).copied().unwrap_or_default();
        let total = own
            .total
            .or_else(|| {
                named
                    .first()
                    .and_then(|(provider, _)| of_provider(provider).total)
            })
            .unwrap_or(defaults.total);
        let candidates = named
            .into_iter()
            .map(|(provider, model)| {
                let timeouts = handed_down(
                    reader,
                    &alias,
                    own,
                    of_provider(&provider),
                    &provider,
                    defaults,
                    total,
                );
                CandidateConfig {
                    provider,
                    model,
                    timeouts,
                }
            })
            .collect::<Vec<_>>();
        let later = u32::try_from(candidates.len())
            .unwrap_or(u32::MAX)
            .saturating_sub(1);
        let reserve = reserve.unwrap_or_else(|| total / (2 * (later + 1)));
        if reserve.saturating_mul(later) >= total {
            reader.wrong(format!(
                "models.{alias}.timeouts.reserve_ms = {} for each of {later} later candidates leaves the first none of total_ms = {}: write less than {}",
                reserve.as_millis(),
                total.as_millis(),
                total.as_millis() / u128::from(later.max(1))
            ));
        }
        tell_inherited(reader, &section, &candidates, total, reserve);
        if models.contains_key(&alias) {
            reader.wrong(format!(
                "models.alias = {alias:?} stands twice: give each model an alias of its own"
            ));
        }
        models.insert(
            alias.clone(),
            ModelConfig {
                alias,
                candidates,
                total,
                reserve,
            },
        );
    }
    models
}

fn known_provider(
    reader: &mut Reader<'_>,
    path: &str,
    provider: &str,
    providers: &IndexMap<String, ProviderConfig>,
) {
    if !providers.contains_key(provider) {
        let instead = one_of(
            provider,
            providers.keys().map(String::as_str),
            "add [[providers]] with that name",
        );
        reader.wrong(format!(
            "{path} = {provider:?} is not one of [[providers]]: {instead}"
        ));
    }
}

/// Model over provider over default. What nobody wrote gives way to a shorter total; what was written is never changed, but refused.
fn handed_down(
    reader: &mut Reader<'_>,
    alias: &str,
    own: Level,
    of_provider: Level,
    provider: &str,
    defaults: &Defaults,
    total: Duration,
) -> Timeouts {
    let mut one =
        |key: &str, own: Option<Duration>, theirs: Option<Duration>, default: Duration| {
            let (value, written_at) = match (own, theirs) {
                (Some(value), _) => (value, format!("models.{alias}.timeouts.{key}")),
                (None, Some(value)) => (value, format!("providers.{provider}.timeouts.{key}")),
                (None, None) => return default.min(total),
            };
            within(
                reader,
                &written_at,
                value,
                &format!("the total_ms of model {alias:?}"),
                total,
            );
            value
        };
    let timeouts = Timeouts {
        connect: one(
            "connect_ms",
            own.connect,
            of_provider.connect,
            defaults.timeouts.connect,
        ),
        first_token: one(
            "first_token_ms",
            own.first_token,
            of_provider.first_token,
            defaults.timeouts.first_token,
        ),
        idle: one(
            "idle_ms",
            own.idle,
            of_provider.idle,
            defaults.timeouts.idle,
        ),
    };
    let written_at = match (own.connect, of_provider.connect) {
        (Some(_), _) => format!("models.{alias}.timeouts.connect_ms"),
        (None, Some(_)) => format!("providers.{provider}.timeouts.connect_ms"),
        (None, None) => return timeouts,
    };
    within(
        reader,
        &written_at,
        timeouts.connect,
        &format!("the first_token_ms of model {alias:?}"),
        timeouts.first_token,
    );
    timeouts
}

fn retry(reader: &mut Reader<'_>, total: Duration) -> Retry {
    let section = reader.section("retry");
    let max_attempts = reader.count(&section, "max_attempts");
    let (base, written) = reader.millis_by(&section, "base_ms", DEFAULT_BACKOFF.min(total / 2));
    if written && base >= total {
        let (base, total) = (base.as_millis(), total.as_millis());
        reader.wrong(format!("retry.base_ms = {base} leaves no time for a retry within timeouts.total_ms = {total}: write less than {total}"));
    }
    let (max, _) = reader.millis_by(&section, "max_ms", base);
    within(reader, "retry.base_ms", base, "retry.max_ms", max);
    Retry {
        max_attempts,
        base,
        max,
        jitter: reader.ratio(&section, "jitter"),
        budget_ratio: reader.ratio(&section, "budget_ratio"),
        budget_floor: reader.count(&section, "budget_floor"),
    }
}

fn breaker(reader: &mut Reader<'_>) -> Breaker {
    let section = reader.section("breaker");
    Breaker {
        failure_threshold: reader.count(&section, "failure_threshold"),
        cool_down: reader.millis(&section, "cool_down_ms"),
        half_open_probes: reader.count(&section, "half_open_probes"),
    }
}

fn orchestrator(
    reader: &mut Reader<'_>,
    models: &IndexMap<String, ModelConfig>,
) -> OrchestratorConfig {
    let section = reader.section("orchestrator");
    let deadline = reader.millis(&section, "deadline_ms");
    let passages = reader.count(&section, "passages");
    let chosen = reader.below(&section, "models");
    let mut agents = IndexMap::new();
    for agent in AGENTS {
        let first = models.keys().next().map(String::as_str);
        let Some(alias) = reader.text_or(&chosen, agent, first) else {
            continue;
        };
        if !models.contains_key(&alias) {
            let instead = one_of(
                &alias,
                models.keys().map(String::as_str),
                "add [[models]] with that alias",
            );
            reader.wrong(format!(
                "orchestrator.models.{agent} = {alias:?} is not one of [[models]]: {instead}"
            ));
        }
        agents.insert(agent.to_owned(), alias);
    }
    let steps_section = reader.below(&section, "steps");
    let mut steps = IndexMap::new();
    for step in STEPS {
        let section = reader.below(&steps_section, step);
        let (cap, _) = reader.millis_by(&section, "cap_ms", deadline);
        within(
            reader,
            &format!("{}.cap_ms", section.label),
            cap,
            "orchestrator.deadline_ms",
            deadline,
        );
        let (minimum, _) = reader.millis_by(&section, "minimum_ms", cap);
        within(
            reader,
            &format!("{}.minimum_ms", section.label),
            minimum,
            &format!("{}.cap_ms", section.label),
            cap,
        );
        steps.insert(step.to_owned(), StepConfig { cap, minimum });
    }
    OrchestratorConfig {
        deadline,
        steps,
        models: agents,
        passages,
    }
}

fn store(reader: &mut Reader<'_>, deadline: Duration) -> StoreConfig {
    let section = reader.section("store");
    let url = reader.text(&section, "url").unwrap_or_default();
    let max_connections = reader.count(&section, "max_connections");
    let mut bounded = |key| {
        let (value, written) = reader.millis_by(&section, key, deadline);
        if written {
            within(
                reader,
                &format!("store.{key}"),
                value,
                "orchestrator.deadline_ms",
                deadline,
            );
        }
        value
    };
    let acquire_timeout = bounded("acquire_timeout_ms");
    let statement_timeout = bounded("statement_timeout_ms");
    StoreConfig {
        url: url.into(),
        max_connections,
        acquire_timeout,
        statement_timeout,
    }
}

fn telemetry(reader: &mut Reader<'_>) -> Telemetry {
    let section = reader.section("telemetry");
    let log = reader.text(&section, "log").unwrap_or_default();
    let format = if reader.text(&section, "format").as_deref() == Some("json") {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    Telemetry { log, format }
}

/// An inner time must not be longer than its outer one.
fn within(
    reader: &mut Reader<'_>,
    inner_key: &str,
    inner: Duration,
    outer_key: &str,
    outer: Duration,
) {
    if inner > outer {
        let (inner, outer) = (inner.as_millis(), outer.as_millis());
        reader.wrong(format!("{inner_key} = {inner} is longer than {outer_key} = {outer}: write at most {outer}, or raise {outer_key}"));
    }
}

fn one_of<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone, otherwise: &str) -> String {
    let all: HashSet<&str> = known.clone().collect();
    if all.is_empty() {
        return otherwise.to_owned();
    }
    nearest(name, known.clone()).map_or_else(
        || {
            format!(
                "write one of {}, or {otherwise}",
                known
                    .map(|name| format!("{name:?}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        },
        |near| format!("did you mean {near:?}?"),
    )
}
