//! What is known of a step before it runs: one [`StepDef`] for each.
//!
//! Configuration keys and defaults, `--print-config`, JSON, metrics labels, the order of results,
//! the confidence and the degradations all derive from these rows. The rows stand in
//! `agents::STEPS`, beside the `mod` line of each agent, so that a new agent is its own file and
//! two lines there. A [`Step`] is an index into that table, which is why this module and `agents`
//! import each other.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::agents::STEPS;
use super::pipeline::RunStep;
use super::record;
use crate::config::kinds::StepSettings;

/// The phases of a query, in order. The steps of a phase run at the same time; a phase starts when
/// the phase before it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Collects what the answer will rest on.
    Gather,
    /// Checks what was collected.
    Check,
    /// Writes the answer. The minimum of its steps is reserved against every earlier step.
    Write,
    /// Attributes the answer to its sources.
    Cite,
    /// Judges the answer.
    Review,
    /// Records the outcome, which every other phase has contributed to.
    Record,
}

/// What the failure of a step means for the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The query fails: there is no answer without this step.
    Required,
    /// The answer stands without this step and is marked as degraded.
    Degrade,
    /// Something simpler stands in for this step, and the answer is marked as degraded.
    Fallback,
}

/// The row of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepDef {
    /// The name, the defaults of the time limits, and whether a model is asked.
    pub settings: StepSettings,
    /// One sentence that describes the step.
    pub description: &'static str,
    /// The phase in which the step runs.
    pub phase: Phase,
    /// What the step's failure means for the query.
    pub policy: Policy,
    /// The step's part of the confidence, in proportion to the sum of all weights.
    pub weight: u32,
    /// What the reader of an answer loses by the step's failure: one sentence.
    pub effect: &'static str,
    /// The same sentence for a query that has no answer.
    pub unanswered: &'static str,
}

/// A row of the table of steps: the description, and the function that runs the step.
#[derive(Clone, Copy)]
pub struct StepRow {
    pub(super) def: StepDef,
    pub(super) run: RunStep,
}

/// The configurable part of every row of [`STEPS`], in their order.
pub const SETTINGS: &[StepSettings] = &settings();

const fn settings() -> [StepSettings; STEPS.len()] {
    let mut all = [STEPS[0].def.settings; STEPS.len()];
    let mut at = 0;
    while at < STEPS.len() {
        all[at] = STEPS[at].def.settings;
        at += 1;
    }
    all
}

/// One step of a query. Steps are ordered as their results are listed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step(usize);

impl Step {
    /// Writing the record. It follows the outcome, so it is in no phase of a pipeline and has no
    /// limits of its own.
    pub const RECORD: Self = Self(STEPS.len());

    /// Returns the steps of a pipeline in the order of their rows; [`Step::RECORD`] is not one of
    /// them.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..STEPS.len()).map(Self)
    }

    /// Returns the steps of a pipeline, phase by phase.
    #[must_use]
    pub fn phases() -> Vec<Vec<Self>> {
        let steps: Vec<_> = Self::all().collect();
        steps
            .chunk_by(|one, next| one.def().phase == next.def().phase)
            .map(<[Self]>::to_vec)
            .collect()
    }

    /// Returns the step of that name, [`Step::RECORD`] included.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all()
            .chain([Self::RECORD])
            .find(|step| step.name() == name)
    }

    /// Returns the description of the step.
    #[must_use]
    pub fn def(self) -> &'static StepDef {
        self.row().map_or(&record::DEF, |row| &row.def)
    }

    /// Returns the name of the step in configuration, JSON, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.def().settings.name
    }

    /// Returns the row of the step; [`Step::RECORD`] has none.
    pub(super) fn row(self) -> Option<&'static StepRow> {
        STEPS.get(self.0)
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl ToSchema for Step {
    fn name() -> Cow<'static, str> {
        "Step".into()
    }
}

impl PartialSchema for Step {
    fn schema() -> RefOr<Schema> {
        let steps = || Self::all().chain([Self::RECORD]);
        let described: Vec<_> = steps()
            .map(|step| format!("- `{}`: {}", step.name(), step.def().description))
            .collect();
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some(format!(
                "A step of a query, in the order in which results are listed.\n\n{}",
                described.join("\n")
            )))
            .enum_values(Some(steps().map(Self::name)))
            .into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_rows_stand_in_the_order_of_their_phases() {
        assert!(Step::all().is_sorted_by_key(|step| step.def().phase));
        let phases = Step::phases();
        assert_eq!(phases.concat(), Step::all().collect::<Vec<_>>());
        assert!(Step::all().all(|step| step.def().phase < Phase::Record));
    }

    #[test]
    fn every_row_has_a_name_of_its_own_and_full_sentences() {
        for step in Step::all().chain([Step::RECORD]) {
            assert_eq!(Step::named(step.name()), Some(step));
            let def = step.def();
            for sentence in [def.description, def.effect, def.unanswered] {
                assert!(
                    sentence.starts_with(char::is_uppercase) && sentence.ends_with('.'),
                    "{step:?}: {sentence:?} is no sentence"
                );
            }
        }
        assert_eq!(Step::named("unknown"), None);
    }

    #[test]
    fn the_settings_are_those_of_the_rows() {
        assert_eq!(SETTINGS.len(), STEPS.len());
        for (settings, step) in SETTINGS.iter().zip(Step::all()) {
            assert_eq!(*settings, step.def().settings);
            assert!(settings.minimum <= settings.cap, "{step:?}");
        }
    }
}
