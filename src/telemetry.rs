//! Logging and metrics: every metric name in one place.
