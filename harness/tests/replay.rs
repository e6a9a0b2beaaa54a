//! A schedule is played against a gateway that passes everything on, and is therefore wrong in
//! known ways.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gauntlet_harness::gate::with_hang_guard;
use gauntlet_harness::runner::{Replay, replay};
use gauntlet_harness::schedule::Schedule;
use gauntlet_harness::schedule::invariants::Invariant;
use gauntlet_harness::subject::{
    Capability, Deployment, Manifest, RunningTarget, Target, TargetError,
};
use serde_json::json;

/// The first provider itself, taken for a gateway.
struct PassesOn(Manifest);

#[async_trait]
impl Target for PassesOn {
    fn manifest(&self) -> &Manifest {
        &self.0
    }

    async fn start(&self, deployment: Deployment) -> Result<RunningTarget, TargetError> {
        let base_url = deployment.endpoints["p1"]
            .trim_end_matches("/v1")
            .to_string();
        Ok(RunningTarget {
            base_url,
            model_prefix: String::new(),
            headers: Vec::new(),
            rendered: Arc::default(),
            process: None,
        })
    }
}

async fn played(action: serde_json::Value) -> Replay {
    let schedule = json!({
        "settings": {"connect_ms": 50, "first_token_ms": 50, "idle_ms": 50, "total_ms": 50, "reserve_ms": 10, "max_attempts": 1,
            "base_ms": 10, "max_ms": 100, "jitter_percent": 50, "budget_percent": 100, "budget_floor": 10, "failure_threshold": 3,
            "cool_down_ms": 1000, "half_open_probes": 1},
        "candidates": [[action]],
        "requests": [{"after_ms": 0, "stream": true, "leaves": null}]
    });
    let manifest = Manifest {
        name: "t".into(),
        version: None,
        capabilities: BTreeSet::from([Capability::Chat]),
        ..Manifest::default()
    };
    let target: Arc<dyn Target> = Arc::new(PassesOn(manifest));
    let schedule = Schedule::from_json(&schedule.to_string()).unwrap();
    with_hang_guard(
        Duration::from_millis(100),
        replay(&target, &schedule, "by hand"),
    )
    .await
    .unwrap()
}

fn broken(replay: &Replay) -> Vec<Invariant> {
    replay
        .verdicts
        .iter()
        .filter(|(_, violation)| violation.is_some())
        .map(|(invariant, _)| *invariant)
        .collect()
}

#[tokio::test]
async fn a_good_answer_passed_on_breaks_nothing() {
    assert_eq!(broken(&played(json!("answer")).await), []);
}

#[tokio::test]
async fn an_answer_without_an_end_is_a_violation() {
    let replay = played(json!({"drip_forever": {"every_ms": 1}})).await;
    assert!(
        broken(&replay).contains(&Invariant::OneEnd),
        "{:?}",
        replay.verdicts
    );
}
