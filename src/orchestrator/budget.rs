//! Splits the one deadline of a query over its steps. Nobody else makes a deadline: a step gets a point in time, hands it to the
//! LLM path, and is dropped when it is reached.
//!
//! A step gets `min(cap, remaining − reserve of the later phases)`. The reserve is the sum of the later phases' minimums. That
//! of synthesis is held against every earlier step; that of the steps after it (citation, review) gives way before a step
//! would fall below its own minimum. No step before synthesis gets more than half of what remains, unless its minimum is more: one
//! that hangs must not starve the answer. A step that would still have less than its minimum is not started: time that must be lost is not spent.

use std::time::Duration;

use indexmap::IndexMap;
use tokio::time::Instant;

use crate::config::StepConfig;
use crate::orchestrator::step::{Plan, Step};

/// The time of one query.
#[derive(Clone, Debug)]
pub struct Budget<'c> {
    deadline: Instant,
    plan: Plan,
    steps: &'c IndexMap<String, StepConfig>,
}

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// It runs until then at the latest.
    Until(Instant),
    /// It is not started.
    Skip {
        /// What it would have had.
        left: Duration,
        /// What it needs.
        minimum: Duration,
    },
}

impl<'c> Budget<'c> {
    /// A budget that ends at `deadline`; `steps` are the configured bounds, by name.
    #[must_use]
    pub fn new(deadline: Instant, plan: Plan, steps: &'c IndexMap<String, StepConfig>) -> Self {
        Self {
            deadline,
            plan,
            steps,
        }
    }

    /// The point in time by which the query is answered.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What `step` may take if it starts `now`.
    #[must_use]
    pub fn window(&self, step: Step, now: Instant) -> Window {
        let StepConfig { cap, minimum } = self.bounds(step);
        let remaining = self.deadline.saturating_duration_since(now);
        let firm = remaining.saturating_sub(self.reserve(step, Reserve::Firm));
        let ample = firm.saturating_sub(self.reserve(step, Reserve::Yielding));
        let before_synthesis = self
            .plan
            .after(step)
            .any(|phase| phase.contains(&Step::Synthesis));
        let fair = if before_synthesis {
            ample.min(remaining / 2)
        } else {
            ample
        };
        let left = if fair >= minimum {
            fair
        } else {
            firm.min(minimum)
        };
        if left < minimum || left.is_zero() {
            Window::Skip { left, minimum }
        } else {
            Window::Until(now + left.min(cap))
        }
    }

    /// Whether a window of `step` from `started` to `until` ends at its cap, and not at what others leave it.
    #[must_use]
    pub fn is_capped(&self, step: Step, started: Instant, until: Instant) -> bool {
        until >= started + self.bounds(step).cap
    }

    fn bounds(&self, step: Step) -> StepConfig {
        self.steps
            .get(step.name())
            .copied()
            .unwrap_or_else(|| step.default_bounds())
    }

    fn reserve(&self, step: Step, kind: Reserve) -> Duration {
        self.plan
            .after(step)
            .filter(|phase| phase.contains(&Step::Synthesis) == (kind == Reserve::Firm))
            .map(|phase| {
                phase
                    .iter()
                    .map(|step| self.bounds(*step).minimum)
                    .max()
                    .unwrap_or_default()
            })
            .sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserve {
    Firm,
    Yielding,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::orchestrator::step::PIPELINE;

    fn bounds(entries: &[(Step, u64, u64)]) -> IndexMap<String, StepConfig> {
        let millis = Duration::from_millis;
        entries
            .iter()
            .map(|(step, cap, minimum)| {
                (
                    step.name().to_owned(),
                    StepConfig {
                        cap: millis(*cap),
                        minimum: millis(*minimum),
                    },
                )
            })
            .collect()
    }

    fn all(cap: u64, minimum: u64) -> IndexMap<String, StepConfig> {
        bounds(
            &PIPELINE
                .steps()
                .map(|step| (step, cap, minimum))
                .collect::<Vec<_>>(),
        )
    }

    fn left(steps: &IndexMap<String, StepConfig>, step: Step, remaining: u64) -> Option<u128> {
        let now = Instant::now();
        match Budget::new(now + Duration::from_millis(remaining), PIPELINE, steps).window(step, now)
        {
            Window::Until(until) => Some((until - now).as_millis()),
            Window::Skip { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_gets_what_is_left_after_the_reserves_up_to_its_cap() {
        let steps = all(1_000, 100);
        assert_eq!(left(&steps, Step::Entities, 10_000), Some(1_000), "the cap");
        assert_eq!(
            left(&steps, Step::Entities, 700),
            Some(300),
            "four phases come later"
        );
        assert_eq!(
            left(&steps, Step::Retrieval, 700),
            Some(300),
            "the other step of its phase takes nothing from it"
        );
        assert_eq!(
            left(&steps, Step::Review, 900),
            Some(900),
            "nothing comes later"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn citation_and_review_give_way_before_a_step_falls_below_its_minimum_and_synthesis_never_does()
     {
        let steps = all(1_000, 100);
        assert_eq!(
            left(&steps, Step::Synthesis, 150),
            Some(100),
            "the reserve of citation and review gives way"
        );
        assert_eq!(left(&steps, Step::FactCheck, 250), Some(100));
        assert_eq!(
            left(&steps, Step::FactCheck, 199),
            None,
            "100 of it are synthesis's"
        );
        assert_eq!(left(&steps, Step::Synthesis, 99), None);
        assert_eq!(left(&steps, Step::Synthesis, 100), Some(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_before_synthesis_gets_half_of_what_remains_at_most() {
        let steps = all(10_000, 100);
        assert_eq!(left(&steps, Step::Entities, 10_000), Some(5_000));
        assert_eq!(left(&steps, Step::FactCheck, 5_000), Some(2_500));
        assert_eq!(
            left(&steps, Step::Synthesis, 2_500),
            Some(2_300),
            "the reserve of citation and review"
        );
        assert_eq!(
            left(
                &bounds(&[(Step::Entities, 1_000, 600)]),
                Step::Entities,
                1_000
            ),
            Some(600),
            "its minimum is more than half"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_starts_after_the_deadline_even_without_a_minimum() {
        let steps = all(1_000, 0);
        assert_eq!(left(&steps, Step::Synthesis, 0), None);
    }
}
