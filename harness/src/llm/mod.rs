//! What a provider says: matchers and responders for each protocol, on wiremock or in process.

/// A stubbed provider: what it says, behind the wire.
#[derive(Clone, Debug)]
pub struct Stub {}
