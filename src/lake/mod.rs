//! `lake`.
