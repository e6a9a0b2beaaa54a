//! The wire in front of Postgres: relays bytes, notes connections and statements on the tape, and injects faults between them.
