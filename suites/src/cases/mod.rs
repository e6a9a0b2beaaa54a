//! The cases, one file an area of the catalogue.
//!
//! A case reads given, when, then, in the order of time; facts last. Each file has a table `CASES` in the order of the catalogue,
//! and below it one function a case, of at most 30 lines. Adding one is an entry in its area's table and a function.

mod auth;
mod auth_query;
mod breaker;
mod cancellation;
mod cancellation_query;
mod data;
mod degradation;
mod drain;
mod errors;
mod fallback;
mod health;
mod load;
mod observability;
mod parallelism;
mod parallelism_query;
mod retry;
mod streaming;
mod support;
mod timeouts;
mod timeouts_own;
mod timeouts_store;
mod wire;
mod wire_meaning;

use gauntlet_harness::case::Case;

/// The areas, in the order of the catalogue.
#[rustfmt::skip] // one line
const AREAS: [&str; 16] = ["WIRE", "TIME", "PARA", "RETRY", "FALL", "BRKR", "STRM", "CANC", "LOAD", "ERR", "DEGR", "DATA", "HLTH", "DRAIN", "AUTH", "OBS"];

/// Every case, in the order of the catalogue.
pub fn all() -> Vec<Case> {
    #[rustfmt::skip] // one line an area
    let areas = [
        wire::CASES, wire_meaning::CASES,
        timeouts::CASES, timeouts_own::CASES, timeouts_store::CASES,
        parallelism::CASES, parallelism_query::CASES,
        retry::CASES,
        fallback::CASES,
        breaker::CASES,
        streaming::CASES,
        cancellation::CASES, cancellation_query::CASES,
        load::CASES,
        errors::CASES,
        degradation::CASES,
        data::CASES,
        health::CASES,
        drain::CASES,
        auth::CASES, auth_query::CASES,
        observability::CASES,
    ];
    let mut cases = areas.concat();
    cases.sort_by_key(|case| {
        (
            AREAS
                .iter()
                .position(|area| case.id.split('-').next() == Some(area)),
            case.id,
        )
    });
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{AREAS, all};

    #[test]
    fn ids_are_unique_and_every_text_is_there() {
        let mut seen = HashSet::new();
        for case in all() {
            assert!(seen.insert(case.id), "{} twice", case.id);
            for (name, text) in [
                ("requirement", case.requirement),
                ("why", case.why),
                ("shown", case.shown),
                ("remedy", case.remedy),
            ] {
                assert!(!text.trim().is_empty(), "{} has no {name}", case.id);
            }
            assert!(!case.profiles.is_empty(), "{} has no profile", case.id);
            assert!(
                AREAS
                    .iter()
                    .any(|area| case.id.split('-').next() == Some(area)),
                "{} is of no area",
                case.id
            );
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
                    "{}: no provider {}",
                    case.id,
                    candidate.provider
                );
            }
        }
    }
}
