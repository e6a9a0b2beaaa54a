//! Retrieval: every lane together, joined by reciprocal-rank fusion. One file a lane.
