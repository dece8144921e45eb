//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use serde_json::Value;

use super::super::error::ApiError;

/// Sends JSON events, then `[DONE]`. An error becomes the last event before it. The client's going away drops the
/// stream, which cancels the generation.
pub(in crate::server) fn respond(
    events: impl Stream<Item = Result<Value, ApiError>> + Send + 'static,
) -> Response {
    let events = events
        .map(|event| match event {
            Ok(value) => Event::default().data(value.to_string()),
            Err(error) => Event::default().data(error.body().to_string()),
        })
        .chain(futures::stream::iter([Event::default().data("[DONE]")]))
        .map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
