//! A generation as a response: whole, or as a stream of OpenAI's typed events.

use futures::Stream;
use serde_json::Value;

use super::super::super::error::ApiError;
use super::writer::Writer;
use crate::rag::{GenerateError, GenerateStream};

/// Writes a response while it is generated. Dropping it cancels the generation.
pub(super) struct Events {
    pub(super) writer: Writer,
    pub(super) generation: GenerateStream,
}

impl Events {
    /// The events, the whole response in the last of them.
    pub(super) fn into_stream(self) -> impl Stream<Item = Value> + Send {
        futures::stream::unfold(self, |mut this| async move { this.next().await.map(|event| (event, this)) })
    }

    /// The response that the last event has.
    ///
    /// # Errors
    /// What the generation failed with.
    pub(super) async fn whole(mut self) -> Result<Value, ApiError> {
        let mut last = None;
        while let Some(step) = self.step().await {
            step?;
            last = self.writer.told.drain(..).next_back().or(last);
        }
        last.map(|mut event| event["response"].take()).ok_or_else(|| GenerateError::Interrupted.into())
    }

    async fn next(&mut self) -> Option<Value> {
        while self.writer.told.is_empty() {
            if let Err(error) = self.step().await? {
                self.writer.fail(error);
            }
        }
        self.writer.told.pop_front()
    }

    /// Takes what was generated next; `None` once nothing follows.
    async fn step(&mut self) -> Option<Result<(), GenerateError>> {
        Some(self.generation.next().await?.map(|event| self.writer.take(event)))
    }
}
