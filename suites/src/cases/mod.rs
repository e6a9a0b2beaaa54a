//! The cases, area by area.
//!
//! A case reads given, when, then, in the order of time; facts come last. Each area has a table
//! `CASES`, and below it one function for each case. Whoever adds a case adds a row to the table of
//! its area and a function; level, profiles and text come from the case's row of the [catalogue].

mod auth;
mod breaker;
mod cancellation;
mod data;
mod degradation;
mod drain;
mod edge;
mod errors;
mod evidence;
mod fallback;
mod health;
mod heartbeats;
mod load;
mod modes;
mod observability;
mod parallelism;
mod reaches;
mod retry;
mod rows;
mod streaming;
mod support;
mod timeouts;
mod wire;

use gauntlet_harness::case::{Case, Examination};
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::Capability;

use crate::catalogue;
use reaches::reaches;

/// A case as its area states it.
struct CaseRow {
    /// The id of the requirement that the case shows.
    id: &'static str,
    /// Why the requirement matters, with a link to a real incident where there is one.
    why: &'static str,
    /// What happens in the case, in the order of time.
    shown: &'static str,
    /// What the operator or author of a failing gateway can do.
    remedy: &'static str,
    /// What a target declares to be examined by the case.
    needs: &'static [Capability],
    /// The instances of the requirement that the case examines, such as `streamed, status 503`.
    instances: &'static [&'static str],
    /// How the gateway is configured for the case.
    spec: fn() -> Spec,
    /// The examination.
    run: &'static dyn Examination,
}

const AREAS: &[&[CaseRow]] = &[
    wire::openai::CASES,
    wire::equivalence::CASES,
    wire::pieces::CASES,
    timeouts::provider::CASES,
    timeouts::deadline::CASES,
    timeouts::store::CASES,
    parallelism::chat::CASES,
    parallelism::query::CASES,
    retry::CASES,
    fallback::CASES,
    breaker::CASES,
    streaming::CASES,
    heartbeats::CASES,
    cancellation::CASES,
    load::CASES,
    errors::CASES,
    degradation::CASES,
    data::CASES,
    health::CASES,
    drain::CASES,
    auth::CASES,
    observability::CASES,
    edge::heads::CASES,
    edge::coded::CASES,
    edge::messages::CASES,
    evidence::CASES,
];

/// The ids of the cases, in the order of their areas.
pub(crate) fn ids() -> impl Iterator<Item = &'static str> {
    AREAS.iter().flat_map(|area| area.iter()).map(|row| row.id)
}

/// Every case, in the order of the catalogue.
pub fn all() -> Vec<Case> {
    let rows = || AREAS.iter().flat_map(|area| area.iter());
    let case = |requirement: &'static catalogue::Requirement| {
        let row = rows().find(|row| row.id == requirement.id)?;
        Some(Case {
            id: requirement.id,
            level: requirement.level(),
            profiles: requirement.profiles,
            requirement: requirement.text,
            why: row.why,
            shown: row.shown,
            remedy: row.remedy,
            needs: row.needs,
            reaches: reaches(row.id),
            instances: row.instances,
            spec: row.spec,
            run: row.run,
        })
    };
    catalogue::all().iter().filter_map(case).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{all, ids};

    #[test]
    fn every_case_has_its_requirement_and_every_text() {
        let mut seen = HashSet::new();
        for id in ids() {
            assert!(seen.insert(id), "there are two cases {id}");
            assert!(
                crate::catalogue::find(id).is_some(),
                "the catalogue has no {id}"
            );
        }
        for case in all() {
            for (name, text) in [
                ("why", case.why),
                ("shown", case.shown),
                ("remedy", case.remedy),
            ] {
                assert!(!text.trim().is_empty(), "{} has no {name}", case.id);
            }
        }
    }

    #[test]
    fn every_alias_of_a_specification_has_its_providers() {
        for case in all() {
            let spec = (case.spec)();
            for candidate in spec.models.iter().flat_map(|model| &model.candidates) {
                assert!(
                    spec.providers
                        .iter()
                        .any(|provider| provider.name == candidate.provider),
                    "{}: there is no provider {}",
                    case.id,
                    candidate.provider
                );
            }
        }
    }
}
