//! Which answer of a sequence comes next.
//!
//! A stub that stays up sees prompts without end. It keeps only a hash of each, and only of the
//! last ones.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use super::request::StubRequest;
use super::responder::Responder;

/// How many prompts are counted; a forgotten one begins with the first answer again.
const MOST_PROMPTS: usize = 1 << 16;

/// Answers in order; see [`super::sequence`] and [`super::call_sequence`].
pub(super) struct Sequence {
    answers: Vec<Responder>,
    count: Count,
    asked: Mutex<Counts>,
}

#[derive(Clone, Copy)]
pub(super) enum Count {
    EachPrompt,
    AllCalls,
}

#[derive(Default)]
struct Counts {
    by_prompt: HashMap<u64, usize>,
    /// The prompts in the order in which they were first seen.
    order: VecDeque<u64>,
}

impl Sequence {
    /// There is at least one answer.
    pub(super) fn new(answers: Vec<Responder>, count: Count) -> Self {
        Self {
            answers,
            count,
            asked: Mutex::default(),
        }
    }

    pub(super) fn answers(&self) -> &[Responder] {
        &self.answers
    }

    pub(super) fn next(&self, asked: &StubRequest) -> &Responder {
        let last = self.answers.len() - 1;
        if last == 0 {
            return &self.answers[0];
        }
        let mut prompt = DefaultHasher::new();
        if let Count::EachPrompt = self.count {
            (asked.model(), asked.user_text()).hash(&mut prompt);
        }
        let at = self
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(prompt.finish());
        &self.answers[at.min(last)]
    }
}

impl Counts {
    /// How often the prompt has come before; counts this time.
    fn count(&mut self, prompt: u64) -> usize {
        if let Some(count) = self.by_prompt.get_mut(&prompt) {
            *count += 1;
            return *count;
        }
        if self.order.len() >= MOST_PROMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_prompt.remove(&oldest);
        }
        self.order.push_back(prompt);
        self.by_prompt.insert(prompt, 0);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::reply;
    use crate::wire::Request;

    fn asked(text: &str) -> StubRequest {
        let body = serde_json::json!({"messages": [{"role": "user", "content": text}]})
            .to_string()
            .into();
        StubRequest::of_wire(&Request {
            connection: 1,
            id: 1,
            reused: false,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            headers: Vec::new(),
            body,
        })
    }

    #[test]
    fn nothing_is_kept_for_a_single_answer() {
        for (answers, kept) in [(1, 0), (2, 3)] {
            let sequence = Sequence::new(vec![reply("x"); answers], Count::EachPrompt);
            for text in ["a", "b", "c", "a"] {
                sequence.next(&asked(text));
            }
            assert_eq!(
                sequence
                    .asked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .order
                    .len(),
                kept
            );
        }
    }

    #[test]
    fn no_more_prompts_are_counted_than_the_bound() {
        let mut counts = Counts::default();
        let most = MOST_PROMPTS as u64;
        assert_eq!(
            (counts.count(0), counts.count(0), counts.count(1)),
            (0, 1, 0)
        );
        for prompt in 2..most {
            counts.count(prompt);
        }
        assert_eq!(
            (counts.count(0), counts.count(most - 1)),
            (2, 1),
            "all of them are known"
        );
        assert_eq!(
            (
                counts.count(most),
                counts.by_prompt.len(),
                counts.order.len()
            ),
            (0, MOST_PROMPTS, MOST_PROMPTS)
        );
        assert_eq!(
            (counts.count(0), counts.count(2)),
            (0, 1),
            "the oldest was forgotten, and then the next one"
        );
    }
}
