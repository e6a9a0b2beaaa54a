//! What one case came to, with the evidence.

use serde::{Deserialize, Serialize};

use crate::case::{Case, Profile};
use crate::tape::Entry;
use crate::verdict::{Failure, Level, Verdict};

/// One case of a run: the requirement, the verdict, the evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The requirement's id.
    pub id: String,
    /// Its weight.
    pub level: Level,
    /// The surfaces it speaks about.
    pub profiles: Vec<Profile>,
    /// The catalogue's text.
    pub requirement: String,
    /// Why it matters.
    pub why: String,
    /// How it is shown.
    pub shown: String,
    /// What the operator of a failing gateway can do.
    pub remedy: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// From the start of the set-up to the end, in milliseconds, of the last attempt.
    pub duration_ms: u64,
    /// How often it was examined.
    pub attempts: u32,
    /// What was seen, in order; of the failed attempt where there were two.
    pub tape: Vec<Entry>,
    /// The last lines that the gateway wrote.
    pub log_tail: String,
}

impl Outcome {
    /// A verdict without an examination.
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
        }
    }

    /// The area of the catalogue: `TIME` of `TIME-02`.
    pub fn area(&self) -> &str {
        self.id.split('-').next().unwrap_or(&self.id)
    }

    /// Whether the gateway broke the requirement, or died under it, in every attempt.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed { .. })
    }

    /// The failure, if there was one.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.verdict {
            Verdict::Failed { failure } | Verdict::Flaky { failure } => Some(failure),
            _ => None,
        }
    }
}
