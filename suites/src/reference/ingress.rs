//! The way in: whose request it is, whether there is a permit for it, what it asks for, and how it
//! is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::chat::{self, Answer, Call};
use super::error::{ErrorResponse, Failure};
use super::gateway::{Gateway, Permit, set};
use super::query::{self, StubRequest};
use super::records;
use super::route::Route;
use super::{ops, stream};
use crate::defect::Defect;

/// How long a key that the store has confirmed needs no other confirmation (AUTH-05).
pub(super) const CACHED: Duration = Duration::from_millis(300);

/// A response's body.
pub(super) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// What a request brings besides its body.
pub(super) struct Visit {
    pub request_id: String,
    pub tenant: String,
    pub headers: HeaderMap,
}

/// Answers one request.
pub(super) async fn answer(
    gateway: Arc<Gateway>,
    request: Request<Incoming>,
    earlier: u32,
) -> Result<Response<Body>, Infallible> {
    let request_id = request_id(request.headers());
    let no_host = hosts(&gateway, &request);
    let unknown = unknown_form(&gateway, &request, earlier);
    let closes = no_host.is_some();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut counted = Counted {
        gateway: &gateway,
        path: &path,
        status: 499,
        streams: false,
    };
    let refused = no_host.or(unknown);
    let result = match refused {
        Some(error) if gateway.has(Defect::ChecksHostLate) => {
            dispatch(&gateway, request, request_id.clone()).await.ok();
            Err(error)
        }
        Some(error) => Err(error),
        None => dispatch(&gateway, request, request_id.clone()).await,
    };
    let mut response = match result {
        Ok(response) => response,
        Err(error) => {
            let mut response = respond(&gateway, &error);
            chat::copy_headers(&gateway, chat::Into::Error, response.headers_mut());
            response
        }
    };
    if closes {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let is_stream = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let drops_id = gateway.has(Defect::DropsRequestId)
        || (is_stream && gateway.has(Defect::DropsRequestIdOfStreams));
    if !drops_id && let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    if gateway.draining.load(Ordering::SeqCst) {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let kind = response.headers().get(header::CONTENT_TYPE);
    counted.streams = kind.is_some_and(|kind| kind == "text/event-stream");
    let status = response.status().as_u16();
    gateway.log(&format!(
        "request request_id={request_id} method={method} path={path} status={status}"
    ));
    counted.status = status;
    drop(counted);
    Ok(response)
}

/// Refuses a request of HTTP/1.1 that does not name one host (EDGE-01).
fn hosts(gateway: &Gateway, request: &Request<Incoming>) -> Option<ErrorResponse> {
    if request.version() != http::Version::HTTP_11 && !gateway.has(Defect::OldNeedsHost) {
        return None;
    }
    let hosts: Vec<&HeaderValue> = request.headers().get_all(header::HOST).iter().collect();
    let names_one = |host: &HeaderValue| {
        let text = host.to_str().unwrap_or("@");
        let authority = text.parse::<http::uri::Authority>();
        let port = text.rsplit_once(':').map_or("", |(_, port)| port);
        let digits = port.ends_with(']') || port.bytes().all(|byte| byte.is_ascii_digit());
        text.is_empty() || (!text.contains('@') && authority.is_ok() && digits)
    };
    let fine = match hosts.as_slice() {
        [] => gateway.has(Defect::ServesWithoutHost),
        [host] => names_one(host) || gateway.has(Defect::TakesAnyHost),
        [..] => gateway.has(Defect::TakesFirstHost),
    };
    (!fine).then(|| {
        ErrorResponse::new(
            400,
            "invalid_request_error",
            "invalid_host",
            "the request does not name one host",
        )
    })
}

/// Refuses what only a defect does not know.
fn unknown_form(
    gateway: &Gateway,
    request: &Request<Incoming>,
    earlier: u32,
) -> Option<ErrorResponse> {
    let status = match gateway.defect? {
        Defect::RefusesExpect if request.headers().contains_key(header::EXPECT) => 417,
        Defect::RefusesHttp10 if request.version() == http::Version::HTTP_10 => 505,
        Defect::RefusesAbsoluteForm if request.uri().authority().is_some() => 404,
        Defect::ServesOncePerConnection if earlier > 0 => 400,
        _ => return None,
    };
    Some(ErrorResponse::new(
        status,
        "invalid_request_error",
        "invalid_request",
        "the gateway does not know this",
    ))
}

/// Counts a request once: by its status, or as one whose client left.
struct Counted<'r> {
    gateway: &'r Gateway,
    path: &'r str,
    status: u16,
    streams: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let forgotten = match self.gateway.defect {
            Some(Defect::CountsNoStreams) => self.streams,
            Some(Defect::ForgetsLeftRequests) => self.status == 499,
            _ => false,
        };
        if !forgotten {
            self.gateway.metrics.request(self.path, self.status);
        }
    }
}

async fn dispatch(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    request_id: String,
) -> Result<Response<Body>, ErrorResponse> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let known: &[Method] = match segments.as_slice() {
        ["health" | "metrics"]
        | ["health", "live" | "ready"]
        | ["v1", "models"]
        | ["v1", "models", _]
        | ["api", "v1", "queries", _] => &[Method::GET],
        ["v1", "chat", "completions"] => &[Method::POST],
        ["api", "v1", "queries"] => &[Method::GET, Method::POST],
        ["api", "v1", "documents"] => &[Method::POST],
        ["api", "v1", "documents", _] => &[Method::GET, Method::DELETE],
        _ => {
            return Err(ErrorResponse::new(
                404,
                "invalid_request_error",
                "route_not_found",
                format!("there is nothing at {path}"),
            ));
        }
    };
    if !known.contains(&head.method) {
        return Err(ErrorResponse::new(
            405,
            "invalid_request_error",
            "method_not_allowed",
            format!("{path} does not take {}", head.method),
        ));
    }
    match segments.as_slice() {
        ["health", "live"] => return Ok(ops::live(gateway).await),
        ["health", "ready"] => return Ok(ops::ready(gateway).await),
        ["health"] => return Ok(ops::health(gateway).await),
        ["metrics"] => return Ok(ops::metrics(gateway)),
        _ => {}
    }
    let trusting = match (segments.as_slice(), &head.method) {
        (["api", "v1", "queries"], &Method::POST) => gateway.has(Defect::QueriesTrustCache),
        (["api", "v1", "queries"], _) => gateway.has(Defect::ListingsTrustCache),
        _ => false,
    };
    let known_tenant = tenant(gateway, &head.headers, trusting).await;
    if let (true, Some(authority)) = (gateway.has(Defect::ServesAsProxy), head.uri.authority()) {
        tokio::net::TcpStream::connect(authority.as_str())
            .await
            .ok();
    }
    let known_tenant = match segments.as_slice() {
        ["v1", "models", ..] if gateway.has(Defect::OpenModels) => Ok("default".into()),
        ["api", "v1", "queries"]
            if gateway.has(Defect::OpenListing) && head.method == Method::GET =>
        {
            Ok("default".into())
        }
        ["api", "v1", "documents", _] if gateway.has(Defect::OpenDocuments) => Ok("default".into()),
        _ => known_tenant,
    };
    let tenant = if gateway.has(Defect::ChecksKeyLate) {
        "default".into()
    } else {
        known_tenant.clone()?
    };
    let visit = Visit {
        tenant,
        request_id,
        headers: head.headers,
    };
    if let ["v1", "models", rest @ ..] = segments.as_slice() {
        return known_tenant.and_then(|_| models(gateway, rest.first().copied()));
    }
    if gateway.draining.load(Ordering::SeqCst) {
        return Err(refuse(gateway, body, ErrorResponse::shutting_down()));
    }
    let busy = || ErrorResponse {
        retry_after: Some(Duration::from_secs(1))
            .filter(|_| !gateway.has(Defect::RefusesWithoutWait)),
        ..ErrorResponse::new(
            503,
            "come_again",
            "too_many_in_flight",
            "too many requests are in flight",
        )
    };
    if gateway.is_full() && !gateway.has(Defect::LeaksPermits) {
        return Err(refuse(gateway, body, busy()));
    }
    // a client that sends its body slowly holds no permit (LOAD-08)
    let mut unread = Some(body);
    let mut fields = None;
    if head.method == Method::POST
        && !gateway.has(Defect::PermitBeforeBody)
        && let Some(body) = unread.take()
    {
        fields = Some(read(gateway, &visit.headers, body).await?);
    }
    let Some(permit) = gateway.enter(&visit.tenant).await else {
        return Err(match unread {
            Some(body) => refuse(gateway, body, busy()),
            None => busy(),
        });
    };
    let fields = async {
        match (fields, unread) {
            (Some(fields), _) => Ok(fields),
            (None, Some(body)) => read(gateway, &visit.headers, body).await,
            (None, None) => Ok(Map::new()),
        }
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    let mut cut = gateway.cut.subscribe();
    let work = async {
        match (head.method, segments.as_slice()) {
            (Method::POST, ["v1", ..]) => complete(gateway, &visit, fields.await?, permit).await,
            (Method::POST, ["api", "v1", "queries"]) => {
                let fields = fields.await?;
                query::ask(gateway, &visit, StubRequest::read(&fields)?).await
            }
            (Method::POST, _) => records::add_document(gateway, &visit, fields.await?).await,
            (Method::GET, ["api", "v1", "queries"]) => records::list(gateway, &visit, &query).await,
            (Method::GET, ["api", "v1", "queries", id]) => records::one(gateway, &visit, id).await,
            (Method::DELETE, [.., id]) => records::delete_document(gateway, &visit, id).await,
            (_, [.., id]) => records::document(gateway, &visit, id).await,
            (_, []) => Err(ErrorResponse::new(
                404,
                "invalid_request_error",
                "route_not_found",
                "there is nothing here",
            )),
        }
    };
    let mut hung_up = gateway.hung_up.subscribe();
    let hung_up = async {
        if !gateway.has(Defect::HangupCutsPlain) || hung_up.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        response = work => known_tenant.and(response),
        () = set(&mut cut) => match gateway.has(Defect::DrainCutIs200) {
            true => Ok(json_response(200, &json!({}))),
            false => Err(ErrorResponse::shutting_down()),
        },
        () = hung_up => Err(ErrorResponse::shutting_down()),
    }
}

/// `POST /v1/chat/completions`.
async fn complete(
    gateway: &Arc<Gateway>,
    visit: &Visit,
    fields: Map<String, Value>,
    mut permit: Permit,
) -> Result<Response<Body>, ErrorResponse> {
    let invalid = |param: &str, message: &str| ErrorResponse {
        param: Some(param.into()),
        ..ErrorResponse::new(400, "invalid_request_error", "invalid_request", message)
    };
    let alias = fields
        .get("model")
        .and_then(Value::as_str)
        .ok_or_else(|| invalid("model", "model is missing or no text"))?
        .to_owned();
    match fields.get("messages") {
        Some(Value::Array(messages))
            if !messages.is_empty() && messages.iter().all(Value::is_object) => {}
        _ => {
            return Err(invalid(
                "messages",
                "messages is missing, empty, or no list of objects",
            ));
        }
    }
    let stream = match fields.get("stream") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(stream)) => *stream,
        Some(_) => return Err(invalid("stream", "stream is neither true nor false")),
    };
    if gateway.routes.find(&alias).is_none() {
        permit.lost_by(Defect::LosesPermitOfUnknownModel);
        return Err(ErrorResponse {
            param: Some("model".into()),
            ..ErrorResponse::new(
                404,
                "invalid_request_error",
                "model_not_found",
                format!("no model is called {alias}"),
            )
        });
    }
    let call = call(
        gateway,
        visit,
        share_prompt(gateway, &visit.request_id, &alias, fields),
        stream,
    )?;
    if stream && gateway.has(Defect::FailsInside200) {
        let this = gateway.clone();
        let late = async move {
            match routed(&this, &alias, &call).await {
                Ok((
                    chat::Served {
                        answer: Answer::Stream(stream),
                        ..
                    },
                    _,
                )) => stream::events(*stream, Some(permit)).boxed(),
                Ok(_) => futures::stream::empty().boxed(),
                Err(failure) => {
                    let error = ErrorResponse::from_failure(failure, this.defect);
                    futures::stream::iter([Bytes::from(format!("data: {}\n\n", error.document()))])
                        .boxed()
                }
            }
        };
        return Ok(event_stream(futures::stream::once(late).flatten()));
    }
    let candidates = gateway
        .routes
        .find(&alias)
        .map_or(0, |route| route.candidates.len());
    let for_nobody = gateway.has(Defect::RetriesForNobody)
        || (stream && gateway.has(Defect::RetriesStreamsForNobody))
        || (candidates > 1 && gateway.has(Defect::FallsBackForNobody));
    let result = if for_nobody {
        let (this, alias) = (gateway.clone(), alias.clone());
        let joined = tokio::spawn(async move { routed(&this, &alias, &call).await }).await;
        joined.map_err(|_| {
            ErrorResponse::new(500, "server_error", "internal_error", "the request broke")
        })?
    } else {
        routed(gateway, &alias, &call).await
    };
    gateway
        .prompts
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .entry(alias)
        .or_default()
        .retain(|(id, _)| *id != visit.request_id);
    permit.ended = true;
    let (served, first) = match result {
        Ok(served) => served,
        Err(failure) => {
            permit.lost_by(match stream {
                true => Defect::LosesPermitOfFailedStream,
                false => Defect::LosesPermitOfFailure,
            });
            let defect = match gateway.defect {
                Some(Defect::StreamedFailureIs500) if stream => Some(Defect::EveryErrorIs500),
                defect => defect,
            };
            return Err(ErrorResponse::from_failure(failure, defect));
        }
    };
    let mut response = match served.answer {
        Answer::Plain(completion) => {
            permit.lost_by(Defect::LosesPermitOfAnswer);
            let mut response = Response::new(Full::new(completion.bytes).boxed_unsync());
            if gateway.has(Defect::KeepsContentEncoding) {
                let coding = HeaderValue::from_static("gzip");
                response
                    .headers_mut()
                    .insert(header::CONTENT_ENCODING, coding);
            }
            chat::copy_headers(gateway, chat::Into::Plain, response.headers_mut());
            response
        }
        Answer::Stream(stream) => {
            if gateway.has(Defect::DrainForgetsStreams) || gateway.has(Defect::GaugeForgetsStreams)
            {
                gateway
                    .in_flight
                    .send_modify(|taken| *taken = taken.saturating_sub(1));
            }
            (permit.streamed, permit.ended) = (true, false);
            let codes = visit.headers.contains_key(header::ACCEPT_ENCODING);
            let permit = Some(permit).filter(|_| !gateway.has(Defect::StreamsHoldNoPermit));
            let events = stream::events(*stream, permit);
            let mut response = event_stream(for_client(gateway, events, codes));
            chat::copy_headers(gateway, chat::Into::Stream, response.headers_mut());
            response
        }
    };
    if !response.headers().contains_key(header::CONTENT_TYPE) {
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
    }
    if gateway.has(Defect::PassesCookies)
        && let Some(cookie) = gateway.cookie()
    {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    let misnamed = gateway.has(Defect::NamesFirstCandidate)
        || (stream && gateway.has(Defect::NamesFirstCandidateOfStreams));
    let by = if misnamed {
        first
    } else {
        served.candidate.provider.spec.name.clone()
    };
    if let Ok(by) = HeaderValue::from_str(&by) {
        response.headers_mut().insert("x-gauntlet-provider", by);
    }
    Ok(response)
}

/// Asks the alias; the name of its first candidate comes with the answer.
async fn routed(
    gateway: &Arc<Gateway>,
    alias: &str,
    call: &Call,
) -> Result<(chat::Served, String), Failure> {
    let route: &Route = gateway
        .routes
        .find(alias)
        .ok_or_else(|| Failure::of(Vec::new()))?;
    let first = route
        .candidates
        .first()
        .map(|candidate| candidate.provider.spec.name.clone())
        .unwrap_or_default();
    chat::ask(gateway, route, call, 0)
        .await
        .map(|served| (served, first))
}

/// The part of the request and its headers that is sent on to the provider.
pub(super) fn call(
    gateway: &Gateway,
    visit: &Visit,
    fields: Map<String, Value>,
    stream: bool,
) -> Result<Call, ErrorResponse> {
    let text = |name: &str| {
        visit
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    Ok(Call {
        fields,
        stream,
        request_id: visit.request_id.clone(),
        deadline: if gateway.has(Defect::IgnoresClientDeadline) {
            None
        } else {
            own_deadline(&visit.headers)?
        },
        early: Arc::default(),
        idempotency_key: text("idempotency-key")
            .filter(|_| !gateway.has(Defect::IgnoresIdempotencyKey))
            .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned),
        traceparent: visit.headers.get("traceparent").cloned(),
        headers: visit.headers.clone(),
        authorization: visit.headers.get(header::AUTHORIZATION).cloned(),
        cookie: visit.headers.get(header::COOKIE).cloned(),
        base_url: text("x-base-url").map(str::to_owned),
        candidate: 0,
        attempt: 1,
    })
}

/// `x-request-timeout-ms`.
pub(super) fn own_deadline(headers: &HeaderMap) -> Result<Option<Instant>, ErrorResponse> {
    let Some(value) = headers.get("x-request-timeout-ms") else {
        return Ok(None);
    };
    let ms = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|ms| *ms > 0);
    let ms = ms.ok_or_else(|| {
        ErrorResponse::new(
            400,
            "invalid_request_error",
            "invalid_request",
            "x-request-timeout-ms takes milliseconds, 1 or more",
        )
    })?;
    Ok(Instant::now().checked_add(Duration::from_millis(ms)))
}

/// Reads the whole body as a JSON object: of the right media type, within its bound and its time
/// (LOAD-04, LOAD-05, ERR-03).
async fn read(
    gateway: &Arc<Gateway>,
    headers: &HeaderMap,
    mut body: Incoming,
) -> Result<Map<String, Value>, ErrorResponse> {
    let limits = gateway.spec.limits;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json")
        .to_ascii_lowercase();
    if !kind.starts_with("application/json") {
        return Err(refuse(
            gateway,
            body,
            ErrorResponse::new(
                415,
                "invalid_request_error",
                "unsupported_media_type",
                format!("{kind} is not taken, only application/json"),
            ),
        ));
    }
    let large = || {
        ErrorResponse::new(
            413,
            "invalid_request_error",
            "body_too_large",
            format!("the body is larger than {} bytes", limits.body_bytes),
        )
    };
    let coding = headers
        .get(header::CONTENT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .filter(|coding| *coding != "identity")
        .map(str::to_owned);
    let read_anyway = coding
        .as_deref()
        .is_none_or(|coding| reads(gateway, coding));
    if !read_anyway {
        return Err(refuse(
            gateway,
            body,
            ErrorResponse::new(
                415,
                "invalid_request_error",
                "unsupported_media_type",
                "a body in a content coding is not taken",
            ),
        ));
    }
    let early = !gateway.has(Defect::ReadsBeforeMeasuring);
    let expects =
        headers.contains_key(header::EXPECT) && gateway.has(Defect::ReadsWhatIsTooLargeAnyway);
    let most = match gateway.defect {
        Some(Defect::RefusesAtTheLimit) => limits.body_bytes - 1,
        Some(Defect::AllowsOneByteMore) => limits.body_bytes + 1,
        _ => limits.body_bytes,
    };
    if early && !expects && body.size_hint().lower() > most {
        return Err(refuse(gateway, body, large()));
    }
    let mut bytes = BytesMut::new();
    let mut too_large = false;
    let broken = || {
        ErrorResponse::new(
            400,
            "invalid_request_error",
            "invalid_request",
            "the body broke off",
        )
    };
    let (came, mut more) = watch::channel(());
    let half = Half {
        gateway,
        loses: gateway.has(Defect::LosesPermitOfHalfABody),
    };
    let reading = async {
        while let Some(frame) = body.frame().await {
            if gateway.has(Defect::ChokesOnTrailersOfClients)
                && frame.as_ref().is_ok_and(Frame::is_trailers)
            {
                return Err(broken());
            }
            let frame = frame.map_err(|_| broken())?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            too_large = bytes.len() as u64 > most;
            if gateway.has(Defect::BodyTimerRestarts) {
                came.send_replace(());
            }
            if too_large && early {
                break;
            }
        }
        Ok(())
    };
    let time = Duration::from_millis(limits.body_ms);
    let late = || {
        ErrorResponse::new(
            408,
            "invalid_request_error",
            "body_timeout",
            format!("the body takes longer than {time:?}"),
        )
    };
    if gateway.has(Defect::WaitsForSlowBody) {
        reading.await?;
    } else if gateway.has(Defect::BodyTimerRestarts) {
        let silent = async { while timeout(time, more.changed()).await.is_ok() {} };
        tokio::select! {
            read = reading => read?,
            () = silent => return Err(late()),
        }
    } else {
        timeout(time, reading).await.map_err(|_| late())??;
    }
    half.ends_whole();
    if too_large {
        return Err(refuse(gateway, body, large()));
    }
    if let Some(coding) = &coding {
        return decoded(gateway, coding, &bytes);
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ErrorResponse::new(
            400,
            "invalid_request_error",
            "invalid_request",
            "the body is not a JSON object",
        )),
        Err(error) => {
            if gateway.has(Defect::LosesPermitOfInvalid) {
                gateway.lose();
            }
            Err(ErrorResponse::new(
                400,
                "invalid_request_error",
                "invalid_request",
                format!("the body is not JSON: {error}"),
            ))
        }
    }
}

/// A body that is being read. Dropping it before its end loses a permit, if it is to.
struct Half<'g> {
    gateway: &'g Gateway,
    loses: bool,
}

impl Half<'_> {
    fn ends_whole(mut self) {
        self.loses = false;
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        if self.loses {
            self.gateway.lose();
        }
    }
}

/// Whether a defect reads a body in a content coding, which is otherwise refused (EDGE-03).
fn reads(gateway: &Gateway, coding: &str) -> bool {
    match gateway.defect {
        Some(Defect::ReadsCodedAsJson | Defect::ForwardsCodedBodies) => true,
        Some(Defect::InflatesWithoutBound | Defect::BelievesAnyCoding) => coding == "gzip",
        Some(Defect::IgnoresUnknownCodings) => coding.starts_with("x-"),
        _ => false,
    }
}

/// What a defect takes a body in a content coding for.
fn decoded(
    gateway: &Gateway,
    coding: &str,
    bytes: &[u8],
) -> Result<Map<String, Value>, ErrorResponse> {
    let plain = match gateway.defect {
        Some(Defect::InflatesWithoutBound | Defect::BelievesAnyCoding) if coding == "gzip" => {
            chat::gunzipped(bytes)
        }
        _ => bytes.to_vec(),
    };
    let most = gateway.spec.limits.body_bytes;
    if plain.len() as u64 > most && !gateway.has(Defect::InflatesWithoutBound) {
        return Err(ErrorResponse::new(
            413,
            "invalid_request_error",
            "body_too_large",
            format!("the decoded body is larger than {most} bytes"),
        ));
    }
    let plain = if plain.is_empty() && gateway.has(Defect::BelievesAnyCoding) {
        bytes
    } else {
        &plain
    };
    if let Ok(Value::Object(fields)) = serde_json::from_slice(plain) {
        return Ok(fields);
    }
    let alias = gateway.routes.routes.first().map(|route| &route.alias);
    match alias.filter(|_| gateway.has(Defect::ForwardsCodedBodies)) {
        Some(alias) => {
            let content = String::from_utf8_lossy(bytes);
            let fields =
                json!({ "model": alias, "messages": [{ "role": "user", "content": content }] });
            Ok(fields.as_object().cloned().unwrap_or_default())
        }
        None => Err(ErrorResponse::new(
            400,
            "invalid_request_error",
            "invalid_request",
            "the body is not JSON",
        )),
    }
}

/// Refuses a request whose body has not been read. For a moment the rest is read and dropped: a
/// connection that is closed over unread bytes is reset, and the client might lose the answer.
fn refuse(gateway: &Gateway, mut body: Incoming, error: ErrorResponse) -> ErrorResponse {
    drop(
        gateway.outlive(timeout(Duration::from_millis(500), async move {
            while let Some(Ok(_)) = body.frame().await {}
        })),
    );
    error
}

/// Finds the tenant of a request (AUTH-01): by a configured key, or by one that the store knows.
async fn tenant(
    gateway: &Gateway,
    headers: &HeaderMap,
    trusting: bool,
) -> Result<String, ErrorResponse> {
    if gateway.spec.keys.is_empty() {
        return Ok("default".into());
    }
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '));
    let token = token
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let mut known = gateway
        .spec
        .keys
        .iter()
        .find(|key| token.is_some_and(|token| is_key(gateway, &key.token, token)))
        .map(|key| key.tenant.clone());
    let of_provider = |token| {
        let mut all = gateway.spec.providers.iter();
        all.any(|provider| provider.api_key == token)
    };
    if gateway.has(Defect::TakesProvidersKey) && token.is_some_and(of_provider) {
        known = Some("default".into());
    }
    if let (None, Some(token), Some(store)) = (&known, token, &gateway.store) {
        known = stored_key(gateway, store, token, trusting).await?;
    }
    match known {
        Some(tenant) => Ok(tenant),
        None if gateway.has(Defect::TakesAnyKey) && token.is_some() => Ok("default".into()),
        None if token.is_none() => Err(ErrorResponse::new(
            401,
            "authentication_error",
            "missing_api_key",
            "a key is needed: Authorization: Bearer …",
        )),
        None => Err(ErrorResponse::new(
            401,
            "authentication_error",
            "invalid_api_key",
            "the key is not known",
        )),
    }
}

/// Whether a client that presents this token has the key.
fn is_key(gateway: &Gateway, key: &str, token: &str) -> bool {
    match gateway.defect {
        Some(Defect::TakesPartOfKey) => key.starts_with(token) && !token.is_empty(),
        Some(Defect::IgnoresCaseOfKey) => key.eq_ignore_ascii_case(token),
        Some(Defect::TakesHashOfKey) => {
            key == token || (token.len() == 64 && token.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        _ => key == token,
    }
}

/// The tenant of a key that the store knows. What it has confirmed holds for a short time, however
/// often the key is used (AUTH-05).
async fn stored_key(
    gateway: &Gateway,
    store: &super::store::Store,
    token: &str,
    trusting: bool,
) -> Result<Option<String>, ErrorResponse> {
    let confirmed = || {
        gateway
            .confirmed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    let cached = confirmed().get(token).cloned();
    if let Some((tenant, at)) = &cached {
        if at.elapsed() < CACHED || trusting {
            if gateway.has(Defect::UseExtendsCache) {
                confirmed().insert(token.into(), (tenant.clone(), Instant::now()));
            }
            return Ok(Some(tenant.clone()));
        }
        if gateway.has(Defect::ForgetsIssuedKeys) {
            return Ok(None);
        }
    }
    match store.tenant(token).await {
        Ok(Some(tenant)) => {
            confirmed().insert(token.into(), (tenant.clone(), Instant::now()));
            Ok(Some(tenant))
        }
        Ok(None) if gateway.has(Defect::RevokedIs503) && cached.is_some() => {
            Err(ErrorResponse::shutting_down())
        }
        Ok(None) => Ok(None),
        Err(_) if gateway.has(Defect::FailedLookupIs401) => Ok(None),
        Err(error) => {
            let outlives = match gateway.defect {
                Some(Defect::CacheOutlivesStore) => true,
                Some(Defect::CacheOutlivesSilence) => store.accepts().await,
                _ => false,
            };
            match cached.filter(|_| outlives) {
                Some((tenant, _)) => Ok(Some(tenant)),
                None => Err(records::store_error(gateway, &error)),
            }
        }
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok());
    let sane = given.filter(|id| {
        !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic())
    });
    sane.map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), str::to_owned)
}

/// `GET /v1/models`, in OpenAI's shape (WIRE-09).
fn models(gateway: &Gateway, one: Option<&str>) -> Result<Response<Body>, ErrorResponse> {
    let model = |alias: &str| json!({ "id": alias, "object": "model", "created": 0, "owned_by": "gauntlet" });
    let mut aliases = gateway
        .routes
        .routes
        .iter()
        .map(|route| route.alias.as_str());
    if gateway.has(Defect::ListsBareNames) {
        return Ok(json_response(200, &aliases.collect()));
    }
    match one {
        None if gateway.has(Defect::ListsEachCandidate) => {
            let routes = gateway.routes.routes.iter();
            let each = |route: &Route| vec![model(&route.alias); route.candidates.len()];
            Ok(json_response(
                200,
                &json!({ "object": "list", "data": routes.flat_map(each).collect::<Vec<_>>() }),
            ))
        }
        None => Ok(json_response(
            200,
            &json!({ "object": "list", "data": aliases.map(model).collect::<Vec<_>>() }),
        )),
        Some(id) if aliases.any(|alias| alias == id) => Ok(json_response(200, &model(id))),
        Some(id) => Err(ErrorResponse::new(
            404,
            "invalid_request_error",
            "model_not_found",
            format!("no model is called {id}"),
        )),
    }
}

/// Sends an error in the one envelope.
pub(super) fn respond(gateway: &Gateway, error: &ErrorResponse) -> Response<Body> {
    let mut response = if gateway.has(Defect::SendsPlainText) && error.status < 500 {
        let mut response =
            Response::new(Full::new(Bytes::from(error.message.clone())).boxed_unsync());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    } else {
        json_response(200, &error.document())
    };
    *response.status_mut() =
        http::StatusCode::from_u16(error.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.extend(error.passed.iter().cloned());
    if let Some(wait) = error.retry_after {
        headers.insert(
            header::RETRY_AFTER,
            HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
        );
    }
    let unknown = gateway.has(Defect::NoChallengeForUnknownKey) && error.code == "invalid_api_key";
    if error.status == 401 && !gateway.has(Defect::NoChallenge) && !unknown {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if error.status == 415 && !gateway.has(Defect::NoAcceptEncoding) {
        let none = HeaderValue::from_static("identity");
        headers.insert(header::ACCEPT_ENCODING, none);
    }
    if gateway.has(Defect::PassesCookiesOfErrors)
        && let Some(cookie) = gateway.cookie()
    {
        headers.insert(header::SET_COOKIE, cookie);
    }
    if error.status == 405 {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
    }
    if matches!(error.status, 408 | 413) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

pub(super) fn json_response(status: u16, document: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(document.to_string())).boxed_unsync());
    *response.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn event_stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let body = StreamBody::new(events.map(|event| Ok::<_, Infallible>(Frame::data(event))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The events as they are, or as a defect passes them on.
fn for_client(
    gateway: &Arc<Gateway>,
    events: impl Stream<Item = Bytes> + Send + 'static,
    codes: bool,
) -> futures::stream::BoxStream<'static, Bytes> {
    match gateway.defect {
        Some(Defect::GathersForCodingClients) if codes => {
            stream::read_ahead(events, gateway).boxed()
        }
        Some(Defect::BuffersStream | Defect::ReadsForNobody | Defect::ReadsAhead) => {
            stream::read_ahead(events, gateway).boxed()
        }
        Some(Defect::WritesUnderLock) => stream::under_lock(events, gateway).boxed(),
        _ => events.boxed(),
    }
}

/// For [`Defect::SharesPrompts`]: the request with the messages of the earliest request of this
/// alias that is in flight; otherwise with its own.
fn share_prompt(
    gateway: &Gateway,
    request_id: &str,
    alias: &str,
    mut fields: Map<String, Value>,
) -> Map<String, Value> {
    if !gateway.has(Defect::SharesPrompts) {
        return fields;
    }
    let mut prompts = gateway
        .prompts
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let earlier = prompts.entry(alias.to_owned()).or_default();
    earlier.push((request_id.to_owned(), fields["messages"].clone()));
    fields["messages"] = earlier[0].1.clone();
    fields
}
