//! Requirement sets, which are frozen by date, and the levels that a gateway carries by them.
//!
//! A set lists the requirements of its time: their ids, weights, surfaces, and a hash of their
//! wording. Results by one set stay comparable while the catalogue grows. A gateway carries a level
//! if each MUST of the level was examined and passed.

use serde::{Deserialize, Serialize};

use crate::case::Profile;
use crate::runner::Outcome;
use crate::verdict::{Failure, Level, Verdict};

/// The levels, from the lowest, each with the surfaces whose requirements it holds.
const LEVELS: [(&str, &[Profile]); 3] = [
    ("core", &[Profile::Llm]),
    ("operable", &[Profile::Llm, Profile::Ops]),
    (
        "complete",
        &[Profile::Llm, Profile::Ops, Profile::Query, Profile::Store],
    ),
];

/// A set of requirements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequirementSet {
    /// The name of the set, which is the month from which it counts: `2026.12`.
    pub name: String,
    /// The day from which it counts, such as `2026-12-01`.
    pub frozen: String,
    /// The requirements, in the order of the catalogue.
    pub requirement: Vec<FrozenRequirement>,
}

/// A requirement of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenRequirement {
    /// The id, such as `TIME-02`.
    pub id: String,
    /// The weight.
    pub level: Level,
    /// The surfaces that the requirement is about.
    pub profiles: Vec<Profile>,
    /// The first 16 hexadecimal digits of the SHA-256 of its text.
    pub wording: String,
}

impl RequirementSet {
    /// Reads a set; `origin` names it in errors.
    ///
    /// # Errors
    /// A sentence that names the origin, the position and the remedy.
    pub fn parse(text: &str, origin: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let error = error.to_string();
            let why = error.trim_end().replace('\n', "\n  ");
            format!("{origin} is no requirement set: {why}; correct that line")
        })
    }
}

/// The levels of a run by one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// The name of the requirement set.
    pub set: String,
    /// The day from which the set counts.
    pub frozen: String,
    /// The levels, from the lowest.
    pub levels: Vec<LevelResult>,
}

/// One level of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelResult {
    /// The name of the level: `core`, `operable` or `complete`.
    pub name: String,
    /// Whether the gateway carries it.
    pub carried: bool,
    /// The number of MUSTs of the level.
    pub musts: usize,
    /// The number of them that were examined and passed.
    pub passed: usize,
    /// The MUSTs that are missing, each with the reason.
    pub missing: Vec<Missing>,
}

/// A MUST that was not shown to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The id of the requirement.
    pub id: String,
    /// The verdict in words: `failed`, `flaky`, `not exercised`, `not supported`, `not run` or
    /// `not selected`.
    pub why: String,
}

/// The reason of a case that the run left out.
const NOT_SELECTED: &str = "not selected";

impl Levels {
    /// Computes the levels of a run.
    pub fn of(set: &RequirementSet, outcomes: &[Outcome]) -> Self {
        let level = |(name, surfaces): (&str, &[Profile])| {
            let counts = |one: &&FrozenRequirement| {
                one.level == Level::Must && one.profiles.iter().all(|one| surfaces.contains(one))
            };
            let musts: Vec<&FrozenRequirement> = set.requirement.iter().filter(counts).collect();
            let missing: Vec<Missing> = musts
                .iter()
                .filter_map(|must| {
                    let outcome = outcomes.iter().find(|outcome| outcome.id == must.id);
                    let why = outcome.map_or(Some(NOT_SELECTED), |one| lacking(&one.verdict))?;
                    Some(Missing {
                        id: must.id.clone(),
                        why: why.to_string(),
                    })
                })
                .collect();
            LevelResult {
                name: name.to_string(),
                carried: missing.is_empty() && !musts.is_empty(),
                musts: musts.len(),
                passed: musts.len() - missing.len(),
                missing,
            }
        };
        Self {
            set: set.name.clone(),
            frozen: set.frozen.clone(),
            levels: LEVELS.into_iter().map(level).collect(),
        }
    }

    /// Returns the highest level that the gateway carries; each level holds those below it.
    pub fn highest(&self) -> Option<&LevelResult> {
        self.levels.iter().take_while(|level| level.carried).last()
    }

    /// Returns whether the run left out cases of the set, so that it says nothing about levels.
    pub fn is_partial(&self) -> bool {
        let left_out = |missing: &Missing| missing.why == NOT_SELECTED;
        let mut missing = self.levels.iter().flat_map(|level| &level.missing);
        missing.any(left_out)
    }
}

impl LevelResult {
    /// Returns the missing MUSTs in words, those with the same reason together: `failed: TIME-02
    /// TIME-04; not supported: BRKR-01`.
    pub fn missing_in_words(&self) -> String {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for missing in &self.missing {
            match reasons.iter_mut().find(|(why, _)| *why == missing.why) {
                Some((_, ids)) => ids.push(&missing.id),
                None => reasons.push((&missing.why, vec![&missing.id])),
            }
        }
        let words = |(why, ids): &(&str, Vec<&str>)| format!("{why}: {}", ids.join(" "));
        reasons.iter().map(words).collect::<Vec<_>>().join("; ")
    }
}

/// Returns why a verdict does not show that the requirement holds; `None` if it does.
fn lacking(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Passed => None,
        Verdict::Failed {
            failure: Failure::Harness { .. },
        } => Some("failed in the harness"),
        Verdict::Failed { .. } => Some("failed"),
        Verdict::Flaky { .. } => Some("flaky"),
        Verdict::NotExercised { .. } => Some("not exercised"),
        Verdict::NotSupported { .. } => Some("not supported"),
        Verdict::NotRun { .. } => Some("not run"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SET: &str = r#"
        name = "2026.12"
        frozen = "2026-12-01"
        [[requirement]]
        id = "A-01"
        level = "MUST"
        profiles = ["llm"]
        wording = "0011223344556677"
        [[requirement]]
        id = "A-02"
        level = "SHOULD"
        profiles = ["llm"]
        wording = "0011223344556677"
        [[requirement]]
        id = "B-01"
        level = "MUST"
        profiles = ["llm", "ops"]
        wording = "0011223344556677"
        [[requirement]]
        id = "C-01"
        level = "MUST"
        profiles = ["query", "store"]
        wording = "0011223344556677"
    "#;

    fn outcome(id: &str, verdict: Verdict) -> Outcome {
        Outcome {
            id: id.into(),
            level: Level::Must,
            profiles: Vec::new(),
            requirement: String::new(),
            why: String::new(),
            shown: String::new(),
            remedy: String::new(),
            verdict,
            duration_ms: 0,
            attempts: 1,
            tape: Vec::new(),
            log_tail: String::new(),
            faults: Vec::new(),
            states: Vec::new(),
            instances: Vec::new(),
            setup: None,
        }
    }

    #[test]
    fn a_level_is_carried_if_each_of_its_musts_was_examined_and_passed() {
        let set = RequirementSet::parse(SET, "2026.12.toml").unwrap();
        let why = || "w".to_string();
        let mut outcomes = vec![
            outcome("A-01", Verdict::Passed),
            // a SHOULD costs no level
            outcome("A-02", Verdict::NotRun { why: why() }),
            outcome("B-01", Verdict::NotExercised { why: why() }),
            outcome("C-01", Verdict::Passed),
        ];
        let levels = Levels::of(&set, &outcomes);
        let carried: Vec<(bool, usize, usize)> = levels
            .levels
            .iter()
            .map(|level| (level.carried, level.passed, level.musts))
            .collect();
        assert_eq!(carried, [(true, 1, 1), (false, 1, 2), (false, 2, 3)]);
        assert_eq!(levels.highest().unwrap().name, "core");
        assert_eq!(levels.levels[2].missing_in_words(), "not exercised: B-01");
        outcomes[2].verdict = Verdict::Passed;
        let levels = Levels::of(&set, &outcomes);
        assert_eq!(levels.highest().unwrap().name, "complete");
        assert!(!levels.is_partial());
        outcomes.remove(0);
        let levels = Levels::of(&set, &outcomes);
        assert!(levels.highest().is_none() && levels.is_partial());
    }

    #[test]
    fn a_text_that_is_no_set_is_refused_with_its_name() {
        let error = RequirementSet::parse("name = 7", "x.toml").unwrap_err();
        assert!(
            error.starts_with("x.toml is no requirement set: "),
            "{error}"
        );
    }
}
