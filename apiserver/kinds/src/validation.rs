//! What makes objects valid, by area.
