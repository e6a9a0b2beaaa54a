//! Short schedules with generous settings, for the tests of the router's rules.

use std::sync::Arc;
use std::time::Duration;

use gauntlet_harness::schedule::{Action, Schedule, Script, Settings};

use super::RouterSim;

pub const SECOND: Duration = Duration::from_secs(1);

/// Generous settings without jitter: a deadline of 10 s, a reserve of 1 s, a first-token timeout of
/// 3 s, an idle timeout of 2 s, and a backoff that starts at 100 ms.
pub fn settings() -> Settings {
    Settings {
        connect_ms: 500,
        first_token_ms: 3_000,
        idle_ms: 2_000,
        total_ms: 10_000,
        reserve_ms: 1_000,
        max_attempts: 3,
        base_ms: 100,
        max_ms: 10_000,
        jitter_percent: 0,
        budget_percent: 1_000,
        budget_floor: 100,
        failure_threshold: 100,
        cool_down_ms: 30_000,
        half_open_probes: 1,
    }
}

/// A schedule in which each candidate takes these actions, call after call.
pub fn doing(candidates: &[&[Action]]) -> Schedule {
    let candidates = candidates
        .iter()
        .map(|calls| Script {
            calls: calls.to_vec(),
        })
        .collect();
    Schedule {
        settings: settings(),
        candidates,
        requests: Vec::new(),
    }
}

pub fn sim(schedule: &Schedule) -> Arc<RouterSim> {
    let script = schedule.clone();
    RouterSim::new(move |candidate, call, stream| script.play(candidate, call, stream))
}

pub fn status(status: u16) -> Action {
    Action::Status {
        status,
        retry_after_s: None,
    }
}

pub fn limited(seconds: u64) -> Action {
    Action::Status {
        status: 429,
        retry_after_s: Some(seconds),
    }
}

pub fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}
