//! A chat request in each of its modes, plain and streamed, and what both answers have in common.

use std::fmt;

use gauntlet_harness::case::{CaseResult, Ctx, Failure, equal, holds};
use gauntlet_harness::client::{Client, Reply, Transcript};
use gauntlet_harness::subject::Capability;
use serde_json::Value;

use super::support::{silent_if, silent_in};

/// How an answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Plain,
    Streamed,
}

pub(super) const MODES: [Mode; 2] = [Mode::Plain, Mode::Streamed];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of("plain", "streamed"))
    }
}

/// An answer in either mode.
#[derive(Clone, Debug)]
pub(super) enum Answered {
    Plain(Reply),
    Streamed(Box<Transcript>),
}

impl Mode {
    /// The one for plain requests, or the one for streams.
    pub(super) fn of<T>(self, plain: T, streamed: T) -> T {
        match self {
            Self::Plain => plain,
            Self::Streamed => streamed,
        }
    }

    /// Sends the request and reads its answer to the end.
    pub(super) async fn ask(self, client: &Client, body: Value) -> Result<Answered, Failure> {
        Ok(match self {
            Self::Plain => Answered::Plain(Box::pin(client.chat(body)).await?),
            Self::Streamed => Answered::Streamed(Box::new(Box::pin(client.streamed(body)).await?)),
        })
    }
}

impl Answered {
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Plain(reply) => reply.status,
            Self::Streamed(stream) => stream.status,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Plain(reply) => reply.content(),
            Self::Streamed(stream) => stream.text.clone(),
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        match self {
            Self::Plain(reply) => reply.header(name),
            Self::Streamed(stream) => stream.header(name),
        }
    }

    /// The error that the client was given, as a document or as an event.
    pub(super) fn error(&self) -> Option<Value> {
        match self {
            Self::Plain(reply) => Some(reply.json()["error"].clone()).filter(|one| !one.is_null()),
            Self::Streamed(stream) => stream.error.clone(),
        }
    }

    /// Whether the client was given an error, by the status or by an event.
    pub(super) fn failed(&self) -> bool {
        self.status() >= 400 || self.error().is_some()
    }

    /// Makes a violation silent where the answer looks right to its client.
    pub(super) fn silent(&self, failure: Failure) -> Failure {
        match self {
            Self::Plain(reply) => silent_if(reply.status < 400)(failure),
            Self::Streamed(stream) => silent_in(stream)(failure),
        }
    }

    /// The answer must be whole, with this text.
    pub(super) fn is(&self, fact: &str, what: &str, text: &str) -> CaseResult {
        equal(
            fact,
            &format!("the status and the text ({what})"),
            (200, text.to_string()),
            (self.status(), self.text()),
        )
        .map_err(|failure| self.silent(failure))?;
        let whole = match self {
            Self::Plain(_) => true,
            Self::Streamed(stream) => stream.looks_complete(),
        };
        holds(
            fact,
            whole,
            format!("a complete stream ({what})"),
            format_args!("the error {}", self.error().unwrap_or_default()),
        )
    }

    /// The client must have been given an error.
    pub(super) fn is_error(&self, fact: &str, what: &str) -> CaseResult {
        holds(
            fact,
            self.failed(),
            format!("an error ({what})"),
            format_args!("status {} and the text {:?}", self.status(), self.text()),
        )
        .map_err(|failure| self.silent(failure))
    }
}

/// Whether the gateway can be examined by the instance: it streams, where that is the mode, and it
/// has the alias. Otherwise the instance is left out.
pub(super) fn possible(ctx: &Ctx, mode: Mode, alias: &str, name: &str) -> bool {
    (mode == Mode::Plain || ctx.instance_if(Capability::Stream, name))
        && ctx.instance_at(alias, name)
}

/// The prompt of an instance: no other instance's is a part of it.
pub(super) fn prompt(name: &str) -> String {
    format!("<{name}>")
}
