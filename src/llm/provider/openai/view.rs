//! The parts of OpenAI's documents and events that the gateway reads, in one pass that borrows and
//! keeps neither text nor names. All other parts are passed on unread.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::llm::chat::Usage;

/// A completion or a chunk, as far as the gateway reads it. `C` is the part of the choices that is
/// read.
#[derive(serde::Deserialize)]
pub(super) struct Document<'a, C> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(default = "none")]
    pub(super) choices: Option<C>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

fn none<C>() -> Option<C> {
    None
}

impl<C> Document<'_, C> {
    /// The error, unless it is empty: `null`, `false`, `""`.
    pub(super) fn error(&self) -> Option<&str> {
        self.error
            .filter(|error| is_error(error))
            .map(RawValue::get)
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let mut usage: Usage = serde_json::from_str(self.usage?.get()).ok()?;
        if usage.total_tokens == 0 {
            usage.total_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        }
        Some(usage)
    }
}

/// Whether an error is written there: it is neither `null`, `false` nor `""`.
fn is_error(error: &RawValue) -> bool {
    !matches!(error.get(), "null" | "false" | "\"\"")
}

/// What is read of the choices of a completion. Each is an object with a `message` object, or with
/// an `error`.
pub(super) struct Answered {
    /// The number of choices.
    pub(super) count: usize,
    /// The error of the first choice that reports one; the text `null` if it reports an error only
    /// by its finish_reason.
    pub(super) error: Option<String>,
    /// Whether no choice has content, or was ended by a content filter.
    pub(super) is_empty: bool,
}

impl<'de> Deserialize<'de> for Answered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Choice<'a> {
            #[serde(borrow)]
            message: Option<Object<DeltaView<'a>>>,
            #[serde(borrow)]
            error: Option<&'a RawValue>,
            #[serde(borrow)]
            finish_reason: Option<&'a RawValue>,
        }
        let choices: Vec<Object<Choice<'de>>> = Deserialize::deserialize(deserializer)?;
        let mut answered = Self {
            count: choices.len(),
            error: None,
            is_empty: true,
        };
        for Object(choice) in choices {
            let message = choice.message.as_ref();
            answered.is_empty &= !message.is_some_and(|Object(message)| message.has_content())
                && !is_filtered(choice.finish_reason);
            let error = choice.error.filter(|error| is_error(error));
            if let Some(error) = error {
                answered.error.get_or_insert_with(|| error.get().to_owned());
            } else if Finish::of(choice.finish_reason) == Finish::Error {
                answered.error.get_or_insert_with(|| "null".to_owned());
            } else if choice.message.is_none() {
                return Err(serde::de::Error::missing_field("message"));
            }
        }
        Ok(answered)
    }
}

/// A `T` that must be written as an object. A derived struct also accepts an array of its fields.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Whether a content filter ended the choice, which may leave it empty.
fn is_filtered(reason: Option<&RawValue>) -> bool {
    reason.is_some_and(|reason| reason.get() == "\"content_filter\"")
}

/// What a finish_reason says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Finish {
    /// It is absent or null: the choice continues.
    #[default]
    None,
    /// It is an empty string, which some servers write instead of null.
    Empty,
    /// It is `error`: the provider reports a failure.
    Error,
    /// The choice is finished.
    Given,
}

impl Finish {
    fn of(reason: Option<&RawValue>) -> Self {
        match reason.map(RawValue::get) {
            None | Some("null") => Self::None,
            Some("\"\"") => Self::Empty,
            Some("\"error\"") => Self::Error,
            Some(_) => Self::Given,
        }
    }
}

/// What is read of one choice of a chunk.
#[derive(Clone, Copy, Default)]
pub(super) struct Delta<'a> {
    pub(super) index: u64,
    pub(super) finish: Finish,
    /// The finish_reason as it is written.
    pub(super) finish_reason: Option<&'a RawValue>,
    /// Whether it carries text, a tool call, a refusal, reasoning or audio.
    pub(super) content: bool,
    /// Whether a content filter ended it.
    pub(super) is_filtered: bool,
    /// The error, if the choice reports one.
    pub(super) error: Option<&'a RawValue>,
    /// The texts that a client joins over all deltas, as they are written.
    pub(super) texts: [Option<&'a RawValue>; TEXTS],
}

/// The number of texts in a delta that a client joins.
pub(super) const TEXTS: usize = 4;

/// The choices of a chunk. A chunk of one choice allocates nothing.
#[derive(Default)]
pub(super) struct Deltas<'a> {
    first: Option<Delta<'a>>,
    others: Vec<Delta<'a>>,
}

impl<'a> Deltas<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Delta<'a>> {
        self.first.iter().chain(&self.others)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Deltas<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DeltasVisitor<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for DeltasVisitor<'a> {
            type Value = Deltas<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Deltas<'a>, A::Error> {
                let mut deltas = Deltas::default();
                while let Some(Object(choice)) = seq.next_element::<Object<ChoiceView<'a>>>()? {
                    let parts = choice.delta.map(|Object(delta)| delta).unwrap_or_default();
                    let delta = Delta {
                        index: choice.index.unwrap_or(0),
                        finish: Finish::of(choice.finish_reason),
                        finish_reason: choice.finish_reason,
                        content: parts.has_content(),
                        is_filtered: is_filtered(choice.finish_reason),
                        error: choice.error.filter(|error| is_error(error)),
                        texts: parts.texts(),
                    };
                    if deltas.first.is_none() {
                        deltas.first = Some(delta);
                    } else {
                        deltas.others.push(delta);
                    }
                }
                Ok(deltas)
            }
        }

        deserializer.deserialize_seq(DeltasVisitor(PhantomData))
    }
}

#[derive(serde::Deserialize)]
struct ChoiceView<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Object<DeltaView<'a>>>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The parts of a delta that reach a reader, as they are written: a text may end in the middle of a
/// surrogate pair, which no string can hold. DeepSeek, vLLM and OpenRouter add `reasoning` or
/// `reasoning_content`.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct DeltaView<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
}

impl<'a> DeltaView<'a> {
    fn has_content(&self) -> bool {
        [self.tool_calls, self.function_call, self.audio]
            .into_iter()
            .chain(self.texts())
            .flatten()
            .any(has_content)
    }

    fn texts(&self) -> [Option<&'a RawValue>; TEXTS] {
        [
            self.content,
            self.refusal,
            self.reasoning,
            self.reasoning_content,
        ]
    }
}

/// Whether a value has content: it is neither null nor an empty string, array or object.
fn has_content(value: &RawValue) -> bool {
    let written = value.get();
    let inside = written
        .strip_prefix(['[', '{'])
        .and_then(|rest| rest.strip_suffix([']', '}']));
    match inside {
        Some(inside) => !inside.trim_ascii().is_empty(),
        None => !matches!(written, "null" | "\"\""),
    }
}
