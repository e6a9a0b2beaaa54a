//! Why an attempt failed, what follows from it, and the one table from cause to response.

use std::time::Duration;

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
    Unsupported,
}

impl Cause {
    /// Its name in error codes, attempts and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::ConnectTimeout => "connect_timeout",
            Self::FirstTokenTimeout => "first_token_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Overloaded => "overloaded",
            Self::ServerError => "server_error",
            Self::ProviderAuth => "provider_auth",
            Self::Rejected => "rejected",
            Self::BadResponse => "bad_response",
            Self::Truncated => "truncated",
            Self::Oversized => "oversized",
            Self::InBand => "in_band",
            Self::BreakerOpen => "breaker_open",
            Self::BulkheadFull => "bulkhead_full",
            Self::Unsupported => "unsupported",
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

    /// The request itself is to blame: nobody else is asked, and the provider is not blamed (RETRY-02, FALL-06).
    pub(super) const fn is_clients(self) -> bool {
        matches!(self, Self::Rejected)
    }

    /// The same candidate may do better in a moment (RETRY-01).
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

    /// Something was sent to the provider.
    pub(super) const fn was_sent(self) -> bool {
        !matches!(
            self,
            Self::BreakerOpen | Self::BulkheadFull | Self::Unsupported
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
    /// `type`, `code` and `param` as the provider gave them.
    pub kind: Option<String>,
    pub code: Option<String>,
    pub param: Option<String>,
}

impl AttemptError {
    pub(super) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            status: None,
            retry_after: None,
            kind: None,
            code: None,
            param: None,
        }
    }

    /// The error that a provider tells inside `document`, by status where there is one: OpenAI's object, or Ollama's string.
    pub(super) fn told(cause: Cause, document: &Value, secret: &str) -> Self {
        let error = document.get("error").unwrap_or(&Value::Null);
        let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
        let message = error
            .as_str()
            .map(str::to_owned)
            .or_else(|| text("message"))
            .unwrap_or_else(|| "the provider tells no reason".to_owned());
        let message = if secret.is_empty() {
            message
        } else {
            message.replace(secret, "[redacted]")
        };
        Self {
            kind: text("type"),
            code: text("code"),
            param: text("param"),
            ..Self::new(cause, message)
        }
    }
}

/// One attempt as the client is told of it; `error` is `None` for the one that served.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub provider: String,
    pub model: String,
    pub error: Option<AttemptError>,
}

/// Nothing could be served.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub attempts: Vec<Attempt>,
    /// The error that decides the response.
    pub error: AttemptError,
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// The final error of a request from everything that was tried. A refused request speaks for itself; where nothing was sent, an
    /// open breaker or a full provider says when to come again; where every provider asked for patience, so does the gateway;
    /// otherwise the last word counts.
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
pub(super) struct Told {
    pub status: u16,
    pub kind: String,
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    pub retry_after: Option<Duration>,
    pub attempts: Vec<Attempt>,
}

impl Told {
    pub(super) fn new(status: u16, kind: &str, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: kind.into(),
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after: None,
            attempts: Vec::new(),
        }
    }

    /// What a gateway says that has been told to end.
    pub(super) fn shutting_down() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self {
            retry_after,
            ..Self::new(
                503,
                "service_unavailable_error",
                "shutting_down",
                "the gateway is shutting down",
            )
        }
    }

    /// The table: what each cause is for the client.
    pub(super) fn from_attempt(error: &AttemptError, defect: Option<Defect>) -> Self {
        let upstream = |code| (502, "upstream_error", code);
        let unavailable = |code| (503, "service_unavailable_error", code);
        let (status, kind, code) = match error.cause {
            Cause::Refused => upstream("provider_unreachable"),
            Cause::Reset => upstream("provider_disconnected"),
            Cause::ConnectTimeout
            | Cause::FirstTokenTimeout
            | Cause::IdleTimeout
            | Cause::DeadlineExceeded => (504, "timeout_error", error.cause.name()),
            Cause::RateLimited => (429, "rate_limit_error", "rate_limit_exceeded"),
            Cause::QuotaExhausted => (429, "insufficient_quota", "insufficient_quota"),
            Cause::Overloaded => unavailable("provider_overloaded"),
            Cause::ServerError => upstream("provider_error"),
            Cause::ProviderAuth => upstream("provider_auth"),
            Cause::Rejected => (
                error.status.unwrap_or(400),
                "invalid_request_error",
                "rejected",
            ),
            Cause::BadResponse => upstream("bad_response"),
            Cause::Truncated => upstream("truncated"),
            Cause::Oversized => upstream("oversized"),
            Cause::InBand => upstream("in_band_error"),
            Cause::BreakerOpen => unavailable("breaker_open"),
            Cause::BulkheadFull => unavailable("provider_busy"),
            Cause::Unsupported => (400, "invalid_request_error", "unsupported"),
        };
        let mut told = Self::new(status, kind, code, error.message.clone());
        if matches!(
            error.cause,
            Cause::Rejected | Cause::InBand | Cause::Unsupported
        ) {
            told.kind = error.kind.clone().unwrap_or(told.kind);
            told.code = error.code.clone().unwrap_or(told.code);
            told.param = error.param.clone();
        }
        told.retry_after = error.retry_after;
        match defect {
            Some(Defect::EveryErrorIs500) => {
                (told.status, told.kind, told.code) =
                    (500, "server_error".into(), "internal_error".into())
            }
            Some(Defect::PassesProviderAuth) if error.cause == Cause::ProviderAuth => {
                (told.status, told.kind, told.code) = (
                    error.status.unwrap_or(401),
                    "invalid_request_error".into(),
                    "invalid_api_key".into(),
                );
            }
            Some(Defect::OpenIsBadGateway) if error.cause == Cause::BreakerOpen => {
                (told.status, told.retry_after) = (502, None)
            }
            Some(Defect::CutIsInvalidRequest)
                if matches!(error.cause, Cause::Truncated | Cause::Reset) =>
            {
                (told.status, told.kind, told.code) = (
                    400,
                    "invalid_request_error".into(),
                    "invalid_request".into(),
                );
            }
            Some(Defect::InBandLosesClass) if error.cause == Cause::InBand => {
                (told.kind, told.code, told.message) = (
                    "server_error".into(),
                    "internal_error".into(),
                    "internal error".into(),
                );
            }
            _ => {}
        }
        told
    }

    /// The final error of a request.
    pub(super) fn from_failure(failure: Failure, defect: Option<Defect>) -> Self {
        let mut told = Self::from_attempt(&failure.error, defect);
        let waits = matches!(told.status, 429 | 503) && defect != Some(Defect::OpenIsBadGateway);
        told.retry_after = failure
            .retry_after
            .or(Some(Duration::from_secs(1)))
            .filter(|_| waits);
        if defect != Some(Defect::HidesAttempts) {
            told.attempts = failure.attempts;
        }
        told
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
