//! The requirement set by which gateways carry levels. A set is frozen: what the catalogue has
//! become since does not change a verdict by it.

use gauntlet_harness::levels::{Levels, RequirementSet};
use gauntlet_harness::runner::Outcome;

/// The text of the current set.
const CURRENT: &str = include_str!("../requirements/2026.12.toml");

/// Returns the current set.
///
/// # Errors
/// A sentence, if the file of this repository is damaged.
pub fn current() -> Result<RequirementSet, String> {
    RequirementSet::parse(CURRENT, "suites/requirements/2026.12.toml")
}

/// Returns the levels of a run by the current set.
///
/// # Errors
/// As [`current`].
pub fn levels(outcomes: &[Outcome]) -> Result<Levels, String> {
    Ok(Levels::of(&current()?, outcomes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use gauntlet_harness::levels::FrozenRequirement;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::catalogue::{self, Proof, Requirement};

    /// The row of a requirement in a set.
    fn frozen(requirement: &Requirement) -> FrozenRequirement {
        let hash = Sha256::digest(requirement.text.as_bytes());
        FrozenRequirement {
            id: requirement.id.to_string(),
            level: requirement.level(),
            profiles: requirement.profiles.to_vec(),
            wording: hash
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }

    /// The requirements that a set of today has: those that a case examines.
    fn of_today() -> Vec<FrozenRequirement> {
        let cases = |one: &&Requirement| one.proof() == Proof::Case;
        catalogue::all().iter().filter(cases).map(frozen).collect()
    }

    #[test]
    fn the_catalogue_still_says_what_the_set_has_frozen() {
        if let Ok(name) = std::env::var("GAUNTLET_FREEZE") {
            let set = RequirementSet {
                frozen: format!("{}-01", name.replace('.', "-")),
                requirement: of_today(),
                name: name.clone(),
            };
            let path = format!("{}/requirements/{name}.toml", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, toml::to_string(&set).unwrap()).unwrap();
        }
        let (set, today) = (current().unwrap(), of_today());
        for row in &set.requirement {
            assert_eq!(
                today.iter().find(|one| one.id == row.id),
                Some(row),
                "{} of the set {} is frozen: leave its row of the catalogue as it was, or freeze a \
                 new set (GAUNTLET_FREEZE=2027.03 cargo test -p gauntlet-suites requirements) and \
                 name its file here",
                row.id,
                set.name
            );
        }
    }

    #[test]
    fn every_level_of_the_set_has_requirements_of_its_own() {
        let levels = levels(&[]).unwrap();
        let musts: Vec<usize> = levels.levels.iter().map(|level| level.musts).collect();
        assert!(
            0 < musts[0] && musts[0] < musts[1] && musts[1] < musts[2],
            "{musts:?}"
        );
    }
}
