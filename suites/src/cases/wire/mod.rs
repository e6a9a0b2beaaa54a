//! WIRE: what passes through a gateway arrives as it was sent.

pub(super) mod equivalence;
pub(super) mod openai;
pub(super) mod pieces;
