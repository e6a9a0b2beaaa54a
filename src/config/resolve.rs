//! From the sections as they are written to the whole [`Config`]: what a model inherits from its
//! providers and from `[timeouts]`, and what a provider inherits from its protocol.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;
use secrecy::SecretString;

use super::kinds::Kinds;
use super::settings::{Candidate, DefaultTimeouts, Model, OwnTimeouts, Provider, Written};
use super::url::split_user;
use super::walk::within;
use super::{CandidateConfig, Config, ModelConfig, ProviderConfig, Timeouts};

/// Notes problems, and the values of unwritten keys that follow from other sections.
pub(super) struct Resolver<'a> {
    pub(super) kinds: &'a Kinds,
    pub(super) environment: &'a [(String, String)],
    pub(super) problems: Vec<String>,
    /// The value of an unwritten key, by its path in messages, as `--print-config` shows it.
    pub(super) derived: HashMap<String, String>,
}

impl Resolver<'_> {
    /// The result is valid if no problem is noted afterwards.
    pub(super) fn resolve(&mut self, mut written: Written) -> Config {
        for key in &mut written.auth.keys {
            key.sha256.make_ascii_lowercase();
        }
        if written.auth.required.is_none() && !written.auth.keys.is_empty() {
            written.auth.required = Some(true);
            self.derived.insert("auth.required".into(), "true".into());
        }
        let (mut providers, mut models) = (IndexMap::new(), IndexMap::new());
        for provider in &written.providers {
            let config = self.provider(provider, &written.timeouts);
            providers.extend(config.map(|config| (config.name.clone(), config)));
        }
        for model in &written.models {
            let config = self.model(model, &written);
            models.extend(config.map(|config| (config.alias.clone(), config)));
        }
        let Written {
            server,
            store,
            auth,
            retry,
            breaker,
            orchestrator,
            telemetry,
            ..
        } = written;
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

    fn problem(&mut self, at: &str, problem: &str) {
        self.problems.push(format!("{at}{problem}"));
    }

    fn provider(&mut self, own: &Provider, defaults: &DefaultTimeouts) -> Option<ProviderConfig> {
        let at = format!("providers.{}", own.name);
        let mut protocols = self.kinds.protocols.iter();
        let protocol = protocols.find(|row| row.name == own.protocol)?;
        let default_url = protocol.default_base_url;
        self.derived
            .insert(format!("{at}.base_url"), format!("{default_url:?}"));
        let times = [
            defaults.connect,
            defaults.first_token,
            defaults.idle,
            defaults.total,
        ];
        self.inherit(&at, times.map(millis), defaults.reserve.map(millis));

        let api_key = self.api_key(own, &at);
        let url = own.base_url.as_deref().unwrap_or(default_url);
        let Ok((base_url, user)) = split_user(url.trim_end_matches('/')) else {
            let problem = ".base_url holds a user and password that cannot be read: percent-encode \
                them";
            self.problem(&at, problem);
            return None;
        };
        if user.is_some() && api_key.is_some() {
            let problem = ".base_url holds a user and password, and there is an api_key as well: \
                write only one of them";
            self.problem(&at, problem);
        }
        Some(ProviderConfig {
            name: own.name.clone(),
            protocol: protocol.name,
            base_url,
            api_key,
            user: user.map(Into::into),
            max_in_flight: own.max_in_flight,
            queue: own.queue,
        })
    }

    fn api_key(&mut self, own: &Provider, at: &str) -> Option<SecretString> {
        let Some(name) = &own.api_key_env else {
            return own.api_key.clone();
        };
        let variable = self
            .environment
            .iter()
            .find(|(variable, _)| variable == name);
        let key = variable.map_or("", |(_, key)| key);
        let problem = if own.api_key.is_some() {
            "is written besides api_key: write only one of them"
        } else if key.is_empty() {
            "is not set: set that variable, or write api_key"
        } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            "holds no valid key: set that variable to visible ASCII characters"
        } else {
            return Some(key.to_owned().into());
        };
        self.problem(at, &format!(".api_key_env = {name:?} {problem}"));
        None
    }

    /// Notes the values of the timeouts that a provider or model does not write.
    fn inherit(&mut self, at: &str, times: [String; 4], reserve: Option<String>) {
        let keys = ["connect", "first_token", "idle", "total", "reserve"];
        for (key, value) in keys.into_iter().zip(times.into_iter().chain(reserve)) {
            self.derived
                .insert(format!("{at}.timeouts.{key}_ms"), value);
        }
    }

    fn model(&mut self, own: &Model, written: &Written) -> Option<ModelConfig> {
        let at = format!("models.{}", own.alias);
        let Some(first) = own.candidates.first() else {
            let remedy = "write candidates = [{ provider = \"…\", model = \"…\" }]";
            self.problem(&at, &format!(" has no candidate: {remedy}"));
            return None;
        };
        // what a candidate inherits: the model's own timeouts before its provider's
        let levels = |candidate: &Candidate| {
            let mut levels = vec![(format!("{at}.timeouts"), &own.timeouts)];
            let mut providers = written.providers.iter();
            let provider = providers.find(|provider| provider.name == candidate.provider);
            levels.extend(
                provider.map(|own| (format!("providers.{}.timeouts", own.name), &own.timeouts)),
            );
            levels
        };
        let inherited = |of: fn(&OwnTimeouts) -> Option<Duration>| {
            levels(first).iter().find_map(|(_, timeouts)| of(timeouts))
        };
        let defaults = &written.timeouts;
        let total = inherited(|own| own.total).unwrap_or(defaults.total);
        let count = u32::try_from(own.candidates.len()).unwrap_or(u32::MAX);
        let reserve = inherited(|own| own.reserve).or(defaults.reserve);
        let reserve = reserve.unwrap_or_else(|| total / (2 * count));
        let later = count - 1;
        if reserve.saturating_mul(later) >= total {
            let (reserve, total) = (reserve.as_millis(), total.as_millis());
            self.problems.push(format!(
                "{at}.timeouts.reserve_ms = {reserve} for each of {later} later candidates leaves \
                 nothing of total_ms = {total} to the first: write less than {}",
                total / u128::from(later.max(1))
            ));
        }
        let candidate = |candidate: &Candidate| CandidateConfig {
            provider: candidate.provider.clone(),
            model: candidate.model.clone(),
            timeouts: self.timeouts(&own.alias, &levels(candidate), defaults, total),
        };
        let candidates: Vec<_> = own.candidates.iter().map(candidate).collect();
        let each = |of: fn(&Timeouts) -> Duration| {
            let values = candidates
                .iter()
                .map(|candidate| millis(of(&candidate.timeouts)));
            let mut values: Vec<_> = values.collect();
            values.dedup();
            values.join(", then ")
        };
        let (connect, first_token) = (each(|own| own.connect), each(|own| own.first_token));
        let times = [connect, first_token, each(|own| own.idle), millis(total)];
        self.inherit(&at, times, Some(millis(reserve)));
        Some(ModelConfig {
            alias: own.alias.clone(),
            candidates,
            total,
            reserve,
        })
    }

    /// A default gives way to a shorter total; a written timeout is never changed, but refused.
    fn timeouts(
        &mut self,
        alias: &str,
        levels: &[(String, &OwnTimeouts)],
        defaults: &DefaultTimeouts,
        total: Duration,
    ) -> Timeouts {
        type Of = fn(&OwnTimeouts) -> Option<Duration>;
        let mut one = |key: &str, of: Of, default: Duration, (outer, limit): (&str, Duration)| {
            let written = levels.iter().find_map(|(at, own)| Some((at, of(own)?)));
            let Some((at, value)) = written else {
                return default.min(total);
            };
            let outer = format!("the {outer}_ms of model {alias:?}");
            let at = format!("{at}.{key}_ms");
            within(&mut self.problems, (&at, value), (&outer, limit));
            value
        };
        let (limit, default) = (("total", total), defaults.first_token);
        let first_token = one("first_token", |own| own.first_token, default, limit);
        let idle = one("idle", |own| own.idle, defaults.idle, limit);
        let (limit, default) = (("first_token", first_token), defaults.connect);
        let connect = one("connect", |own| own.connect, default, limit);
        Timeouts {
            connect,
            first_token,
            idle,
        }
    }
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}
