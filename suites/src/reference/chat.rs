//! The LLM path: candidates one after the other, attempts at each with backoff, all under one
//! deadline, until an answer is known to be good.

use std::io::Read as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::breaker::Admitted;
use super::decode::Item;
use super::error::{Attempt, AttemptError, Cause, Failure};
use super::gateway::Gateway;
use super::protocol::{self, Completion, Protocol, Usage};
use super::route::{CandidateState, Route};
use super::stream::Committed;
use super::upstream::{self, Answer as Head, Question};
use crate::defect::Defect;

/// A chat request with its deadline and its identifiers.
#[derive(Clone)]
pub(super) struct Call {
    /// The client's request as it came.
    pub fields: Map<String, Value>,
    pub stream: bool,
    pub request_id: String,
    /// The caller's own deadline, if it has one.
    pub deadline: Option<Instant>,
    /// The idempotency key, the same for every attempt (RETRY-07).
    pub idempotency_key: String,
    pub traceparent: Option<HeaderValue>,
    /// For [`Defect::ForwardsRoleEarly`]: the chunks of a stream that failed before its first
    /// content.
    pub early: Arc<Mutex<Vec<Item>>>,
    /// The client's headers, which only the defects that copy them read.
    pub headers: HeaderMap,
    /// The client's own credentials, which only [`Defect::ForwardsAuthorization`] sends on.
    pub authorization: Option<HeaderValue>,
    /// The client's cookies, which only [`Defect::ForwardsCookies`] sends on.
    pub cookie: Option<HeaderValue>,
    /// For [`Defect::ConnectsWhereHeaderSays`].
    pub base_url: Option<String>,
    /// The candidate that is asked, counted from 0, and the attempt at it, counted from 1.
    pub candidate: usize,
    pub attempt: u32,
}

impl Call {
    pub(super) fn early(&self) -> MutexGuard<'_, Vec<Item>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of choices that the client asks for.
    pub(super) fn choices(&self) -> usize {
        let n = self.fields.get("n").and_then(Value::as_u64);
        n.and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
    }

    fn without_trace(&self) -> Self {
        Self {
            traceparent: None,
            ..self.clone()
        }
    }

    pub(super) fn include_usage(&self) -> bool {
        self.fields
            .get("stream_options")
            .is_some_and(|options| options["include_usage"] == true)
    }
}

/// A successful call.
pub(super) struct Served {
    pub answer: Answer,
    pub candidate: Arc<CandidateState>,
}

/// A document, or a stream past its commit point.
pub(super) enum Answer {
    Plain(Completion),
    Stream(Box<Committed>),
}

impl Answer {
    /// Whether it has no content at all (FALL-10).
    fn is_empty(&self, gateway: &Gateway) -> bool {
        let kept = gateway.has(Defect::KeepsEmptyAnswers)
            || gateway.has(Defect::CommitsOnHeaders)
            || gateway.has(Defect::BelievesAny200);
        match self {
            Self::Plain(completion) => !kept && completion.is_empty(gateway.defect),
            Self::Stream(stream) => {
                !kept && !gateway.has(Defect::KeepsEmptyStreams) && stream.is_empty()
            }
        }
    }
}

/// What an attempt holds while it runs, and a stream holds until its end. Dropping it gives
/// everything back.
pub(super) struct Hold {
    pub admitted: Option<Admitted>,
    gateway: Arc<Gateway>,
    candidate: Arc<CandidateState>,
    _permit: Option<OwnedSemaphorePermit>,
    _line: Option<OwnedSemaphorePermit>,
}

impl Hold {
    /// Records that the provider has served.
    pub(super) fn succeeded(mut self, usage: Option<Usage>) {
        if let Some(admitted) = self.admitted.take() {
            admitted.succeeded();
        }
        self.gateway.attempted(&self.candidate, Ok("success"));
        if self.gateway.has(Defect::TrustsPooledConnections) {
            self.candidate.provider.keeps_a_connection();
        }
        self.gateway.metrics.tokens(&self.candidate, usage);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.admitted.is_none() {
            return;
        }
        if !self.gateway.has(Defect::ForgetsLeftAttempts) {
            self.gateway.attempted(&self.candidate, Ok("cancelled"));
        }
        if self.gateway.has(Defect::GaugeKeepsLeft) {
            self.gateway.in_flight.send_modify(|taken| *taken += 1);
        }
    }
}

/// Asks the candidates from the `first` on until one answers. Dropping the future ends the attempt
/// that runs, and starts nothing new.
pub(super) async fn ask(
    gateway: &Arc<Gateway>,
    route: &Route,
    call: &Call,
    first: usize,
) -> Result<Served, Failure> {
    let began = Instant::now();
    let deadline = deadline(gateway, route, call);
    let mut attempts = Vec::new();
    if gateway.has(Defect::CountsRequestsAsAttempts)
        && let Some(candidate) = route.candidates.first()
    {
        gateway
            .metrics
            .attempt(candidate, Ok("success"), gateway.defect);
    }
    for (position, candidate) in route.candidates.iter().enumerate().skip(first) {
        if position > first {
            let anew = gateway.has(Defect::DeadlinePerCandidate)
                || gateway.has(Defect::ClientDeadlinePerCandidate);
            if Instant::now() >= deadline && !anew {
                break;
            }
            if !gateway.has(Defect::ForgetsFailedFallbacks) {
                let model = [("model", route.alias.as_str())];
                gateway.metrics.add("gauntlet_fallbacks_total", &model, 1);
            }
        }
        let without_trace;
        let call = if position > first && gateway.has(Defect::FallsBackWithoutTrace) {
            without_trace = call.without_trace();
            &without_trace
        } else {
            call
        };
        let deadline = if gateway.has(Defect::DeadlinePerCandidate) {
            Instant::now() + route.total
        } else {
            deadline
        };
        let deadline = match call.deadline {
            Some(own) if gateway.has(Defect::ClientDeadlinePerCandidate) => {
                let anew = Instant::now() + own.saturating_duration_since(began);
                anew.min(began + route.total)
            }
            _ => deadline,
        };
        let until = if gateway.has(Defect::KeepsReserveOnce) && position > first {
            deadline
        } else {
            share(
                deadline,
                route.reserve,
                route.candidates.len() - 1 - position,
                gateway,
            )
        };
        if let Some(mut answer) = ask_candidate(
            gateway,
            candidate,
            (call, position),
            (until, deadline, route.total),
            &mut attempts,
        )
        .await
        {
            let later = route.candidates.len() > position + 1;
            if later && answer.is_empty(gateway) {
                attempts.push(Attempt {
                    provider: candidate.provider.spec.name.clone(),
                    model: candidate.model.clone(),
                    error: Some(AttemptError::new(
                        Cause::BadResponse,
                        "the provider's answer has no content",
                    )),
                });
                continue;
            }
            if let Answer::Stream(stream) = &mut answer
                && gateway.has(Defect::StreamsGetDeadlineAnew)
            {
                stream.ends_at(Instant::now() + route.total);
            }
            if position > first && gateway.has(Defect::ForgetsFailedFallbacks) {
                let model = [("model", route.alias.as_str())];
                gateway.metrics.add("gauntlet_fallbacks_total", &model, 1);
            }
            return Ok(Served {
                answer,
                candidate: candidate.clone(),
            });
        }
        let last = attempts
            .last()
            .and_then(|attempt: &Attempt| attempt.error.as_ref())
            .map(|error| error.cause);
        let asks_on = gateway.has(Defect::FallsBackOnRejected)
            || (call.stream && gateway.has(Defect::FallsBackOnRejectedStreams));
        let clients = last.is_some_and(Cause::is_clients) && !asks_on;
        let ends = match gateway.defect {
            Some(Defect::NoFallback) => true,
            Some(Defect::NoFallbackOfStreams) => call.stream,
            Some(Defect::NoFallbackAfterLimits) => last == Some(Cause::RateLimited),
            Some(Defect::NoFallbackAfterResets) => last == Some(Cause::Reset),
            Some(Defect::NoThirdCandidate) => position == 1,
            _ => false,
        };
        if clients || ends {
            break;
        }
    }
    Err(Failure::of(attempts))
}

/// One deadline for all attempts and candidates; the caller's own can only shorten it (TIME-06,
/// TIME-08).
fn deadline(gateway: &Gateway, route: &Route, call: &Call) -> Instant {
    let configured = Instant::now() + route.total;
    match call.deadline {
        Some(own) if gateway.has(Defect::ClientLengthensDeadline) => own,
        Some(own) => configured.min(own),
        None => configured,
    }
}

/// The instant until which a candidate with `later` ones behind it may run: each of those keeps
/// its reserve, or an equal share of what is left.
fn share(deadline: Instant, reserve: Duration, later: usize, gateway: &Gateway) -> Instant {
    let whole = [
        Defect::DeadlinePerCandidate,
        Defect::ClientDeadlinePerCandidate,
        Defect::KeepsNoReserve,
    ];
    if gateway.defect.is_some_and(|defect| whole.contains(&defect)) {
        return deadline;
    }
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    let later = u32::try_from(later).unwrap_or(u32::MAX);
    now + left
        .saturating_sub(reserve.saturating_mul(later))
        .max(left / later.saturating_add(1))
}

/// Makes attempts at one candidate, with backoff between them, and lists each that failed.
async fn ask_candidate(
    gateway: &Arc<Gateway>,
    candidate: &Arc<CandidateState>,
    (call, position): (&Call, usize),
    (mut until, mut deadline, total): (Instant, Instant, Duration),
    attempts: &mut Vec<Attempt>,
) -> Option<Answer> {
    let retry = gateway.spec.retry;
    let most = if gateway.has(Defect::NeverRetries)
        || (call.stream && gateway.has(Defect::NeverRetriesStreams))
        || (position > 0 && gateway.has(Defect::RetriesFirstCandidateOnly))
    {
        1
    } else {
        retry.max_attempts.max(1) + u32::from(gateway.has(Defect::TriesOnceMore))
    };
    let mut backoff = Duration::from_millis(retry.base_ms);
    candidate.provider.budget.request();
    for n in 1..=most {
        let renamed = n > 1 && gateway.has(Defect::RenamesSecondAttempt);
        let this = Call {
            candidate: position,
            attempt: n,
            request_id: if renamed {
                uuid::Uuid::now_v7().to_string()
            } else {
                call.request_id.clone()
            },
            ..call.clone()
        };
        let this = if n > 1 && gateway.has(Defect::RetriesWithoutTrace) {
            this.without_trace()
        } else {
            this
        };
        let error = match attempt(gateway, candidate, &this, until, deadline).await {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        if n > 1 && !error.cause.was_sent() {
            // the provider's last answer counts
            return None;
        }
        gateway.log(&format!(
            "attempt request_id={} provider={} cause={}",
            call.request_id,
            candidate.provider.spec.name,
            error.cause.name()
        ));
        candidate.provider.gone.store(true, Ordering::SeqCst);
        let late = gateway.has(Defect::DeadlinePerRetry) && error.cause.is_timeout();
        let again = may_be_repeated(gateway, candidate, &this, &error) || late;
        let asked = error
            .retry_after
            .filter(|_| !gateway.has(Defect::IgnoresRetryAfter))
            .filter(|_| n == 1 || !gateway.has(Defect::IgnoresLaterRetryAfter))
            .filter(|_| {
                error.cause == Cause::RateLimited || !gateway.has(Defect::WaitsAfter429Only)
            })
            .unwrap_or_default();
        let asked = if gateway.has(Defect::CapsRetryAfter) {
            asked.min(Duration::from_secs(2))
        } else {
            asked
        };
        let cause = error.cause;
        attempts.push(Attempt {
            provider: candidate.provider.spec.name.clone(),
            model: candidate.model.clone(),
            error: Some(error),
        });
        // half of a backoff is random, so that requests that failed together are not repeated
        // together
        let jittered = backoff.mul_f64(rand::random_range(0.5..=1.0)).max(asked);
        let at_once = gateway.has(Defect::RetriesAtOnce)
            || (call.stream && gateway.has(Defect::RetriesStreamsAtOnce));
        let wait = if at_once { asked } else { jittered };
        let fits = Instant::now() + wait < until || late || gateway.has(Defect::WaitsPastDeadline);
        if n == most || !again || !fits {
            return None;
        }
        let free = gateway.has(Defect::NoRetryBudget)
            || (call.stream && gateway.has(Defect::StreamsHaveNoRetryBudget))
            || (cause == Cause::Reset && gateway.has(Defect::ResetsHaveNoRetryBudget))
            || (position > 0 && gateway.has(Defect::FallbacksHaveNoRetryBudget));
        if !free && !candidate.provider.budget.take() {
            return None;
        }
        sleep(wait).await;
        if !(call.stream && gateway.has(Defect::ForgetsRetriesOfStreams)) {
            gateway.metrics.add(
                "gauntlet_retries_total",
                &[
                    ("provider", &candidate.provider.spec.name),
                    ("model", &candidate.model),
                ],
                1,
            );
        }
        backoff = (backoff
            * if gateway.has(Defect::ConstantBackoff) {
                1
            } else {
                2
            })
        .min(Duration::from_millis(retry.max_ms));
        if gateway.has(Defect::DeadlinePerRetry) {
            deadline = Instant::now() + total;
            until = deadline;
        }
    }
    None
}

/// Whether the same candidate is asked again after this failure.
fn may_be_repeated(
    gateway: &Gateway,
    candidate: &CandidateState,
    call: &Call,
    error: &AttemptError,
) -> bool {
    let obeyed = match gateway.defect {
        Some(Defect::IgnoresShouldRetry) => false,
        Some(Defect::IgnoresShouldRetryOfStreams) => !call.stream,
        Some(Defect::IgnoresLaterShouldRetry) => call.attempt == 1,
        _ => true,
    };
    if error.no_retry && obeyed {
        return false;
    }
    let never = match gateway.defect {
        Some(Defect::NeverRetriesLimits) => error.cause == Cause::RateLimited,
        Some(Defect::NeverRetriesResets) => error.cause == Cause::Reset,
        Some(Defect::NeverRetriesRefused) => error.cause == Cause::Refused,
        Some(Defect::NeverRetriesOllama) => candidate.provider.protocol == Protocol::Ollama,
        _ => false,
    };
    let wrongly = match gateway.defect {
        Some(Defect::RetriesRejected) => error.cause.is_clients(),
        Some(Defect::RetriesRejectedStreams) => error.cause.is_clients() && call.stream,
        Some(Defect::RetriesRejectedLater) => error.cause.is_clients() && call.attempt > 1,
        Some(Defect::RetriesProviderAuth) => error.cause == Cause::ProviderAuth,
        _ => false,
    };
    wrongly || (error.cause.is_passing() && !never)
}

/// Makes one attempt: a permit at the provider, a permit of the breaker, and the exchange within
/// its time.
async fn attempt(
    gateway: &Arc<Gateway>,
    candidate: &Arc<CandidateState>,
    call: &Call,
    until: Instant,
    deadline: Instant,
) -> Result<Answer, AttemptError> {
    let refused = |error: AttemptError| {
        gateway.attempted(candidate, Err(error.cause));
        error
    };
    let full = |()| AttemptError {
        retry_after: Some(Duration::from_secs(1)),
        ..AttemptError::new(
            Cause::BulkheadFull,
            "the provider takes no more requests at once",
        )
    };
    let line = if gateway.has(Defect::HeadOfLine) {
        gateway.line.clone().acquire_owned().await.ok()
    } else {
        None
    };
    let permit = candidate
        .provider
        .bulkhead
        .enter(until)
        .await
        .map_err(full)
        .map_err(refused)?;
    let admitted = candidate
        .breaker
        .admit()
        .map_err(|wait| AttemptError {
            retry_after: Some(wait),
            ..AttemptError::new(Cause::BreakerOpen, "the provider is resting after failures")
        })
        .map_err(refused)?;
    if gateway.has(Defect::TrustsPooledConnections) && candidate.provider.uses_a_dead_connection() {
        return Err(AttemptError::new(
            Cause::Reset,
            "the connection was closed before an answer",
        ));
    }
    if gateway.has(Defect::NeverForgives) && candidate.provider.gone.load(Ordering::SeqCst) {
        return Err(AttemptError::new(
            Cause::ServerError,
            "the provider failed before",
        ));
    }
    let hold = Hold {
        admitted: Some(admitted),
        gateway: gateway.clone(),
        candidate: candidate.clone(),
        _permit: permit,
        _line: line,
    };
    exchange(gateway, candidate, call, until, deadline, hold).await
}

/// Makes the exchange and reports its result to the breaker.
async fn exchange(
    gateway: &Arc<Gateway>,
    candidate: &Arc<CandidateState>,
    call: &Call,
    until: Instant,
    deadline: Instant,
    mut hold: Hold,
) -> Result<Answer, AttemptError> {
    let first_token = Instant::now() + candidate.first_token;
    let (limit, late) = if call.stream && first_token < until {
        (
            first_token,
            AttemptError::new(
                Cause::FirstTokenTimeout,
                format!(
                    "the provider sent nothing within {:?}",
                    candidate.first_token
                ),
            ),
        )
    } else {
        (
            until,
            AttemptError::new(Cause::DeadlineExceeded, "the time for this attempt is over"),
        )
    };
    let (this, own_candidate, own_call) = (gateway.clone(), candidate.clone(), call.clone());
    let work = async move { converse(&this, &own_candidate, &own_call, limit, deadline).await };
    let untimed = [
        Defect::WaitsForever,
        Defect::NoConnectTimeout,
        Defect::HeaderBytesRestartTimer,
        Defect::HeadersEndFirstToken,
    ];
    let untimed = gateway
        .defect
        .is_some_and(|defect| untimed.contains(&defect))
        || (call.stream && gateway.has(Defect::StreamsWaitForever));
    let result = if untimed {
        work.await
    } else if gateway.has(Defect::AbandonsTimedOut) || gateway.has(Defect::AwaitsForNobody) {
        let task = tokio::spawn(work);
        let abort = task.abort_handle();
        let result = timeout_at(limit, task).await;
        if result.is_err() && gateway.has(Defect::AwaitsForNobody) {
            abort.abort();
        }
        result.map_or(Err(late), |joined| {
            joined
                .unwrap_or_else(|_| Err(AttemptError::new(Cause::ServerError, "the attempt broke")))
        })
    } else {
        timeout_at(limit, work).await.unwrap_or(Err(late))
    };
    match result {
        Ok(Answer::Plain(completion)) => {
            hold.succeeded(completion.usage);
            Ok(Answer::Plain(completion))
        }
        Ok(Answer::Stream(mut stream)) => {
            stream.hold = Some(hold);
            Ok(Answer::Stream(stream))
        }
        Err(error)
            if (gateway.has(Defect::TimeoutIsEmptyAnswer)
                || gateway.has(Defect::ShareIsApology))
                && error.cause.is_timeout()
                && !call.stream =>
        {
            let text = match gateway.has(Defect::ShareIsApology) {
                true => "Sorry, that took too long.",
                false => "",
            };
            let message = serde_json::json!({ "role": "assistant", "content": text });
            let choices =
                serde_json::json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
            let document = protocol::envelope("chat.completion", &candidate.model, &choices);
            Ok(Answer::Plain(Completion {
                bytes: document.to_string().into(),
                usage: None,
                document,
            }))
        }
        Err(mut error) => {
            judge(call, deadline, &error, &mut hold);
            if gateway.has(Defect::FailureKeepsPermit)
                && let Some(permit) = hold._permit.take()
            {
                permit.forget();
            }
            if gateway.has(Defect::ShowsUrl) && error.cause == Cause::Refused {
                error.message = format!("{} at {}", error.message, candidate.provider.base_url);
            }
            if gateway.has(Defect::ShowsKey) {
                error.message = format!(
                    "{} (sent: authorization: Bearer {})",
                    error.message, candidate.provider.spec.api_key
                );
            }
            Err(error)
        }
    }
}

/// Whether the failure counts against the provider: neither a wrong request nor a short deadline
/// of the caller does.
pub(super) fn judge(call: &Call, deadline: Instant, error: &AttemptError, hold: &mut Hold) {
    let Some(admitted) = hold.admitted.take() else {
        return;
    };
    hold.gateway.attempted(&hold.candidate, Err(error.cause));
    let hurried =
        error.cause == Cause::DeadlineExceeded && call.deadline.is_some_and(|own| own <= deadline);
    let clients = error.cause.is_clients() && !hold.gateway.has(Defect::RejectedOpensBreaker);
    let short = error.cause == Cause::Shortage && !hold.gateway.has(Defect::ShortageOpensBreaker);
    let ignored = match hold.gateway.defect {
        Some(Defect::BreakerIgnoresStreams) => call.stream,
        Some(Defect::BreakerIgnoresResets) => error.cause == Cause::Reset,
        _ => false,
    };
    if clients || hurried || short || ignored || error.cause == Cause::Unsupported {
        admitted.says_nothing();
    } else {
        admitted.failed();
    }
}

/// Sends the request and reads the answer: a document whole, a stream to its commit point.
async fn converse(
    gateway: &Arc<Gateway>,
    candidate: &Arc<CandidateState>,
    call: &Call,
    limit: Instant,
    deadline: Instant,
) -> Result<Answer, AttemptError> {
    let spec = &candidate.provider.spec;
    let silence = limit.saturating_duration_since(Instant::now());
    if gateway.has(Defect::FetchesImages) {
        let content = &call.fields["messages"][0]["content"];
        let url = content[1]["image_url"]["url"].as_str().unwrap_or_default();
        let host = url.split('/').nth(2).unwrap_or_default();
        tokio::net::TcpStream::connect(host).await.ok();
    }
    let sending = upstream::send(question(gateway, candidate, call, silence)?, gateway.defect);
    let head = if gateway.has(Defect::HeadersEndFirstToken) {
        let late = || AttemptError::new(Cause::FirstTokenTimeout, "no headers came in time");
        timeout_at(limit, sending).await.map_err(|_| late())??
    } else {
        sending.await?
    };
    if COPYING.iter().any(|(defect, ..)| gateway.has(*defect)) {
        *gateway
            .copied
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = head.headers.clone();
    }
    let coded = head.headers.get(header::CONTENT_ENCODING);
    let is_coded = coded.is_some_and(|coding| coding != "identity");
    let gzip = coded.is_some_and(|coding| coding == "gzip");
    let decodes = gzip
        && match call.stream {
            true => gateway.has(Defect::InflatesAtEnd),
            false => decodes(gateway),
        };
    if is_coded && !decodes && !gateway.has(Defect::StripsContentEncoding) {
        return Err(AttemptError::new(
            Cause::BadResponse,
            "the provider's answer is in a coding that nobody asked for",
        ));
    }
    if let Some(cookie) = head.headers.get(header::SET_COOKIE) {
        let last = gateway.last_cookie.lock();
        *last.unwrap_or_else(PoisonError::into_inner) = Some(cookie.clone());
    }
    if head.replayed
        && gateway.has(Defect::ChargesReplays)
        && let Ok(charged) = candidate.breaker.admit()
    {
        charged.failed();
    }
    if !head.status.is_success() {
        let (status, headers) = (head.status, head.headers.clone());
        let body = whole(head, candidate.idle, gateway.defect)
            .await
            .unwrap_or_default();
        let lost = call.stream && gateway.has(Defect::LosesWordsOfStreams);
        let body = if lost { Bytes::new() } else { body };
        let mut error = protocol::refusal(status, &headers, &body, &spec.api_key, gateway.defect);
        if gateway.has(Defect::PassesHeaders) {
            let passed = headers
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("x-"));
            error.passed = passed
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
        }
        return Err(error);
    }
    if call.stream {
        let mislabelled = !protocol::is_stream(candidate.provider.protocol, &head.headers);
        if mislabelled
            && !gateway.has(Defect::IgnoresContentType)
            && !gateway.has(Defect::BelievesAny200)
        {
            return Err(AttemptError::new(
                Cause::BadResponse,
                "the provider's answer is not a stream",
            ));
        }
        let mut stream = Committed::new(
            gateway.clone(),
            candidate.clone(),
            call.clone(),
            head.body,
            mislabelled,
            deadline,
        );
        stream.coded = decodes.then(Vec::new);
        if !gateway.has(Defect::CommitsOnHeaders) {
            stream.reach_commit_point().await?;
        }
        return Ok(Answer::Stream(Box::new(stream)));
    }
    let mut bytes = whole(head, candidate.idle, gateway.defect).await?;
    if decodes {
        bytes = gunzipped(&bytes).into();
    } else if is_coded {
        return Ok(Answer::Plain(Completion {
            bytes,
            usage: None,
            document: Value::Null,
        }));
    }
    if is_coded && gateway.has(Defect::LosesCodedUsage) {
        let mut document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        document
            .as_object_mut()
            .map(|fields| fields.shift_remove("usage"));
        bytes = document.to_string().into();
    }
    Ok(Answer::Plain(protocol::completion(
        candidate.provider.protocol,
        bytes,
        &spec.api_key,
        gateway.defect,
    )?))
}

/// The defects that copy headers of a provider to the client: into which answers, and whether those
/// that Connection names.
pub(super) const COPYING: &[(Defect, Into, bool)] = &[
    (Defect::CopiesHopHeadersOfAnswers, Into::Plain, false),
    (Defect::CopiesNamedHeadersOfAnswers, Into::Plain, true),
    (Defect::CopiesHopHeadersOfStreams, Into::Stream, false),
    (Defect::CopiesNamedHeadersOfStreams, Into::Stream, true),
    (Defect::CopiesHopHeadersOfErrors, Into::Error, false),
    (Defect::CopiesNamedHeadersOfErrors, Into::Error, true),
];

/// An answer to a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Plain,
    Stream,
    Error,
}

/// Copies what a defect copies.
pub(super) fn copy_headers(gateway: &Gateway, into: Into, headers: &mut HeaderMap) {
    let copying = COPYING.iter().find(|(defect, ..)| gateway.has(*defect));
    let Some((_, _, named)) = copying.filter(|(_, answers, _)| *answers == into) else {
        return;
    };
    let of = gateway
        .copied
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for (name, value) in of.iter() {
        let hop = ["keep-alive", "proxy-connection", "proxy-authenticate"].contains(&name.as_str());
        if (*named && name == "x-hop") || (!*named && hop) {
            headers.insert(name, value.clone());
        }
    }
}

/// Whether a defect decodes the answers of providers, in gzip alone.
fn decodes(gateway: &Gateway) -> bool {
    let decoding = [
        Defect::KeepsContentEncoding,
        Defect::LosesCodedUsage,
        Defect::InflatesAtEnd,
    ];
    gateway
        .defect
        .is_some_and(|defect| decoding.contains(&defect))
}

/// What gzip holds; empty if it is none.
pub(super) fn gunzipped(coded: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    // what cannot be decoded is left out
    GzDecoder::new(coded).read_to_end(&mut plain).ok();
    plain
}

/// Reads the body to its end, with the idle timeout between two reads.
async fn whole(
    mut head: Head,
    idle: Duration,
    defect: Option<Defect>,
) -> Result<Bytes, AttemptError> {
    const BOUND: usize = 32 << 20;
    let mut bytes = BytesMut::new();
    let start = Instant::now();
    loop {
        let late = || {
            AttemptError::new(
                Cause::IdleTimeout,
                format!("the provider was silent for {idle:?}"),
            )
        };
        let next = match defect {
            Some(Defect::IdleNeverRestarts) => timeout_at(start + idle, head.body.chunk())
                .await
                .map_err(|_| late())?,
            Some(Defect::WaitsForever) => head.body.chunk().await,
            _ => timeout(idle, head.body.chunk()).await.map_err(|_| late())?,
        };
        let Some(chunk) = next else {
            return Ok(bytes.freeze());
        };
        let chunk = chunk?;
        if defect == Some(Defect::PlainDecodesEachRead) {
            bytes.extend_from_slice(String::from_utf8_lossy(&chunk).as_bytes());
        } else {
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() > BOUND {
            return Err(AttemptError::new(
                Cause::Oversized,
                "the provider's answer is too large",
            ));
        }
    }
}

/// The request in the provider's protocol, with our key and the context that is sent on.
fn question(
    gateway: &Gateway,
    candidate: &CandidateState,
    call: &Call,
    silence: Duration,
) -> Result<Question, AttemptError> {
    let spec = &candidate.provider.spec;
    let mut fields = call.fields.clone();
    let mut base = candidate.provider.base_url.clone();
    let steered = match gateway.defect {
        Some(Defect::ConnectsWhereRequested) => !call.stream,
        Some(Defect::StreamsWhereRequested) => call.stream,
        _ => false,
    };
    if steered && let Some(Value::String(requested)) = fields.shift_remove("api_base") {
        base = requested;
    }
    if let (Some(requested), true) = (&call.base_url, gateway.has(Defect::ConnectsWhereHeaderSays))
    {
        base.clone_from(requested);
    }
    let unfit = |_| AttemptError::new(Cause::Unsupported, "a header cannot be written");
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    let codings = if gateway.has(Defect::InvitesCodings) || decodes(gateway) {
        "gzip"
    } else {
        "identity"
    };
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(codings));
    let copied: &[&str] = match gateway.defect {
        Some(Defect::CopiesHopHeaders) => &["keep-alive", "proxy-authorization", "te"],
        Some(Defect::CopiesNamedHeaders) => &["x-hop"],
        _ => &[],
    };
    for name in copied {
        headers.extend(
            call.headers
                .get(*name)
                .map(|value| (header::HeaderName::from_static(name), value.clone())),
        );
    }
    let requested = fields.get("api_key").and_then(Value::as_str);
    let shown = requested
        .filter(|_| gateway.has(Defect::TakesKeyFromRequest))
        .unwrap_or(&spec.api_key);
    let first = gateway.spec.providers.first();
    let shown = match first.filter(|_| gateway.has(Defect::ShowsFirstKeyToAll)) {
        Some(first) => first.api_key.as_str(),
        None => shown,
    };
    let own = HeaderValue::from_str(&format!("Bearer {shown}")).map_err(unfit)?;
    let authorization = call
        .authorization
        .clone()
        .filter(|_| gateway.has(Defect::ForwardsAuthorization))
        .unwrap_or(own);
    headers.insert(header::AUTHORIZATION, authorization);
    if let (Some(cookie), true) = (&call.cookie, gateway.has(Defect::ForwardsCookies)) {
        headers.insert(header::COOKIE, cookie.clone());
    }
    let user = fields.get("user").and_then(Value::as_str);
    if gateway.has(Defect::SplitsHeaders) && user.is_some_and(|user| user.contains("\r\n")) {
        headers.insert("x-smuggled", HeaderValue::from_static("1"));
    }
    let fresh = uuid::Uuid::now_v7().to_string();
    let own_key = gateway.has(Defect::FreshKeyPerAttempt)
        || (call.stream && gateway.has(Defect::DropsKeyOfStreams))
        || (call.candidate > 0 && gateway.has(Defect::DropsKeyOfFallbacks));
    let key = if own_key {
        &fresh
    } else {
        &call.idempotency_key
    };
    headers.insert(
        "idempotency-key",
        HeaderValue::from_str(key).map_err(unfit)?,
    );
    if !gateway.has(Defect::DropsRequestId) {
        headers.insert(
            "x-request-id",
            HeaderValue::from_str(&call.request_id).map_err(unfit)?,
        );
    }
    if let Some(traceparent) = call
        .traceparent
        .clone()
        .filter(|_| !gateway.has(Defect::DropsTraceparent))
        .filter(|_| !(call.stream && gateway.has(Defect::StreamsWithoutTrace)))
    {
        headers.insert("traceparent", traceparent);
    }
    if gateway.has(Defect::LogsKey) {
        gateway.log(&format!("sending {headers:?}"));
    }
    if gateway.has(Defect::StampsEachAttempt) {
        fields.insert("user".into(), fresh.into());
    }
    if gateway.has(Defect::StripsFallbacks) && call.candidate > 0 {
        fields.shift_remove("temperature");
    }
    if gateway.has(Defect::StripsRetriedStreams) && call.stream && call.attempt > 1 {
        fields.shift_remove("stream_options");
    }
    let body = protocol::encode(
        candidate.provider.protocol,
        &candidate.model,
        &fields,
        gateway.defect,
    )?;
    Ok(Question {
        method: Method::POST,
        url: protocol::url(candidate.provider.protocol, &base),
        headers,
        body,
        connect: candidate.connect,
        silence,
        short: gateway.short.load(Ordering::SeqCst),
        // a connection of the pool leads to the provider's own address
        pool: (base == candidate.provider.base_url).then(|| candidate.provider.pool.clone()),
        replays: !(gateway.has(Defect::NeverReplays)
            || call.stream && gateway.has(Defect::NeverReplaysStreams)),
    })
}
