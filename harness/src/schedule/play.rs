//! From an action to the answer and the way its bytes flow.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Action, WORDS};
use crate::plan::{Framing, Listen, Plan, Step};

/// How one call is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Played {
    /// What the port does; it is [`Listen::Serve`] unless the connection itself fails.
    pub listen: Listen,
    /// The response.
    pub response: Response,
    /// How the bytes of the response flow.
    pub plan: Plan,
}

/// A plain HTTP response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The value of `Content-Type`.
    pub content_type: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The whole body; the plan decides how much of it is sent.
    pub body: String,
}

impl Response {
    /// A response of status 200 with that body.
    pub fn ok(content_type: &str, body: impl Into<String>) -> Self {
        Self {
            status: 200,
            content_type: content_type.into(),
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// An error in OpenAI's form.
    pub fn error(status: u16, kind: &str, code: Option<&str>) -> Self {
        let message = format!("scripted {status}");
        let body =
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
                .to_string();
        Self {
            status,
            ..Self::ok("application/json", body)
        }
    }

    /// The same response with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }
}

impl Played {
    /// Sends the response at once.
    pub fn at_once(response: Response) -> Self {
        Self::flowing(response, Plan::default())
    }

    /// Sends the response as the plan says.
    pub fn flowing(response: Response, plan: Plan) -> Self {
        Self {
            listen: Listen::Serve,
            response,
            plan,
        }
    }
}

/// The answer to one call whose whole text would be `text`.
pub(super) fn play(action: Action, text: &str, stream: bool) -> Played {
    let good = if stream {
        Response::ok("text/event-stream", whole_stream(text))
    } else {
        Response::ok("application/json", document(text))
    };
    let part = |events: usize, then: Step| {
        Played::flowing(
            good.clone(),
            Plan::of(head_and(sent(events, stream).into_iter().chain([then]))),
        )
    };
    match action {
        Action::Answer => Played::at_once(good),
        Action::NoDone if stream => Played::at_once(Response::ok("text/event-stream", events(text, WORDS + 2))),
        Action::NoDone => Played::at_once(good),
        Action::Drip { every_ms } if stream => {
            Played::flowing(good, Plan::of(head_and((0..WORDS + 3).flat_map(|_| [Step::Pause { ms: every_ms }, Step::Events(1)]))))
        }
        Action::Drip { every_ms } => {
            let bytes = good.body.len().div_ceil(WORDS + 2);
            Played::flowing(good, Plan::of(head_and([Step::Drip { bytes, every_ms }])))
        }
        Action::DripForever { every_ms } if stream => Played::flowing(good, Plan::of(head_and([Step::Events(2), Step::RepeatForever { every_ms }]))),
        Action::DripForever { every_ms } => {
            // JSON may begin with white space: an answer that is always about to begin
            let body = format!("{}{}", " ".repeat(4_096), good.body);
            Played::flowing(Response::ok("application/json", body), Plan::of(head_and([Step::Drip { bytes: 1, every_ms }])))
        }
        Action::Status { status, retry_after_s } => {
            let response = Response::error(status, kind(status), None);
            Played::at_once(match retry_after_s {
                Some(seconds) => response.header("retry-after", seconds),
                None => response,
            })
        }
        Action::Quota => Played::at_once(Response::error(429, "insufficient_quota", Some("insufficient_quota"))),
        Action::Refuse => Played { listen: Listen::Refuse, ..Played::flowing(good, Plan::of([Step::Reset])) },
        Action::NeverAccept => Played { listen: Listen::NeverAccept, ..Played::flowing(good, Plan::silent()) },
        Action::Reset => Played::flowing(good, Plan::of([Step::Reset])),
        Action::Silent => Played::flowing(good, Plan::silent()),
        Action::Stall { events } => part(events, Step::Stall),
        Action::Cut { events } => part(events, Step::Cut),
        Action::CutInside { events } => {
            let steps = sent(events, stream).into_iter().chain([Step::Bytes(9), Step::Cut]);
            Played::flowing(good, Plan::of(head_and(steps)))
        }
        Action::ResetAfter { events } => part(events, Step::Reset),
        Action::NoFinish { events: count } if stream => Played::at_once(Response::ok("text/event-stream", events(text, count.min(WORDS + 1)))),
        Action::NoFinish { .. } => Played::at_once(Response::ok(
            "application/json",
            json!({"id": "chatcmpl-s", "object": "chat.completion", "created": 1, "model": "m", "choices": []}).to_string(),
        )),
        Action::InBandError { events: count } if stream => {
            let error = json!({"error": {"message": "scripted in-band error", "type": "server_error", "param": null, "code": null}});
            let body = format!("{}data: {error}\n\n", events(text, count.min(WORDS + 1)));
            Played::at_once(Response::ok("text/event-stream", body))
        }
        Action::InBandError { .. } => Played::at_once(Response { status: 200, ..Response::error(500, "server_error", None) }),
        Action::Malformed { events: count } if stream => {
            let before = events(text, count.min(WORDS + 1));
            let after = good.body[before.len()..].to_owned();
            Played::at_once(Response::ok("text/event-stream", format!("{before}data: {{\"choices\":[{{\"index\":0,\"del\n\n{after}")))
        }
        Action::Malformed { .. } => Played::at_once(Response::ok("application/json", good.body[..good.body.len() - 5].to_owned())),
        Action::Html => Played::at_once(Response::ok("text/html", "<!doctype html><title>502 Bad Gateway</title><h1>It works</h1>")),
        Action::Empty => {
            let content_type = good.content_type.clone();
            Played::flowing(Response::ok(&content_type, ""), Plan { steps: Plan::default().steps, framing: Framing::Natural })
        }
    }
}

fn head_and(steps: impl IntoIterator<Item = Step>) -> impl Iterator<Item = Step> {
    std::iter::once(Step::Head).chain(steps)
}

/// The step that sends this many events of a stream, or about the same part of the bytes of a
/// document, and never all of it.
fn sent(events: usize, stream: bool) -> Option<Step> {
    let events = events.min(WORDS + 1);
    match (events, stream) {
        (0, _) => None,
        (events, true) => Some(Step::Events(events)),
        (events, false) => Some(Step::Bytes(events * 20)),
    }
}

/// The type of error that OpenAI sends with a status.
fn kind(status: u16) -> &'static str {
    match status {
        400..=428 => "invalid_request_error",
        429 => "rate_limit_exceeded",
        _ => "server_error",
    }
}

fn whole_stream(text: &str) -> String {
    events(text, WORDS + 3)
}

/// The first `count` events: role, words, finish, `[DONE]`.
fn events(text: &str, count: usize) -> String {
    let chunk = |delta: Value, finish: Option<&str>| {
        let chunk = json!({"id": "chatcmpl-s", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]});
        format!("data: {chunk}\n\n")
    };
    let role = chunk(json!({"role": "assistant", "content": ""}), None);
    let words = text
        .split_inclusive(' ')
        .map(|word| chunk(json!({"content": word}), None));
    let end = [
        chunk(json!({}), Some("stop")),
        "data: [DONE]\n\n".to_owned(),
    ];
    std::iter::once(role)
        .chain(words)
        .chain(end)
        .take(count)
        .collect()
}

fn document(text: &str) -> String {
    json!({"id": "chatcmpl-s", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": WORDS, "total_tokens": 5 + WORDS}})
    .to_string()
}
