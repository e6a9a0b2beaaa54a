//! What a request to a provider carries whatever is spoken: the URL from configuration alone, our key, the call's ids. The client's
//! own headers never pass. Called by every codec.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use secrecy::{ExposeSecret, SecretString};

use crate::config::ProviderConfig;
use crate::llm::cause::Cause;
use crate::llm::chat::{AttemptError, CallContext, Mode};
use crate::llm::transport::UpstreamRequest;

/// What stands in a request until the router sets its candidate's own.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a provider is asked, and what is sent with every request.
pub(super) struct Endpoint {
    url: Result<Uri, String>,
    authorization: Result<Option<HeaderValue>, String>,
    /// To be found in, and taken out of, what the provider says.
    pub(super) key: Option<SecretString>,
}

/// What a provider is shown with every request, probes included: its key, or the user and password of its URL.
///
/// # Errors
/// A sentence without the key, if no header can carry it.
pub(crate) fn authorization(provider: &ProviderConfig) -> Result<Option<HeaderValue>, String> {
    let shown = match (&provider.api_key, &provider.user) {
        (Some(key), _) => format!("Bearer {}", key.expose_secret().trim()),
        (None, Some(user)) => format!("Basic {}", BASE64_STANDARD.encode(user.expose_secret())),
        (None, None) => return Ok(None),
    };
    let mut value = HeaderValue::from_str(&shown).map_err(|_| {
        format!(
            "The api_key of provider '{}' holds characters that a header cannot carry.",
            provider.name
        )
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// What must not be passed on of what the provider says: our key, or the password.
fn secret(provider: &ProviderConfig) -> Option<SecretString> {
    let password = || {
        let user = provider.user.as_ref()?.expose_secret();
        user.split_once(':')
            .map(|(user, password)| if password.is_empty() { user } else { password }.into())
    };
    provider.api_key.clone().or_else(password)
}

impl Endpoint {
    /// The provider's base URL with `path` after its own path; a query stays.
    pub(super) fn new(provider: &ProviderConfig, path: &str) -> Self {
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
                    "The base_url of provider '{}' is not an absolute URL: {error}.",
                    provider.name
                )
            });
        Self {
            url,
            authorization: authorization(provider),
            key: secret(provider),
        }
    }

    /// A POST of this body, with the key and the context; nothing else of the client's headers.
    pub(super) fn request(
        &self,
        body: Bytes,
        mode: Mode,
        stream_type: &'static str,
        context: &CallContext,
    ) -> Result<UpstreamRequest, AttemptError> {
        let url = self
            .url
            .clone()
            .map_err(|message| AttemptError::new(Cause::Unsupported, message))?;
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            ACCEPT,
            HeaderValue::from_static(if mode == Mode::Plain {
                "application/json"
            } else {
                stream_type
            }),
        );
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("gauntlet/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(value) = self
            .authorization
            .clone()
            .map_err(|message| AttemptError::new(Cause::ProviderAuth, message))?
        {
            headers.insert(AUTHORIZATION, value);
        }
        // both are made or checked at the door; one that a header cannot carry is left out rather than sent in part
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
