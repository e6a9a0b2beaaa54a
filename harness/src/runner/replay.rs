//! Plays a fault schedule over real sockets against any gateway, and checks the invariants of the
//! schedule on what was seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Outcome;
use super::fixture::CaseFixture;
use crate::case::Profile;
use crate::client::{Client, StreamReply};
use crate::gate::{bounded, guard, hang_guard, pace, with_hang_guard};
use crate::llm::{Responder, calls_at, error, raw, with};
use crate::schedule::invariants::{
    Call, End, Exchange, Invariant, Observation, Violation, check_only,
};
use crate::schedule::{ALIAS, Leave, Played, Request, Schedule};
use crate::subject::{Capability, Manifest, RunningTarget, Target};
use crate::tape::{Entry, Event, Side, Tape};
use crate::verdict::{Failure, FailureMode, Level, Verdict};
use crate::wire::HARNESS_STATUS;

/// How much later than the deadline the end of an exchange may be seen, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// The result of playing a schedule.
#[derive(Debug)]
pub struct Replay {
    /// The result as the outcome of a case, for the report.
    pub outcome: Outcome,
    /// What was seen at the client and at the providers.
    pub observation: Observation,
    /// Each invariant that was checked, and its violation, if there is one.
    pub verdicts: Vec<(Invariant, Option<Violation>)>,
    /// Each invariant that was not checked, and the capability that the target does not declare.
    pub not_supported: Vec<(Invariant, Capability)>,
}

/// Plays `schedule` against the target; the report calls it `name`. Dropping the future stops
/// everything that was started.
///
/// # Errors
/// [`Failure::NotRun`] if the target cannot be configured as the schedule asks;
/// [`Failure::Target`] if it does not start; [`Failure::Harness`] if the harness itself fails.
pub async fn replay(
    target: &Arc<dyn Target>,
    schedule: &Schedule,
    name: &str,
) -> Result<Replay, Failure> {
    let began = Instant::now();
    let spec = schedule.spec();
    target
        .accepts(&spec)
        .map_err(|why| Failure::NotRun { why })?;
    let mut fixture = CaseFixture::prepare(target, "schedule", spec, None).await?;
    for (candidate, stub) in fixture.stubs.values().enumerate() {
        stub.answers(script(schedule, candidate, stub.name(), &fixture.tape));
        stub.listen(schedule.listen(candidate)).await?;
    }
    let running = target
        .start(fixture.deployment())
        .await
        .map_err(|error| Failure::Target {
            what: error.to_string(),
        })?;
    // an answer may take as long as the deadline of the schedule; that alone is no hang
    let bound = hang_guard().max(Duration::from_millis(schedule.settings.total_ms) + 2 * GRACE);
    let mut exchanges = Vec::new();
    for (n, request) in schedule.requests.iter().enumerate() {
        pace(Duration::from_millis(request.after_ms)).await;
        exchanges.push(with_hang_guard(bound, ask(&fixture, &running, *request, n)).await?);
    }
    let left_open = left_open(&fixture).await;
    add_calls(&fixture, &mut exchanges);
    let grace_ms = u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX);
    let observation = Observation {
        exchanges,
        left_open,
        grace_ms,
    };
    let (verdicts, not_supported) = judge(target.manifest(), schedule, &observation);
    let log_tail = running
        .process
        .as_ref()
        .map(|process| process.log_tail())
        .unwrap_or_default();
    let outcome = outcome(name, &verdicts, &fixture, began, log_tail);
    fixture.stubs.clear();
    drop(running);
    fixture.close().await;
    Ok(Replay {
        outcome,
        observation,
        verdicts,
        not_supported,
    })
}

/// Answers the calls at one provider as the schedule says. Calls are numbered by the tape, as in
/// [`add_calls`]: a call whose client leaves at once has its number, although its answer is never
/// asked for.
fn script(schedule: &Schedule, candidate: usize, provider: &str, tape: &Tape) -> Responder {
    let (schedule, provider, tape) = (schedule.clone(), provider.to_string(), tape.clone());
    with(move |asked| {
        let call = calls_at(&provider, &tape)
            .iter()
            .position(|received| Some(received.request) == asked.request);
        let Some(call) = call else {
            return error(HARNESS_STATUS).message("this call is not on the tape");
        };
        let Played { response, plan, .. } = schedule.play(candidate, call, asked.streams());
        let answer = raw(response.status, &response.content_type, response.body);
        response
            .headers
            .iter()
            .fold(answer, |answer, (name, value)| answer.header(name, value))
            .plan(plan)
    })
}

/// Makes one request of the schedule and follows it to its end, or until its client leaves.
async fn ask(
    fixture: &CaseFixture,
    running: &RunningTarget,
    request: Request,
    n: usize,
) -> Result<Exchange, Failure> {
    let client = Client::of(running, fixture.tape.clone())?.labelled(&label(n));
    let body = serde_json::json!({
        "model": running.model(ALIAS), "stream": request.stream,
        "messages": [{ "role": "user", "content": format!("request {}", marker(fixture, n)) }],
    });
    let began = Instant::now();
    let mut exchange = Exchange::default();
    let seen = see(&client, body, request, &mut exchange);
    let seen = match request.leaves {
        // dropping the exchange is how a client leaves
        Some(Leave::AfterMs(ms)) => bounded(Duration::from_millis(ms), seen)
            .await
            .unwrap_or(Ok(())),
        _ => guard("hang.exchange", "the end of the exchange", seen)
            .await
            .and_then(|seen| seen),
    };
    match seen {
        // an exchange without an end is an observation, which the invariants judge
        Ok(())
        | Err(Failure::Violated {
            mode: FailureMode::Hang,
            ..
        }) => {}
        Err(failure) => return Err(failure),
    }
    exchange.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(exchange)
}

async fn see(
    client: &Client,
    body: serde_json::Value,
    request: Request,
    exchange: &mut Exchange,
) -> Result<(), Failure> {
    if !request.stream {
        match client.send_chat(body).await?.try_reply().await? {
            Ok(reply) if reply.status == 200 => {
                exchange.text = reply.content();
                exchange.ends.push(End::Complete);
            }
            Ok(_) => exchange.ends.push(End::Error),
            // the transport failed: the client saw no end
            Err(_) => {}
        }
        return Ok(());
    }
    match client.send_chat(body).await?.try_stream().await? {
        Ok(stream) => read(stream, request, exchange).await,
        Err(_) => Ok(()),
    }
}

async fn read(
    mut stream: StreamReply,
    request: Request,
    exchange: &mut Exchange,
) -> Result<(), Failure> {
    if stream.status != 200 {
        exchange.ends.push(End::Error);
        return stream.collect().await.map(|_| ());
    }
    let mut words = 0;
    while let Some(event) = stream.next().await? {
        exchange.text.push_str(&event.delta_text);
        words += usize::from(!event.delta_text.is_empty());
        if event.error().is_some() {
            exchange.ends.push(End::Broken);
        } else if event.is_done() {
            exchange.ends.push(End::Complete);
        }
        if matches!(request.leaves, Some(Leave::AfterWords(most)) if words >= most)
            && exchange.ends.is_empty()
        {
            stream.leave();
            return Ok(());
        }
    }
    Ok(())
}

/// Returns how many calls the gateway still holds open after all exchanges have ended.
async fn left_open(fixture: &CaseFixture) -> usize {
    let all_ended = async {
        for stub in fixture.stubs.values() {
            let _ = stub.in_flight_is(0).await;
        }
    };
    bounded(hang_guard(), all_ended).await;
    fixture
        .stubs
        .values()
        .map(crate::llm::Stub::in_flight)
        .sum()
}

/// Adds to each exchange its calls at the providers, as the tape shows them.
fn add_calls(fixture: &CaseFixture, exchanges: &mut [Exchange]) {
    let entries = fixture.tape.entries();
    let start = entries
        .iter()
        .find(|entry| matches!(entry.event, Event::ClientSent { .. }))
        .map_or(0, |entry| entry.at_us);
    let at: HashMap<u64, u64> = entries
        .iter()
        .map(|entry| (entry.seq, entry.at_us.saturating_sub(start) / 1_000))
        .collect();
    for (n, exchange) in exchanges.iter_mut().enumerate() {
        // a call may already be on its way when the client leaves
        let left = entries
            .iter()
            .find(|entry| has_left(entry, &label(n)))
            .map(|entry| entry.at() + GRACE);
        let late = |seq: u64| {
            left.is_some_and(|left| {
                entries
                    .iter()
                    .any(|entry| entry.seq == seq && entry.at() > left)
            })
        };
        let mut calls = Vec::new();
        for (candidate, stub) in fixture.stubs.values().enumerate() {
            for (call, received) in stub.requests().iter().enumerate() {
                if received.body.contains(&marker(fixture, n)) {
                    calls.push((
                        received.seq,
                        Call {
                            candidate,
                            call,
                            at_ms: at.get(&received.seq).copied().unwrap_or_default(),
                        },
                    ));
                }
            }
        }
        calls.sort_by_key(|(seq, _)| *seq);
        exchange.calls_after_leaving = calls.iter().filter(|(seq, _)| late(*seq)).count();
        exchange.calls = calls.into_iter().map(|(_, call)| call).collect();
    }
}

fn has_left(entry: &Entry, label: &str) -> bool {
    matches!(&entry.side, Side::Client(name) if name == label) && entry.event == Event::ClientLeft
}

type Verdicts = (
    Vec<(Invariant, Option<Violation>)>,
    Vec<(Invariant, Capability)>,
);

fn judge(manifest: &Manifest, schedule: &Schedule, seen: &Observation) -> Verdicts {
    // not every gateway can be given a jitter, so the whole backoff may be random
    let mut schedule = schedule.clone();
    schedule.settings.jitter_percent = 100;
    let (mut verdicts, mut not_supported) = (Vec::new(), Vec::new());
    for invariant in Invariant::ALL {
        match needs(invariant) {
            Some(need) if !manifest.capabilities.contains(&need) => {
                not_supported.push((invariant, need))
            }
            _ => verdicts.push((invariant, check_only(&[invariant], &schedule, seen).err())),
        }
    }
    (verdicts, not_supported)
}

/// Returns the capability that a target has to declare before an invariant is checked.
fn needs(invariant: Invariant) -> Option<Capability> {
    match invariant {
        Invariant::WithinDeadline => Some(Capability::TotalDeadline),
        Invariant::BreakerRests => Some(Capability::Breaker),
        Invariant::WithinBudget => Some(Capability::RetryBudget),
        Invariant::NobodyForgotten | Invariant::GoodAnswerServed => Some(Capability::Fallback),
        _ => None,
    }
}

fn outcome(
    name: &str,
    verdicts: &[(Invariant, Option<Violation>)],
    fixture: &CaseFixture,
    began: Instant,
    log_tail: String,
) -> Outcome {
    let violations: Vec<String> = verdicts
        .iter()
        .filter_map(|(_, violation)| violation.as_ref())
        .map(ToString::to_string)
        .collect();
    let verdict = if violations.is_empty() {
        Verdict::Passed
    } else {
        let expected = "every invariant of PROP-01 holds".to_string();
        Verdict::Failed {
            failure: Failure::Violated {
                fact: "invariants".into(),
                expected,
                observed: violations.join("\n"),
                mode: FailureMode::Visible,
            },
        }
    };
    Outcome {
        id: "PROP-01".into(),
        level: Level::Must,
        profiles: vec![Profile::Llm],
        requirement: format!(
            "under the fault schedule {name}, each request ends once, in time, within the configured \
             attempts, and with the text of one provider"
        ),
        why: "A schedule that showed a defect once must not show it again.".into(),
        shown:
            "The faults of the schedule are played over real sockets. The invariants compare what \
                the client received with the calls at each provider."
                .into(),
        remedy: "Follow the tape from the first request whose end is wrong.".into(),
        verdict,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        attempts: 1,
        tape: fixture.tape.entries(),
        faults: Vec::new(),
        states: Vec::new(),
        instances: Vec::new(),
        log_tail,
        setup: None,
    }
}

fn label(n: usize) -> String {
    format!("{}", n + 1)
}

/// Returns a text that the prompt of request `n` holds, and no other prompt.
fn marker(fixture: &CaseFixture, n: usize) -> String {
    format!("[{}-{}]", fixture.nonce, n + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::llm::Stub;

    #[tokio::test]
    async fn a_call_whose_client_left_at_once_has_its_number() {
        let schedule = Schedule::from_json(crate::schedule::tests::PLAN).unwrap();
        let (tape, spec) = (Tape::new(), schedule.spec());
        let provider = &spec.providers[0];
        let stub = Stub::builder(provider.protocol)
            .name(&provider.name)
            .namespace("case")
            .tape(&tape)
            .wiremock()
            .start()
            .await
            .unwrap();
        stub.answers(script(&schedule, 1, stub.name(), &tape));
        let client = Client::new(
            stub.base_url().trim_end_matches("/v1"),
            Vec::new(),
            tape.clone(),
        )
        .unwrap();
        let bytes = client.request_bytes("POST", "/v1/chat/completions", &[], b"{}");
        // request and FIN have arrived before the wire reads for the first time
        std::net::TcpStream::connect(stub.wire().addr())
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        stub.peer_closed(1).await.unwrap();
        assert_eq!(
            client.chat(serde_json::json!({})).await.unwrap().status,
            429,
            "the second call of the script"
        );
        assert_eq!(stub.requests().len(), 2);
    }
}
