//! Databases for cases: by URL, Docker, local binaries or SQLite; one database a case.

/// A case's own database.
#[derive(Debug)]
pub struct CaseDatabase {}
