//! Why an attempt failed, what follows from it, and the table from a cause to the response.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::defect::Defect;

/// Why an attempt at a provider failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    Refused,
    Reset,
    ConnectTimeout,
    FirstTokenTimeout,
    IdleTimeout,
    DeadlineExceeded,
    RateLimited,
    QuotaExhausted,
    Overloaded,
    ServerError,
    ProviderAuth,
    Rejected,
    BadResponse,
    Truncated,
    Oversized,
    InBand,
    BreakerOpen,
    BulkheadFull,
    Shortage,
    Unsupported,
}

impl Cause {
    /// The word for it in error codes, attempts and metrics; no case depends on it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Refused | Self::Reset => "unreachable",
            Self::ConnectTimeout
            | Self::FirstTokenTimeout
            | Self::IdleTimeout
            | Self::DeadlineExceeded => "too_late",
            Self::RateLimited | Self::QuotaExhausted => "limited",
            Self::Overloaded => "busy",
            Self::ServerError | Self::InBand => "failing",
            Self::ProviderAuth => "credentials",
            Self::Rejected => "refused",
            Self::BadResponse | Self::Truncated | Self::Oversized => "unreadable",
            Self::BreakerOpen => "resting",
            Self::BulkheadFull => "full",
            Self::Shortage => "short",
            Self::Unsupported => "impossible",
        }
    }

    pub(super) const fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout
                | Self::FirstTokenTimeout
                | Self::IdleTimeout
                | Self::DeadlineExceeded
        )
    }

    /// Whether the request itself is to blame: no other provider is asked, and the provider is not
    /// blamed (RETRY-02, FALL-06).
    pub(super) const fn is_clients(self) -> bool {
        matches!(self, Self::Rejected)
    }

    /// Whether the same candidate can succeed a moment later (RETRY-01).
    pub(super) const fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Refused
                | Self::Reset
                | Self::RateLimited
                | Self::Overloaded
                | Self::ServerError
                | Self::Truncated
                | Self::InBand
        )
    }

    /// Whether something was sent to the provider.
    pub(super) const fn was_sent(self) -> bool {
        !matches!(
            self,
            Self::BreakerOpen | Self::BulkheadFull | Self::Shortage | Self::Unsupported
        )
    }
}

/// One failed attempt.
#[derive(Clone, Debug)]
pub(super) struct AttemptError {
    pub cause: Cause,
    pub message: String,
    /// The provider's status, if one came.
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    /// Whether the provider has forbidden another attempt (RETRY-10).
    pub no_retry: bool,
    /// `type`, `code` and `param` as the provider gave them.
    pub kind: Option<String>,
    pub code: Option<String>,
    pub param: Option<String>,
    /// For [`Defect::PassesHeaders`].
    pub passed: Vec<(HeaderName, HeaderValue)>,
}

impl AttemptError {
    pub(super) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            status: None,
            retry_after: None,
            no_retry: false,
            kind: None,
            code: None,
            param: None,
            passed: Vec::new(),
        }
    }

    /// Reads the error that a provider sent inside `document`, in whatever shape (ERR-06).
    pub(super) fn from_document(cause: Cause, document: &Value, secret: &str) -> Self {
        let clean = |text: &str| match secret {
            "" => text.to_owned(),
            _ => text.replace(secret, "[redacted]"),
        };
        let error = document.get("error").unwrap_or(&Value::Null);
        let text = |key: &str| error.get(key).and_then(Value::as_str).map(clean);
        let message = words(document, 0).map(clean);
        let message = message.unwrap_or_else(|| NO_REASON.to_owned());
        Self {
            kind: text("type"),
            code: text("code"),
            param: text("param"),
            ..Self::new(cause, message)
        }
    }
}

/// The message of an error in which a provider gives no reason.
pub(super) const NO_REASON: &str = "the provider gives no reason";

/// The words of an error: a text, or the first text in the members that hold one.
fn words(error: &Value, depth: usize) -> Option<&str> {
    const MEMBERS: [&str; 5] = ["message", "detail", "msg", "error", "errors"];
    match error {
        _ if depth > 5 => None,
        Value::String(text) => Some(text.trim()).filter(|text| !text.is_empty()),
        Value::Array(items) => items.iter().find_map(|item| words(item, depth + 1)),
        Value::Object(_) => MEMBERS
            .iter()
            .find_map(|name| words(error.get(name)?, depth + 1)),
        _ => None,
    }
}

/// One attempt as the client sees it; `error` is `None` for the one that served.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub provider: String,
    pub model: String,
    pub error: Option<AttemptError>,
}

/// The failure of a request that no candidate could serve.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub attempts: Vec<Attempt>,
    /// The error that decides the response.
    pub error: AttemptError,
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Makes the final error from everything that was tried. A refused request decides; where
    /// nothing was sent, an open breaker or a full provider gives the time to come again; where
    /// every provider asked to wait, the gateway does the same; otherwise the last error decides.
    pub(super) fn of(attempts: Vec<Attempt>) -> Self {
        let errors: Vec<&AttemptError> = attempts
            .iter()
            .filter_map(|attempt| attempt.error.as_ref())
            .collect();
        let sent: Vec<&AttemptError> = errors
            .iter()
            .copied()
            .filter(|error| error.cause.was_sent())
            .collect();
        let any = |cause: Cause| errors.iter().copied().find(|error| error.cause == cause);
        let patience = |error: &&AttemptError| {
            matches!(error.cause, Cause::RateLimited | Cause::QuotaExhausted)
        };
        let decisive = any(Cause::Rejected)
            .or_else(|| any(Cause::RateLimited).filter(|_| sent.iter().all(patience)))
            .or_else(|| sent.last().copied())
            .or_else(|| any(Cause::Shortage))
            .or_else(|| any(Cause::BreakerOpen))
            .or_else(|| any(Cause::BulkheadFull))
            .or_else(|| any(Cause::Unsupported))
            .cloned()
            .unwrap_or_else(|| {
                AttemptError::new(
                    Cause::DeadlineExceeded,
                    "the deadline was over before anybody was asked",
                )
            });
        let retry_after = errors
            .iter()
            .filter_map(|error| error.retry_after)
            .min()
            .filter(|_| decisive.cause != Cause::Rejected);
        Self {
            error: decisive,
            retry_after,
            attempts,
        }
    }
}

/// An error as the client sees it.
#[derive(Clone, Debug)]
pub(super) struct ErrorResponse {
    pub status: u16,
    pub kind: String,
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    pub retry_after: Option<Duration>,
    pub attempts: Vec<Attempt>,
    /// For [`Defect::PassesHeaders`].
    pub passed: Vec<(HeaderName, HeaderValue)>,
}

impl ErrorResponse {
    pub(super) fn new(status: u16, kind: &str, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: kind.into(),
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after: None,
            attempts: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// The error of a gateway that is shutting down.
    pub(super) fn shutting_down() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self {
            retry_after,
            ..Self::new(
                503,
                "come_again",
                "shutting_down",
                "the gateway is shutting down",
            )
        }
    }

    /// Gives the status and the type that each cause has for the client.
    pub(super) fn from_attempt(error: &AttemptError, defect: Option<Defect>) -> Self {
        let (status, kind) = match error.cause {
            Cause::ConnectTimeout
            | Cause::FirstTokenTimeout
            | Cause::IdleTimeout
            | Cause::DeadlineExceeded => (504, "timed_out"),
            Cause::RateLimited | Cause::QuotaExhausted => (429, "slow_down"),
            Cause::Shortage if defect == Some(Defect::ShortageIsProviders) => {
                (502, "provider_failed")
            }
            Cause::Overloaded | Cause::BreakerOpen | Cause::BulkheadFull | Cause::Shortage => {
                (503, "come_again")
            }
            Cause::Rejected => (error.status.unwrap_or(400), "refused_request"),
            Cause::Unsupported => (400, "refused_request"),
            _ => (502, "provider_failed"),
        };
        let code = error.cause.name();
        let mut response = Self::new(status, kind, code, error.message.clone());
        let in_a_choice = error.cause == Cause::RateLimited && error.status.is_none();
        let own = matches!(
            error.cause,
            Cause::Rejected | Cause::InBand | Cause::Unsupported
        );
        if own || in_a_choice {
            response.kind = error.kind.clone().unwrap_or(response.kind);
            response.code = error.code.clone().unwrap_or(response.code);
            response.param = error.param.clone();
        }
        response.retry_after = error.retry_after;
        response.passed = error.passed.clone();
        match defect {
            Some(Defect::PassesEmptyType) if error.cause == Cause::Rejected => {
                response.kind = error.kind.clone().unwrap_or_default();
            }
            Some(Defect::EveryErrorIs500) => {
                (response.status, response.kind, response.code) =
                    (500, "server_error".into(), "internal_error".into())
            }
            Some(Defect::PassesProviderAuth) if error.cause == Cause::ProviderAuth => {
                (response.status, response.kind, response.code) = (
                    error.status.unwrap_or(401),
                    "invalid_request_error".into(),
                    "invalid_api_key".into(),
                );
            }
            Some(Defect::OpenIsBadGateway) if error.cause == Cause::BreakerOpen => {
                (response.status, response.retry_after) = (502, None)
            }
            Some(Defect::CutIsInvalidRequest)
                if matches!(error.cause, Cause::Truncated | Cause::Reset) =>
            {
                (response.status, response.kind, response.code) = (
                    400,
                    "invalid_request_error".into(),
                    "invalid_request".into(),
                );
            }
            Some(Defect::InBandLosesClass) if error.cause == Cause::InBand => {
                (response.kind, response.code, response.message) = (
                    "server_error".into(),
                    "internal_error".into(),
                    "internal error".into(),
                );
            }
            _ => {}
        }
        response
    }

    /// Makes the final error of a request.
    pub(super) fn from_failure(failure: Failure, defect: Option<Defect>) -> Self {
        let mut response = Self::from_attempt(&failure.error, defect);
        let waits =
            matches!(response.status, 429 | 503) && defect != Some(Defect::OpenIsBadGateway);
        response.retry_after = failure
            .retry_after
            .or(Some(Duration::from_secs(1)))
            .filter(|_| waits);
        if defect != Some(Defect::HidesAttempts) {
            response.attempts = failure.attempts;
        }
        response
    }

    /// The envelope.
    pub(super) fn document(&self) -> Value {
        let attempts = self.attempts.iter().map(|attempt| {
            let error = attempt.error.as_ref();
            json!({
                "provider": attempt.provider,
                "model": attempt.model,
                "cause": error.map(|error| error.cause.name()),
                "status": error.and_then(|error| error.status),
                "message": error.map(|error| error.message.clone()),
            })
        });
        let mut error = json!({ "message": self.message, "type": self.kind, "param": self.param, "code": self.code });
        if !self.attempts.is_empty() {
            error["attempts"] = attempts.collect();
        }
        json!({ "error": error })
    }
}
