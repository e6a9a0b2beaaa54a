//! What the gateway reads of OpenAI's documents and events: one pass that borrows, and keeps neither text nor names. Whatever
//! is not named here is passed on unread.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::llm::chat::Usage;

/// A completion or a chunk, as far as the gateway must know it. `C` says what is read of the choices.
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
    /// The error, unless it is nothing: `null`, `false`, `""`.
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

/// The number of choices of a completion, each an object with a `message` object.
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

/// A `T` that is told as an object: derived structs would take an array of their fields as well.
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

/// The choices of a chunk, told in sum; a chunk of one choice needs no memory.
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
    finish_reason: Something,
}

/// What of a delta reaches a reader. `reasoning` and `reasoning_content` are what DeepSeek, vLLM and OpenRouter add.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct DeltaView {
    content: Something,
    tool_calls: Something,
    function_call: Something,
    refusal: Something,
    reasoning: Something,
    reasoning_content: Something,
    audio: Something,
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

/// Whether a value says anything: not null, not an empty string, array or object.
#[derive(Default)]
struct Something(bool);

impl<'de> Deserialize<'de> for Something {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SomethingVisitor;

        impl<'de> Visitor<'de> for SomethingVisitor {
            type Value = Something;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Something, E> {
                Ok(Something(false))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Something, E> {
                Ok(Something(true))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Something, E> {
                Ok(Something(true))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Something, E> {
                Ok(Something(true))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Something, E> {
                Ok(Something(true))
            }

            fn visit_str<E>(self, text: &str) -> Result<Something, E> {
                Ok(Something(!text.is_empty()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Something, A::Error> {
                let mut any = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(Something(any))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Something, A::Error> {
                let mut any = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(Something(any))
            }
        }

        deserializer.deserialize_any(SomethingVisitor)
    }
}
