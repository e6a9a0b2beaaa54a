//! Scripts in YAML for `gauntlet stub`: rules that state what is matched and what is answered, in
//! order.
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
//! An unknown key is an error, so that a misspelt condition does not match everything.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::matcher::{Matcher, chat};
use super::protocol::Protocol;
use super::responder::{Responder, call_sequence, echo, error, raw, reply, sequence};
use super::source::ScriptSource;
use crate::plan::{Plan, Step};

/// Why a file is not a script: one sentence with the file, the position and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}{position}: {problem}")]
pub struct FixtureError {
    path: String,
    /// `:LINE:COLUMN`, or the number of a rule, or nothing.
    position: String,
    problem: String,
}

/// A file of rules; the first rule that matches a request answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What the script is for; only people read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// Which requests are matched and what is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// All of these must hold; without any, every chat request is matched.
    #[serde(default, rename = "match")]
    pub conditions: Conditions,
    /// The answers, in order; the last one repeats.
    pub answers: Vec<Answers>,
    /// Over which requests the answers are counted.
    #[serde(default)]
    pub counted: Counted,
}

/// Over which requests the answers of a rule are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Each prompt (model and last user message) is counted by itself.
    #[default]
    EachPrompt,
    /// All requests of the rule are counted together.
    AllCalls,
}

/// Conditions on a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// The request's protocol: `openai` or `ollama`.
    pub protocol: Option<Protocol>,
    /// The model's name.
    pub model: Option<String>,
    /// A text that the last user message contains.
    pub user_says: Option<String>,
    /// A text that the body contains anywhere.
    pub body_contains: Option<String>,
    /// Whether a stream is asked for.
    pub streaming: Option<bool>,
    /// The name of a tool that the request offers.
    pub tool_named: Option<String>,
    /// Values at JSON pointers or dotted paths of the body.
    #[serde(default)]
    pub json: IndexMap<String, Value>,
    /// Headers of the request and their values.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
}

/// One answer: exactly one of `reply`, `echo`, `error` and `raw`, and its details.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The text of a model's reply.
    pub reply: Option<String>,
    /// Whether the reply is the last user message.
    #[serde(default)]
    pub echo: bool,
    /// The status of a provider's error.
    pub error: Option<u16>,
    /// An answer whose bytes are given.
    pub raw: Option<Raw>,
    /// The reply's tokens instead of its words; they must join to its text, if there is one.
    pub tokens: Option<Vec<String>>,
    /// Tools that the reply calls.
    #[serde(default)]
    pub tool_calls: Vec<Called>,
    /// The usage that the reply reports.
    pub usage: Option<Usage>,
    /// The reply's finish reason.
    pub finish: Option<String>,
    /// The error's code.
    pub code: Option<String>,
    /// The error's type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The error's message.
    pub message: Option<String>,
    /// The value of `Retry-After`: seconds or an HTTP date.
    pub retry_after: Option<String>,
    /// Further headers of the answer.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
    /// How the bytes of the answer flow.
    #[serde(default, with = "yaml_serde::with::singleton_map_recursive")]
    pub plan: Option<Plan>,
}

/// An answer whose bytes are given.
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

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Called {
    /// The tool's name.
    pub name: String,
    /// The arguments, a JSON object.
    #[serde(default)]
    pub arguments: Value,
}

/// The usage that a reply reports, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens of the completion.
    pub completion: u64,
}

impl Script {
    /// Reads a script from a file.
    ///
    /// # Errors
    /// A sentence that names the file, the position and the remedy.
    pub fn read(path: &Path) -> Result<Self, FixtureError> {
        let text = std::fs::read_to_string(path).map_err(|error| FixtureError {
            path: path.display().to_string(),
            position: String::new(),
            problem: format!("cannot be read ({error}); give the path of a YAML file with rules"),
        })?;
        Self::parse(&text, path)
    }

    /// Reads a script from text; `path` is for the message.
    ///
    /// # Errors
    /// A sentence that names the file, the position and the remedy.
    pub fn parse(text: &str, path: &Path) -> Result<Self, FixtureError> {
        let wrong = |position: String, problem: String| FixtureError {
            path: path.display().to_string(),
            position,
            problem,
        };
        let script: Self = yaml_serde::from_str(text).map_err(|error| {
            let position = error.location().map_or(String::new(), |at| {
                format!(":{}:{}", at.line(), at.column())
            });
            let problem = error.to_string();
            wrong(
                position,
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

    /// The names of the gates and interlocks that its plans wait for, and that somebody has to
    /// open.
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
                Counted::AllCalls => call_sequence(answers),
            };
            source.rule(rule.conditions.matcher(), responder);
        }
    }
}

/// A text that may be given, and the change that it makes.
type Change<'a, T> = (&'a Option<String>, fn(T, &str) -> T);

impl Conditions {
    fn matcher(&self) -> Matcher {
        let mut matcher = match self.protocol {
            None => chat(),
            Some(protocol) => Matcher::chat_of(protocol),
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
    /// Refuses what cannot be meant.
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
                "{status} is not the status of an answer; give one from 200 to 599"
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
        let mut answer = reply(self.reply.as_deref().unwrap_or_default());
        answer = self
            .tokens
            .iter()
            .fold(answer, |answer, tokens| answer.tokens(tokens.clone()));
        answer = self.tool_calls.iter().fold(answer, |answer, call| {
            answer.tool_call(&call.name, call.arguments.clone())
        });
        answer = self.usage.iter().fold(answer, |answer, usage| {
            answer.usage(usage.prompt, usage.completion)
        });
        self.finish
            .iter()
            .fold(answer, |answer, reason| answer.finish(reason))
    }
}

/// A source with the rules of these files in their order, and the names of the gates that they wait
/// for. Without files the source echoes every chat.
///
/// # Errors
/// The first file that is not a script.
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
    fn errors_name_file_position_and_remedy() {
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
        let plan = |plan: &str| {
            problem(&format!(
                "rules:\n  - answers: [{{ reply: a, plan: {plan} }}]"
            ))
        };
        for (wrong, field) in [
            ("{ steps: [head, rest], framng: natural }", "framng"),
            ("{ steps: [head, { pause: { ms: 5, mss: 5 } }] }", "mss"),
        ] {
            let unknown = plan(wrong);
            assert!(
                unknown.contains(&format!("unknown field `{field}`")),
                "{unknown}"
            );
        }
        let protocol =
            problem("rules:\n  - match: { protocol: anthropic }\n    answers: [{ reply: a }]");
        assert!(
            protocol.contains("unknown protocol `anthropic`; use one of openai, ollama"),
            "{protocol}"
        );
        let syntax = problem("rules:\n  - answers: [\n");
        assert!(syntax.starts_with("a.yaml:"), "{syntax}");
        assert!(
            Script::read(Path::new("/nowhere/a.yaml"))
                .unwrap_err()
                .to_string()
                .starts_with("/nowhere/a.yaml: cannot be read")
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
