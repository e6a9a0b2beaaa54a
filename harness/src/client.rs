//! The harness's client: asks the gateway, reads what comes, and writes both to the tape.

/// A client of the gateway under test.
#[derive(Clone, Debug)]
pub struct Client {}
