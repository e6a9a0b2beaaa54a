//! Splits the one deadline of a query over its steps. No other code makes a deadline: a step gets
//! an instant, hands it to the LLM path, and is dropped when the instant is reached.
//!
//! A step gets `min(cap, remaining − reserve of the later phases)`. The reserve of a phase is the
//! largest minimum of its steps. The reserve of the phase that writes the answer holds against
//! every earlier step; the reserves of all other phases give way before a step would fall below its
//! own minimum. A step before the answer gets at most half of what remains, unless its minimum is
//! more, so that one step that hangs cannot starve the answer. A step that would still get less
//! than its minimum is not started, because its call would only cost time and tokens.

use std::time::Duration;

use indexmap::IndexMap;
use tokio::time::Instant;

use super::step::{Phase, Step};
use crate::config::StepConfig;

/// The time of one query.
#[derive(Clone, Debug)]
pub struct Budget<'c> {
    deadline: Instant,
    steps: &'c IndexMap<String, StepConfig>,
}

/// The time that a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The step is dropped at this instant if it has not ended by then.
    Until(Instant),
    /// The step is not started.
    Skip {
        /// The time that the step could have had.
        left: Duration,
        /// The least time with which the step is started.
        minimum: Duration,
    },
}

impl<'c> Budget<'c> {
    /// Builds a budget that ends at `deadline`. `steps` holds the configured limits by the name of
    /// the step; a step that is missing there has the defaults of its row.
    #[must_use]
    pub fn new(deadline: Instant, steps: &'c IndexMap<String, StepConfig>) -> Self {
        Self { deadline, steps }
    }

    /// Returns the time that `step` may take if it starts `now`.
    #[must_use]
    pub fn window(&self, step: Step, now: Instant) -> Window {
        let StepConfig { cap, minimum } = self.limits(step);
        let remaining = self.deadline.saturating_duration_since(now);
        let firm = remaining.saturating_sub(self.reserve(step, Reserve::Firm));
        let ample = firm.saturating_sub(self.reserve(step, Reserve::Yielding));
        let fair = if step.def().phase < Phase::Write {
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

    /// Returns whether a window of `step` from `started` to `until` ends at the step's cap, and not
    /// at the reserve of later steps or at the deadline.
    #[must_use]
    pub fn is_capped(&self, step: Step, started: Instant, until: Instant) -> bool {
        until >= started + self.limits(step).cap
    }

    fn limits(&self, step: Step) -> StepConfig {
        let settings = step.def().settings;
        self.steps
            .get(settings.name)
            .copied()
            .unwrap_or(StepConfig {
                cap: settings.cap,
                minimum: settings.minimum,
            })
    }

    fn reserve(&self, step: Step, kind: Reserve) -> Duration {
        let own = step.def().phase;
        Step::phases()
            .iter()
            .filter(|steps| {
                steps.first().is_some_and(|first| {
                    let phase = first.def().phase;
                    phase > own && (phase == Phase::Write) == (kind == Reserve::Firm)
                })
            })
            .map(|steps| {
                let minimums = steps.iter().map(|step| self.limits(*step).minimum);
                minimums.max().unwrap_or_default()
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

    fn limits(entries: &[(&str, u64, u64)]) -> IndexMap<String, StepConfig> {
        let millis = Duration::from_millis;
        entries
            .iter()
            .map(|(step, cap, minimum)| {
                (
                    (*step).to_owned(),
                    StepConfig {
                        cap: millis(*cap),
                        minimum: millis(*minimum),
                    },
                )
            })
            .collect()
    }

    fn all(cap: u64, minimum: u64) -> IndexMap<String, StepConfig> {
        limits(
            &Step::all()
                .map(|step| (step.name(), cap, minimum))
                .collect::<Vec<_>>(),
        )
    }

    fn left(steps: &IndexMap<String, StepConfig>, step: &str, remaining: u64) -> Option<u128> {
        let now = Instant::now();
        match Budget::new(now + Duration::from_millis(remaining), steps)
            .window(Step::named(step).unwrap(), now)
        {
            Window::Until(until) => Some((until - now).as_millis()),
            Window::Skip { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_gets_what_is_left_after_the_reserves_up_to_its_cap() {
        let steps = all(1_000, 100);
        assert_eq!(left(&steps, "entities", 10_000), Some(1_000), "the cap");
        assert_eq!(
            left(&steps, "entities", 700),
            Some(300),
            "four phases come later"
        );
        assert_eq!(
            left(&steps, "retrieval", 700),
            Some(300),
            "the other step of its phase takes nothing from it"
        );
        assert_eq!(
            left(&steps, "review", 900),
            Some(900),
            "nothing comes later"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_of_citation_and_review_gives_way_and_that_of_synthesis_never_does() {
        let steps = all(1_000, 100);
        assert_eq!(
            left(&steps, "synthesis", 150),
            Some(100),
            "the reserve of citation and review gives way"
        );
        assert_eq!(left(&steps, "fact_check", 250), Some(100));
        assert_eq!(
            left(&steps, "fact_check", 199),
            None,
            "100 ms of it are reserved for synthesis"
        );
        assert_eq!(left(&steps, "synthesis", 99), None);
        assert_eq!(left(&steps, "synthesis", 100), Some(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_before_synthesis_gets_half_of_what_remains_at_most() {
        let steps = all(10_000, 100);
        assert_eq!(left(&steps, "entities", 10_000), Some(5_000));
        assert_eq!(left(&steps, "fact_check", 5_000), Some(2_500));
        assert_eq!(
            left(&steps, "synthesis", 2_500),
            Some(2_300),
            "the reserve of citation and review"
        );
        assert_eq!(
            left(&limits(&[("entities", 1_000, 600)]), "entities", 1_000),
            Some(600),
            "its minimum is more than half"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_starts_after_the_deadline_even_without_a_minimum() {
        let steps = all(1_000, 0);
        assert_eq!(left(&steps, "synthesis", 0), None);
    }
}
