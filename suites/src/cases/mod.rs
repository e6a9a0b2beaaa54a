//! The cases, one file an area of the catalogue.
//!
//! A case reads given, when, then, in the order of time; facts last. Each file has a table `CASES` in the order of the catalogue,
//! and below it one function a case, of at most 30 lines. Adding one is an entry in its area's table and a function.

mod auth;
mod brkr;
mod canc;
mod err;
mod fall;
mod load;
mod para;
mod retry;
mod strm;
mod time;
mod wire;

use gauntlet_harness::case::Case;

/// Every case, in the order of the catalogue.
pub fn all() -> Vec<Case> {
    #[rustfmt::skip] // one line an area
    let areas = [
        wire::CASES,
        time::CASES,
        para::CASES,
        retry::CASES,
        fall::CASES,
        brkr::CASES,
        strm::CASES,
        canc::CASES,
        load::CASES,
        err::CASES,
        auth::CASES,
    ];
    areas.concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::all;

    #[test]
    fn ids_are_unique_and_every_text_is_there() {
        let mut seen = HashSet::new();
        for case in all() {
            assert!(seen.insert(case.id), "{} twice", case.id);
            for (name, text) in [("requirement", case.requirement), ("why", case.why), ("shown", case.shown), ("remedy", case.remedy)] {
                assert!(!text.trim().is_empty(), "{} has no {name}", case.id);
            }
            assert!(!case.profiles.is_empty(), "{} has no profile", case.id);
        }
    }

    #[test]
    fn every_alias_of_a_specification_has_its_providers() {
        for case in all() {
            let spec = (case.spec)();
            for candidate in spec.models.iter().flat_map(|model| &model.candidates) {
                assert!(spec.providers.iter().any(|provider| provider.name == candidate.provider), "{}: no provider {}", case.id, candidate.provider);
            }
        }
    }
}
