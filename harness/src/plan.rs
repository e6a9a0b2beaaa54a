//! Plans: how the bytes of one answer flow. A plan is plain data that the wire obeys.
//!
//! Scripts and cases write plans, proptest generates and shrinks them, and reports print them.

use serde::{Deserialize, Serialize};

/// What a port does with a connection before anything is read from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// Connections are accepted and served.
    #[default]
    Serve,
    /// Nobody listens on the port: connections are refused.
    Refuse,
    /// The accept queue is full: connections are never established.
    NeverAccept,
    /// Connections are accepted, and then nothing is read or written.
    Silence,
}

/// One step of sending an answer. Steps run in order; what they leave of the answer is not sent.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Waits until somebody opens the gate of that name.
    Hold(String),
    /// Waits until `count` answers, of any stub with the same gates, wait at the rendezvous of that
    /// name.
    Meet { name: String, count: usize },
    /// Waits `ms` milliseconds, to pace an answer in benches and scripts. No case waits for time.
    Pause { ms: u64 },
    /// Sends status line and headers.
    Head,
    /// Sends status line and headers one byte every `every_ms` milliseconds; the head never ends if
    /// `finish` is false.
    DripHead { every_ms: u64, finish: bool },
    /// Sends the next n events of the body. An event is an SSE event or an NDJSON line; any other
    /// body is one event.
    Events(usize),
    /// Sends the rest of the body, each event only after the one before has been acknowledged at
    /// the interlock of that name.
    Interlock(String),
    /// Sends the next n bytes of the body, wherever that cuts an event.
    Bytes(usize),
    /// Sends the rest of the body, `bytes` bytes every `every_ms` milliseconds.
    Drip { bytes: usize, every_ms: u64 },
    /// Sends the last event again every `every_ms` milliseconds until the peer leaves. Where the
    /// event has a text, each repetition has its number before it, so that no two texts are alike:
    /// some gateways end a stream that repeats itself.
    RepeatForever { every_ms: u64 },
    /// Waits until the peer has read everything that was sent, so that what follows is a read of
    /// its own, as far as the system shows the peer's queue.
    Drain,
    /// Sends the rest of the body.
    Rest,
    /// Sends these bytes, which are not part of the answer. A script may write them as a text.
    Garbage(#[serde(deserialize_with = "text_or_bytes")] Vec<u8>),
    /// Sends nothing more and keeps the connection open until the peer closes it.
    Stall,
    /// Closes the connection in order (FIN), even if more was promised.
    Cut,
    /// Resets the connection (RST) after the peer has read what was sent.
    Reset,
}

/// Every step as a script writes it, and what it does, for help texts.
pub const STEPS: [(&str, &str); 16] = [
    ("head", "sends status line and headers"),
    (
        "drip_head: { every_ms: 50, finish: true }",
        "sends them byte by byte",
    ),
    ("events: 2", "sends the next events of the body"),
    ("bytes: 20", "sends the next bytes of the body"),
    (
        "drip: { bytes: 40, every_ms: 50 }",
        "sends the rest of the body in pieces",
    ),
    (
        "interlock: NAME",
        "sends each event after the one before was acknowledged",
    ),
    ("rest", "sends the rest of the body"),
    (
        "repeat_forever: { every_ms: 50 }",
        "sends the last event again and again, its text numbered",
    ),
    (
        "garbage: oops",
        "sends this text, or a list of bytes, beside the answer",
    ),
    ("hold: NAME", "waits until the gate is opened"),
    (
        "meet: { name: NAME, count: 2 }",
        "waits until that many answers wait together",
    ),
    ("pause: { ms: 50 }", "waits milliseconds"),
    ("drain", "waits until the client has read everything"),
    ("stall", "sends nothing more and keeps the connection"),
    ("cut", "closes the connection in order (FIN)"),
    ("reset", "resets the connection (RST)"),
];

impl Step {
    /// What the step does to an answer beyond sending the next part of it, in the words of a
    /// report; `None` for a step that only sends.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        match self {
            Self::Hold(_) => Some("an answer held at a gate"),
            Self::Meet { .. } => Some("answers held until all have come"),
            Self::DripHead { .. } => Some("headers byte by byte"),
            Self::Interlock(_) => Some("each event after the one before was read"),
            Self::Drip { .. } => Some("a body in small pieces"),
            Self::RepeatForever { .. } => Some("an event repeated forever"),
            Self::Drain => Some("a body split between two reads"),
            Self::Garbage(_) => Some("foreign bytes"),
            Self::Stall => Some("a stall"),
            Self::Cut => Some("a cut"),
            Self::Reset => Some("a reset"),
            Self::Pause { .. } | Self::Head | Self::Events(_) | Self::Bytes(_) | Self::Rest => None,
        }
    }

    /// The name of the step in a script.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hold(_) => "hold",
            Self::Meet { .. } => "meet",
            Self::Pause { .. } => "pause",
            Self::Head => "head",
            Self::DripHead { .. } => "drip_head",
            Self::Events(_) => "events",
            Self::Interlock(_) => "interlock",
            Self::Bytes(_) => "bytes",
            Self::Drip { .. } => "drip",
            Self::RepeatForever { .. } => "repeat_forever",
            Self::Drain => "drain",
            Self::Rest => "rest",
            Self::Garbage(_) => "garbage",
            Self::Stall => "stall",
            Self::Cut => "cut",
            Self::Reset => "reset",
        }
    }
}

/// Reads bytes that are written as a text or as a list of numbers.
fn text_or_bytes<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    struct TextOrBytes;

    impl<'de> serde::de::Visitor<'de> for TextOrBytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text, or a list of whole numbers from 0 to 255")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
            Ok(text.as_bytes().to_vec())
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u8>, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = list.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes)
        }
    }

    from.deserialize_any(TextOrBytes)
}

/// How the end of the body is announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// Chunks for streams, and `Content-Length` for all other bodies.
    #[default]
    Natural,
    /// A `Content-Length` that differs from the true length by this many bytes.
    WrongLength(i64),
    /// Neither of them: the end of the connection is the end of the body.
    UntilClose,
}

/// How the bytes of one answer flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The steps, in order. After the last one a complete answer keeps the connection, and an
    /// incomplete one is cut.
    pub steps: Vec<Step>,
    /// How the end of the body is announced.
    #[serde(default)]
    pub framing: Framing,
}

impl Default for Plan {
    /// Sends the whole answer at once.
    fn default() -> Self {
        Self {
            steps: vec![Step::Head, Step::Rest],
            framing: Framing::Natural,
        }
    }
}

impl Plan {
    /// Runs these steps.
    pub fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            framing: Framing::Natural,
        }
    }

    /// Sends the whole answer once the gate of that name is open.
    pub fn held(gate: &str) -> Self {
        Self::of([Step::Hold(gate.into()), Step::Head, Step::Rest])
    }

    /// Sends the whole answer once `count` answers wait at the rendezvous of that name.
    pub fn met(name: &str, count: usize) -> Self {
        Self::of([
            Step::Meet {
                name: name.into(),
                count,
            },
            Step::Head,
            Step::Rest,
        ])
    }

    /// Reads the request and never answers.
    pub fn silent() -> Self {
        Self::of([Step::Stall])
    }

    /// Sends the head and n events, and then does `then`.
    pub fn events_then(n: usize, then: Step) -> Self {
        Self::of([Step::Head, Step::Events(n), then])
    }

    /// The index of the last step that does more than send; reaching it is meeting the fault.
    pub(crate) fn last_fault(&self) -> Option<usize> {
        self.steps.iter().rposition(|step| step.fault().is_some())
    }

    /// What the plan does to an answer, in the words of a report; `None` if it only sends it whole.
    pub(crate) fn fault(&self) -> Option<String> {
        let mut words: Vec<&str> = Vec::new();
        for fault in self.steps.iter().filter_map(Step::fault) {
            if !words.contains(&fault) {
                words.push(fault);
            }
        }
        match self.framing {
            Framing::Natural => {}
            Framing::WrongLength(_) => words.push("a wrong length"),
            Framing::UntilClose => words.push("no length"),
        }
        if words.is_empty() && !self.steps.contains(&Step::Rest) {
            words.push("an answer that is not whole");
        }
        (!words.is_empty()).then(|| words.join(", then "))
    }

    /// Whether only the wire can obey it: the bytes do not flow all at once.
    pub fn needs_the_wire(&self) -> bool {
        *self != Self::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{STEPS, Step};

    #[test]
    fn garbage_is_a_text_or_a_list_of_bytes() {
        for written in ["{\"garbage\":\"Hi\"}", "{\"garbage\":[72,105]}"] {
            let step: Step = serde_json::from_str(written).unwrap();
            assert_eq!(step, Step::Garbage(b"Hi".to_vec()));
        }
        let wrong = serde_json::from_str::<Step>("{\"garbage\":5}").unwrap_err();
        assert!(
            wrong
                .to_string()
                .contains("a text, or a list of whole numbers"),
            "{wrong}"
        );
    }

    #[test]
    fn the_table_has_each_step_that_a_script_can_have() {
        let unknown = serde_json::from_str::<Step>("\"?\"").unwrap_err();
        let unknown = unknown.to_string();
        let mut known: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        let mut shown = Vec::new();
        for (form, _) in STEPS {
            let form = match form.contains(": ") {
                true => format!("{{ {form} }}"),
                false => form.to_string(),
            };
            let text = format!("steps: [{form}]");
            let value: yaml_serde::Value = yaml_serde::from_str(&text).unwrap();
            let step: Step = yaml_serde::with::singleton_map_recursive::deserialize(
                value.get("steps").unwrap().get(0).unwrap().clone(),
            )
            .unwrap();
            shown.push(step.name());
        }
        known.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, known);
    }
}
