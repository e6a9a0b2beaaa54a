//! The outcome of one case of a run, with its evidence.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::case::{Case, Profile};
use crate::exercise::{PlantedFault, State};
use crate::spec::Spec;
use crate::subject::Rendered;
use crate::tape::Entry;
use crate::verdict::{Failure, Level, Verdict};

/// One case of a run: the requirement, the verdict, the evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The id of the requirement.
    pub id: String,
    /// The weight of the requirement.
    pub level: Level,
    /// The surfaces that the requirement is about.
    pub profiles: Vec<Profile>,
    /// The text of the catalogue.
    pub requirement: String,
    /// Why the requirement matters.
    pub why: String,
    /// How the case examines it.
    pub shown: String,
    /// What the maintainer of a failing gateway can do.
    pub remedy: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The time from the beginning of the set-up to the end of the case, in milliseconds, of the
    /// examination that this outcome shows.
    pub duration_ms: u64,
    /// How often the case was examined.
    pub attempts: u32,
    /// What was seen, in order. If the verdicts of two examinations differ, this is the tape of the
    /// failed one.
    pub tape: Vec<Entry>,
    /// The last lines of the gateway's output. Of a gateway that several cases share, these are
    /// lines that it wrote during the case; those with a mark of the case begin with `» `.
    pub log_tail: String,
    /// The faults that the case planted, and how often each was met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<PlantedFault>,
    /// The states that the examination reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<State>,
    /// The instances of the requirement that were examined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    /// How the gateway was set up; `None` if it never started, and in a record of a case that
    /// passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<Setup>,
}

/// How a gateway was set up for a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// What the case asks of a gateway: providers, model names, timeouts and all other settings.
    pub spec: Spec,
    /// The root URL of the gateway.
    pub base_url: String,
    /// The prefix of the case's model names and providers at a gateway that several cases share.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_prefix: String,
    /// The base URL of each provider, which a stub of the case serves.
    pub upstreams: IndexMap<String, String>,
    /// What the gateway was started with.
    #[serde(skip)]
    pub rendered: Arc<Rendered>,
    /// The index of [`Self::rendered`] among the gateways of a record.
    pub gateway: usize,
}

impl Outcome {
    /// Makes an outcome for a case that was not examined.
    pub fn without_run(case: &Case, verdict: Verdict) -> Self {
        Self {
            id: case.id.into(),
            level: case.level,
            profiles: case.profiles.to_vec(),
            requirement: case.requirement.into(),
            why: case.why.into(),
            shown: case.shown.into(),
            remedy: case.remedy.into(),
            verdict,
            duration_ms: 0,
            attempts: 0,
            tape: Vec::new(),
            log_tail: String::new(),
            faults: Vec::new(),
            states: Vec::new(),
            instances: Vec::new(),
            setup: None,
        }
    }

    /// Returns the area of the catalogue, for example `TIME` for `TIME-02`.
    pub fn area(&self) -> &str {
        self.id.split('-').next().unwrap_or(&self.id)
    }

    /// Returns whether the verdict is *failed*.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed { .. })
    }

    /// Returns the failure, if there was one.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.verdict {
            Verdict::Failed { failure } | Verdict::Flaky { failure } => Some(failure),
            _ => None,
        }
    }
}
