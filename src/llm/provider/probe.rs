//! A cheap request that asks a provider about itself: one GET on a connection of its own.
//!
//! The health document probes every provider, and discovery asks for the list of models.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, Uri};

use super::{Protocol, UnknownProtocol, protocol};
use crate::config::ProviderConfig;
use crate::llm::transport_http::tls_for;

/// The maximum size of an answer to a probe, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Sends probes to one service. Connections are not kept: a probe shows whether one can be made.
#[derive(Clone, Debug)]
struct Prober {
    client: reqwest::Client,
    base: String,
}

/// Probes one configured provider as its protocol prescribes.
#[derive(Clone)]
pub struct ProviderProbe {
    protocol: &'static dyn Protocol,
    prober: Prober,
    authorization: Arc<HeaderMap>,
}

impl ProviderProbe {
    /// Creates the probe of a configured provider.
    ///
    /// # Errors
    /// A phrase without secrets if the protocol is unknown, the base URL cannot be used, or no
    /// header can carry the key.
    pub fn new(provider: &ProviderConfig) -> Result<Self, String> {
        let protocol =
            protocol(provider.protocol).map_err(|unknown: UnknownProtocol| unknown.to_string())?;
        Ok(Self {
            protocol,
            prober: Prober::new(&provider.base_url)?,
            authorization: Arc::new(protocol.authorization(provider)?),
        })
    }

    /// Checks whether the provider answers. The caller bounds the time.
    ///
    /// Cancel safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// A phrase without secrets that describes why the provider does not answer.
    pub async fn check(&self) -> Result<(), String> {
        let path = self.protocol.probe_path();
        let response = self.prober.send(path, &self.authorization).await?;
        self.protocol.read_probe(response.status())
    }
}

/// Asks a service without a key for the models that it serves, as `protocol` prescribes. The caller
/// bounds the time.
///
/// Cancel safe: dropping the future closes the connection.
///
/// # Errors
/// A phrase that describes why the service does not list its models.
pub async fn models(protocol: &dyn Protocol, base_url: &Uri) -> Result<Vec<String>, String> {
    let prober = Prober::new(base_url)?;
    let response = prober
        .send(protocol.models_path(), &HeaderMap::new())
        .await?;
    let status = response.status();
    if !status.is_success() {
        return Err(status_phrase(status));
    }
    protocol.read_models(&read(response).await?)
}

/// The phrase for an answer whose status shows that a provider is not available.
pub(super) fn status_phrase(status: StatusCode) -> String {
    format!("it answered with status {}", status.as_u16())
}

impl Prober {
    fn new(base: &Uri) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls_for(base))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| reason(&error))?;
        Ok(Self {
            client,
            base: base.to_string().trim_end_matches('/').to_owned(),
        })
    }

    async fn send(&self, path: &str, headers: &HeaderMap) -> Result<reqwest::Response, String> {
        self.client
            .get(format!("{}{path}", self.base))
            .headers(headers.clone())
            .send()
            .await
            .map_err(|error| reason(&error))
    }
}

async fn read(response: reqwest::Response) -> Result<Bytes, String> {
    let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.map_err(|error| reason(&error))?);
        if body.len() > MAX_BODY {
            return Err(format!("its answer is larger than {MAX_BODY} bytes"));
        }
    }
    Ok(body.into())
}

fn reason(error: &reqwest::Error) -> String {
    let phrase = if error.is_connect() {
        "the connection could not be established"
    } else if error.is_timeout() {
        "it gave no answer in time"
    } else if error.is_builder() {
        "its address is not a usable URL"
    } else {
        "the connection broke"
    };
    phrase.to_owned()
}
