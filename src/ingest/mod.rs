//! `ingest`.
