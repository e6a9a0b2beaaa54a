//! Generators, reference models and invariants of the property suites.
