//! The agents of a query, one row each.
//!
//! Whoever adds an agent adds its row with the script of a healthy answer here. The configuration
//! of query cases, their stubs, the cases that go through all agents, and the orchestrator of the
//! [reference](crate::reference) follow from the rows.

use serde_json::{Value, json};

/// One agent, which asks the model alias of its own name at the provider of its own name.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// The name in the configuration, in an answer's `degraded` list, and of the agent's stub.
    pub name: &'static str,
    /// When the agent runs.
    pub phase: Phase,
    /// The JSON that the agent's model answers when nothing is wrong.
    pub healthy: fn() -> Value,
}

/// When an agent runs, in the order of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Beside retrieval.
    BesideRetrieval,
    /// After retrieval and before the answer is written.
    BeforeAnswer,
    /// The agent writes the answer.
    Answer,
    /// After the answer is written: a failure costs the answer something, never the answer itself.
    AfterAnswer,
}

/// The one sentence of the document that the queries of the cases find.
pub(crate) const PASSAGE: &str = "Radium was discovered by Marie Curie in 1898.";
/// The sentence that a healthy synthesis writes.
pub(crate) const ANSWER: &str = "Marie Curie discovered radium.";

/// Every agent, in the order of a query.
pub const AGENTS: &[Agent] = &[
    Agent {
        name: "entities",
        phase: Phase::BesideRetrieval,
        healthy: || json!({"entities": [{"name": "Marie Curie", "kind": "person"}]}),
    },
    Agent {
        name: "fact_check",
        phase: Phase::BeforeAnswer,
        healthy: || {
            let claim = json!({
                "claim": "Marie Curie discovered radium", "source": 1,
                "verdict": "supported", "quote": PASSAGE,
            });
            json!({ "claims": [claim] })
        },
    },
    Agent {
        name: "synthesis",
        phase: Phase::Answer,
        healthy: || json!({"answer": format!("{ANSWER} [1]")}),
    },
    Agent {
        name: "citation",
        phase: Phase::AfterAnswer,
        healthy: || json!({"citations": [{"sentence": 1, "source": 1, "quote": PASSAGE}]}),
    },
    Agent {
        name: "review",
        phase: Phase::AfterAnswer,
        healthy: || json!({"coherence": 0.9, "relevance": 0.9, "support": 0.9}),
    },
];

/// The names of the agents, in the order of a query.
pub fn names() -> Vec<&'static str> {
    AGENTS.iter().map(|agent| agent.name).collect()
}

/// What the model of this agent answers when nothing is wrong; an empty object for any other name.
pub fn healthy(name: &str) -> Value {
    let agent = AGENTS.iter().find(|agent| agent.name == name);
    agent.map_or_else(|| json!({}), |agent| (agent.healthy)())
}

/// The agents that run after the answer is written.
pub(crate) fn after_answer() -> impl Iterator<Item = &'static Agent> {
    AGENTS
        .iter()
        .filter(|agent| agent.phase == Phase::AfterAnswer)
}
