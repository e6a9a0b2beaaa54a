//! Control routes of a stub that stays up, so that tests in any language can open gates and read
//! the tape.
//!
//! | route | what it does |
//! |---|---|
//! | `GET /_gauntlet` | the list of the routes |
//! | `GET /_gauntlet/tape` | the last entries of the tape, a JSON array |
//! | `GET /_gauntlet/requests` | the last requests that were read, a JSON array |
//! | `POST /_gauntlet/gates/NAME/open`, `…/close` | opens or closes a gate |
//! | `POST /_gauntlet/interlocks/NAME/ack/N` | acknowledges the events up to the n-th |

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::{Answer, Request, Source};
use crate::gate::Gates;
use crate::tape::{Event, Tape};

pub(super) const PREFIX: &str = "/_gauntlet/";

/// Every control route: its method, its path below the root, and what it does.
pub const CONTROL_ROUTES: [(&str, &str, &str); 5] = [
    ("GET", "/_gauntlet/requests", "the requests that have come"),
    (
        "GET",
        "/_gauntlet/tape",
        "everything that has happened, in order",
    ),
    (
        "POST",
        "/_gauntlet/gates/NAME/open",
        "sends the answers that wait at the gate",
    ),
    (
        "POST",
        "/_gauntlet/gates/NAME/close",
        "lets answers wait at the gate again",
    ),
    (
        "POST",
        "/_gauntlet/interlocks/NAME/ack/N",
        "acknowledges the first N events",
    ),
];

/// One line for each control route.
pub fn control_routes() -> String {
    let line = |(method, path, what): (&str, &str, &str)| format!("{method:4} {path:34} {what}\n");
    CONTROL_ROUTES.map(line).concat()
}

/// A source with the control routes before it.
pub struct Controlled {
    source: Arc<dyn Source>,
    tape: Tape,
    gates: Gates,
}

impl Controlled {
    /// Controls these gates and shows this tape; `source` answers everything else.
    pub fn new(source: Arc<dyn Source>, tape: Tape, gates: Gates) -> Self {
        Self {
            source,
            tape,
            gates,
        }
    }

    fn control(&self, method: &str, route: &str) -> Answer {
        let parts: Vec<&str> = route.split('/').collect();
        let json =
            |value: serde_json::Value| Answer::new(200, "application/json", value.to_string());
        match (method, &parts[..]) {
            ("GET", [""]) => Answer::new(200, "text/plain", control_routes()),
            ("GET", ["tape"]) => json(json!(self.tape.entries())),
            ("GET", ["requests"]) => {
                let control = |path: &str| path.starts_with(PREFIX);
                let request = |event: &Event| matches!(event, Event::RequestRead { path, .. } if !control(path));
                json(json!(self.tape.select(|entry| request(&entry.event))))
            }
            ("POST", ["gates", name, "open"]) => {
                self.gates.gate(name).open();
                json(json!({"gate": name, "open": true}))
            }
            ("POST", ["gates", name, "close"]) => {
                self.gates.gate(name).close();
                json(json!({"gate": name, "open": false}))
            }
            ("POST", ["interlocks", name, "ack", n]) => match n.parse() {
                Ok(n) => {
                    self.gates.interlock(name).ack(n);
                    json(json!({"interlock": name, "acknowledged": n}))
                }
                Err(_) => Answer::new(
                    400,
                    "text/plain",
                    format!("{n:?} is not the number of an event; give 1, 2, …\n"),
                ),
            },
            _ => Answer::new(
                404,
                "text/plain",
                format!(
                    "there is no control route {method} {PREFIX}{route}; the routes are:\n{}",
                    control_routes()
                ),
            ),
        }
    }
}

#[async_trait]
impl Source for Controlled {
    async fn answer(&self, request: &Request) -> Answer {
        let path = request.path.as_str();
        let route = path
            .strip_prefix(PREFIX)
            .or((path == PREFIX.trim_end_matches('/')).then_some(""));
        match route {
            Some(route) => self.control(&request.method, route),
            None => self.source.answer(request).await,
        }
    }

    fn counts(&self, request: &Request) -> bool {
        !request.path.starts_with(PREFIX) && self.source.counts(request)
    }
}
