//! Reads the failure of a provider in any protocol: the table from status to cause, Retry-After,
//! the error object in its many shapes, and the provider's message without secrets. Every codec
//! calls it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::llm::cause::Cause;
use crate::llm::chat::{AttemptError, ErrorDetail};
use crate::llm::content::{clip, media_type};
use crate::llm::framing::FrameError;

/// The maximum number of characters of a provider's message that are passed on.
const MESSAGE_LIMIT: usize = 500;
/// The maximum number of characters of a provider's type, code or param that are passed on.
const DETAIL_LIMIT: usize = 100;
/// The longest Retry-After that is passed on: one day.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The codes and types with which a 403 or 429 means that waiting does not help.
const QUOTA: [&str; 4] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_credits",
];

/// Reads a non-2xx answer: the cause by status and body, the provider's message, and the time for
/// which it asks callers to wait.
pub(super) fn from_answer(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    key: Option<&SecretString>,
) -> AttemptError {
    let reported = ProviderError::read(body, key);
    let cause = cause_of(status, &reported.detail);
    let message = match (&reported.message, cause) {
        (Some(message), Cause::Rejected) => message.clone(),
        (Some(message), _) => format!("The provider answered {}: {message}", status.as_u16()),
        (None, _) => match body_kind(headers, body) {
            Some(kind) => format!("The provider answered {} with {kind}.", status.as_u16()),
            None => format!("The provider answered {}.", status.as_u16()),
        },
    };
    AttemptError {
        cause,
        message,
        status: Some(status.as_u16()),
        retry_after: retry_after(headers, SystemTime::now()),
        no_retry: headers
            .get("x-should-retry")
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"false")),
        detail: reported.detail,
    }
}

/// Reads an error inside a 200: `error` is an object, a string, or any other value that is not
/// empty. An error that names a 4xx status is treated like that status, because the request stays
/// wrong however often it is sent.
pub(super) fn in_band(error: &str, key: Option<&SecretString>) -> AttemptError {
    let reported = ProviderError::read_text(error, key);
    let status = status_of(&reported.detail);
    let cause = status.map_or(Cause::InBand, |status| cause_of(status, &reported.detail));
    let message = reported
        .message
        .unwrap_or_else(|| "The provider reported an error inside its answer.".to_owned());
    AttemptError {
        status: status.map(|status| status.as_u16()),
        detail: reported.detail,
        ..AttemptError::new(cause, message)
    }
}

/// The 4xx status that an error object stands for: its code, or the status that belongs to OpenAI's
/// type and code of an invalid request.
fn status_of(detail: &ErrorDetail) -> Option<StatusCode> {
    let code = detail.code.as_deref();
    let status = match (
        code.and_then(|code| code.parse().ok()),
        detail.kind.as_deref(),
        code,
    ) {
        (Some(status), ..) => status,
        (None, Some("invalid_request_error"), Some("invalid_api_key")) => 401,
        (None, Some("invalid_request_error"), Some("model_not_found")) => 404,
        (None, Some("invalid_request_error"), _) => 400,
        _ => return None,
    };
    StatusCode::from_u16(status)
        .ok()
        .filter(StatusCode::is_client_error)
}

/// The error for an answer that is not valid.
pub(super) fn bad_response(message: impl Into<String>) -> AttemptError {
    AttemptError::new(Cause::BadResponse, message)
}

/// The error for an answer that is not the expected JSON, with the position at which that shows.
/// serde's own message is left out, because it repeats the value at that position, which may be the
/// whole text of an answer with a secret in it.
pub(super) fn not_json_of(what: &str, error: &serde_json::Error) -> AttemptError {
    bad_response(format!(
        "{what} (line {}, column {}).",
        error.line(),
        error.column()
    ))
}

/// The error for a request that the protocol cannot express, with the name of the field.
pub(super) fn unsupported(param: &str, message: impl Into<String>) -> AttemptError {
    let detail = ErrorDetail {
        kind: Some("invalid_request_error".into()),
        code: Some("unsupported_parameter".into()),
        param: Some(clip(param, DETAIL_LIMIT)),
    };
    AttemptError {
        detail,
        ..AttemptError::new(Cause::Unsupported, message)
    }
}

/// The error for an answer that ended without its end marker.
pub(super) fn truncated() -> AttemptError {
    AttemptError::new(
        Cause::Truncated,
        "The provider's stream ended before its answer was complete.",
    )
}

/// The error for bytes that are not events.
pub(super) fn frame(error: FrameError) -> AttemptError {
    let cause = match error {
        FrameError::Oversized { .. } => Cause::Oversized,
        FrameError::InvalidUtf8 => Cause::BadResponse,
    };
    AttemptError::new(
        cause,
        format!("The provider's stream cannot be read: {error}."),
    )
}

/// Refuses an answer with a content-encoding, because the gateway requests none.
///
/// # Errors
/// [`Cause::BadResponse`] for any encoding but `identity`.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), AttemptError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(bad_response(
            "The provider answered with a content-encoding, although the gateway accepts none.",
        )),
        _ => Ok(()),
    }
}

/// The only table from a provider's status to a cause. 408, 409, 421, 424, 425 and 499 are trouble
/// of the provider (time, conflict, generation) that passes by itself, not an invalid request. 404,
/// 405 and 410 concern the URL and the model name, which are configured.
fn cause_of(status: StatusCode, detail: &ErrorDetail) -> Cause {
    let quota = [&detail.kind, &detail.code]
        .into_iter()
        .flatten()
        .any(|name| QUOTA.contains(&name.as_str()));
    match status.as_u16() {
        402 => Cause::QuotaExhausted,
        403 | 429 if quota => Cause::QuotaExhausted,
        429 => Cause::RateLimited,
        401 | 403 | 407 => Cause::ProviderAuth,
        408 | 409 | 421 | 424 | 425 | 499 => Cause::ServerError,
        404 | 405 | 410 => Cause::NotFound,
        503 | 529 => Cause::Overloaded,
        400..=499 => Cause::Rejected,
        500.. => Cause::ServerError,
        // 1xx and 3xx are no answers, since redirects are not followed; 2xx never reaches this
        // table.
        _ => Cause::BadResponse,
    }
}

/// The time for which a provider asks callers to wait, from its headers:
/// * `retry-after-ms`, in milliseconds, comes first.
/// * `retry-after` is a number of seconds or an HTTP date (RFC 9110 section 10.2.3). A date in the
///   past is a wait of zero.
/// * A negative number, or a value that is neither, is ignored.
/// * A wait of more than one day is shortened to one day.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let number = |text: &str, unit: f64| {
        let seconds = text.parse::<f64>().ok()? * unit;
        (seconds.is_finite() && seconds >= 0.0).then(|| {
            Duration::try_from_secs_f64(seconds)
                .unwrap_or(MAX_RETRY_AFTER)
                .min(MAX_RETRY_AFTER)
        })
    };
    if let Some(wait) = text("retry-after-ms").and_then(|text| number(text, 0.001)) {
        return Some(wait);
    }
    let value = text("retry-after")?;
    number(value, 1.0).or_else(|| {
        httpdate::parse_http_date(value).ok().map(|date| {
            date.duration_since(now)
                .unwrap_or_default()
                .min(MAX_RETRY_AFTER)
        })
    })
}

/// A description of a body that holds no readable message.
fn body_kind(headers: &HeaderMap, body: &[u8]) -> Option<&'static str> {
    if body.trim_ascii().is_empty() {
        return Some("an empty body");
    }
    if media_type(headers) == "text/html" || body.trim_ascii_start().starts_with(b"<") {
        return Some("an HTML page");
    }
    None
}

/// A provider's description of its failure.
#[derive(Default)]
struct ProviderError {
    message: Option<String>,
    detail: ErrorDetail,
}

impl ProviderError {
    /// Reads a body: OpenAI's envelope, the same object without the envelope, an array of either,
    /// `{"error": "text"}`, FastAPI's `{"detail": [{"msg": …}]}`, or plain text.
    fn read(body: &[u8], key: Option<&SecretString>) -> Self {
        Self::read_text(std::str::from_utf8(body).unwrap_or_default(), key)
    }

    fn read_text(text: &str, key: Option<&SecretString>) -> Self {
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => {
                let mut error = Self::of(object.get("error").unwrap_or(&Value::Null), key);
                if error.message.is_none() {
                    error = Self::of(&Value::Object(object.clone()), key);
                }
                // TGI sends the type beside the text.
                if error.detail.kind.is_none() {
                    error.detail.kind = object.get("error_type").and_then(|kind| word(kind, key));
                }
                error
            }
            Ok(Value::Array(items)) => items
                .iter()
                .map(|item| Self::of(item.get("error").unwrap_or(item), key))
                .find(|error| error.message.is_some())
                .unwrap_or_default(),
            Ok(value) => Self::of(&value, key),
            Err(_) => {
                let text = text.trim();
                let readable = !text.is_empty() && !text.starts_with(['<', '{', '[']);
                Self {
                    message: readable.then(|| clean(text, key)),
                    detail: ErrorDetail::default(),
                }
            }
        }
    }

    /// Reads the error object or string itself.
    fn of(error: &Value, key: Option<&SecretString>) -> Self {
        match error {
            Value::String(text) if !text.trim().is_empty() => Self {
                message: Some(clean(text, key)),
                detail: ErrorDetail::default(),
            },
            Value::Object(object) => {
                let field = |name: &str| object.get(name).and_then(|value| word(value, key));
                Self {
                    message: words(error, 0).map(|text| clean(&text, key)),
                    detail: ErrorDetail {
                        kind: field("type"),
                        code: field("code").or_else(|| field("http_status_code")),
                        param: field("param"),
                    },
                }
            }
            _ => Self::default(),
        }
    }
}

/// The words of an error, wherever they stand: a text; the first member of an object that names
/// one; the items of an array, joined.
fn words(error: &Value, depth: usize) -> Option<String> {
    const MEMBERS: [&str; 6] = ["message", "detail", "msg", "error", "errors", "reason"];
    const DEPTH: usize = 6;
    const ITEMS: usize = 5;
    match error {
        _ if depth > DEPTH => None,
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Object(object) => MEMBERS
            .iter()
            .find_map(|name| words(object.get(*name)?, depth + 1)),
        Value::Array(items) => {
            let found: Vec<String> = items
                .iter()
                .filter_map(|item| words(item, depth + 1))
                .take(ITEMS)
                .collect();
            (!found.is_empty()).then(|| found.join("; "))
        }
        _ => None,
    }
}

/// A type, code or param as a string. A number is converted.
fn word(value: &Value, key: Option<&SecretString>) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(clip(&redact(text, key), DETAIL_LIMIT)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A provider's message for a client: without secrets, on one line, and of bounded length.
pub(super) fn clean(text: &str, key: Option<&SecretString>) -> String {
    // Secrets are removed first, so that the limit cannot leave a part of a key behind.
    clip(&redact(text.trim(), key), MESSAGE_LIMIT)
}

/// The text without the provider's key, without any word that looks like a key, and without
/// credentials in a URL.
fn redact(text: &str, key: Option<&SecretString>) -> String {
    const REDACTED: &str = "[redacted]";
    let key = key
        .map(|key| key.expose_secret().trim())
        .filter(|key| !key.is_empty());
    let text = key.map_or_else(|| text.to_owned(), |key| text.replace(key, REDACTED));
    let mut out = String::with_capacity(text.len());
    let mut after_scheme = false;
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let is_word = |c: char| {
            !c.is_whitespace()
                && !matches!(
                    c,
                    '"' | '\'' | '`' | ',' | ';' | '(' | ')' | '<' | '>' | '{' | '}' | '=' | '\\'
                )
        };
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(length);
        if word.is_empty() {
            let gap = tail.find(is_word).unwrap_or(tail.len());
            out.push_str(&tail[..gap]);
            rest = &tail[gap..];
            continue;
        }
        let bare = word.trim_end_matches(['.', ':', '!', '?']);
        if after_scheme || looks_like_key(bare) || holds_encoded(bare, key) {
            out.push_str(REDACTED);
            out.push_str(&word[bare.len()..]);
        } else {
            out.push_str(&without_user_info(word));
        }
        after_scheme = bare.eq_ignore_ascii_case("bearer");
        rest = tail;
    }
    out
}

const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether the word is base64 that holds the password, as HTTP Basic sends it.
fn holds_encoded(word: &str, key: Option<&str>) -> bool {
    let decoded = key.and_then(|key| Some((ANY_PADDING.decode(word).ok()?, key)));
    decoded.is_some_and(|(decoded, key)| memchr::memmem::find(&decoded, key.as_bytes()).is_some())
}

/// Whether the word looks like a key of a known service, complete or masked in the middle
/// (`sk-ab***yz`).
fn looks_like_key(word: &str) -> bool {
    const PREFIXES: [&str; 10] = [
        "sk-", "sk_", "pk-", "rk-", "hf_", "gsk_", "xai-", "AIza", "ghp_", "gl_",
    ];
    // A key may follow a name: `key:sk-…`.
    let word = word.rsplit_once(':').map_or(word, |(_, last)| last);
    word.len() >= 8 && PREFIXES.iter().any(|prefix| word.starts_with(prefix))
}

/// A URL such as `https://user:password@host/` without user and password.
fn without_user_info(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://") {
        let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if let Some(at) = rest[..authority].rfind('@') {
            return format!("{scheme}://{}", &rest[at + 1..]);
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests;
