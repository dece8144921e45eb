//! Launches that are queued as one.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::driver::{Context, Stream, failed};
use crate::error::Result;

/// A captured list of launches of one device.
#[derive(Debug)]
pub(super) struct Graph {
    handle: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the handle is a token; the driver wants calls on one graph in turn, and those that queue it have `&mut` of the
// one device whose context it was made in.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `queue` queues instead of running it.
    pub(super) fn capture(
        context: &Arc<Context>,
        stream: &Stream,
        queue: impl FnOnce() -> Result<()>,
    ) -> Result<Graph> {
        context.enter()?;
        let error = |error| failed("capturing a graph", error);
        // Of this thread alone: others may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and captures nothing yet: captures begin and end in this function.
        unsafe { result::stream::begin_capture(stream.handle, mode) }.map_err(error)?;
        let queued = queue();
        // SAFETY: the stream is capturing. This ends it even where what was queued is wrong; no graph comes of that.
        let graph = unsafe { result::stream::end_capture(stream.handle) };
        queued?;
        let graph = graph.map_err(error)?;
        // SAFETY: the driver gave this graph; no flags.
        let handle = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: given once, destroyed once; what was made of it does not need it.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let graph = Graph { handle: handle.map_err(error)?, context: context.clone() };
        destroyed.map_err(error)?;
        Ok(graph)
    }

    /// Queues it on a stream of the device that captured it.
    pub(super) fn queue(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream live. A device's graphs are its own, so that both are of one context and the modules of
        // the kernels are loaded.
        unsafe { result::graph::launch(self.handle, stream.handle) }
            .map_err(|error| failed("queueing a graph", error))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `capture`, destroyed once; the driver waits until it has run.
            let _ = unsafe { result::graph::exec_destroy(self.handle) };
        }
    }
}
