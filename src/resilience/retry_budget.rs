//! The retry budget of a provider: what may be tried again, as a share of what was asked for the first time.
//!
//! Over a sliding window of ten seconds, `retries ≤ ratio * requests + floor`. A provider that is dead under load is thereby
//! asked little more often than a healthy one. Whatever starts an extra call (a retry today) takes it from here.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// The window, in slots of one second.
const SLOTS: usize = 10;

/// One provider's budget. Shared by all requests at it; costs one short lock a call.
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
    extra: u32,
}

impl RetryBudget {
    /// An unspent budget of `ratio` extra calls a request, plus `floor` in any ten seconds.
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

    /// Notes that a request asks this provider for the first time.
    pub fn request(&self) {
        self.with_window(|slots, now| slots[now].requests = slots[now].requests.saturating_add(1));
    }

    /// Takes one extra call, if the budget has one.
    #[must_use]
    pub fn try_take(&self) -> bool {
        self.with_window(|slots, now| {
            let requests: u64 = slots.iter().map(|slot| u64::from(slot.requests)).sum();
            let extra: u64 = slots.iter().map(|slot| u64::from(slot.extra)).sum();
            let allowed =
                (extra + 1) as f64 <= self.ratio * requests as f64 + f64::from(self.floor);
            if allowed {
                slots[now].extra = slots[now].extra.saturating_add(1);
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

    use rstest::rstest;

    use super::*;

    fn taken(budget: &RetryBudget, tries: usize) -> usize {
        (0..tries).filter(|_| budget.try_take()).count()
    }

    #[rstest]
    #[case::floor_alone(0.0, 3, 10, 3)]
    #[case::ratio_alone(0.2, 0, 10, 2)]
    #[case::both(0.2, 3, 10, 5)]
    #[case::nothing_asked(0.2, 0, 0, 0)]
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
        assert_eq!(taken(&budget, 5), 0, "still inside the window");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(taken(&budget, 5), 2, "the old ones have left it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_silence_empties_the_window() {
        let budget = RetryBudget::new(1.0, 0);
        budget.request();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(!budget.try_take(), "requests of an hour ago allow nothing");
    }
}
