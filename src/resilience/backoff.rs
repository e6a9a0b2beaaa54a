//! The waits between two attempts at the same candidate: exponential, bounded and jittered.

use std::time::Duration;

use super::deadline::FOREVER;

/// A source of random numbers in the range from 0 to 1, 1 excluded.
pub type Random = fn() -> f64;

/// The sequence of waits of one request at one candidate. The n-th wait, counted from 0, lies in
/// `[b * (1 - jitter), b]` with `b = min(base * 2ⁿ, max)`.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
    jitter: f64,
    random: Random,
}

impl Backoff {
    /// Creates a sequence that starts at `base`. A `jitter` outside the range from 0 to 1 is
    /// replaced by the nearer end of the range.
    pub fn new(base: Duration, max: Duration, jitter: f64, random: Random) -> Self {
        let max = max.min(FOREVER);
        Self {
            next: base.min(max),
            max,
            jitter: if jitter.is_finite() {
                jitter.clamp(0.0, 1.0)
            } else {
                0.0
            },
            random,
        }
    }

    /// The next wait; at least `retry_after`, if a provider sent one.
    pub fn next_wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        let wait = full.mul_f64(1.0 - self.jitter * (self.random)());
        wait.max(retry_after.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn doubles_up_to_its_bound() {
        let mut backoff = Backoff::new(ms(100), ms(500), 0.0, rand::random);
        let waits: Vec<_> = (0..5).map(|_| backoff.next_wait(None)).collect();
        assert_eq!(waits, [ms(100), ms(200), ms(400), ms(500), ms(500)]);
    }

    #[test]
    fn jitter_stays_between_its_bounds_and_is_used() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut backoff = Backoff::new(ms(100), ms(500), 0.5, rand::random);
            for full in [100, 200, 400, 500] {
                let wait = backoff.next_wait(None);
                assert!(
                    wait >= ms(full / 2) && wait <= ms(full),
                    "{wait:?} for {full} ms"
                );
                seen.insert(wait);
            }
        }
        assert!(seen.len() > 100, "only {} different waits", seen.len());
    }

    #[test]
    fn waits_at_least_as_long_as_the_retry_after() {
        let mut backoff = Backoff::new(ms(100), ms(500), 0.5, rand::random);
        assert_eq!(backoff.next_wait(Some(ms(3_000))), ms(3_000));
        assert!(backoff.next_wait(Some(ms(1))) >= ms(100));
    }

    #[test]
    fn a_base_beyond_the_bound_is_the_bound() {
        assert_eq!(
            Backoff::new(ms(900), ms(500), 0.0, rand::random).next_wait(None),
            ms(500)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_wait_lies_between_its_bounds(
            base in any::<u64>(),
            max in any::<u64>(),
            jitter in prop_oneof![0.0..=1.0f64, any::<f64>()],
        ) {
            let (base, max) = (ms(base), ms(max).min(FOREVER));
            let used = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
            let mut backoff = Backoff::new(base, max, jitter, rand::random);
            for n in 0..80 {
                let factor = 1u128.checked_shl(n).unwrap_or(u128::MAX);
                let full = base.as_nanos().saturating_mul(factor).min(max.as_nanos()) as f64;
                let wait = backoff.next_wait(None).as_nanos() as f64;
                // f64 holds 15 significant digits
                prop_assert!(wait <= full * (1.0 + 1e-9) + 1.0, "{wait} of {full}");
                prop_assert!(wait >= full * (1.0 - used) * (1.0 - 1e-9) - 1.0, "{wait} of {full}");
            }
        }
    }
}
