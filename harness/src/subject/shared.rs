//! One gateway for several cases: their specifications are merged under one prefix for each case,
//! and each case has a handle on the one process.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Process, RunningTarget, TargetError};
use crate::spec::Spec;

/// Merges the specifications of cases whose settings are equal; `parts` pairs each with its prefix
/// (`wire-01-`). Providers and aliases get the prefix; the name of a model at its provider stays.
pub fn merge<'a>(parts: impl IntoIterator<Item = (&'a str, &'a Spec)>) -> Spec {
    let mut merged: Option<Spec> = None;
    for (prefix, spec) in parts {
        let mut part = spec.clone();
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
    process: Option<&Arc<dyn Process>>,
    prefix: &str,
) -> RunningTarget {
    RunningTarget {
        base_url: base_url.to_string(),
        model_prefix: prefix.to_string(),
        headers: headers.to_vec(),
        process: process.map(|process| Box::new(Shared(Arc::clone(process))) as Box<dyn Process>),
    }
}

struct Shared(Arc<dyn Process>);

#[async_trait]
impl Process for Shared {
    async fn terminate(&self) -> Result<(), TargetError> {
        self.0.terminate().await
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

    #[test]
    fn providers_and_aliases_of_cases_have_different_names() {
        let (a, b) = (Spec::solo(), Spec::pair());
        let merged = merge([("a-", &a), ("b-", &b)]);
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
}
