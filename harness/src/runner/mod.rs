//! Runs cases against a target and judges them.

mod outcome;

pub use outcome::Outcome;
