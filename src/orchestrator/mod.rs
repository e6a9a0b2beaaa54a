//! The query orchestrator: plan → {entity extraction ∥ retrieval} → fact check → synthesis → citation → review → outcome.
