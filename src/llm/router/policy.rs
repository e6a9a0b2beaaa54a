//! What a failed attempt leads to: the one table, total over the causes.

use crate::llm::chat::Cause;

/// Whose failure it is, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The provider's: counts against its breaker.
    Provider,
    /// Nobody's, or the client's: counts for nothing.
    Nobody,
    /// The provider's if the configured deadline (or its share of it) ended after a fair time; nobody's if the caller set the deadline.
    ProviderGivenFairTime,
}

/// What a cause leads to, before the commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The same candidate may be asked again.
    pub retry: bool,
    /// The next candidate may be asked.
    pub fall_back: bool,
    /// Whether it counts against the provider; also after the commit point.
    pub blame: Blame,
}

/// The table.
///
/// | cause | retry | fall back | counts against the provider | because |
/// |---|---|---|---|---|
/// | refused, reset, rate limited, overloaded, server error, truncated, in-band error | yes | yes | yes | may pass |
/// | connect, first-token, idle time-out | no | yes | yes | the same wait again would eat the next candidate's time |
/// | deadline (this candidate's share of it) | no | yes | if the deadline is the configured one, and it was given a fair time | a caller in a hurry opens nobody's breaker |
/// | quota exhausted, provider's auth, bad response, oversized | no | yes | yes | will not pass by asking again |
/// | not found | no | yes | no | the operator's URL or model name is wrong there; a client's file id may be, too |
/// | rejected | no | no | no | the request is wrong, wherever it goes |
/// | breaker open, bulkhead full, unsupported | no | yes | no | nothing was sent |
pub const fn policy(cause: Cause) -> Policy {
    match cause {
        Cause::Refused
        | Cause::Reset
        | Cause::RateLimited
        | Cause::Overloaded
        | Cause::ServerError
        | Cause::Truncated
        | Cause::InBand => Policy {
            retry: true,
            fall_back: true,
            blame: Blame::Provider,
        },
        Cause::ConnectTimeout
        | Cause::FirstTokenTimeout
        | Cause::IdleTimeout
        | Cause::QuotaExhausted
        | Cause::ProviderAuth
        | Cause::BadResponse
        | Cause::Oversized => Policy {
            retry: false,
            fall_back: true,
            blame: Blame::Provider,
        },
        Cause::DeadlineExceeded => Policy {
            retry: false,
            fall_back: true,
            blame: Blame::ProviderGivenFairTime,
        },
        Cause::Rejected => Policy {
            retry: false,
            fall_back: false,
            blame: Blame::Nobody,
        },
        Cause::NotFound | Cause::BreakerOpen | Cause::BulkheadFull | Cause::Unsupported => Policy {
            retry: false,
            fall_back: true,
            blame: Blame::Nobody,
        },
    }
}

/// Whether anything was sent to the provider.
pub const fn was_sent(cause: Cause) -> bool {
    !matches!(
        cause,
        Cause::BreakerOpen | Cause::BulkheadFull | Cause::Unsupported
    )
}
