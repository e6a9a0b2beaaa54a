//! Responders: what a provider answers. A reply, an error, raw bytes or a sequence of them is
//! written in the protocol of the request, and streamed if the request asks for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::Value;
use wiremock::{Respond, ResponseTemplate};

use super::protocol::Protocol;
use super::request::StubRequest;
use super::sequence::{Count, Sequence};
use crate::exercise::Planted;
use crate::plan::Plan;
use crate::wire::http::FAULT_HEADER;
use crate::wire::{Answer, HARNESS_STATUS, PLAN_HEADER, UNMATCHED_HEADER};

/// Decides what is answered to a matched request. It works with stubs and on any wiremock server; a
/// plan needs a stub.
#[derive(Clone, Debug)]
pub struct Responder {
    kind: Kind,
    plan: Option<Plan>,
    headers: Vec<(String, String)>,
    /// The number of the responder, which its clones share: its fault has it.
    id: u64,
    /// Whether a case holds although the fault is never met.
    optional: bool,
}

/// The number of the next responder.
static RESPONDERS: AtomicU64 = AtomicU64::new(1);

#[derive(Clone)]
enum Kind {
    Reply(Reply),
    Error(ErrorReply),
    Raw {
        status: u16,
        content_type: String,
        body: Bytes,
    },
    Embeddings,
    Sequence(Arc<Sequence>),
    With(Arc<dyn Fn(&StubRequest) -> Responder + Send + Sync>),
    /// A responder that was built wrongly; its answer names the mistake.
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

/// How a stream ends. The transport is in order in all cases.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// The end that the protocol asks for.
    Proper,
    /// The finish reason is sent and `[DONE]` is not; only OpenAI's protocol has one.
    WithoutDone,
    /// Nothing is sent after the last token.
    WithoutFinish,
    /// An in-band error is sent after the last token.
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

/// Replies with this text. Its tokens are its words, each with the blank before it, and usage
/// counts them.
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

/// Replies with a call of a tool; `arguments` is a JSON object. [`Responder::tool_call`] adds more.
pub fn tool_call(name: &str, arguments: Value) -> Responder {
    reply("").tool_call(name, arguments)
}

/// Replies with the text of the last user message.
pub fn echo() -> Responder {
    with(|request| reply(&request.user_text()))
}

/// Answers with a provider's error of this status, in the protocol's own form.
pub fn error(status: u16) -> Responder {
    Responder::of(Kind::Error(ErrorReply {
        status,
        message: None,
        kind: None,
        code: None,
    }))
}

/// Answers every request with these bytes.
pub fn raw(status: u16, content_type: &str, body: impl Into<Bytes>) -> Responder {
    Responder::of(Kind::Raw {
        status,
        content_type: content_type.into(),
        body: body.into(),
    })
}

/// Gives the answers in order, counted for each prompt (model and last user message) by itself, so
/// that concurrent requests do not disturb each other: the n-th attempt of a request gets the n-th
/// answer. The last answer repeats. The last 65,536 prompts are counted.
pub fn sequence(answers: impl IntoIterator<Item = Responder>) -> Responder {
    in_sequence(answers, Count::EachPrompt)
}

/// Gives the answers in order over all calls, for requests that come one after the other. The last
/// answer repeats.
pub fn call_sequence(answers: impl IntoIterator<Item = Responder>) -> Responder {
    in_sequence(answers, Count::AllCalls)
}

fn in_sequence(answers: impl IntoIterator<Item = Responder>, count: Count) -> Responder {
    let answers: Vec<Responder> = answers.into_iter().collect();
    if answers.is_empty() {
        return Responder::of(Kind::Misused("a sequence needs at least one answer".into()));
    }
    Responder::of(Kind::Sequence(Arc::new(Sequence::new(answers, count))))
}

/// Answers with whatever responder `answer` makes of the request.
pub fn with(answer: impl Fn(&StubRequest) -> Responder + Send + Sync + 'static) -> Responder {
    Responder::of(Kind::With(Arc::new(answer)))
}

impl Responder {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            plan: None,
            headers: Vec::new(),
            id: RESPONDERS.fetch_add(1, Ordering::Relaxed),
            optional: false,
        }
    }

    /// Allows that the fault of this answer, or of any answer in it, is never met: a case that
    /// passes without it is exercised all the same.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// What is wrong with the answer, in the words of a report; `None` for a healthy one, and where
    /// the answer depends on the request.
    fn fault(&self) -> Option<String> {
        let kind = match &self.kind {
            Kind::Error(error) => Some(format!("status {}", error.status)),
            Kind::Raw { status, .. } if *status >= 300 => Some(format!("status {status}")),
            Kind::Raw { content_type, .. } => {
                Some(format!("bytes of the case's own as {content_type}"))
            }
            Kind::Reply(reply) => match &reply.ending {
                Ending::Proper => None,
                Ending::WithoutDone => Some("a stream without [DONE]".into()),
                Ending::WithoutFinish => Some("a stream without finish_reason and [DONE]".into()),
                Ending::Error(error) => Some(format!("an error {} in band", error.status)),
            },
            Kind::Embeddings | Kind::Sequence(_) | Kind::With(_) | Kind::Misused(_) => None,
        };
        let plan = self.plan.as_ref().and_then(Plan::fault);
        match (kind, plan) {
            (Some(kind), Some(plan)) => Some(format!("{plan} ({kind})")),
            (kind, plan) => plan.or(kind),
        }
    }

    /// Adds the faults of this answer, and of the answers in it, to those of a stub.
    pub(super) fn plant(&self, planted: &Planted) {
        self.plant_unless(self.optional, planted);
    }

    fn plant_unless(&self, optional: bool, planted: &Planted) {
        let optional = optional || self.optional;
        if let Some(fault) = self.fault() {
            planted.plant(self.id, fault, u64::from(!optional));
        } else if let Kind::Sequence(sequence) = &self.kind {
            for answer in sequence.answers() {
                answer.plant_unless(optional, planted);
            }
        }
    }

    fn reply(mut self, method: &str, change: impl FnOnce(&mut Reply)) -> Self {
        match &mut self.kind {
            Kind::Reply(reply) => change(reply),
            _ => self.kind = Kind::Misused(format!("{method} changes a reply, and this is none")),
        }
        self
    }

    fn error(mut self, method: &str, change: impl FnOnce(&mut ErrorReply)) -> Self {
        match &mut self.kind {
            Kind::Error(error) => change(error),
            _ => self.kind = Kind::Misused(format!("{method} changes an error, and this is none")),
        }
        self
    }

    /// Sets the reply's tokens: each is one content event of a stream, and they are joined
    /// otherwise. Usage counts them.
    #[must_use]
    pub fn tokens<T: Into<String>>(self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.reply("tokens()", |reply| {
            reply.tokens = tokens.into_iter().map(Into::into).collect()
        })
    }

    /// Adds a call of a tool to the reply; `arguments` is a JSON object.
    #[must_use]
    pub fn tool_call(self, name: &str, arguments: Value) -> Self {
        self.reply("tool_call()", |reply| {
            reply.tool_calls.push((name.into(), arguments))
        })
    }

    /// Sets the usage that the reply reports, in tokens of the prompt and of the completion.
    #[must_use]
    pub fn usage(self, prompt: u64, completion: u64) -> Self {
        self.reply("usage()", |reply| {
            (reply.prompt_tokens, reply.completion_tokens) = (prompt, Some(completion))
        })
    }

    /// Sets the finish reason, in OpenAI's words (`stop`, `length`, `content_filter`). It is `stop`
    /// or `tool_calls` by default.
    #[must_use]
    pub fn finish(self, reason: &str) -> Self {
        self.reply("finish()", |reply| reply.finish = Some(reason.into()))
    }

    /// Ends a stream after the finish reason, without `[DONE]`.
    #[must_use]
    pub fn without_done(self) -> Self {
        self.reply("without_done()", |reply| reply.ending = Ending::WithoutDone)
    }

    /// Ends a stream after the last token, without finish reason and `[DONE]`. The transport ends
    /// in order.
    #[must_use]
    pub fn without_finish(self) -> Self {
        self.reply("without_finish()", |reply| {
            reply.ending = Ending::WithoutFinish
        })
    }

    /// Ends a stream with this in-band error after the last token. Where no stream is request for,
    /// the answer is the error.
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

    /// Sets the error's code, such as `rate_limit_exceeded`; by default it is what the provider
    /// sends with the status.
    #[must_use]
    pub fn code(self, code: &str) -> Self {
        self.error("code()", |error| error.code = Some(code.into()))
    }

    /// Sets the error's type, such as `invalid_request_error`; by default it is what the provider
    /// sends with the status.
    #[must_use]
    pub fn kind(self, kind: &str) -> Self {
        self.error("kind()", |error| error.kind = Some(kind.into()))
    }

    /// Sets the error's message.
    #[must_use]
    pub fn message(self, message: &str) -> Self {
        self.error("message()", |error| error.message = Some(message.into()))
    }

    /// Adds `Retry-After`: seconds, or an HTTP date.
    #[must_use]
    pub fn retry_after(self, value: impl fmt::Display) -> Self {
        self.header("retry-after", &value.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Sets how the bytes of the answer flow.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// The answer to this request.
    pub fn render(&self, request: &StubRequest) -> Answer {
        let mut answer = match &self.kind {
            Kind::Reply(reply) => in_protocol(request, |protocol| {
                protocol.behaviour().reply(reply, request)
            }),
            Kind::Error(error) => {
                in_protocol(request, |protocol| protocol.behaviour().error(error))
            }
            Kind::Embeddings => {
                let inputs = request.inputs();
                in_protocol(request, |protocol| {
                    protocol.behaviour().embeddings(request, inputs)
                })
            }
            Kind::Raw {
                status,
                content_type,
                body,
            } => Answer::new(*status, content_type, body.clone()),
            Kind::Sequence(sequence) => sequence.next(request).render(request),
            Kind::With(answer) => answer(request).render(request),
            Kind::Misused(how) => {
                Answer::unmatched(format!("the responder was built wrongly: {how}"))
            }
        };
        answer.headers.extend(self.headers.iter().cloned());
        if let Some(plan) = &self.plan {
            answer.plan = plan.clone();
        }
        if self.fault().is_some() {
            answer.fault = Some(self.id);
        }
        answer
    }
}

/// Writes an answer in the protocol of the request; the protocol is never guessed.
fn in_protocol(request: &StubRequest, write: impl FnOnce(Protocol) -> Answer) -> Answer {
    match request.protocol() {
        Some(protocol) => write(protocol),
        None => Answer::unmatched(format!(
            "{} {} belongs to no protocol of a stub ({}); answer it with raw()",
            request.method,
            request.path,
            Protocol::names()
        )),
    }
}

impl Respond for Responder {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let request = StubRequest::of_wiremock(request);
        template(self.render(&request), request.by_the_wire())
    }
}

/// The answer as wiremock sends it. A plan goes into a header for the wire; whoever would not obey
/// it gets a refusal instead.
pub(super) fn template(answer: Answer, by_the_wire: bool) -> ResponseTemplate {
    if answer.plan.needs_the_wire() && !by_the_wire {
        let text = "gauntlet: this responder has a plan for its bytes, which only a gauntlet stub \
                    can obey; mount it on a stub, or remove the plan.\n";
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
    if let Some(fault) = answer.fault.filter(|_| by_the_wire) {
        template = template.insert_header(FAULT_HEADER, fault.to_string().as_str());
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
            Self::Embeddings => f.write_str("Embeddings"),
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

    /// The number that the case gives, else one for each token and tool call.
    pub(super) fn completion_tokens(&self) -> u64 {
        self.completion_tokens
            .unwrap_or((self.tokens.len() + self.tool_calls.len()) as u64)
    }

    pub(super) fn text(&self) -> String {
        self.tokens.concat()
    }
}

/// The words of a text, each with the white space before it.
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

/// Answers an embeddings request with one vector for each input, in the order of the inputs. The
/// first number of a vector identifies its input.
pub fn embeddings() -> Responder {
    Responder::of(Kind::Embeddings)
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
