//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use serde_json::Value;

use super::super::error::ApiError;

/// Sends JSON events, then `[DONE]`. An error becomes the last event before it, and what runs beside it is dropped. The client's going away drops the
/// stream, which cancels the generation.
pub(in crate::server) fn respond(
    events: impl Stream<Item = Result<Value, ApiError>> + Send + 'static,
) -> Response {
    let until_an_error = futures::stream::unfold(Some(Box::pin(events)), |events| async {
        let mut events = events?;
        match events.next().await? {
            Ok(value) => Some((value, Some(events))),
            Err(error) => Some((error.body(), None)),
        }
    });
    let events = until_an_error
        .map(|event| Event::default().data(event.to_string()))
        .chain(futures::stream::iter([Event::default().data("[DONE]")]))
        .map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// Sends JSON events under the names in their `type`, as `/v1/responses` does; the last of them says that it is.
pub(super) fn respond_named(events: impl Stream<Item = Value> + Send + 'static) -> Response {
    let events = events.map(|event| {
        let name = event["type"].as_str().unwrap_or("message");
        Ok::<_, Infallible>(Event::default().event(name).data(event.to_string()))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
