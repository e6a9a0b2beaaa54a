//! The selection of requirements and cases on the command line: ids, areas, a profile, a shard; and
//! the nearest known ids for one that is unknown.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use gauntlet_harness::case::{Case, Profile};
use gauntlet_suites::catalogue::{self, Requirement};

/// Which requirements or cases are meant.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Take only requirements of this surface of a gateway
    #[arg(long, value_name = "PROFILE", value_parser = profiles())]
    pub profile: Option<Profile>,
    /// Take only these: an id such as TIME-02, or an area such as TIME
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
}

/// Reads the name of a profile.
fn profiles() -> impl TypedValueParser<Value = Profile> {
    let names = Profile::ALL
        .iter()
        .map(|profile| PossibleValue::new(profile.name()).help(profile.surface()));
    PossibleValuesParser::new(names).try_map(|name| {
        let named = |profile: &&Profile| profile.name() == name;
        Profile::ALL
            .iter()
            .find(named)
            .copied()
            .ok_or("the profile is unknown")
    })
}

impl Selection {
    /// Returns the requirements that are meant, in the order of the catalogue.
    ///
    /// # Errors
    /// A sentence that names the unknown id or area, and the nearest known ids.
    pub fn requirements(&self) -> Result<Vec<&'static Requirement>, String> {
        known(&self.ids)?;
        Ok(catalogue::all()
            .iter()
            .filter(|known| self.takes(known.id, known.profiles))
            .collect())
    }

    /// Returns the cases that are meant, in the order of the catalogue; with a shard, its part of
    /// them. The requirements and areas of `skip` are left out before the cases are divided.
    ///
    /// # Errors
    /// A sentence that names the unknown id or area and the nearest known ids, or the requirement
    /// that no case examines.
    pub fn cases(&self, shard: Option<Shard>, skip: &[String]) -> Result<Vec<Case>, String> {
        let all = gauntlet_suites::cases::all();
        self.requirements()?;
        known(skip)?;
        for name in &self.ids {
            if !all.iter().any(|case| is_meant(case.id, name)) {
                return Err(format!(
                    "no case examines {name}; `gauntlet explain ID` shows where a requirement is \
                     proven"
                ));
            }
        }
        Ok(all
            .into_iter()
            .filter(|case| self.takes(case.id, case.profiles))
            .filter(|case| !skip.iter().any(|name| is_meant(case.id, name)))
            .enumerate()
            .filter(|(i, _)| shard.is_none_or(|shard| i % shard.of == shard.part - 1))
            .map(|(_, case)| case)
            .collect())
    }

    fn takes(&self, id: &str, profiles: &[Profile]) -> bool {
        let named = self.ids.is_empty() || self.ids.iter().any(|name| is_meant(id, name));
        named
            && self
                .profile
                .is_none_or(|profile| profiles.contains(&profile))
    }
}

/// One of several equal parts of the cases.
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
                "{text} is not K/N with 1 <= K <= N; write 1/4 for the first of four parts"
            )),
        }
    }
}

/// Refuses the first name that is neither an id nor an area of the catalogue.
fn known(names: &[String]) -> Result<(), String> {
    let is_known = |name: &String| catalogue::all().iter().any(|one| is_meant(one.id, name));
    match names.iter().find(|name| !is_known(name)) {
        Some(name) => Err(unknown(name)),
        None => Ok(()),
    }
}

/// Returns the sentence for an id or an area that the catalogue does not have.
pub fn unknown(name: &str) -> String {
    if name.chars().all(|c| c.is_ascii_alphabetic()) {
        let mut areas: Vec<&str> = catalogue::all()
            .iter()
            .filter_map(|known| known.id.split('-').next())
            .collect();
        areas.dedup();
        return format!(
            "the catalogue has no area {name}; its areas are {}; `gauntlet list` shows all",
            areas.join(", ")
        );
    }
    let mut ids: Vec<(usize, &str)> = catalogue::all()
        .iter()
        .map(|known| {
            let name = name.to_uppercase();
            (strsim::damerau_levenshtein(known.id, &name), known.id)
        })
        .collect();
    ids.sort();
    let nearest: Vec<&str> = ids.iter().take(3).map(|(_, id)| *id).collect();
    format!(
        "the catalogue has no requirement {name}; the nearest known ids are {}; `gauntlet list` \
         shows all",
        nearest.join(", ")
    )
}

fn is_meant(id: &str, name: &str) -> bool {
    id.eq_ignore_ascii_case(name)
        || id
            .split('-')
            .next()
            .is_some_and(|area| area.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_unknown_area_is_answered_with_the_areas_and_an_unknown_id_with_the_nearest_ids() {
        let area = unknown("CHAT");
        assert!(
            area.contains("WIRE, TIME, ") && area.contains("AUTH"),
            "{area}"
        );
        assert_eq!(area.matches("TIME").count(), 1, "{area}");
        assert!(unknown("TIME-2").contains("TIME-02"));
    }

    #[test]
    fn a_shard_out_of_range_is_refused() {
        assert!("2/2".parse::<Shard>().is_ok());
        for wrong in ["0/2", "3/2", "x", "1"] {
            assert!(wrong.parse::<Shard>().unwrap_err().contains(wrong));
        }
    }
}
