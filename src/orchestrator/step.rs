//! What a query does, in which order: steps in phases; the steps of a phase run together, a phase starts when the one before it
//! has ended. Results and degradations are always told in this order, whatever ended first.

use std::time::Duration;

use serde::Serialize;

use crate::config::StepConfig;

/// One step of a query. The order of the variants is the order in which results are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Names what the question is about.
    Entities,
    /// Finds passages.
    Retrieval,
    /// Checks claims against the passages.
    FactCheck,
    /// Writes the answer.
    Synthesis,
    /// Says which passage supports which sentence.
    Citation,
    /// Scores the answer.
    Review,
    /// Writes the record: no agent, and not part of a plan.
    Record,
}

impl Step {
    /// Its name in configuration, documents and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entities => "entities",
            Self::Retrieval => "retrieval",
            Self::FactCheck => "fact_check",
            Self::Synthesis => "synthesis",
            Self::Citation => "citation",
            Self::Review => "review",
            Self::Record => "record",
        }
    }

    /// Its bounds where the configuration names none.
    #[must_use]
    pub const fn default_bounds(self) -> StepConfig {
        let (cap, minimum) = match self {
            Self::Entities => (10_000, 100),
            Self::Retrieval => (15_000, 20),
            Self::FactCheck => (20_000, 200),
            Self::Synthesis => (30_000, 200),
            Self::Citation => (15_000, 100),
            Self::Review => (20_000, 100),
            Self::Record => (0, 0),
        };
        StepConfig {
            cap: Duration::from_millis(cap),
            minimum: Duration::from_millis(minimum),
        }
    }
}

/// The phases of a query.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    phases: &'static [&'static [Step]],
}

/// The plan of every query: one pipeline whose first phase runs two steps together.
pub const PIPELINE: Plan = Plan {
    phases: &[
        &[Step::Entities, Step::Retrieval],
        &[Step::FactCheck],
        &[Step::Synthesis],
        &[Step::Citation],
        &[Step::Review],
    ],
};

impl Plan {
    /// All steps, in their declared order.
    pub fn steps(self) -> impl Iterator<Item = Step> {
        self.phases.iter().flat_map(|phase| phase.iter().copied())
    }

    /// The phases that start only after `step` has ended.
    pub fn after(self, step: Step) -> impl Iterator<Item = &'static [Step]> {
        let own = self
            .phases
            .iter()
            .position(|phase| phase.contains(&step))
            .unwrap_or(self.phases.len());
        self.phases.iter().skip(own + 1).copied()
    }
}
