//! `embed`.
