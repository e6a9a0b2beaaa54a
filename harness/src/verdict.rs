//! The weight of a requirement, the verdict of its case, the reason of a failure, and the functions
//! with which a case states its facts.

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
    /// The user could see an error.
    Visible,
    /// The user got a wrong answer that looks right.
    Silent,
    /// The user waited, and nothing ended within the hang guard.
    Hang,
}

/// The reason for which a case does not pass.
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
    /// The gateway could not be started or prepared for the examination, or its process ended in
    /// it.
    Target { what: String },
    /// The harness itself failed. This is never counted against the gateway; the run ends with exit
    /// code 2.
    Harness { what: String },
    /// Something that the case needs is missing on this machine, such as a database: the case is
    /// *not run*.
    NotRun { why: String },
    /// The gateway was never brought into the state that the case is about: the case is *not
    /// exercised*.
    NotExercised { why: String },
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
            Self::NotExercised { why } => write!(f, "not exercised: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// What a case returns: nothing where the requirement holds, otherwise why it does not.
pub type CaseResult = Result<(), Failure>;

/// The judged outcome of a case in a run.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// The requirement holds.
    Passed,
    /// The requirement does not hold.
    Failed { failure: Failure },
    /// The target does not declare the capability.
    NotSupported { capability: String },
    /// Something that the case needs is missing on this machine.
    NotRun {
        // beside the case's own `why` in a record
        #[serde(rename = "not_run_because")]
        why: String,
    },
    /// Nothing was wrong, but a planted fault was never met, or a state that the case is about was
    /// never reached: nothing is shown.
    NotExercised {
        #[serde(rename = "not_exercised_because")]
        why: String,
    },
    /// The case failed, and passed when it was repeated.
    Flaky { failure: Failure },
}

impl Failure {
    /// The same failure; a violation names the instance of the requirement in which it was seen.
    #[must_use]
    pub fn in_instance(self, name: &str) -> Self {
        match self {
            Self::Violated {
                fact,
                expected,
                observed,
                mode,
            } => Self::Violated {
                fact,
                expected,
                observed: format!("{observed} (instance: {name})"),
                mode,
            },
            other => other,
        }
    }
}

/// A fact that must hold: what was expected, and what was observed instead.
///
/// `fact` is an id of dotted words, such as `answer.status`: it is unique within its case and does
/// not change when the words do. `expected` is a phrase that follows "expected".
///
/// # Errors
/// A violation that the user of the gateway can see; see [`silent`].
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

/// Two values that must be equal. `what` names the value ("the number of \[DONE\] events"). The
/// failure shows both as JSON.
///
/// # Errors
/// As [`holds`].
pub fn equal<T: PartialEq + Serialize>(
    fact: &str,
    what: &str,
    expected: T,
    observed: T,
) -> CaseResult {
    if expected == observed {
        return Ok(());
    }
    let expected = format!("{what} to be {}", json(&expected));
    holds(fact, false, expected, json(&observed))
}

/// Formats a value for the reader of a verdict, who may not know how Rust shows it.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("a value without JSON ({error})"))
}

/// Two positions on the tape, each with the name of its event: the first must come before the
/// second.
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

/// The violations of a case that has a table: the case looks at every row, and reports all the rows
/// that deviate.
#[derive(Debug, Default)]
#[must_use = "the violations are lost unless `result` is called"]
pub struct Deviations(Vec<Failure>);

impl Deviations {
    /// Starts without a violation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the violation of a row, if it is one. A hang ends the case with everything that was
    /// noted: each further row could wait as long.
    ///
    /// # Errors
    /// A hang, and a failure that is no violation, such as one of the harness: the case ends with
    /// it. A row that was not exercised ends the case with the violations of the rows before it, if
    /// there are any: they were seen.
    pub fn note(&mut self, row: CaseResult) -> CaseResult {
        match row {
            Err(violated @ Failure::Violated { mode, .. }) => {
                self.0.push(violated);
                if mode == FailureMode::Hang {
                    return std::mem::take(self).result();
                }
                Ok(())
            }
            Err(Failure::NotExercised { why }) if !self.0.is_empty() => {
                let seen = std::mem::take(self).result();
                seen.map_err(|failure| match failure {
                    Failure::Violated {
                        fact,
                        expected,
                        observed,
                        mode,
                    } => Failure::Violated {
                        fact,
                        expected,
                        observed: format!("{observed}; the rest was not exercised: {why}"),
                        mode,
                    },
                    other => other,
                })
            }
            other => other,
        }
    }

    /// Joins what was noted into one violation: with the fact of the first row that deviates, every
    /// other one listed, and the mode of the gravest.
    ///
    /// # Errors
    /// That violation, if any row deviates.
    pub fn result(self) -> CaseResult {
        let more: Vec<String> = self.0.iter().skip(1).map(ToString::to_string).collect();
        let modes = self.0.iter().filter_map(|failure| match failure {
            Failure::Violated { mode, .. } => Some(*mode),
            _ => None,
        });
        let gravest = modes.max_by_key(|mode| match mode {
            FailureMode::Visible => 0,
            FailureMode::Silent => 1,
            FailureMode::Hang => 2,
        });
        match (self.0.into_iter().next(), gravest) {
            (
                Some(Failure::Violated {
                    fact,
                    expected,
                    mut observed,
                    ..
                }),
                Some(mode),
            ) => {
                for (n, deviation) in more.iter().enumerate() {
                    observed.push_str(&format!("; deviation {}: {deviation}", n + 2));
                }
                Err(Failure::Violated {
                    fact,
                    expected,
                    observed,
                    mode,
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_one_violation_that_lists_them_all() {
        let mut deviations = Deviations::new();
        for (fact, seen) in [("a", 1), ("b", 2), ("c", 3)] {
            let row = equal(fact, "the number", 2, seen);
            assert_eq!(deviations.note(row.map_err(silent)), Ok(()));
        }
        assert_eq!(
            deviations.result(),
            Err(Failure::Violated {
                fact: "a".into(),
                expected: "the number to be 2".into(),
                observed: "1; deviation 2: expected the number to be 2; observed 3".into(),
                mode: FailureMode::Silent,
            })
        );
        assert_eq!(Deviations::new().result(), Ok(()));
    }

    #[test]
    fn a_row_that_was_not_exercised_hides_no_deviation_before_it() {
        let idle = || {
            Err(Failure::NotExercised {
                why: "p1 was not asked".into(),
            })
        };
        let mut deviations = Deviations::new();
        assert_eq!(deviations.note(idle()), idle());
        assert_eq!(deviations.note(equal("a", "the number", 2, 1)), Ok(()));
        let Err(Failure::Violated { fact, observed, .. }) = deviations.note(idle()) else {
            unreachable!("a violation was noted")
        };
        assert_eq!(
            (fact.as_str(), observed.as_str()),
            ("a", "1; the rest was not exercised: p1 was not asked")
        );
        assert_eq!(deviations.result(), Ok(()));
    }

    #[test]
    fn a_hang_ends_the_case_with_what_was_noted_before() {
        let mut deviations = Deviations::new();
        assert_eq!(deviations.note(equal("a", "the number", 2, 1)), Ok(()));
        let hung = Err(Failure::Violated {
            fact: "hang.answer".into(),
            expected: "an answer".into(),
            observed: "none".into(),
            mode: FailureMode::Hang,
        });
        let Err(Failure::Violated {
            fact,
            observed,
            mode,
            ..
        }) = deviations.note(hung)
        else {
            unreachable!("a hang was noted")
        };
        assert_eq!((fact.as_str(), mode), ("a", FailureMode::Hang));
        assert!(observed.contains("an answer"), "{observed}");
    }

    #[test]
    fn a_failure_of_the_harness_is_no_deviation() {
        let failure = Failure::Harness {
            what: "no port".into(),
        };
        let mut deviations = Deviations::new();
        assert_eq!(deviations.note(Err(failure.clone())), Err(failure));
        assert_eq!(deviations.result(), Ok(()));
    }
}
