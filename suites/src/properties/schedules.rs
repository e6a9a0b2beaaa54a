//! Random fault schedules for PROP-01: one to four candidates, attempts, timeouts up to half a
//! minute, plain and streamed.

use gauntlet_harness::schedule::{Action, Leave, Request, Schedule, Script, Settings};
use proptest::collection::vec;
use proptest::prelude::*;

/// Any valid schedule.
pub fn schedules() -> impl Strategy<Value = Schedule> {
    settings().prop_flat_map(|settings| {
        let total = settings.total_ms;
        (
            Just(settings),
            vec(script(total), 1..=4),
            vec(request(total), 1..=4),
        )
            .prop_map(|(settings, candidates, requests)| Schedule {
                settings,
                candidates,
                requests,
            })
    })
}

/// Valid settings: no inner timeout is longer than the one around it.
fn settings() -> impl Strategy<Value = Settings> {
    let total = prop_oneof![
        200u64..2_000,
        2_000u64..10_000,
        Just(30_000u64),
        Just(60_000u64)
    ];
    let budget = prop_oneof![3 => Just((1_000u32, 100u32)), 1 => (0u32..100, 0u32..3)];
    let breaker = prop_oneof![2 => Just(1_000u32), 3 => 1u32..5];
    (
        total,
        1u64..100,
        1u64..100,
        1u64..100,
        0u64..60,
        1u32..=4,
        (1u64..500, 1u64..3_000, 0u32..=100),
        budget,
        breaker,
        (1u64..20_000, 1u32..3),
    )
        .prop_map(
            |(
                total_ms,
                connect,
                first_token,
                idle,
                reserve,
                max_attempts,
                (base_ms, max_ms, jitter_percent),
                (budget_percent, budget_floor),
                failure_threshold,
                (cool_down_ms, half_open_probes),
            )| {
                let part = |percent: u64| (total_ms * percent / 100).max(1);
                Settings {
                    connect_ms: part(connect.min(first_token)),
                    first_token_ms: part(first_token),
                    idle_ms: part(idle),
                    total_ms,
                    reserve_ms: part(reserve),
                    max_attempts,
                    base_ms: base_ms.min(max_ms),
                    max_ms,
                    jitter_percent,
                    budget_percent,
                    budget_floor,
                    failure_threshold,
                    cool_down_ms,
                    half_open_probes,
                }
            },
        )
}

fn script(total_ms: u64) -> impl Strategy<Value = Script> {
    prop_oneof![
        // faults of all kinds, one after the other
        6 => vec(action(total_ms), 0..6).prop_map(|calls| Script { calls }),
        // the same fault forever: this opens breakers and spends budgets
        2 => action(total_ms).prop_map(|action| Script { calls: vec![action; 24] }),
    ]
}

/// The order of the variants makes a failure shrink towards an answer.
fn action(total_ms: u64) -> impl Strategy<Value = Action> {
    let gap = (total_ms / 40).max(20)..total_ms.max(21);
    let events = 0usize..6;
    let retry_after = prop_oneof![3 => Just(None), 2 => (0u64..4).prop_map(Some), 1 => Just(Some(47)), 1 => Just(Some(u64::MAX / 4_000))];
    let status = prop_oneof![
        Just(500u16),
        Just(502),
        Just(503),
        Just(504),
        Just(529),
        Just(429),
        Just(429),
        Just(400),
        Just(401),
        Just(402),
        Just(403),
        Just(404),
        Just(413),
        Just(422)
    ];
    prop_oneof![
        3 => Just(Action::Answer),
        1 => Just(Action::NoDone),
        1 => gap.clone().prop_map(|every_ms| Action::Drip { every_ms }),
        1 => gap.prop_map(|every_ms| Action::DripForever { every_ms }),
        4 => (status, retry_after).prop_map(|(status, retry_after_s)| Action::Status { status, retry_after_s }),
        1 => Just(Action::Quota),
        1 => Just(Action::Refuse),
        1 => Just(Action::NeverAccept),
        1 => Just(Action::Reset),
        1 => Just(Action::Silent),
        1 => events.clone().prop_map(|events| Action::Stall { events }),
        1 => events.clone().prop_map(|events| Action::Cut { events }),
        1 => events.clone().prop_map(|events| Action::CutInside { events }),
        1 => events.clone().prop_map(|events| Action::ResetAfter { events }),
        1 => events.clone().prop_map(|events| Action::NoFinish { events }),
        1 => events.clone().prop_map(|events| Action::InBandError { events }),
        1 => events.prop_map(|events| Action::Malformed { events }),
        1 => Just(Action::Html),
        1 => Just(Action::Empty),
    ]
}

fn request(total_ms: u64) -> impl Strategy<Value = Request> {
    let leaves = prop_oneof![
        4 => Just(None),
        1 => (0..total_ms).prop_map(|ms| Some(Leave::AfterMs(ms))),
        1 => (1usize..4).prop_map(|words| Some(Leave::AfterWords(words))),
    ];
    (
        prop_oneof![2 => Just(0u64), 1 => 0u64..25_000],
        any::<bool>(),
        leaves,
    )
        .prop_map(|(after_ms, stream, leaves)| Request {
            after_ms,
            stream,
            leaves,
        })
}
