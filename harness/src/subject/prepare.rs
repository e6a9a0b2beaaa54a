//! The requests of `[[prepare]]`: what a gateway is asked once it is ready and before any case,
//! such as minting the key of its clients.

use indexmap::IndexMap;
use serde::Deserialize;

use super::file::Each;
use super::probe::Statuses;
use super::render::Renderer;
use super::{TargetError, TargetFile};
use crate::client::Client;
use crate::tape::Tape;
use crate::verdict::Failure;

/// The largest part of a body, in characters, that a message shows.
const MOST_SHOWN: usize = 400;

/// A request to a gateway that is ready. Path, headers and body are templates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The method; without it, `POST`.
    #[serde(default = "post")]
    pub method: String,
    /// The name of the port in `start.ports`; without it, `main`.
    #[serde(default = "main_port")]
    pub port: String,
    /// The path, with its query.
    pub path: String,
    /// The headers of this request; those of the target file are not sent.
    #[serde(default)]
    pub headers: IndexMap<String, String>,
    /// The body; with one, the content type is JSON unless `headers` has another.
    #[serde(default)]
    pub body: String,
    /// The list for each of whose elements the request is sent; without it it is sent once.
    #[serde(default)]
    pub each: Option<Each>,
    /// The status, or a list of statuses, of a success; without it, any from 200 to 299.
    #[serde(default)]
    pub status: Option<Statuses>,
    /// Names and JSON pointers: the value at the pointer in the answer is known to later templates
    /// as `captured.NAME`.
    #[serde(default)]
    pub capture: IndexMap<String, String>,
}

fn post() -> String {
    "POST".into()
}

fn main_port() -> String {
    "main".into()
}

/// Sends the requests in their order. Dropping the future closes the connection of the one under
/// way; the gateway keeps what it has done.
///
/// # Errors
/// [`TargetError::NotReady`] with the request, what came instead of a success, and the remedy.
pub(super) async fn all(
    file: &TargetFile,
    renderer: &mut Renderer<'_>,
    ports: &IndexMap<String, u16>,
    main: &str,
) -> Result<(), TargetError> {
    for step in &file.prepare {
        for element in renderer.elements(step.each) {
            let element = element.as_ref();
            let render = |what: &str, template: &str| {
                renderer.render_for(element, &format!("prepare.{what}"), template)
            };
            let address = match (step.port.as_str(), ports.get(&step.port)) {
                ("main", _) => main.to_string(),
                (_, Some(port)) => format!("127.0.0.1:{port}"),
                (name, None) => {
                    return Err(TargetError::Definition(format!(
                        "target file {}: prepare.port is `{name}`, and start.ports has no such port; \
                         add it there",
                        file.origin
                    )));
                }
            };
            let path = render("path", &step.path)?;
            let body = render("body", &step.body)?;
            let mut headers = Vec::new();
            for (name, template) in &step.headers {
                let what = format!("prepare.headers.{name}");
                headers.push((name.clone(), renderer.header(element, &what, template)?));
            }
            let has_type = |(name, _): &(String, String)| name.eq_ignore_ascii_case("content-type");
            if !body.is_empty() && !headers.iter().any(has_type) {
                headers.push(("content-type".into(), "application/json".into()));
            }
            let request = format!("{} http://{address}{path}", step.method);
            let wrong = |what: String| {
                TargetError::NotReady(format!(
                    "{} is ready, and its step [[prepare]] failed: {request} {what}; correct the step in \
                     {}",
                    file.name, file.origin
                ))
            };
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let client = Client::new(&format!("http://{address}"), Vec::new(), Tape::new());
            let reply = match client {
                Ok(client) => {
                    client
                        .request(&step.method, &path, &headers, body.as_bytes())
                        .await
                }
                Err(failure) => Err(failure),
            };
            let reply = reply.map_err(|failure| match failure {
                Failure::Violated { observed, .. } => wrong(format!("got no answer ({observed})")),
                other => wrong(format!("was not sent ({other})")),
            })?;
            let success = match &step.status {
                Some(statuses) => statuses.holds(reply.status),
                None => (200..300).contains(&reply.status),
            };
            let text: String = String::from_utf8_lossy(&reply.body)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .chars()
                .take(MOST_SHOWN)
                .collect();
            if !success {
                return Err(wrong(format!(
                    "was answered with {} and the body `{text}`",
                    reply.status
                )));
            }
            let json: Option<serde_json::Value> = serde_json::from_slice(&reply.body).ok();
            for (name, pointer) in &step.capture {
                let value = json
                    .as_ref()
                    .and_then(|json| json.pointer(pointer))
                    .cloned();
                let Some(value) = value else {
                    return Err(wrong(format!(
                        "was answered with `{text}`, which has nothing at the JSON pointer `{pointer}` \
                         for `{name}`"
                    )));
                };
                renderer.capture(name, value);
            }
        }
    }
    Ok(())
}
