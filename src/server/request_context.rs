//! What a handler knows of a request besides its body: the id, the deadline, the idempotency key
//! and the trace context. Every request has one, as an extension.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Version, header};
use tokio::time::Instant;
use uuid::Uuid;

/// The request id, which is accepted, returned, logged and forwarded.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The client's own deadline in milliseconds. It can only shorten the configured one.
pub const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The idempotency key, which is the same for every attempt of a request.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest idempotency key that a client may choose, in bytes.
const IDEMPOTENCY_KEY_LENGTH: usize = 255;

/// What a handler knows of a request besides its body.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's id where it was acceptable, else one of ours.
    pub request_id: Arc<str>,
    /// The W3C trace context, where the client sent a valid one.
    pub traceparent: Option<HeaderValue>,
    /// When the head of the request had been read. Every deadline counts from here.
    pub arrived: Instant,
    /// The client's deadline, where it gave one.
    pub deadline: Option<Instant>,
    /// The value of the header for it, where that is no number of milliseconds.
    invalid_timeout: Option<HeaderValue>,
    /// The client's idempotency key where it was acceptable, else one of ours.
    pub idempotency_key: Arc<str>,
}

/// Why a request is refused for its headers.
#[derive(Debug)]
pub enum InvalidHead {
    /// The header `x-request-timeout-ms` is not a whole number of milliseconds, 1 or more.
    Timeout {
        /// The header's value.
        value: HeaderValue,
    },
    /// The header `Host` is missing, occurs more than once, or names no host. Every request of
    /// HTTP/1.1 has one (RFC 9112 section 3.2).
    Host {
        /// How many headers of that name the request has.
        count: usize,
    },
}

impl RequestContext {
    /// Reads the context from the headers; the request id has been set by then.
    ///
    /// # Errors
    /// [`InvalidHead::Host`] where a request of HTTP/1.1 does not name one host. Other headers that
    /// break a rule are replaced or left out, because no request should fail for them; a deadline
    /// that is no number is refused by the routes that have one ([`RequestContext::checked`]).
    pub fn read(version: Version, headers: &HeaderMap) -> Result<Self, InvalidHead> {
        let arrived = Instant::now();
        if version == Version::HTTP_11 {
            one_host(headers)?;
        }
        let request_id = headers.get(REQUEST_ID);
        let request_id = request_id.and_then(|id| id.to_str().ok());
        let traceparent = headers
            .get(TRACEPARENT)
            .filter(|value| is_traceparent(value.as_bytes()));
        let (deadline, invalid_timeout) = match deadline(headers, arrived) {
            Ok(deadline) => (deadline, None),
            Err(value) => (None, Some(value)),
        };
        Ok(Self {
            request_id: request_id.unwrap_or_default().into(),
            traceparent: traceparent.cloned(),
            arrived,
            deadline,
            invalid_timeout,
            idempotency_key: acceptable(headers, &IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_LENGTH)
                .map_or_else(|| Uuid::new_v4().simple().to_string().into(), Into::into),
        })
    }

    /// Checks the client's deadline. A request that no route takes is refused for that first.
    ///
    /// # Errors
    /// [`InvalidHead::Timeout`] where it is no number of milliseconds.
    pub(super) fn checked(extensions: &Extensions) -> Result<(), InvalidHead> {
        let context = extensions.get::<Self>();
        match context.and_then(|context| context.invalid_timeout.clone()) {
            Some(value) => Err(InvalidHead::Timeout { value }),
            None => Ok(()),
        }
    }
}

/// Returns the header's value where it is visible ASCII of 1 to `longest` bytes.
pub(super) fn acceptable<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    longest: usize,
) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    let visible = value.bytes().all(|byte| byte.is_ascii_graphic());
    (!value.is_empty() && value.len() <= longest && visible).then_some(value)
}

/// Checks that the request has one `Host`, which names a host and perhaps a port, or nothing.
fn one_host(headers: &HeaderMap) -> Result<(), InvalidHead> {
    let hosts = headers.get_all(header::HOST);
    // the type of an authority allows a user, and any text as a port
    let has_port_of_digits = |host: &Authority| match host.as_str().rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.bytes().all(|byte| byte.is_ascii_digit()),
        _ => true,
    };
    let is_valid = |host: &[u8]| {
        host.is_empty()
            || (!host.contains(&b'@')
                && Authority::try_from(host).is_ok_and(|host| has_port_of_digits(&host)))
    };
    match hosts.iter().count() {
        1 if hosts.iter().all(|host| is_valid(host.as_bytes())) => Ok(()),
        count => Err(InvalidHead::Host { count }),
    }
}

fn deadline(headers: &HeaderMap, arrived: Instant) -> Result<Option<Instant>, HeaderValue> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else {
        return Ok(None);
    };
    let millis = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|millis| *millis > 0)
        .ok_or_else(|| value.clone())?;
    // a deadline that lies beyond what the clock can express never passes: it counts as none
    Ok(arrived.checked_add(Duration::from_millis(millis)))
}

/// Returns whether the value is `version-traceid-parentid-flags` as in W3C Trace Context section
/// 3.2, where ids of zeros alone are invalid.
fn is_traceparent(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
    match parts.as_slice() {
        [version, trace, parent, flags, rest @ ..] => {
            hex(version, 2)
                && *version != "ff"
                && (rest.is_empty() || *version != "00")
                && hex(trace, 32)
                && nonzero(trace)
                && hex(parent, 16)
                && nonzero(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}
