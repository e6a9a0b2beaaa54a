//! A cheap look at a service over HTTP: one GET, on a connection of its own.

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Uri, header};

use crate::llm::transport_http::tls_for;

/// No service says more than this about itself.
const LONGEST: usize = 1 << 20;

/// The way to one service. Connections are not kept: a probe tells whether one can be made.
#[derive(Clone, Debug)]
pub struct Prober {
    client: reqwest::Client,
    base: String,
}

impl Prober {
    /// A prober of what is below `base`.
    ///
    /// # Errors
    /// One phrase, if no client can be made for that address.
    pub fn new(base: &Uri) -> Result<Self, String> {
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

    /// Whether a provider is there: any HTTP answer to a GET of the base and `path` but one that tells of trouble (5xx), or that our
    /// credentials are wrong. Not every provider knows the path. The caller bounds the time. Cancel safe.
    ///
    /// # Errors
    /// One phrase without secrets: what happened instead.
    pub async fn answers(
        &self,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), String> {
        let status = self.send(path, authorization).await?.status();
        match status.as_u16() {
            401 | 403 | 500.. => Err(format!("status {}", status.as_u16())),
            _ => Ok(()),
        }
    }

    /// Gets the base and `path`, and returns the body of any 2xx answer. The caller bounds the time. Cancel safe.
    ///
    /// # Errors
    /// One phrase without secrets: what happened instead.
    pub async fn get(
        &self,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Bytes, String> {
        let response = self.send(path, authorization).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("status {}", status.as_u16()));
        }
        let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(|error| reason(&error))?);
            if body.len() > LONGEST {
                return Err("an answer without end".into());
            }
        }
        Ok(body.into())
    }
}

impl Prober {
    async fn send(
        &self,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, String> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.send().await.map_err(|error| reason(&error))
    }
}

fn reason(error: &reqwest::Error) -> String {
    let phrase = if error.is_connect() {
        "no connection"
    } else if error.is_timeout() {
        "no answer in time"
    } else if error.is_builder() {
        "the address can't be used"
    } else {
        "the connection broke"
    };
    phrase.to_owned()
}
