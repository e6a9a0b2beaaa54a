//! What a provider says: a reply, an error, raw bytes, or a sequence of them, in the protocol and form that was asked for.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use wiremock::{Respond, ResponseTemplate};

use super::request::StubRequest;
use super::sequence::{Count, Sequence};
use super::{ollama, openai};
use crate::plan::Plan;
use crate::wire::{Answer, HARNESS_STATUS, PLAN_HEADER, UNMATCHED_HEADER};

/// Says what is answered to a matched request. Works behind the wire and on any wiremock server; a plan needs the wire.
#[derive(Clone, Debug)]
pub struct Responder {
    kind: Kind,
    plan: Option<Plan>,
    headers: Vec<(String, String)>,
}

#[derive(Clone)]
enum Kind {
    Reply(Reply),
    Error(ErrorReply),
    Raw {
        status: u16,
        content_type: String,
        body: Bytes,
    },
    Sequence(Arc<Sequence>),
    With(Arc<dyn Fn(&StubRequest) -> Responder + Send + Sync>),
    /// Put together wrongly; answered by saying so.
    Misused(String),
}

/// A model's reply, in no protocol yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub tokens: Vec<String>,
    pub tool_calls: Vec<(String, Value)>,
    pub prompt_tokens: u64,
    pub completion_tokens: Option<u64>,
    pub finish: Option<String>,
    pub ending: Ending,
}

/// How a stream ends, in good order as far as the transport is concerned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// As the protocol wants.
    Proper,
    /// The finish reason is there, `[DONE]` is not (OpenAI only).
    WithoutDone,
    /// After the last token nothing more.
    WithoutFinish,
    /// After the last token an error in band.
    Error(ErrorReply),
}

/// A provider's error, in no protocol yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ErrorReply {
    pub status: u16,
    pub message: Option<String>,
    pub kind: Option<String>,
    pub code: Option<String>,
}

/// A reply with this text. Its tokens are its words (each with the blank before it), and usage counts them.
pub fn reply(text: &str) -> Responder {
    Responder::of(Kind::Reply(Reply {
        tokens: words(text),
        tool_calls: Vec::new(),
        prompt_tokens: 7,
        completion_tokens: None,
        finish: None,
        ending: Ending::Proper,
    }))
}

/// A reply that calls a tool; `arguments` is a JSON object. Add more with [`Responder::tool_call`].
pub fn tool_call(name: &str, arguments: Value) -> Responder {
    reply("").tool_call(name, arguments)
}

/// A reply that says what the last user message said.
pub fn echo() -> Responder {
    with(|asked| reply(&asked.user_text()))
}

/// A provider's error with this status, in the protocol's own form.
pub fn error(status: u16) -> Responder {
    Responder::of(Kind::Error(ErrorReply {
        status,
        message: None,
        kind: None,
        code: None,
    }))
}

/// These bytes, whatever was asked.
pub fn raw(status: u16, content_type: &str, body: impl Into<Bytes>) -> Responder {
    Responder::of(Kind::Raw {
        status,
        content_type: content_type.into(),
        body: body.into(),
    })
}

/// The answers in turn, counted for each prompt (last user message and model) by itself, so that concurrent requests do not
/// disturb each other: the n-th attempt of a request gets the n-th answer. The last one repeats. The last 65,536 prompts are counted.
pub fn sequence(answers: impl IntoIterator<Item = Responder>) -> Responder {
    in_sequence(answers, Count::EachPrompt)
}

/// The answers in turn over all calls, whoever makes them. The last one repeats. For requests that come one after the other.
pub fn in_turn(answers: impl IntoIterator<Item = Responder>) -> Responder {
    in_sequence(answers, Count::AllCalls)
}

fn in_sequence(answers: impl IntoIterator<Item = Responder>, count: Count) -> Responder {
    let answers: Vec<Responder> = answers.into_iter().collect();
    if answers.is_empty() {
        return Responder::of(Kind::Misused("a sequence without answers".into()));
    }
    Responder::of(Kind::Sequence(Arc::new(Sequence::new(answers, count))))
}

/// Whatever `answer` makes of the request.
pub fn with(answer: impl Fn(&StubRequest) -> Responder + Send + Sync + 'static) -> Responder {
    Responder::of(Kind::With(Arc::new(answer)))
}

impl Responder {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            plan: None,
            headers: Vec::new(),
        }
    }

    fn reply(mut self, method: &str, change: impl FnOnce(&mut Reply)) -> Self {
        match &mut self.kind {
            Kind::Reply(reply) => change(reply),
            _ => self.kind = Kind::Misused(format!("{method} on something that is not a reply")),
        }
        self
    }

    fn error(mut self, method: &str, change: impl FnOnce(&mut ErrorReply)) -> Self {
        match &mut self.kind {
            Kind::Error(error) => change(error),
            _ => self.kind = Kind::Misused(format!("{method} on something that is not an error")),
        }
        self
    }

    /// The reply's tokens: one content event each when streamed, joined when not. Usage counts them.
    #[must_use]
    pub fn tokens<T: Into<String>>(self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.reply("tokens()", |reply| {
            reply.tokens = tokens.into_iter().map(Into::into).collect()
        })
    }

    /// The reply also calls a tool; `arguments` is a JSON object.
    #[must_use]
    pub fn tool_call(self, name: &str, arguments: Value) -> Self {
        self.reply("tool_call()", |reply| {
            reply.tool_calls.push((name.into(), arguments))
        })
    }

    /// The usage that is told: prompt and completion tokens.
    #[must_use]
    pub fn usage(self, prompt: u64, completion: u64) -> Self {
        self.reply("usage()", |reply| {
            (reply.prompt_tokens, reply.completion_tokens) = (prompt, Some(completion))
        })
    }

    /// The finish reason, in OpenAI's words (`stop`, `length`, `content_filter`); by default `stop` or `tool_calls`.
    #[must_use]
    pub fn finish(self, reason: &str) -> Self {
        self.reply("finish()", |reply| reply.finish = Some(reason.into()))
    }

    /// A stream of it ends after the finish reason, without `[DONE]`.
    #[must_use]
    pub fn without_done(self) -> Self {
        self.reply("without_done()", |reply| reply.ending = Ending::WithoutDone)
    }

    /// A stream of it ends, in order for the transport, after the last token: no finish reason, no `[DONE]`.
    #[must_use]
    pub fn without_finish(self) -> Self {
        self.reply("without_finish()", |reply| {
            reply.ending = Ending::WithoutFinish
        })
    }

    /// A stream of it ends with an error in band after the last token; not streamed it is that error.
    #[must_use]
    pub fn then_error(self, status: u16, message: &str) -> Self {
        let error = ErrorReply {
            status,
            message: Some(message.into()),
            kind: None,
            code: None,
        };
        self.reply("then_error()", |reply| reply.ending = Ending::Error(error))
    }

    /// The error's code (`rate_limit_exceeded`, `insufficient_quota`, …); by default what goes with the status.
    #[must_use]
    pub fn code(self, code: &str) -> Self {
        self.error("code()", |error| error.code = Some(code.into()))
    }

    /// The error's type (`invalid_request_error`, …); by default what goes with the status.
    #[must_use]
    pub fn kind(self, kind: &str) -> Self {
        self.error("kind()", |error| error.kind = Some(kind.into()))
    }

    /// The error's message.
    #[must_use]
    pub fn message(self, message: &str) -> Self {
        self.error("message()", |error| error.message = Some(message.into()))
    }

    /// `Retry-After`: seconds, or an HTTP date.
    #[must_use]
    pub fn retry_after(self, value: impl fmt::Display) -> Self {
        self.header("retry-after", &value.to_string())
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// How the bytes flow.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// The answer to this request.
    pub fn render(&self, asked: &StubRequest) -> Answer {
        let mut answer = match &self.kind {
            Kind::Reply(reply) if asked.is_ollama() => ollama::reply(reply, asked),
            Kind::Reply(reply) => openai::reply(reply, asked),
            Kind::Error(error) if asked.is_ollama() => ollama::error(error),
            Kind::Error(error) => openai::error(error),
            Kind::Raw {
                status,
                content_type,
                body,
            } => Answer::new(*status, content_type, body.clone()),
            Kind::Sequence(sequence) => sequence.next(asked).render(asked),
            Kind::With(answer) => answer(asked).render(asked),
            Kind::Misused(how) => {
                Answer::unmatched(format!("the responder was put together wrongly: {how}"))
            }
        };
        answer.headers.extend(self.headers.iter().cloned());
        if let Some(plan) = &self.plan {
            answer.plan = plan.clone();
        }
        answer
    }
}

impl Respond for Responder {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let asked = StubRequest::of_wiremock(request);
        template(self.render(&asked), asked.by_the_wire())
    }
}

/// The answer as wiremock sends it: a plan goes into a header for the wire, and is refused for anybody else.
pub(super) fn template(answer: Answer, by_the_wire: bool) -> ResponseTemplate {
    if answer.plan.needs_the_wire() && !by_the_wire {
        let text = "gauntlet: this responder has a plan of how its bytes flow, which only the wire can obey; it refuses to be flattened. \
                    Ask it through a gauntlet stub, or leave the plan away.\n";
        return ResponseTemplate::new(HARNESS_STATUS)
            .set_body_raw(text, "text/plain; charset=utf-8");
    }
    let mut template = ResponseTemplate::new(answer.status);
    let mut content_type = String::from("application/octet-stream");
    for (name, value) in &answer.headers {
        if name == "content-type" {
            content_type.clone_from(value);
        } else {
            template = template.append_header(name.as_str(), value.as_str());
        }
    }
    if by_the_wire && answer.plan.needs_the_wire() {
        let plan = serde_json::to_string(&answer.plan).unwrap_or_default();
        template = template.insert_header(PLAN_HEADER, plan.as_str());
    }
    if let Some(reason) = &answer.unmatched {
        let reason: String = reason
            .chars()
            .map(|c| {
                if c.is_ascii_graphic() || c == ' ' {
                    c
                } else {
                    '?'
                }
            })
            .collect();
        template = template.insert_header(UNMATCHED_HEADER, reason.as_str());
    }
    template.set_body_raw(answer.body.to_vec(), &content_type)
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(reply) => write!(f, "{reply:?}"),
            Self::Error(error) => write!(f, "{error:?}"),
            Self::Raw {
                status,
                content_type,
                body,
            } => write!(f, "Raw({status}, {content_type}, {} bytes)", body.len()),
            Self::Sequence(sequence) => f.debug_list().entries(sequence.answers()).finish(),
            Self::With(_) => f.write_str("With(…)"),
            Self::Misused(how) => write!(f, "Misused({how})"),
        }
    }
}

impl Reply {
    /// The finish reason in OpenAI's words.
    pub(super) fn finish(&self) -> &str {
        match (&self.finish, self.tool_calls.is_empty()) {
            (Some(reason), _) => reason,
            (None, true) => "stop",
            (None, false) => "tool_calls",
        }
    }

    /// As told, or one a token (and one a tool call).
    pub(super) fn completion_tokens(&self) -> u64 {
        self.completion_tokens
            .unwrap_or((self.tokens.len() + self.tool_calls.len()) as u64)
    }

    pub(super) fn text(&self) -> String {
        self.tokens.concat()
    }
}

/// Words, each with the white space before it.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut blank = true;
    for c in text.chars() {
        match words.last_mut() {
            Some(word) if blank || !c.is_whitespace() => word.push(c),
            _ => words.push(c.to_string()),
        }
        blank = c.is_whitespace();
    }
    words
}

/// Vectors for an embeddings request: one an input, in the inputs' order, told from each other by their first number.
pub fn vectors() -> Responder {
    with(|asked| {
        let inputs = match &asked.json["input"] {
            Value::Array(inputs) => inputs.len(),
            Value::Null => 0,
            _ => 1,
        };
        let vector = |at: usize| json!([at as f64, 0.25, -0.5]);
        let body = if asked.is_ollama() {
            json!({"model": asked.model(), "embeddings": (0..inputs).map(vector).collect::<Vec<_>>()})
        } else {
            let data: Vec<Value> = (0..inputs)
                .map(|at| json!({"object": "embedding", "index": at, "embedding": vector(at)}))
                .collect();
            json!({"object": "list", "data": data, "model": asked.model(), "usage": {"prompt_tokens": inputs, "total_tokens": inputs}})
        };
        raw(200, "application/json", body.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_join_to_their_text() {
        for text in ["", "Paris", "Paris is big", " a  b\n c "] {
            assert_eq!(words(text).concat(), text);
        }
        assert_eq!(words("Paris is big"), ["Paris", " is", " big"]);
    }
}
