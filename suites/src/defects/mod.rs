//! The reference gateway, and its defects: one bug at a time.
