//! Why an attempt at a candidate failed, and what follows from it.
//!
//! A [`Cause`] is the only classification of a failed attempt. Retry, fallback and the blame for
//! the breaker follow from it alone ([`Cause::policy`]); the router, metrics, logs, JSON documents
//! and the table of responses in `http::error` spell it by [`Cause::name`].

use std::fmt;

use serde::{Serialize, Serializer};

/// Declares [`Cause`] together with its names and the list of all causes, so that a cause is
/// written down once.
macro_rules! causes {
    ($($(#[$doc:meta])+ $cause:ident = $name:literal,)+) => {
        /// Why an attempt failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cause {
            $($(#[$doc])+ $cause,)+
        }

        impl Cause {
            /// Every cause, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$cause),+];

            /// The name of the cause in logs, metrics and JSON documents.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$cause => $name,)+
                }
            }
        }
    };
}

causes! {
    /// Nothing listens at the provider's address, or its name does not resolve.
    Refused = "refused",
    /// The provider closed the connection before it sent a status line.
    Reset = "reset",
    /// The connection to the provider was not established within the connect timeout.
    ConnectTimeout = "connect_timeout",
    /// The provider sent no content within the first-token timeout.
    FirstTokenTimeout = "first_token_timeout",
    /// The provider sent nothing for the idle timeout in the middle of its answer.
    IdleTimeout = "idle_timeout",
    /// The request's deadline, or this candidate's share of it, passed.
    DeadlineExceeded = "deadline_exceeded",
    /// The provider answered 429, and a later attempt may succeed.
    RateLimited = "rate_limited",
    /// The provider answered 402, or 429 with `insufficient_quota`: waiting does not help.
    QuotaExhausted = "quota_exhausted",
    /// The provider answered 503 or 529.
    Overloaded = "overloaded",
    /// The provider answered with any other 5xx status.
    ServerError = "server_error",
    /// The provider answered 401 or 403: it refuses the key that the operator configured.
    ProviderAuth = "provider_auth",
    /// The provider answered 404, 405 or 410: the configured URL or model name is wrong.
    NotFound = "not_found",
    /// The provider refused the request itself with 400, 413, 422 or another 4xx status.
    Rejected = "rejected",
    /// The provider answered 200 with something that is not an answer: HTML, broken JSON, an
    /// empty body, no choices, or an unexpected content type.
    BadResponse = "bad_response",
    /// The provider's answer ended before it was complete.
    Truncated = "truncated",
    /// The provider sent an event or a body beyond the size limit.
    Oversized = "oversized",
    /// The provider reported an error inside a 200 answer.
    InBand = "in_band",
    /// The candidate's breaker is open, so nothing was sent.
    BreakerOpen = "breaker_open",
    /// The provider's bulkhead and its queue are full, so nothing was sent.
    BulkheadFull = "bulkhead_full",
    /// The gateway had no file descriptor or port left for a connection, so nothing was sent.
    Shortage = "shortage",
    /// The provider's protocol cannot express the request, so nothing was sent.
    Unsupported = "unsupported",
}

/// Whose failure a cause is, from the breaker's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The failure is the provider's and counts against its breaker.
    Provider,
    /// The failure is nobody's, or the client's, and counts against no breaker.
    Nobody,
    /// The failure is the provider's if the configured deadline (or the candidate's share of it)
    /// passed after a fair time, and nobody's if the caller set the deadline.
    ProviderGivenFairTime,
}

/// What the router does about a failed attempt before the commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether the same candidate may be asked again.
    pub retry: bool,
    /// Whether the next candidate may be asked.
    pub fall_back: bool,
    /// Whether the failure counts against the provider, also after the commit point.
    pub blame: Blame,
}

impl Cause {
    /// The policy for this cause. The match is total: a new cause does not compile without one.
    ///
    /// | cause | retry | fall back | counts against the provider | reason |
    /// |---|---|---|---|---|
    /// | refused, reset, rate limited, overloaded, server error, truncated, in-band error | yes | yes | yes | the failure may pass |
    /// | connect, first-token, idle timeout | no | yes | yes | waiting as long again would use up the next candidate's time |
    /// | deadline (this candidate's share of it) | no | yes | if the deadline is the configured one and the time was fair | a caller's short deadline must not open a breaker |
    /// | quota exhausted, provider's auth, bad response, oversized | no | yes | yes | asking again does not help |
    /// | not found | no | yes | no | the operator's URL or model name is wrong, or the client names a missing file |
    /// | rejected | no | no | no | the request is wrong at every provider |
    /// | breaker open, bulkhead full, shortage, unsupported | no | yes | no | nothing was sent |
    pub const fn policy(self) -> Policy {
        match self {
            Self::Refused
            | Self::Reset
            | Self::RateLimited
            | Self::Overloaded
            | Self::ServerError
            | Self::Truncated
            | Self::InBand => Policy {
                retry: true,
                fall_back: true,
                blame: Blame::Provider,
            },
            Self::ConnectTimeout
            | Self::FirstTokenTimeout
            | Self::IdleTimeout
            | Self::QuotaExhausted
            | Self::ProviderAuth
            | Self::BadResponse
            | Self::Oversized => Policy {
                retry: false,
                fall_back: true,
                blame: Blame::Provider,
            },
            Self::DeadlineExceeded => Policy {
                retry: false,
                fall_back: true,
                blame: Blame::ProviderGivenFairTime,
            },
            Self::Rejected => Policy {
                retry: false,
                fall_back: false,
                blame: Blame::Nobody,
            },
            Self::NotFound
            | Self::BreakerOpen
            | Self::BulkheadFull
            | Self::Shortage
            | Self::Unsupported => Policy {
                retry: false,
                fall_back: true,
                blame: Blame::Nobody,
            },
        }
    }

    /// Whether the attempt reached the point at which something is sent to the provider.
    pub const fn was_sent(self) -> bool {
        !matches!(
            self,
            Self::BreakerOpen | Self::BulkheadFull | Self::Shortage | Self::Unsupported
        )
    }

    /// Whether the attempt ended because a timeout or the deadline passed.
    pub const fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout
                | Self::FirstTokenTimeout
                | Self::IdleTimeout
                | Self::DeadlineExceeded
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_cause_is_listed_once_under_its_snake_case_name() {
        let names: HashSet<&str> = Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        for cause in Cause::ALL {
            let variant = format!("{cause:?}");
            let mut snake_case = String::new();
            for c in variant.chars() {
                if c.is_ascii_uppercase() && !snake_case.is_empty() {
                    snake_case.push('_');
                }
                snake_case.push(c.to_ascii_lowercase());
            }
            assert_eq!(cause.name(), snake_case);
        }
    }

    #[test]
    fn a_cause_that_sent_nothing_is_not_retried_and_blames_nobody() {
        for cause in Cause::ALL.iter().filter(|cause| !cause.was_sent()) {
            let policy = cause.policy();
            assert!(!policy.retry && policy.blame == Blame::Nobody, "{cause}");
        }
    }

    #[test]
    fn a_timeout_is_not_retried_at_the_same_candidate() {
        for cause in Cause::ALL.iter().filter(|cause| cause.is_timeout()) {
            assert!(!cause.policy().retry && cause.policy().fall_back, "{cause}");
        }
    }
}
