//! One gateway for several cases: their specifications are merged under one prefix for each case,
//! and each case has a handle on the one process.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::{AliasSetting, Process, Rendered, RunningTarget, TargetError};
use crate::spec::Spec;

/// Returns the settings of a case without those that each alias has by itself: cases for which they
/// are equal share a process.
pub fn settings(spec: &Spec, per_alias: &BTreeSet<AliasSetting>) -> Spec {
    let defaults = Spec::default();
    let mut settings = Spec {
        providers: Vec::new(),
        models: Vec::new(),
        ..spec.clone()
    };
    for setting in per_alias {
        match setting {
            AliasSetting::Timeouts => settings.timeouts = defaults.timeouts,
            AliasSetting::Retry => settings.retry = defaults.retry,
            AliasSetting::Breaker => settings.breaker = defaults.breaker,
        }
    }
    settings
}

/// Merges the specifications of cases whose [`settings`] are equal; `parts` pairs each with its
/// prefix (`wire-01-`). Providers and aliases get the prefix; the name of a model at its provider
/// stays. What is set per alias is written into the aliases, and timeouts into the providers.
pub fn merge<'a>(
    parts: impl IntoIterator<Item = (&'a str, &'a Spec)>,
    per_alias: &BTreeSet<AliasSetting>,
) -> Spec {
    let mut merged: Option<Spec> = None;
    for (prefix, spec) in parts {
        let mut part = Spec {
            providers: spec.providers.clone(),
            models: spec.models.clone(),
            ..settings(spec, per_alias)
        };
        if per_alias.contains(&AliasSetting::Timeouts) {
            for provider in &mut part.providers {
                provider.timeouts = provider.timeouts.or(spec.timeouts);
            }
        }
        for model in &mut part.models {
            if per_alias.contains(&AliasSetting::Retry) {
                model.retry.get_or_insert(spec.retry);
            }
            if per_alias.contains(&AliasSetting::Breaker) {
                model.breaker.get_or_insert(spec.breaker);
            }
        }
        for provider in &mut part.providers {
            provider.name = format!("{prefix}{}", provider.name);
        }
        for model in &mut part.models {
            model.alias = format!("{prefix}{}", model.alias);
            for candidate in &mut model.candidates {
                candidate.provider = format!("{prefix}{}", candidate.provider);
            }
        }
        match &mut merged {
            None => merged = Some(part),
            Some(merged) => {
                merged.providers.append(&mut part.providers);
                merged.models.append(&mut part.models);
            }
        }
    }
    merged.unwrap_or_default()
}

/// Makes a handle on a shared gateway: it has the same address and process, and the prefix of its
/// case. The process is killed when the last handle is dropped.
pub fn share(
    base_url: &str,
    headers: &[(String, String)],
    rendered: &Arc<Rendered>,
    process: Option<&Arc<dyn Process>>,
    prefix: &str,
) -> RunningTarget {
    RunningTarget {
        base_url: base_url.to_string(),
        model_prefix: prefix.to_string(),
        headers: headers.to_vec(),
        rendered: Arc::clone(rendered),
        process: process.map(|process| Box::new(Shared(Arc::clone(process))) as Box<dyn Process>),
    }
}

struct Shared(Arc<dyn Process>);

#[async_trait]
impl Process for Shared {
    async fn terminate(&self) -> Result<(), TargetError> {
        self.0.terminate().await
    }

    async fn hang_up(&self) -> Result<(), TargetError> {
        self.0.hang_up().await
    }

    async fn kill(&self) -> Result<(), TargetError> {
        self.0.kill().await
    }

    async fn wait(&self) -> Result<Option<i32>, TargetError> {
        self.0.wait().await
    }

    fn log_tail(&self) -> String {
        self.0.log_tail()
    }

    fn log(&self) -> String {
        self.0.log()
    }

    fn id(&self) -> Option<u32> {
        self.0.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Timeouts;

    #[test]
    fn providers_and_aliases_of_cases_have_different_names() {
        let (a, b) = (Spec::solo(), Spec::pair());
        let merged = merge([("a-", &a), ("b-", &b)], &BTreeSet::new());
        let aliases: Vec<_> = merged
            .models
            .iter()
            .map(|model| model.alias.as_str())
            .collect();
        assert_eq!(aliases, ["a-solo", "b-pair"]);
        assert_eq!(merged.models[1].candidates[1].provider, "b-p2");
        assert_eq!(merged.models[1].candidates[1].model, "m-p2");
        assert_eq!(merged.providers.len(), 3);
    }

    #[test]
    fn what_an_alias_has_by_itself_does_not_separate_cases() {
        let every = BTreeSet::from([
            AliasSetting::Timeouts,
            AliasSetting::Retry,
            AliasSetting::Breaker,
        ]);
        let quick = Timeouts {
            total_ms: Some(5),
            ..Timeouts::default()
        };
        let mut a = Spec::solo().model_timeouts("solo", quick);
        a.timeouts.idle_ms = Some(77);
        a.retry.max_attempts = 4;
        let b = Spec::solo();
        assert_eq!(settings(&a, &every), settings(&b, &every));
        assert_ne!(
            settings(&a, &BTreeSet::from([AliasSetting::Timeouts])),
            settings(&b, &BTreeSet::new()),
            "retries separate them where no alias has its own"
        );
        let merged = merge([("a-", &a), ("b-", &b)], &every);
        let idle: Vec<_> = merged
            .providers
            .iter()
            .map(|provider| provider.timeouts.idle_ms)
            .collect();
        assert_eq!(idle, [Some(77), b.timeouts.idle_ms]);
        let attempts: Vec<_> = merged
            .models
            .iter()
            .map(|model| model.retry.map(|retry| retry.max_attempts))
            .collect();
        assert_eq!(attempts, [Some(4), Some(1)]);
        assert_eq!(
            merged.models[0].timeouts, quick,
            "the alias still overrides its provider"
        );
        assert_eq!(merged.retry, Spec::default().retry);
    }
}
