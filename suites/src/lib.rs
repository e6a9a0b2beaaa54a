//! The conformance suite: the catalogue of requirements, the cases that examine a gateway by them,
//! and the properties.
//!
//! [`mod@reference`] is a small gateway whose bugs can be switched on, and [`defect`] is the table
//! of those bugs: together they prove that each case can fail, and nothing else.

pub mod agents;
pub mod cases;
pub mod catalogue;
pub mod defect;
#[cfg(feature = "properties")]
pub mod properties;
pub mod reference;
pub mod requirements;
mod utf16;
