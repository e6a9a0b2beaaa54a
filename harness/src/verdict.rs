//! What a requirement comes to: its weight, the verdict, why it does not hold, and the words in which a case states its facts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The weight of a requirement (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// MUST and MUST NOT: a failure fails the run.
    Must,
    /// SHOULD: a failure is a warning; it fails the run with `--strict`.
    Should,
}

/// How a failing gateway presented itself to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureMode {
    /// Wrong, but with an error that the user can see.
    Visible,
    /// A wrong answer that looks right.
    Silent,
    /// No end within the hang guard.
    Hang,
}

/// Why a case did not pass.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Failure {
    /// The gateway broke the requirement.
    Violated {
        /// The id of the fact, unique within its case: dotted words, such as `answer.status`.
        fact: String,
        expected: String,
        observed: String,
        mode: FailureMode,
    },
    /// The gateway could not be brought to the point of the examination, or died there.
    Target { what: String },
    /// The harness itself failed: never counted against the gateway, ends the run with code 2.
    Harness { what: String },
    /// Something here is missing (a database, a platform's feature): the case is *not run*.
    NotRun { why: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated {
                expected, observed, ..
            } => write!(f, "expected {expected}; observed {observed}"),
            Self::Target { what } => write!(f, "the gateway: {what}"),
            Self::Harness { what } => write!(f, "the harness: {what}"),
            Self::NotRun { why } => write!(f, "not run: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// What a case comes to.
pub type CaseResult = Result<(), Failure>;

/// The judged outcome of a case in a run.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// The requirement holds.
    Passed,
    /// It does not.
    Failed { failure: Failure },
    /// The target does not declare the capability.
    NotSupported { capability: String },
    /// Something here is missing.
    NotRun {
        // beside the case's own `why` in a record
        #[serde(rename = "not_run_because")]
        why: String,
    },
    /// Failed, then passed on a repeat.
    Flaky { failure: Failure },
}

/// A fact that has to hold, in words: what was expected, and what was seen instead.
///
/// # Errors
/// A violation that the user of the gateway could see; see [`lied`].
pub fn holds(
    fact: &str,
    condition: bool,
    expected: impl Into<String>,
    observed: impl fmt::Display,
) -> CaseResult {
    if condition {
        return Ok(());
    }
    Err(Failure::Violated {
        fact: fact.to_string(),
        expected: expected.into(),
        observed: observed.to_string(),
        mode: FailureMode::Visible,
    })
}

/// Two values that have to be equal; `what` names them.
///
/// # Errors
/// As [`holds`].
pub fn equal<T: PartialEq + fmt::Debug>(
    fact: &str,
    what: &str,
    expected: T,
    observed: T,
) -> CaseResult {
    holds(
        fact,
        expected == observed,
        format!("{what} {expected:?}"),
        format_args!("{what} {observed:?}"),
    )
}

/// Two places on the tape, of which the first has to come before the second; each with its name.
///
/// # Errors
/// As [`holds`].
pub fn in_order(fact: &str, first: (&str, u64), second: (&str, u64)) -> CaseResult {
    holds(
        fact,
        first.1 < second.1,
        format!("{} before {}", first.0, second.0),
        format_args!("{} before {}", second.0, first.0),
    )
}

/// The same violation, of a gateway whose wrong answer looks right: `equal(…).map_err(silent)?`.
pub fn silent(failure: Failure) -> Failure {
    match failure {
        Failure::Violated {
            fact,
            expected,
            observed,
            mode: FailureMode::Visible,
        } => Failure::Violated {
            fact,
            expected,
            observed,
            mode: FailureMode::Silent,
        },
        other => other,
    }
}
