//! `POST /api/v1/queries`: entity extraction beside retrieval, then fact check, synthesis,
//! citation, review and any other agent, each within its share of one deadline; the outcome is
//! recorded as it was sent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gauntlet_harness::spec::QuerySpec;
use http::Response;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::agents::{self, Results, StepResult, steps};
use super::chat::{self, Answer, Call, Served};
use super::error::{Cause, ErrorResponse, Failure};
use super::gateway::Gateway;
use super::ingress::{Body, Visit, json_response, own_deadline};
use super::protocol::Usage;
use super::records::{invalid, now, rfc3339, text};
use super::store::{Passage, StoreError};
use crate::defect::Defect;

/// What a client asks.
pub(super) struct StubRequest {
    question: String,
    deadline: Option<Duration>,
}

impl StubRequest {
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, ErrorResponse> {
        if let Some(name) = fields
            .keys()
            .find(|name| !matches!(name.as_str(), "question" | "deadline_ms"))
        {
            return Err(invalid(name, format!("there is no field {name:?} here")));
        }
        let question = text(fields, "question")?;
        if question.contains('\0') || question.chars().count() > 8_192 {
            return Err(invalid(
                "question",
                "question holds a NUL character, or more than 8192".into(),
            ));
        }
        let deadline = match fields.get("deadline_ms") {
            None | Some(Value::Null) => None,
            Some(ms) => Some(ms.as_u64().filter(|ms| *ms > 0).ok_or_else(|| {
                invalid(
                    "deadline_ms",
                    "deadline_ms takes milliseconds, 1 or more".into(),
                )
            })?),
        };
        Ok(Self {
            question,
            deadline: deadline.map(Duration::from_millis),
        })
    }
}

/// A query that runs. Dropped before its end (the client left), it is recorded as cancelled.
struct Query {
    gateway: Arc<Gateway>,
    spec: QuerySpec,
    id: String,
    tenant: String,
    question: String,
    request_id: String,
    traceparent: Option<http::HeaderValue>,
    created_at: i64,
    deadline: Instant,
    steps: Mutex<Vec<Value>>,
    over: bool,
    /// For [`Defect::SharesByIdempotencyKey`].
    by_key: Option<String>,
}

/// `POST /api/v1/queries`.
pub(super) async fn ask(
    gateway: &Arc<Gateway>,
    visit: &Visit,
    asked: StubRequest,
) -> Result<Response<Body>, ErrorResponse> {
    let by_key = visit.headers.get("idempotency-key");
    let by_key = by_key.and_then(|key| key.to_str().ok()).map(str::to_owned);
    let by_key = by_key.filter(|_| gateway.has(Defect::SharesByIdempotencyKey));
    if let Some(key) = &by_key {
        let known = gateway.by_idempotency_key.lock();
        if let Some(known) = known.unwrap_or_else(PoisonError::into_inner).get(key) {
            return Ok(json_response(200, known));
        }
    }
    let spec = gateway.spec.query.clone().ok_or_else(|| {
        ErrorResponse::new(
            503,
            "come_again",
            "not_configured",
            "queries are not configured",
        )
    })?;
    let most = if gateway.has(Defect::IgnoresConfiguredDeadline) {
        Duration::from_secs(3_600)
    } else {
        Duration::from_millis(spec.deadline_ms)
    };
    let in_body = asked
        .deadline
        .filter(|_| !gateway.has(Defect::IgnoresBodyDeadline));
    let configured = Instant::now() + in_body.map_or(most, |own| own.min(most));
    let in_header =
        own_deadline(&visit.headers)?.filter(|_| !gateway.has(Defect::IgnoresHeaderDeadline));
    let deadline = in_header.map_or(configured, |own| own.min(configured));
    let query = Query {
        gateway: gateway.clone(),
        spec,
        id: uuid::Uuid::now_v7().to_string(),
        tenant: visit.tenant.clone(),
        question: asked.question,
        request_id: visit.request_id.clone(),
        traceparent: visit.headers.get("traceparent").cloned(),
        created_at: now(),
        deadline,
        steps: Mutex::default(),
        over: false,
        by_key,
    };
    if gateway.has(Defect::FinishesLeftQuery) {
        let ended = gateway.outlive(query.answer()).await;
        return ended.ok().flatten().unwrap_or_else(|| {
            Err(ErrorResponse::new(
                500,
                "server_error",
                "internal_error",
                "the query broke",
            ))
        });
    }
    query.answer().await
}

impl Query {
    async fn answer(mut self) -> Result<Response<Body>, ErrorResponse> {
        let gateway = self.gateway.clone();
        let results = self.run().await;
        let mut document =
            self.document(agents::conclude(&self.question, &results, gateway.defect));
        self.over = true;
        let failed = document["status"] == "failed";
        if !(failed && gateway.has(Defect::FailedUnrecorded)) {
            let mut kept = document.clone();
            if gateway.has(Defect::RecordsDraft) {
                kept["review"] = Value::Null;
            }
            if gateway.has(Defect::RecordsNoUsage) {
                kept["usage"] = Value::Null;
            }
            if gateway.has(Defect::RecordsTwice) {
                self.record(&uuid::Uuid::now_v7().to_string(), kept.clone())
                    .await
                    .ok();
            }
            if let Err(error) = self.record(&self.id, kept).await {
                gateway.log(&format!("query id={} unrecorded: {error}", self.id));
                if gateway.has(Defect::RecordRequired) {
                    return Err(ErrorResponse::new(
                        500,
                        "server_error",
                        "internal_error",
                        "the query could not be recorded",
                    ));
                }
                let claims = gateway.has(Defect::ClaimsRecord)
                    || (gateway.has(Defect::ReportsLostAsRecorded)
                        && matches!(error, StoreError::Unavailable(_)));
                if !claims {
                    unrecorded(&mut document, store_cause(&error));
                }
            }
        }
        if let Some(key) = self.by_key.take() {
            let known = gateway.by_idempotency_key.lock();
            let mut known = known.unwrap_or_else(PoisonError::into_inner);
            known.insert(key, document.clone());
        }
        let status = document["status"].as_str().unwrap_or_default().to_owned();
        gateway
            .metrics
            .add("gauntlet_queries_total", &[("status", &status)], 1);
        if status != "failed" || gateway.has(Defect::FailedIs200) {
            return Ok(json_response(200, &document));
        }
        let mut response = ErrorResponse::new(
            503,
            "come_again",
            "no_answer",
            "there is no answer, because every step failed that could have given one",
        )
        .document();
        response["query"] = document;
        Ok(json_response(503, &response))
    }

    /// Runs the steps: what does not depend on each other together, the rest one after the other
    /// (PARA-04, PARA-05, PARA-06).
    async fn run(&self) -> Results {
        let (entities, retrieval) = self.first_phase().await;
        let none = Vec::new();
        let sources = retrieval
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .unwrap_or(&none);
        let defect = self.gateway.defect;
        let to_check =
            json!({ "question": self.question, "passages": shown(sources, "fact_check", defect) });
        let material =
            json!({ "question": self.question, "passages": shown(sources, "synthesis", defect) });
        let check = async {
            if sources.is_empty() {
                return self.not_applicable("fact_check");
            }
            self.consult("fact_check", &to_check, |reply| {
                agents::read_claims(reply, sources, defect)
            })
            .await
        };
        let write = self.consult("synthesis", &material, |reply| {
            agents::read_answer(reply, sources, defect)
        });
        let beside = json!({ "question": self.question, "passages": numbered(sources) });
        let (early, fact_check, synthesis) = if defect == Some(Defect::SynthesisBesideFactCheck) {
            let (fact_check, synthesis) = tokio::join!(check, write);
            (None, fact_check, synthesis)
        } else {
            let fact_check = check.await;
            let early = async {
                if self.gateway.has(Defect::CitesBesideSynthesis) && !sources.is_empty() {
                    let cited = self.consult("citation", &beside, agents::read_citations);
                    return Some(cited.await);
                }
                None
            };
            let (early, synthesis) = tokio::join!(early, write);
            (early, fact_check, synthesis)
        };
        let answer = synthesis.as_ref().ok().and_then(Option::as_ref);
        let material =
            json!({ "question": self.question, "answer": answer, "passages": numbered(sources) });
        let citation = if let Some(early) = early {
            early
        } else if answer.is_some() && !sources.is_empty() {
            let material = json!({ "question": self.question, "answer": answer, "passages": shown(sources, "citation", defect) });
            self.consult("citation", &material, agents::read_citations)
                .await
        } else {
            self.not_applicable("citation")
        };
        let review = if answer.is_some() {
            self.consult("review", &material, agents::read_review).await
        } else {
            self.not_applicable("review")
        };
        let mut others = Vec::new();
        for agent in agents::others() {
            let result = if answer.is_some() {
                let read = |value: &Value| value.is_object().then(|| value.clone());
                self.consult(agent.name, &material, read).await
            } else {
                self.not_applicable(agent.name)
            };
            others.push((agent.name, result));
        }
        Results {
            entities,
            fact_check,
            synthesis,
            citation,
            review,
            retrieval,
            others,
        }
    }

    async fn first_phase(&self) -> (StepResult<Value>, StepResult<Vec<Passage>>) {
        let material = json!({ "question": self.question });
        let entities = self.consult("entities", &material, agents::read_entities);
        match self.gateway.defect {
            Some(Defect::RetrievesAfterEntities) => (entities.await, self.retrieve().await),
            Some(Defect::FailureCancelsSiblings) => {
                let both = async { tokio::try_join!(entities, self.retrieve()) };
                both.await.map_or_else(
                    |cause| (Err(cause), Err("error")),
                    |(entities, passages)| (Ok(entities), Ok(passages)),
                )
            }
            Some(Defect::LostSearchCancelsEntities) => {
                let search = self.retrieve();
                let (mut entities, mut search) = (std::pin::pin!(entities), std::pin::pin!(search));
                tokio::select! {
                    found = &mut search => match found {
                        Err(cause) => (Err("error"), Err(cause)),
                        found => (entities.await, found),
                    },
                    named = &mut entities => (named, search.await),
                }
            }
            _ => tokio::join!(entities, self.retrieve()),
        }
    }

    async fn retrieve(&self) -> StepResult<Vec<Passage>> {
        let started = Instant::now();
        let result = match (&self.gateway.store, self.window("retrieval")) {
            (None, _) => Err("store_unavailable"),
            (_, None) => Err("skipped"),
            (Some(store), Some(until)) => {
                match timeout_at(until, store.search(&self.tenant, &self.question, 8)).await {
                    Ok(Ok(passages)) => Ok(Some(passages)),
                    Ok(Err(error)) => Err(store_cause(&error)),
                    Err(_) => Err("timeout"),
                }
            }
        };
        self.report(
            "retrieval",
            result.as_ref().err().copied(),
            "ok",
            started,
            None,
        );
        result
    }

    /// Asks the agent of a step within its share of the deadline, and reads its answer.
    async fn consult<T>(
        &self,
        step: &'static str,
        material: &Value,
        read: impl Fn(&Value) -> Option<T>,
    ) -> StepResult<T> {
        let started = Instant::now();
        let mut usage = None;
        let result = match self.window(step) {
            None => Err("skipped"),
            Some(until) => match self.call(step, material, until).await {
                Err(cause) => Err(cause),
                Ok((reply, counted)) => {
                    usage = counted;
                    serde_json::from_str(reply.trim())
                        .ok()
                        .and_then(|reply| read(&reply))
                        .map(Some)
                        .ok_or("invalid_output")
                }
            },
        };
        self.report(step, result.as_ref().err().copied(), "ok", started, usage);
        result
    }

    async fn call(
        &self,
        step: &str,
        material: &Value,
        until: Instant,
    ) -> Result<(String, Option<Usage>), &'static str> {
        let alias = self.spec.agents.get(step).cloned().unwrap_or_default();
        let fields = json!({ "model": alias, "messages": agents::prompt(step, material) });
        let call = Call {
            headers: http::HeaderMap::new(),
            early: Arc::default(),
            fields: fields.as_object().cloned().unwrap_or_default(),
            stream: false,
            request_id: self.request_id.clone(),
            // a call that is left running has no deadline of the query's
            deadline: (!self.gateway.has(Defect::DeadlineLeavesCalls)).then_some(until),
            idempotency_key: format!("{}-{step}", self.id),
            traceparent: self.traceparent.clone(),
            authorization: None,
            cookie: None,
            base_url: None,
            candidate: 0,
            attempt: 1,
        };
        let gateway = self.gateway.clone();
        let asking = async move {
            match gateway.routes.find(&alias) {
                Some(route) => chat::ask(&gateway, route, &call, 0).await,
                None => Err(Failure::of(Vec::new())),
            }
        };
        let asked = if self.gateway.has(Defect::DeadlineLeavesCalls) {
            timeout_at(until, tokio::spawn(asking))
                .await
                .map(|joined| joined.unwrap_or_else(|_| Err(Failure::of(Vec::new()))))
        } else {
            timeout_at(until, asking).await
        };
        match asked {
            Err(_) => Err("timeout"),
            Ok(Err(failure)) => Err(match failure.error.cause {
                cause if cause.is_timeout() => "timeout",
                Cause::BadResponse => "invalid_output",
                Cause::BreakerOpen => "breaker_open",
                _ => "error",
            }),
            Ok(Ok(Served {
                answer: Answer::Plain(completion),
                ..
            })) => Ok((completion.text().to_owned(), completion.usage)),
            Ok(Ok(_)) => Err("error"),
        }
    }

    /// The instant until which a step may run: no longer than its cap, and so that time is left
    /// for each later step; `None` if starting is not worth it.
    fn window(&self, step: &str) -> Option<Instant> {
        const LEAST: Duration = Duration::from_millis(50);
        let now = Instant::now();
        let steps = steps();
        let later = steps.iter().rev().take_while(|name| **name != step).count();
        let later = u32::try_from(later).unwrap_or(0);
        let reserve = (LEAST * later).min(self.deadline.saturating_duration_since(now) / 2);
        let until = (self.deadline - reserve).min(now + Duration::from_millis(self.spec.step_ms));
        (until.saturating_duration_since(now) > LEAST / 2).then_some(until)
    }

    fn not_applicable<T>(&self, step: &'static str) -> StepResult<T> {
        self.report(step, None, "not_applicable", Instant::now(), None);
        Ok(None)
    }

    fn report(
        &self,
        step: &str,
        cause: Option<&'static str>,
        otherwise: &str,
        started: Instant,
        usage: Option<Usage>,
    ) {
        let outcome = match cause {
            None => otherwise,
            Some("skipped") => "skipped",
            Some(_) => "failed",
        };
        let duration = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut report = json!({ "step": step, "outcome": outcome, "duration_ms": duration, "usage": usage.unwrap_or_default().document() });
        if let Some(cause) = cause {
            report["cause"] = cause.into();
            self.gateway.metrics.add(
                "gauntlet_degraded_steps_total",
                &[("step", step), ("cause", cause)],
                1,
            );
        }
        self.steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(report);
    }

    /// The response document: what the client gets, what is recorded, what is read again.
    fn document(&self, outcome: Value) -> Value {
        let mut steps = self
            .steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let order = agents::steps();
        steps.sort_by_key(|report| order.iter().position(|step| report["step"] == *step));
        let sum = |kind: &str| {
            steps
                .iter()
                .filter_map(|report| report["usage"][kind].as_u64())
                .sum()
        };
        let mut usage = Usage {
            prompt: sum("prompt_tokens"),
            completion: sum("completion_tokens"),
        };
        let failed = |report: &Value| report["outcome"] == "failed";
        if self.gateway.has(Defect::ReportsOneAgent) {
            usage.prompt = steps[0]["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        }
        if self.gateway.has(Defect::DegradedIsFree) && steps.iter().any(failed) {
            usage = Usage::default();
        }
        let mut document = json!({ "id": self.id, "status": "", "question": self.question.replace('\0', "\u{fffd}") });
        if let (Some(document), Value::Object(outcome)) = (document.as_object_mut(), outcome) {
            document.extend(outcome);
        }
        document["steps"] = steps.into();
        document["usage"] = usage.document();
        document["recorded"] = true.into();
        document["created_at"] = rfc3339(self.created_at).into();
        document
    }

    /// Writes the record in a task that outlives the client, so that nothing accepted is lost.
    async fn record(&self, id: &str, document: Value) -> Result<(), StoreError> {
        let gateway = self.gateway.clone();
        let (id, tenant, created_at) = (id.to_owned(), self.tenant.clone(), self.created_at);
        let this = self.gateway.clone();
        let task = this.outlive(async move {
            let store = gateway
                .store
                .as_ref()
                .ok_or_else(|| StoreError::Unavailable("there is none".into()))?;
            let status = document["status"].as_str().unwrap_or_default().to_owned();
            store
                .record(&id, &tenant, &status, created_at, &document.to_string())
                .await
        });
        task.await
            .ok()
            .flatten()
            .unwrap_or_else(|| Err(StoreError::Failed("the record broke".into())))
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        if self.over || self.gateway.has(Defect::CutUnrecorded) {
            return;
        }
        let nothing = json!({
            "status": "cancelled", "answer": null, "confidence": 0.0, "verified": false, "sources": [], "citations": [],
            "dropped_citations": { "unknown_source": 0, "misattributed": 0, "not_found": 0 },
            "entities": [], "claims": [], "review": null, "degraded": [],
        });
        let document = self.document(nothing).to_string();
        let (gateway, id, tenant, created_at) = (
            self.gateway.clone(),
            self.id.clone(),
            self.tenant.clone(),
            self.created_at,
        );
        let review = self.gateway.has(Defect::ReviewsForNobody).then(|| {
            let alias = self.spec.agents.get("review").cloned().unwrap_or_default();
            let messages = agents::prompt("review", &json!({ "question": self.question }));
            let fields = json!({ "model": alias, "messages": messages });
            let call = Call {
                headers: http::HeaderMap::new(),
                early: Arc::default(),
                fields: fields.as_object().cloned().unwrap_or_default(),
                stream: false,
                request_id: self.request_id.clone(),
                deadline: None,
                idempotency_key: self.id.clone(),
                traceparent: None,
                authorization: None,
                cookie: None,
                base_url: None,
                candidate: 0,
                attempt: 1,
            };
            (alias, call)
        });
        let record = async move {
            if let Some((alias, call)) = review
                && let Some(route) = gateway.routes.find(&alias)
            {
                let asking = chat::ask(&gateway, route, &call, 0);
                timeout_at(Instant::now() + Duration::from_millis(300), asking)
                    .await
                    .ok();
            }
            if gateway.has(Defect::RecordsLeftTwice)
                && let Some(store) = &gateway.store
            {
                let id = uuid::Uuid::now_v7().to_string();
                let again = store.record(&id, &tenant, "cancelled", created_at, &document);
                again.await.ok();
            }
            if let Some(store) = &gateway.store
                && let Err(error) = store
                    .record(&id, &tenant, "cancelled", created_at, &document)
                    .await
            {
                gateway.log(&format!("query id={id} unrecorded: {error}"));
            }
        };
        drop(self.gateway.outlive(record));
    }
}

fn store_cause(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) | StoreError::Busy | StoreError::NotWritable(_) => {
            "store_unavailable"
        }
        StoreError::Timeout => "timeout",
        StoreError::Rejected(_) | StoreError::Failed(_) => "error",
    }
}

fn unrecorded(document: &mut Value, cause: &str) {
    document["recorded"] = false.into();
    if document["status"] == "complete" {
        document["status"] = "degraded".into();
    }
    if let Some(degraded) = document["degraded"].as_array_mut() {
        degraded.push(agents::degradation("record", cause));
    }
}

fn numbered(sources: &[Passage]) -> Value {
    sources
        .iter()
        .zip(1_u32..)
        .map(|(passage, n)| json!({ "n": n, "title": passage.title, "text": passage.text }))
        .collect()
}

/// The passages as an agent is shown them: the same to all, but for a defect.
fn shown(sources: &[Passage], agent: &str, defect: Option<Defect>) -> Value {
    let mut sources = sources.to_vec();
    match (agent, defect) {
        ("fact_check", Some(Defect::ChecksWithoutPassages)) => sources.clear(),
        ("fact_check", Some(Defect::ChecksBestPassage)) => sources.truncate(1),
        ("synthesis", Some(Defect::WritesFromOpenings)) => {
            for passage in &mut sources {
                passage.text = passage.text.chars().take(200).collect();
            }
        }
        ("citation", Some(Defect::CitesInOtherOrder)) => sources.reverse(),
        _ => {}
    }
    numbered(&sources)
}
