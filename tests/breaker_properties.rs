//! PROP-02: the breaker behaves like its reference model for any sequence of outcomes and times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use gauntlet::resilience::breaker::{
    Breaker, BreakerSettings, BreakerState, MAX_RETRY_AFTER, Pass,
};
use gauntlet_suites::properties::breaker_model::{
    Action, Model, Seen, Settings, actions, settings,
};
use gauntlet_suites::properties::counterexample;
use proptest::prelude::*;
use tokio::time::Instant;

const REGRESSIONS: &str = "tests/regressions/breaker.txt";

/// The part of a breaker that the model describes. A defective breaker also implements it, to prove
/// that the property can fail.
trait Subject {
    fn ask(&mut self) -> bool;
    fn ask_without_alternative(&mut self) -> bool;
    fn commit(&mut self, at: usize);
    fn end(&mut self, at: usize, how: Ending);
    fn state(&self) -> Seen;
    fn rests_for(&self) -> Option<Duration>;
}

#[derive(Clone, Copy)]
enum Ending {
    Success,
    Failure(Option<Duration>),
    Left,
}

struct Real {
    breaker: Arc<Breaker>,
    under_way: Vec<Pass>,
    /// The defect: a client that leaves keeps its probe permit.
    leaks: bool,
    leaked: Vec<Pass>,
}

impl Real {
    fn new(settings: Settings, leaks: bool) -> Self {
        let settings = BreakerSettings {
            failure_rate: f64::from(settings.failure_percent) / 100.0,
            window: Duration::from_millis(settings.window_ms),
            minimum_attempts: settings.minimum_attempts,
            failure_threshold: settings.failure_threshold,
            cool_down: Duration::from_millis(settings.cool_down_ms),
            cool_down_max: Duration::from_millis(settings.cool_down_max_ms),
            half_open_probes: settings.half_open_probes,
            open_share: f64::from(settings.open_percent) / 100.0,
        };
        Self {
            breaker: Breaker::new(settings, Box::new(|_| {})),
            under_way: Vec::new(),
            leaks,
            leaked: Vec::new(),
        }
    }
}

impl Subject for Real {
    fn ask(&mut self) -> bool {
        let checked = self.breaker.check().is_ok();
        let passed = self
            .breaker
            .try_pass()
            .map(|pass| self.under_way.push(pass))
            .is_ok();
        assert_eq!(checked, passed, "check and try_pass disagree");
        passed
    }

    fn ask_without_alternative(&mut self) -> bool {
        self.ask()
            || self
                .breaker
                .try_share()
                .map(|pass| self.under_way.push(pass))
                .is_some()
    }

    fn commit(&mut self, at: usize) {
        self.under_way[at].committed();
    }

    fn end(&mut self, at: usize, how: Ending) {
        let pass = self.under_way.remove(at);
        match how {
            Ending::Success => pass.success(),
            Ending::Failure(asked) => pass.failure(asked),
            Ending::Left if self.leaks && self.state() == Seen::HalfOpen => self.leaked.push(pass),
            Ending::Left => drop(pass),
        }
    }

    fn state(&self) -> Seen {
        match self.breaker.state() {
            BreakerState::Closed => Seen::Closed,
            BreakerState::Open => Seen::Open,
            BreakerState::HalfOpen => Seen::HalfOpen,
        }
    }

    fn rests_for(&self) -> Option<Duration> {
        (self.state() == Seen::Open).then(|| {
            self.breaker
                .check()
                .expect_err("an open breaker lets nothing pass")
                .retry_after
        })
    }
}

/// Runs breaker and model side by side. Returns a sentence about the first difference.
async fn agrees(
    settings: Settings,
    steps: &[Action],
    subject: &mut impl Subject,
) -> Result<(), String> {
    let mut model = Model::new(
        settings,
        u64::try_from(MAX_RETRY_AFTER.as_millis()).unwrap(),
    );
    for (step, action) in steps.iter().enumerate() {
        let wrong = |what: &str| format!("step {step}, {action:?}: {what}");
        let under_way = model.under_way();
        match *action {
            Action::Ask => {
                let (is, should) = (subject.ask(), model.ask());
                if is != should {
                    return Err(wrong(&format!("let through: {is}, the model: {should}")));
                }
            }
            Action::AskWithoutAlternative => {
                let is = subject.ask_without_alternative();
                let should = model.ask_without_alternative();
                if is != should {
                    return Err(wrong(&format!("let through: {is}, the model: {should}")));
                }
            }
            Action::Advance(ms) => {
                tokio::time::advance(Duration::from_millis(ms)).await;
                model.advance(ms);
            }
            // No attempt is under way that can end.
            _ if under_way == 0 => continue,
            Action::Commit(at) => {
                subject.commit(at % under_way);
                model.commit(at % under_way);
            }
            Action::Succeed(at) => {
                subject.end(at % under_way, Ending::Success);
                model.succeed(at % under_way);
            }
            Action::Fail(at, asked) => {
                subject.end(
                    at % under_way,
                    Ending::Failure(asked.map(Duration::from_millis)),
                );
                model.fail(at % under_way, asked);
            }
            Action::Leave(at) => {
                subject.end(at % under_way, Ending::Left);
                model.leave(at % under_way);
            }
        }
        if subject.state() != model.state() {
            return Err(wrong(&format!(
                "{:?}, the model: {:?}",
                subject.state(),
                model.state()
            )));
        }
        let (is, should) = (
            subject.rests_for(),
            model.rests_for_ms().map(Duration::from_millis),
        );
        if is != should {
            return Err(wrong(&format!("rests for {is:?}, the model: {should:?}")));
        }
    }
    Ok(())
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

fn runs() -> impl Strategy<Value = (Settings, Vec<Action>)> {
    settings().prop_flat_map(|settings| (Just(settings), actions(settings)))
}

#[test]
fn the_breaker_is_its_model() {
    let property = |(settings, steps): &(Settings, Vec<Action>)| {
        paused(async { agrees(*settings, steps, &mut Real::new(*settings, false)).await })
    };
    let found = counterexample::find(
        counterexample::config(3_000, REGRESSIONS),
        &runs(),
        property,
    )
    .unwrap();
    assert!(
        found.is_none(),
        "the breaker differs from its model: {found:#?}"
    );
}

/// The property can fail: a breaker whose probes keep their permit when the client leaves differs
/// from the model within few steps.
#[test]
fn a_breaker_that_can_get_stuck_is_found() {
    let property = |(settings, steps): &(Settings, Vec<Action>)| {
        paused(async { agrees(*settings, steps, &mut Real::new(*settings, true)).await })
    };
    let ((_, steps), why) = counterexample::find(counterexample::fixed(3_000), &runs(), property)
        .unwrap()
        .expect("the defect must be found");
    assert!(
        steps.len() <= 40,
        "shrunk to {} steps: {steps:?}",
        steps.len()
    );
    assert!(why.contains("let through: false, the model: true"), "{why}");
}

/// The runs reach every change of state.
#[test]
fn the_runs_reach_every_state() {
    let reached = std::cell::RefCell::new(std::collections::HashMap::<String, usize>::new());
    let property = |(settings, steps): &(Settings, Vec<Action>)| {
        let mut model = Model::new(*settings, 600_000);
        for action in steps {
            let under_way = model.under_way();
            let before = model.state();
            match *action {
                Action::Ask => drop(model.ask()),
                Action::AskWithoutAlternative => drop(model.ask_without_alternative()),
                Action::Advance(ms) => model.advance(ms),
                _ if under_way == 0 => {}
                Action::Commit(at) => model.commit(at % under_way),
                Action::Succeed(at) => model.succeed(at % under_way),
                Action::Fail(at, asked) => model.fail(at % under_way, asked),
                Action::Leave(at) => model.leave(at % under_way),
            }
            *reached
                .borrow_mut()
                .entry(format!("{before:?} to {:?}", model.state()))
                .or_default() += 1;
        }
        Ok(())
    };
    counterexample::find(counterexample::fixed(900), &runs(), property).unwrap();
    for change in [
        "Closed to Open",
        "Open to HalfOpen",
        "HalfOpen to Closed",
        "HalfOpen to Open",
        "Open to Open",
    ] {
        assert!(
            reached
                .borrow()
                .get(change)
                .is_some_and(|times| *times > 50),
            "{change} is hardly reached: {reached:?}"
        );
    }
}

/// The clock of a run is paused: no run waits in real time.
#[test]
fn time_is_paused() {
    paused(async {
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3_600));
    });
}
