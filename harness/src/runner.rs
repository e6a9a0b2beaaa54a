//! Runs cases against a target and judges them.
