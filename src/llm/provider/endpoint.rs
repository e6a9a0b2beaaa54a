//! What every request to a provider carries, in any protocol: the URL from the configuration, the
//! authorization of the protocol, and the ids of the call. Headers of the client never pass.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use secrecy::{ExposeSecret, SecretString};

use super::Protocol;
use crate::config::ProviderConfig;
use crate::llm::cause::Cause;
use crate::llm::chat::{AttemptError, CallContext, Mode};
use crate::llm::transport::UpstreamRequest;

/// The connect timeout of a request until the router sets the one of its candidate.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a provider is asked, and what every request to it carries.
pub(super) struct Endpoint {
    url: Result<Uri, String>,
    authorization: Result<HeaderMap, String>,
    stream_type: &'static str,
    /// The secret that is removed from the provider's messages.
    pub(super) key: Option<SecretString>,
}

/// The authorization of most protocols: `Bearer` with the key, or `Basic` with the user and
/// password of the base URL.
///
/// # Errors
/// A sentence without the key, if no header can carry it.
pub(super) fn bearer_or_basic(provider: &ProviderConfig) -> Result<HeaderMap, String> {
    let credentials = match (&provider.api_key, &provider.user) {
        (Some(key), _) => format!("Bearer {}", key.expose_secret().trim()),
        (None, Some(user)) => format!("Basic {}", BASE64_STANDARD.encode(user.expose_secret())),
        (None, None) => return Ok(HeaderMap::new()),
    };
    let mut value = HeaderValue::from_str(&credentials).map_err(|_| {
        format!(
            "The api_key of provider '{}' holds characters that a header cannot carry; write visible \
             ASCII characters.",
            provider.name
        )
    })?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// The secret that must not be passed on in a provider's message: the key, or the password.
fn secret(provider: &ProviderConfig) -> Option<SecretString> {
    let password = || {
        let user = provider.user.as_ref()?.expose_secret();
        user.split_once(':')
            .map(|(user, password)| if password.is_empty() { user } else { password }.into())
    };
    provider.api_key.clone().or_else(password)
}

impl Endpoint {
    /// Creates the endpoint at the provider's base URL, with `path` after the base URL's own path
    /// and before its query.
    pub(super) fn new(protocol: &dyn Protocol, provider: &ProviderConfig, path: &str) -> Self {
        let base = &provider.base_url;
        let query = base
            .query()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let mut parts = base.clone().into_parts();
        let url = format!("{}{path}{query}", base.path().trim_end_matches('/'))
            .parse()
            .map_err(http::Error::from)
            .and_then(|path| {
                parts.path_and_query = Some(path);
                Uri::from_parts(parts).map_err(http::Error::from)
            })
            .map_err(|error| {
                format!(
                    "The base_url of provider '{}' is not an absolute URL ({error}); write one such \
                     as {}.",
                    provider.name,
                    protocol.settings().default_base_url
                )
            });
        Self {
            url,
            authorization: protocol.authorization(provider),
            stream_type: protocol.stream_type(),
            key: secret(provider),
        }
    }

    /// Creates a POST of `body` with the authorization and the ids of the call.
    ///
    /// # Errors
    /// [`Cause::Unsupported`] if the base URL is not absolute, and [`Cause::ProviderAuth`] if no
    /// header can carry the key.
    pub(super) fn request(
        &self,
        body: Bytes,
        mode: Mode,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        let url = self
            .url
            .clone()
            .map_err(|message| AttemptError::new(Cause::Unsupported, message))?;
        let authorization = self
            .authorization
            .as_ref()
            .map_err(|message| AttemptError::new(Cause::ProviderAuth, message.as_str()))?;
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            ACCEPT,
            HeaderValue::from_static(if mode == Mode::Plain {
                "application/json"
            } else {
                self.stream_type
            }),
        );
        // Without it a provider may choose any coding (RFC 9110 section 12.5.3).
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("gauntlet/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, value) in authorization {
            headers.insert(name, value.clone());
        }
        // The HTTP layer makes or checks both ids. One that a header cannot carry is left out.
        if let Ok(value) = HeaderValue::from_str(&context.request_id) {
            headers.insert(HeaderName::from_static("x-request-id"), value);
        }
        if let Ok(value) = HeaderValue::from_str(&context.idempotency_key) {
            headers.insert(HeaderName::from_static("idempotency-key"), value);
        }
        if let Some(value) = &context.traceparent {
            headers.insert(HeaderName::from_static("traceparent"), value.clone());
        }
        Ok(UpstreamRequest {
            url,
            headers,
            body,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        })
    }
}
