//! Which cases are meant: ids, areas, a profile, a shard; and what was probably meant instead.

use gauntlet_harness::case::{Case, Profile};

/// The surface to examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProfileArg {
    /// The OpenAI-compatible surface: any gateway.
    Llm,
    /// The orchestrator's API.
    Query,
    /// What needs the database.
    Store,
    /// Process, health, shutdown.
    Ops,
}

impl From<ProfileArg> for Profile {
    fn from(value: ProfileArg) -> Self {
        match value {
            ProfileArg::Llm => Self::Llm,
            ProfileArg::Query => Self::Query,
            ProfileArg::Store => Self::Store,
            ProfileArg::Ops => Self::Ops,
        }
    }
}

/// The k-th of n parts of the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    part: usize,
    of: usize,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((part, of)) if part >= 1 && part <= of => Ok(Self { part, of }),
            _ => Err(format!(
                "{text} is not k/n with 1 <= k <= n; write 1/4 for the first of four parts"
            )),
        }
    }
}

/// The cases that `wanted` names (an id, or an area such as `TIME`), all if it is empty; of that profile; of that shard.
///
/// # Errors
/// A sentence that names the unknown id and the nearest known ones.
pub fn select(
    all: Vec<Case>,
    wanted: &[String],
    profile: Option<Profile>,
    shard: Option<Shard>,
) -> Result<Vec<Case>, String> {
    for name in wanted {
        if !all.iter().any(|case| is_meant(case, name)) {
            return Err(unknown(&all, name));
        }
    }
    let chosen = all
        .into_iter()
        .filter(|case| wanted.is_empty() || wanted.iter().any(|name| is_meant(case, name)));
    let chosen =
        chosen.filter(|case| profile.is_none_or(|profile| case.profiles.contains(&profile)));
    Ok(chosen
        .enumerate()
        .filter(|(i, _)| shard.is_none_or(|shard| i % shard.of == shard.part - 1))
        .map(|(_, case)| case)
        .collect())
}

/// The sentence for an id that no case has.
pub fn unknown(all: &[Case], name: &str) -> String {
    let mut ids: Vec<(usize, &str)> = all
        .iter()
        .map(|case| {
            (
                distance(&case.id.to_lowercase(), &name.to_lowercase()),
                case.id,
            )
        })
        .collect();
    ids.sort();
    let nearest: Vec<&str> = ids.iter().take(3).map(|(_, id)| *id).collect();
    format!(
        "no case is called {name}; the nearest are {}; `gauntlet list` shows all",
        nearest.join(", ")
    )
}

fn is_meant(case: &Case, name: &str) -> bool {
    case.id.eq_ignore_ascii_case(name)
        || case
            .id
            .split('-')
            .next()
            .is_some_and(|area| area.eq_ignore_ascii_case(name))
}

/// Levenshtein's distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let best = (diagonal + usize::from(a != *b))
                .min(row[j] + 1)
                .min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn distances_are_those_of_the_literature() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_shard_out_of_range_is_refused() {
        assert!("2/2".parse::<Shard>().is_ok());
        for wrong in ["0/2", "3/2", "x", "1"] {
            assert!(wrong.parse::<Shard>().unwrap_err().contains(wrong));
        }
    }
}
