//! The retry budget of a provider: the number of retries, as a share of the number of requests.
//!
//! Within a sliding window of ten seconds, `retries ≤ ratio * requests + floor`. A provider that
//! fails under load therefore receives few more attempts than a healthy one. Everything that starts
//! an extra call, which today is a retry, takes it from this budget.
//!
//! `tower::retry::budget::TpsBudget` cannot keep this rule, as measured with tower 0.5.3 over 100
//! requests. It computes with whole tokens per retry: a ratio of 0.75 permits 100 retries and a
//! ratio of 0.3 permits 33. Its floor is a whole number per second: over ten seconds, a ratio of
//! 0.2 with a floor of 3 permits 50 retries instead of 23.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// The number of slots of the window. A slot holds one second.
const SLOTS: usize = 10;

/// The retry budget of one provider, shared by all requests to it. Each call takes one short lock.
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    floor: u32,
    start: Instant,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl RetryBudget {
    /// Creates a budget of `ratio` retries per request, plus `floor` retries in any ten seconds.
    pub fn new(ratio: f64, floor: u32) -> Self {
        Self {
            ratio: if ratio.is_finite() {
                ratio.max(0.0)
            } else {
                0.0
            },
            floor,
            start: Instant::now(),
            window: Mutex::default(),
        }
    }

    /// Counts a request's first attempt at this provider.
    pub fn request(&self) {
        self.with_window(|slots, now| slots[now].requests = slots[now].requests.saturating_add(1));
    }

    /// Takes one retry from the budget. Returns false if the budget has none.
    #[must_use]
    pub fn try_take(&self) -> bool {
        self.with_window(|slots, now| {
            let requests: u64 = slots.iter().map(|slot| u64::from(slot.requests)).sum();
            let retries: u64 = slots.iter().map(|slot| u64::from(slot.retries)).sum();
            let allowed =
                (retries + 1) as f64 <= self.ratio * requests as f64 + f64::from(self.floor);
            if allowed {
                slots[now].retries = slots[now].retries.saturating_add(1);
            }
            allowed
        })
    }

    fn with_window<T>(&self, work: impl FnOnce(&mut [Slot; SLOTS], usize) -> T) -> T {
        let second = self.start.elapsed().as_secs();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.advance(second);
        let now = usize::try_from(window.second % SLOTS as u64).unwrap_or_default();
        work(&mut window.slots, now)
    }
}

impl Window {
    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.second).min(SLOTS as u64);
        for step in 1..=passed {
            let slot = usize::try_from((second - passed + step) % SLOTS as u64).unwrap_or_default();
            self.slots[slot] = Slot::default();
        }
        self.second = self.second.max(second);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn taken(budget: &RetryBudget, tries: usize) -> usize {
        (0..tries).filter(|_| budget.try_take()).count()
    }

    #[rstest]
    #[case::floor_alone(0.0, 3, 10, 3)]
    #[case::ratio_alone(0.2, 0, 10, 2)]
    #[case::both(0.2, 3, 10, 5)]
    #[case::no_requests(0.2, 0, 0, 0)]
    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_requests(
        #[case] ratio: f64,
        #[case] floor: u32,
        #[case] requests: usize,
        #[case] allowed: usize,
    ) {
        let budget = RetryBudget::new(ratio, floor);
        for _ in 0..requests {
            budget.request();
        }
        assert_eq!(taken(&budget, 100), allowed);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_slides() {
        let budget = RetryBudget::new(0.0, 2);
        assert_eq!(taken(&budget, 5), 2);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(
            taken(&budget, 5),
            0,
            "the old retries are still inside the window"
        );
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(taken(&budget, 5), 2, "the old retries have left the window");
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_silence_empties_the_window() {
        let budget = RetryBudget::new(1.0, 0);
        budget.request();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(!budget.try_take(), "requests of an hour ago permit nothing");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Request,
        Take,
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Request),
            4 => Just(Step::Take),
            1 => (0..3_000u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// RETRY-06. The window is between nine and ten seconds long, since its slots hold a
        /// second.
        #[test]
        fn retries_never_exceed_their_share(ratio in 0.0..3.0f64, floor in 0..5u32, steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build();
            prop_assert!(runtime.is_ok());
            let Ok(runtime) = runtime else { return Ok(()) };
            runtime.block_on(async {
                let budget = RetryBudget::new(ratio, floor);
                let start = Instant::now();
                let (mut requests, mut retries) = (Vec::new(), Vec::new());
                for step in steps {
                    let now = start.elapsed();
                    match step {
                        Step::Wait(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
                        Step::Request => {
                            budget.request();
                            requests.push(now);
                        }
                        Step::Take if budget.try_take() => {
                            retries.push(now);
                            let within = |times: &[Duration], seconds| {
                                let from = now.saturating_sub(Duration::from_secs(seconds));
                                times.iter().filter(|at| **at >= from).count() as f64
                            };
                            let permitted = ratio * within(&requests, 10) + f64::from(floor);
                            prop_assert!(within(&retries, 9) <= permitted + 1e-9);
                        }
                        Step::Take => {}
                    }
                }
                Ok(())
            })?;
        }
    }
}
