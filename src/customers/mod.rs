//! `customers`.
