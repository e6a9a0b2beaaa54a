//! The cases, one file an area of the catalogue, and the gateways with one bug each that show that a case can fail.

pub mod cases;
pub mod defect;
#[cfg(feature = "properties")]
pub mod properties;
pub mod reference;
