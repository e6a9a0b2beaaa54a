//! The parts of OpenAI's documents and events that the gateway reads, in one pass that borrows and
//! keeps neither text nor names. All other parts are passed on unread.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
            .map(RawValue::get)
            .filter(|error| !matches!(*error, "null" | "false" | "\"\""))
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let mut usage: Usage = serde_json::from_str(self.usage?.get()).ok()?;
        if usage.total_tokens == 0 {
            usage.total_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        }
        Some(usage)
    }
}

/// The number of choices of a completion. Each is an object with a `message` object.
pub(super) struct Answered(pub(super) usize);

impl<'de> Deserialize<'de> for Answered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Choice {
            #[serde(rename = "message")]
            _message: Object<IgnoredAny>,
        }
        let choices: Vec<Object<Choice>> = Deserialize::deserialize(deserializer)?;
        Ok(Self(choices.len()))
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

/// A summary of the choices of a chunk. A chunk of one choice allocates nothing.
#[derive(Default)]
pub(super) struct Deltas {
    /// Whether any of them carries content, or a finish_reason.
    pub(super) content: bool,
    first: Option<(u64, bool)>,
    others: Vec<(u64, bool)>,
}

impl Deltas {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn seen(self) -> impl Iterator<Item = (u64, bool)> {
        self.first.into_iter().chain(self.others)
    }
}

impl<'de> Deserialize<'de> for Deltas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        pub(super) struct DeltasVisitor;

        impl<'de> Visitor<'de> for DeltasVisitor {
            type Value = Deltas;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Deltas, A::Error> {
                let mut deltas = Deltas::default();
                while let Some(Object(choice)) = seq.next_element::<Object<ChoiceView>>()? {
                    let finished = choice.finish_reason.0;
                    deltas.content |= finished
                        || choice
                            .delta
                            .is_some_and(|Object(delta)| delta.has_content());
                    let seen = (choice.index.unwrap_or(0), finished);
                    if deltas.first.is_none() {
                        deltas.first = Some(seen);
                    } else {
                        deltas.others.push(seen);
                    }
                }
                Ok(deltas)
            }
        }

        deserializer.deserialize_seq(DeltasVisitor)
    }
}

#[derive(serde::Deserialize)]
struct ChoiceView {
    index: Option<u64>,
    delta: Option<Object<DeltaView>>,
    #[serde(default)]
    finish_reason: NonEmpty,
}

/// The parts of a delta that reach a reader. DeepSeek, vLLM and OpenRouter add `reasoning` or
/// `reasoning_content`.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct DeltaView {
    content: NonEmpty,
    tool_calls: NonEmpty,
    function_call: NonEmpty,
    refusal: NonEmpty,
    reasoning: NonEmpty,
    reasoning_content: NonEmpty,
    audio: NonEmpty,
}

impl DeltaView {
    fn has_content(&self) -> bool {
        [
            &self.content,
            &self.tool_calls,
            &self.function_call,
            &self.refusal,
            &self.reasoning,
            &self.reasoning_content,
            &self.audio,
        ]
        .iter()
        .any(|part| part.0)
    }
}

/// Whether a value has content: it is neither null nor an empty string, array or object.
#[derive(Default)]
struct NonEmpty(bool);

impl<'de> Deserialize<'de> for NonEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NonEmptyVisitor;

        impl<'de> Visitor<'de> for NonEmptyVisitor {
            type Value = NonEmpty;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<NonEmpty, E> {
                Ok(NonEmpty(false))
            }

            fn visit_bool<E>(self, _: bool) -> Result<NonEmpty, E> {
                Ok(NonEmpty(true))
            }

            fn visit_i64<E>(self, _: i64) -> Result<NonEmpty, E> {
                Ok(NonEmpty(true))
            }

            fn visit_u64<E>(self, _: u64) -> Result<NonEmpty, E> {
                Ok(NonEmpty(true))
            }

            fn visit_f64<E>(self, _: f64) -> Result<NonEmpty, E> {
                Ok(NonEmpty(true))
            }

            fn visit_str<E>(self, text: &str) -> Result<NonEmpty, E> {
                Ok(NonEmpty(!text.is_empty()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NonEmpty, A::Error> {
                let mut any = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(NonEmpty(any))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NonEmpty, A::Error> {
                let mut any = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(NonEmpty(any))
            }
        }

        deserializer.deserialize_any(NonEmptyVisitor)
    }
}
