//! A whole answer, and why there is none when the transport failed.

use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use crate::verdict::{Failure, FailureMode};
use crate::wire::http::message;

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The label of the exchange.
    pub label: String,
    /// The status code.
    pub status: u16,
    /// Names and values in the order and spelling of the gateway.
    pub headers: Vec<(String, String)>,
    /// The whole body without its framing.
    pub body: Bytes,
}

/// Why there is no whole answer: the transport failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The connection could not be made.
    Connect(String),
    /// The connection ended, or was reset, before the head of an answer.
    NoAnswer(String),
    /// The connection ended, or was reset, within the body of this answer.
    Cut {
        /// The status that had come.
        status: u16,
        /// The part of the body that had come.
        body: Bytes,
        /// How the connection ended.
        how: String,
    },
    /// The answer was not read to its end, since it is larger than the bound.
    TooLarge {
        /// The status that had come.
        status: u16,
        /// The bound, in words.
        most: String,
    },
    /// The bytes that came are not HTTP/1.1.
    Malformed(String),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(how) => write!(f, "no connection: {how}"),
            Self::NoAnswer(how) => write!(f, "no answer: {how}"),
            Self::Cut { status, body, how } => write!(
                f,
                "an answer {status} that ended after {} bytes of its body: {how}",
                body.len()
            ),
            Self::TooLarge { status, most } => write!(f, "an answer {status} of more than {most}"),
            Self::Malformed(how) => f.write_str(how),
        }
    }
}

impl From<Transport> for Failure {
    /// The gateway broke the requirement: it owes an HTTP answer, and a client sees that there is
    /// none.
    fn from(transport: Transport) -> Self {
        Self::Violated {
            fact: "answer.whole".into(),
            expected: "a whole HTTP answer".into(),
            observed: transport.to_string(),
            mode: FailureMode::Visible,
        }
    }
}

impl Reply {
    /// The body; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of that name, whatever its spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        message::header(&self.headers, name)
    }

    /// The text of a completion's first choice; empty if there is none.
    pub fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_string()
    }

    /// The field `error.type` of OpenAI's error document.
    pub fn error_type(&self) -> Option<String> {
        self.json()["error"]["type"].as_str().map(String::from)
    }

    /// The field `error.code` of OpenAI's error document.
    pub fn error_code(&self) -> Option<String> {
        self.json()["error"]["code"].as_str().map(String::from)
    }

    /// Reads a completion strictly, by the published types of OpenAI's API.
    ///
    /// # Errors
    /// A sentence that names what is wrong with it.
    pub fn strict(&self) -> Result<(), String> {
        let read: async_openai::types::chat::CreateChatCompletionResponse =
            serde_json::from_slice(&self.body)
                .map_err(|error| format!("not a completion: {error}"))?;
        if read.object != "chat.completion" {
            return Err(format!(
                "object is {:?}, not \"chat.completion\"",
                read.object
            ));
        }
        match read
            .choices
            .iter()
            .find(|choice| choice.finish_reason.is_none())
        {
            Some(choice) => Err(format!("choice {} has no finish_reason", choice.index)),
            None if read.choices.is_empty() => Err("no choices".into()),
            None => Ok(()),
        }
    }
}
