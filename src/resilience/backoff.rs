//! The waits between two attempts at the same candidate: exponential, bounded, jittered.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Where jitter comes from: numbers from 0 up to, not including, 1.
pub type Random = fn() -> f64;

/// The sequence of waits of one candidate in one request. The n-th wait lies in `[b * (1 - jitter), b]` with `b = min(base * 2ⁿ, max)`.
#[derive(Debug)]
pub struct Backoff {
    steps: ExponentialBackoff,
    max: Duration,
    jitter: f64,
    random: Random,
}

impl Backoff {
    /// A new sequence. `jitter` outside 0 to 1 is taken as the nearer end.
    pub fn new(base: Duration, max: Duration, jitter: f64, random: Random) -> Self {
        let steps = ExponentialBuilder::new()
            .with_factor(2.0)
            .with_min_delay(base.min(max))
            .with_max_delay(max)
            .without_max_times()
            .build();
        Self {
            steps,
            max,
            jitter: if jitter.is_finite() {
                jitter.clamp(0.0, 1.0)
            } else {
                0.0
            },
            random,
        }
    }

    /// The next wait; at least `asked` (a Retry-After) if there is one.
    pub fn next_wait(&mut self, asked: Option<Duration>) -> Duration {
        // the sequence is reckoned in f32: what is below a microsecond is its noise
        let micros = self
            .steps
            .next()
            .unwrap_or(self.max)
            .min(self.max)
            .as_micros();
        let full = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let wait = full.mul_f64(1.0 - self.jitter * (self.random)());
        wait.max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
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
    fn waits_at_least_as_long_as_asked() {
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
}
