//! Conversations as files: rules with what is matched and what is answered in turn, in YAML. For `gauntlet stub`.
//!
//! ```yaml
//! rules:
//!   - match: { model: gpt-4o, user_says: capital of France, streaming: true }
//!     answers:
//!       - { error: 503, retry_after: "1" }          # the first attempt of each prompt
//!       - reply: Paris.                             # from then on
//!         tokens: [Par, is, .]                      # one event each when streamed
//!         usage: { prompt: 12, completion: 3 }
//!         plan:
//!           steps: [head, { events: 2 }, { pause: { ms: 50 } }, rest]
//! ```
//!
//! Unknown keys are errors, so that a misspelt condition does not match everything.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::matcher::{Matcher, chat};
use super::responder::{Responder, echo, error, in_turn, raw, reply, sequence};
use super::source::ScriptSource;
use super::{ollama, openai};
use crate::plan::{Plan, Step};

/// Why a file is no script: one sentence with the file, the place and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}{place}: {problem}")]
pub struct FixtureError {
    path: String,
    /// `:LINE:COLUMN`, or a rule's place, or nothing.
    place: String,
    problem: String,
}

/// A file of rules; the first rule that matches a request answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What it is for, for the reader.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// In the order of matching.
    pub rules: Vec<Rule>,
}

/// What is matched and what is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// All of these hold; without any, every chat request is matched.
    #[serde(default, rename = "match")]
    pub conditions: Conditions,
    /// In turn; the last one repeats.
    pub answers: Vec<Answers>,
    /// What the turns are counted over.
    #[serde(default)]
    pub counted: Counted,
}

/// What the turns of a rule are counted over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Each prompt (model and last user message) by itself.
    #[default]
    EachPrompt,
    /// All requests of the rule together.
    AllCalls,
}

/// Conditions on a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Only requests in this protocol.
    pub protocol: Option<ScriptProtocol>,
    /// The model's name.
    pub model: Option<String>,
    /// Contained in the last user message.
    pub user_says: Option<String>,
    /// Contained anywhere in the body.
    pub body_contains: Option<String>,
    /// Whether a stream is asked for.
    pub streaming: Option<bool>,
    /// A tool of this name is offered.
    pub tool_named: Option<String>,
    /// Values at JSON pointers or dotted paths.
    #[serde(default)]
    pub json: IndexMap<String, Value>,
    /// Headers and their values.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
}

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScriptProtocol {
    /// `…/chat/completions`.
    OpenAi,
    /// `/api/chat`.
    Ollama,
}

/// One answer: exactly one of `reply`, `echo`, `error`, `raw`, and what goes with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// A model's text.
    pub reply: Option<String>,
    /// The last user message comes back.
    #[serde(default)]
    pub echo: bool,
    /// A provider's error with this status.
    pub error: Option<u16>,
    /// Bytes as they are.
    pub raw: Option<Raw>,
    /// The reply's tokens instead of its words; they must join to its text, if there is one.
    pub tokens: Option<Vec<String>>,
    /// Tools that the reply calls.
    #[serde(default)]
    pub tool_calls: Vec<Called>,
    /// The usage that is told.
    pub usage: Option<Usage>,
    /// The finish reason.
    pub finish: Option<String>,
    /// The error's code.
    pub code: Option<String>,
    /// The error's type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The error's message.
    pub message: Option<String>,
    /// Seconds or an HTTP date.
    pub retry_after: Option<String>,
    /// More headers.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
    /// How the bytes flow.
    #[serde(default, with = "yaml_serde::with::singleton_map_recursive")]
    pub plan: Option<Plan>,
}

/// Bytes as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// The status code.
    #[serde(default = "ok")]
    pub status: u16,
    /// The content type.
    pub content_type: String,
    /// The body.
    pub body: String,
}

fn ok() -> u16 {
    200
}

/// A tool that is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Called {
    /// The tool's name.
    pub name: String,
    /// A JSON object.
    #[serde(default)]
    pub arguments: Value,
}

/// Tokens, as told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the completion.
    pub completion: u64,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// A sentence that names the file and the place.
    pub fn read(path: &Path) -> Result<Self, FixtureError> {
        let text = std::fs::read_to_string(path).map_err(|error| FixtureError {
            path: path.display().to_string(),
            place: String::new(),
            problem: format!("can't be read ({error}); give the path of a YAML file with rules"),
        })?;
        Self::parse(&text, path)
    }

    /// The same from text; `path` is for the message.
    ///
    /// # Errors
    /// A sentence that names the file and the place.
    pub fn parse(text: &str, path: &Path) -> Result<Self, FixtureError> {
        let wrong = |place: String, problem: String| FixtureError {
            path: path.display().to_string(),
            place,
            problem,
        };
        let script: Self = yaml_serde::from_str(text).map_err(|error| {
            let place = error.location().map_or(String::new(), |at| {
                format!(":{}:{}", at.line(), at.column())
            });
            let problem = error.to_string();
            wrong(
                place,
                problem
                    .split(" at line ")
                    .next()
                    .unwrap_or(&problem)
                    .to_string(),
            )
        })?;
        if script.rules.is_empty() {
            return Err(wrong(
                String::new(),
                "there is no rule; add one under rules:".into(),
            ));
        }
        for (rule, at) in script.rules.iter().zip(1..) {
            if rule.answers.is_empty() {
                return Err(wrong(
                    format!(", rule {at}"),
                    "it answers nothing; add an answer under answers:".into(),
                ));
            }
            for (answer, n) in rule.answers.iter().zip(1..) {
                answer
                    .check()
                    .map_err(|problem| wrong(format!(", rule {at}, answer {n}"), problem))?;
            }
        }
        Ok(script)
    }

    /// The names of gates and interlocks that its plans wait for: somebody has to open them.
    pub fn gates(&self) -> Vec<String> {
        let plans = self
            .rules
            .iter()
            .flat_map(|rule| &rule.answers)
            .filter_map(|answer| answer.plan.as_ref());
        let waits = plans
            .flat_map(|plan| &plan.steps)
            .filter_map(|step| match step {
                Step::Hold(name) | Step::Interlock(name) => Some(name.clone()),
                _ => None,
            });
        let mut names: Vec<String> = waits.collect();
        names.sort();
        names.dedup();
        names
    }

    /// Adds its rules to a source.
    pub fn install(&self, source: &ScriptSource) {
        for rule in &self.rules {
            let answers = rule.answers.iter().map(Answers::responder);
            let responder = match rule.counted {
                Counted::EachPrompt => sequence(answers),
                Counted::AllCalls => in_turn(answers),
            };
            source.rule(rule.conditions.matcher(), responder);
        }
    }
}

/// A text that may be given, and what it changes.
type Change<'a, T> = (&'a Option<String>, fn(T, &str) -> T);

impl Conditions {
    fn matcher(&self) -> Matcher {
        let mut matcher = match self.protocol {
            None => chat(),
            Some(ScriptProtocol::OpenAi) => openai::chat(),
            Some(ScriptProtocol::Ollama) => ollama::chat(),
        };
        let texts: [Change<'_, Matcher>; 4] = [
            (&self.model, Matcher::model),
            (&self.user_says, Matcher::user_says),
            (&self.body_contains, Matcher::body_contains),
            (&self.tool_named, Matcher::tool_named),
        ];
        for (text, condition) in texts {
            matcher = text
                .iter()
                .fold(matcher, |matcher, text| condition(matcher, text));
        }
        matcher = self
            .streaming
            .iter()
            .fold(matcher, |matcher, streaming| matcher.streaming(*streaming));
        matcher = self.json.iter().fold(matcher, |matcher, (path, value)| {
            matcher.json_path(path, value.clone())
        });
        self.headers.iter().fold(matcher, |matcher, (name, value)| {
            matcher.header(name, value)
        })
    }
}

impl Answers {
    /// What can't be meant.
    fn check(&self) -> Result<(), String> {
        let says = self.reply.is_some() || self.tokens.is_some() || !self.tool_calls.is_empty();
        let kinds = [
            ("reply", says),
            ("echo", self.echo),
            ("error", self.error.is_some()),
            ("raw", self.raw.is_some()),
        ];
        let given: Vec<&str> = kinds
            .iter()
            .filter(|(_, given)| *given)
            .map(|(name, _)| *name)
            .collect();
        let [kind] = given[..] else {
            return Err(format!(
                "give exactly one of reply, echo, error, raw; there is {}",
                if given.is_empty() {
                    "none".into()
                } else {
                    given.join(" and ")
                }
            ));
        };
        let fits = [
            ("usage", self.usage.is_some(), "reply"),
            ("finish", self.finish.is_some(), "reply"),
            ("code", self.code.is_some(), "error"),
            ("type", self.kind.is_some(), "error"),
            ("message", self.message.is_some(), "error"),
        ];
        if let Some((name, _, with)) = fits.iter().find(|(_, given, with)| *given && *with != kind)
        {
            return Err(format!("{name} goes with {with}, not with {kind}"));
        }
        let status = self
            .error
            .or(self.raw.as_ref().map(|raw| raw.status))
            .unwrap_or(200);
        if !(200..=599).contains(&status) {
            return Err(format!(
                "{status} is no status of an answer; give one from 200 to 599"
            ));
        }
        match (&self.reply, &self.tokens) {
            (Some(text), Some(tokens)) if tokens.concat() != *text => Err(format!(
                "the tokens join to {:?}, not to the reply {text:?}",
                tokens.concat()
            )),
            _ => Ok(()),
        }
    }

    fn responder(&self) -> Responder {
        let mut responder = match (&self.raw, self.error) {
            (Some(bytes), _) => raw(bytes.status, &bytes.content_type, bytes.body.clone()),
            (None, Some(status)) => error(status),
            (None, None) if self.echo => echo(),
            (None, None) => self.model_reply(),
        };
        let texts: [Change<'_, Responder>; 3] = [
            (&self.code, Responder::code),
            (&self.kind, Responder::kind),
            (&self.message, Responder::message),
        ];
        for (text, change) in texts {
            responder = text
                .iter()
                .fold(responder, |responder, text| change(responder, text));
        }
        responder = self
            .retry_after
            .iter()
            .fold(responder, |responder, value| responder.retry_after(value));
        responder = self
            .headers
            .iter()
            .fold(responder, |responder, (name, value)| {
                responder.header(name, value)
            });
        self.plan
            .iter()
            .fold(responder, |responder, plan| responder.plan(plan.clone()))
    }

    fn model_reply(&self) -> Responder {
        let mut said = reply(self.reply.as_deref().unwrap_or_default());
        said = self
            .tokens
            .iter()
            .fold(said, |said, tokens| said.tokens(tokens.clone()));
        said = self.tool_calls.iter().fold(said, |said, call| {
            said.tool_call(&call.name, call.arguments.clone())
        });
        said = self.usage.iter().fold(said, |said, usage| {
            said.usage(usage.prompt, usage.completion)
        });
        self.finish
            .iter()
            .fold(said, |said, reason| said.finish(reason))
    }
}

/// A source with the rules of these files, in their order; without files it echoes.
///
/// # Errors
/// The first file that is no script.
pub fn source(paths: &[PathBuf]) -> Result<(ScriptSource, Vec<String>), FixtureError> {
    let source = ScriptSource::of_every_protocol();
    let mut gates = Vec::new();
    for path in paths {
        let script = Script::read(path)?;
        script.install(&source);
        gates.extend(script.gates());
    }
    if paths.is_empty() {
        source.answers(echo());
    }
    Ok((source, gates))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(text: &str) -> String {
        Script::parse(text, Path::new("a.yaml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn errors_name_file_place_and_remedy() {
        assert_eq!(
            problem("rules: []"),
            "a.yaml: there is no rule; add one under rules:"
        );
        assert_eq!(
            problem("rules:\n  - answers: []"),
            "a.yaml, rule 1: it answers nothing; add an answer under answers:"
        );
        assert_eq!(
            problem("rules:\n  - answers:\n      - { reply: a, error: 503 }"),
            "a.yaml, rule 1, answer 1: give exactly one of reply, echo, error, raw; there is reply and error"
        );
        assert_eq!(
            problem(
                "rules:\n  - answers:\n      - { error: 503, usage: { prompt: 1, completion: 1 } }"
            ),
            "a.yaml, rule 1, answer 1: usage goes with reply, not with error"
        );
        assert_eq!(
            problem("rules:\n  - answers:\n      - { reply: ab, tokens: [a, c] }"),
            "a.yaml, rule 1, answer 1: the tokens join to \"ac\", not to the reply \"ab\""
        );
        let unknown = problem("rules:\n  - match: { modle: m }\n    answers: [{ reply: a }]");
        assert!(
            unknown.starts_with("a.yaml:2:") && unknown.contains("unknown field `modle`"),
            "{unknown}"
        );
        let syntax = problem("rules:\n  - answers: [\n");
        assert!(syntax.starts_with("a.yaml:"), "{syntax}");
        assert!(
            Script::read(Path::new("/nowhere/a.yaml"))
                .unwrap_err()
                .to_string()
                .starts_with("/nowhere/a.yaml: can't be read")
        );
    }

    #[test]
    fn a_plan_is_written_as_it_reads() {
        let text = "rules:\n  - answers:\n      - reply: a\n        plan:\n          steps: [head, { events: 2 }, { drip: { bytes: 3, every_ms: 1 } }, { hold: g }, reset]\n          framing: { wrong_length: 3 }";
        let script = Script::parse(text, Path::new("a.yaml")).unwrap();
        let plan = script.rules[0].answers[0].plan.clone().unwrap();
        assert_eq!(
            plan.steps,
            [
                Step::Head,
                Step::Events(2),
                Step::Drip {
                    bytes: 3,
                    every_ms: 1
                },
                Step::Hold("g".into()),
                Step::Reset
            ]
        );
        assert_eq!(script.gates(), ["g"]);
    }
}
