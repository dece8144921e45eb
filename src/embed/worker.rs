//! The embed thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::sync::Semaphore;

use crate::model::{DeviceEncoder, Encoder};
use crate::text::Tokenizer;

use super::handle::{EmbedError, EmbedHandle, EmbedderInfo, Job, MAX_WAITING, Network, Priority, Shared};
use super::rerank::{PairScorer, Reranker, RerankerParts};

/// Limits of the thread.
#[derive(Debug, Clone, Copy)]
pub struct EmbedConfig {
    /// Most tokens of one forward pass; a longer single text makes a pass of its own.
    pub max_batch_tokens: usize,
}

/// What computes vectors: an [`Encoder`], a [`DeviceEncoder`], or a fake in tests. Bulk passes of a [`DeviceEncoder`]
/// are as others: its device has a stream of low priority.
pub trait PooledEncoder {
    /// Vectors `[sequences, dim]` of the sequences `cu_seqlens[i]..cu_seqlens[i + 1]` of `ids`, into `out`.
    ///
    /// # Errors
    /// What went wrong.
    fn forward(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String>;

    /// As [`PooledEncoder::forward`], for bulk work: it may make way for work that somebody waits for.
    ///
    /// # Errors
    /// What went wrong.
    fn forward_bulk(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        self.forward(ids, cu_seqlens, out)
    }
}

impl PooledEncoder for Encoder {
    fn forward(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        Encoder::forward(self, ids, cu_seqlens, out).map_err(|error| error.to_string())
    }

    fn forward_bulk(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        Encoder::forward_bulk(self, ids, cu_seqlens, out).map_err(|error| error.to_string())
    }
}

impl PooledEncoder for DeviceEncoder {
    fn forward(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        DeviceEncoder::forward(self, ids, cu_seqlens, out).map_err(|error| error.to_string())
    }
}

impl<E: PooledEncoder + ?Sized> PooledEncoder for Box<E> {
    fn forward(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        (**self).forward(ids, cu_seqlens, out)
    }

    fn forward_bulk(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        (**self).forward_bulk(ids, cu_seqlens, out)
    }
}

/// The running thread. It ends when the last handle is gone.
#[derive(Debug)]
pub struct EmbedThread {
    _thread: JoinHandle<()>,
    _shared: Weak<Shared>,
}

/// Starts the thread, builds the encoder on it, and returns once it is ready.
///
/// # Errors
/// [`EmbedError::Start`] with what `build` said.
pub fn start<E: PooledEncoder + 'static>(
    config: EmbedConfig,
    tokenizer: Tokenizer,
    info: EmbedderInfo,
    build: impl FnOnce() -> Result<E, String> + Send + 'static,
) -> Result<(EmbedHandle, EmbedThread), EmbedError> {
    start_with_reranker(config, tokenizer, info, build, None)
}

/// As [`start`], with a reranker on the same thread.
///
/// # Errors
/// [`EmbedError::Start`] with what `build`, or the reranker's own, said.
pub fn start_with_reranker<E: PooledEncoder + 'static>(
    config: EmbedConfig,
    tokenizer: Tokenizer,
    info: EmbedderInfo,
    build: impl FnOnce() -> Result<E, String> + Send + 'static,
    reranker: Option<RerankerParts>,
) -> Result<(EmbedHandle, EmbedThread), EmbedError> {
    let (reranker, build_reranker) = match reranker {
        Some(RerankerParts { info, tokenizer, build }) => (Some(Reranker { info, tokenizer }), Some(build)),
        None => (None, None),
    };
    let shared = Arc::new(Shared {
        info,
        tokenizer,
        permits: Semaphore::new(MAX_WAITING),
        tokens: AtomicUsize::new(0),
        reranker,
        reranked: AtomicUsize::new(0),
    });
    let (jobs, receiver) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let weak = Arc::downgrade(&shared);
    let counter = weak.clone();
    let dim = shared.info.dim;
    let thread = std::thread::Builder::new()
        .name("tarn-embed".to_owned())
        .spawn(move || {
            let all = || Ok((build()?, build_reranker.map(|build| build()).transpose()?));
            let built = catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|_| Err("it panicked".to_owned()));
            match built {
                Ok((encoder, reranker)) => {
                    let _ = ready.send(Ok(()));
                    let max_batch_tokens = config.max_batch_tokens;
                    Worker { encoder, reranker, receiver, counter, dim, max_batch_tokens }.run();
                }
                Err(message) => {
                    let _ = ready.send(Err(message));
                }
            }
        })
        .map_err(|error| EmbedError::Start { message: error.to_string() })?;
    let started = started.recv().unwrap_or_else(|_| Err("its thread ended".to_owned()));
    started.map_err(|message| EmbedError::Start { message })?;
    Ok((EmbedHandle { shared, jobs }, EmbedThread { _thread: thread, _shared: weak }))
}

/// A job with the vectors that it has so far.
struct Open {
    job: Job,
    vectors: Vec<Option<Vec<f32>>>,
    left: usize,
}

struct Worker<E> {
    encoder: E,
    reranker: Option<Box<dyn PairScorer>>,
    receiver: Receiver<Job>,
    counter: Weak<Shared>,
    dim: usize,
    max_batch_tokens: usize,
}

impl<E: PooledEncoder> Worker<E> {
    fn run(mut self) {
        let mut open: VecDeque<Open> = VecDeque::new();
        loop {
            if open.is_empty() {
                match self.receiver.recv() {
                    Ok(job) => take(job, &mut open),
                    Err(_) => return,
                }
            }
            while let Ok(job) = self.receiver.try_recv() {
                take(job, &mut open);
            }
            open.retain(|one| !one.job.reply.is_closed());
            self.pass(&mut open);
        }
    }

    /// One forward pass over texts of about one length, interactive jobs first.
    fn pass(&mut self, open: &mut VecDeque<Open>) {
        let batch = choose(open, self.max_batch_tokens);
        if batch.is_empty() {
            return;
        }
        // A pass has jobs of one priority for one network.
        let first = &open[batch[0].0].job;
        let (network, bulk) = (first.network, first.priority == Priority::Bulk);
        let (mut ids, mut types, mut cu_seqlens) = (Vec::new(), Vec::new(), vec![0]);
        for (job, text) in &batch {
            let input = &open[*job].job.texts[*text];
            ids.extend_from_slice(&input.ids);
            types.extend_from_slice(&input.types);
            cu_seqlens.push(ids.len() as u32);
        }
        let mut out = Vec::new();
        let (encoder, reranker) = (&mut self.encoder, &mut self.reranker);
        let result = catch_unwind(AssertUnwindSafe(|| match (network, reranker, bulk) {
            (Network::Embedder, _, true) => encoder.forward_bulk(&ids, &cu_seqlens, &mut out),
            (Network::Embedder, _, false) => encoder.forward(&ids, &cu_seqlens, &mut out),
            (Network::Reranker, Some(scorer), true) => scorer.score_bulk(&ids, &types, &cu_seqlens, &mut out),
            (Network::Reranker, Some(scorer), false) => scorer.score(&ids, &types, &cu_seqlens, &mut out),
            (Network::Reranker, None, _) => Err("there is no reranker".to_owned()),
        }))
        .unwrap_or_else(|_| Err("the forward pass panicked".to_owned()));
        let width = match network {
            Network::Embedder => self.dim.max(1),
            Network::Reranker => 1,
        };
        if let Some(shared) = self.counter.upgrade() {
            let counter = match network {
                Network::Embedder => &shared.tokens,
                Network::Reranker => &shared.reranked,
            };
            counter.fetch_add(ids.len(), Ordering::Relaxed);
        }
        match result {
            Ok(()) => {
                for ((job, text), vector) in batch.iter().zip(out.chunks_exact(width)) {
                    let one = &mut open[*job];
                    one.vectors[*text] = Some(vector.to_vec());
                    one.left -= 1;
                }
                // A long job, such as many passages to rerank, must not keep a query that came after it waiting.
                if !bulk && let Some(served) = open.remove(batch[0].0) {
                    open.push_back(served);
                }
            }
            Err(message) => {
                let mut failed: Vec<usize> = batch.iter().map(|(job, _)| *job).collect();
                failed.sort_unstable();
                failed.dedup();
                for job in failed.into_iter().rev() {
                    if let Some(one) = open.remove(job) {
                        let _ = one.job.reply.send(Err(EmbedError::Failed { message: message.clone() }));
                    }
                }
            }
        }
        let mut at = 0;
        while at < open.len() {
            if open[at].left > 0 {
                at += 1;
            } else if let Some(done) = open.remove(at) {
                let vectors = done.vectors.into_iter().flatten().collect();
                let _ = done.job.reply.send(Ok(vectors));
            }
        }
    }
}

fn take(job: Job, open: &mut VecDeque<Open>) {
    let count = job.texts.len();
    if count == 0 {
        let _ = job.reply.send(Ok(Vec::new()));
        return;
    }
    open.push_back(Open { vectors: vec![None; count], left: count, job });
}

/// Which `(job, text)` go into the next pass: jobs of one network in order, interactive ones first, within a job the
/// longest left.
fn choose(open: &VecDeque<Open>, max_tokens: usize) -> Vec<(usize, usize)> {
    let mut jobs: Vec<usize> = (0..open.len()).collect();
    jobs.sort_by_key(|job| open[*job].job.priority == Priority::Bulk);
    let Some(first) = jobs.first() else { return Vec::new() };
    let kind = (open[*first].job.priority, open[*first].job.network);
    let (mut batch, mut tokens) = (Vec::new(), 0);
    for job in jobs.into_iter().filter(|job| (open[*job].job.priority, open[*job].job.network) == kind) {
        let one = &open[job];
        let mut texts: Vec<usize> =
            (0..one.vectors.len()).filter(|text| one.vectors[*text].is_none()).collect();
        texts.sort_by_key(|text| std::cmp::Reverse(one.job.texts[*text].ids.len()));
        for text in texts {
            let len = one.job.texts[text].ids.len();
            if !batch.is_empty() && tokens + len > max_tokens {
                continue;
            }
            batch.push((job, text));
            tokens += len;
        }
        if tokens >= max_tokens {
            break;
        }
    }
    batch
}

#[cfg(test)]
mod tests;
