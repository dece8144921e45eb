//! The embed thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::sync::Semaphore;

use crate::model::Encoder;
use crate::text::Tokenizer;

use super::handle::{EmbedError, EmbedHandle, EmbedderInfo, Job, MAX_WAITING, Priority, Shared};

/// Limits of the thread.
#[derive(Debug, Clone, Copy)]
pub struct EmbedConfig {
    /// Most tokens of one forward pass; a longer single text makes a pass of its own.
    pub max_batch_tokens: usize,
}

/// What computes vectors: an [`Encoder`], or a fake in tests.
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
    let shared = Arc::new(Shared {
        info,
        tokenizer,
        permits: Semaphore::new(MAX_WAITING),
        tokens: AtomicUsize::new(0),
    });
    let (jobs, receiver) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let weak = Arc::downgrade(&shared);
    let counter = weak.clone();
    let dim = shared.info.dim;
    let thread = std::thread::Builder::new()
        .name("tarn-embed".to_owned())
        .spawn(move || {
            let built =
                catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|_| Err("it panicked".to_owned()));
            match built {
                Ok(encoder) => {
                    let _ = ready.send(Ok(()));
                    Worker { encoder, receiver, counter, dim, max_batch_tokens: config.max_batch_tokens }
                        .run();
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
        let (mut ids, mut cu_seqlens) = (Vec::new(), vec![0]);
        for (job, text) in &batch {
            ids.extend_from_slice(&open[*job].job.texts[*text]);
            cu_seqlens.push(ids.len() as u32);
        }
        let mut out = Vec::new();
        let encoder = &mut self.encoder;
        // A pass has jobs of one priority.
        let bulk = open[batch[0].0].job.priority == Priority::Bulk;
        let result = catch_unwind(AssertUnwindSafe(|| match bulk {
            true => encoder.forward_bulk(&ids, &cu_seqlens, &mut out),
            false => encoder.forward(&ids, &cu_seqlens, &mut out),
        }))
        .unwrap_or_else(|_| Err("the forward pass panicked".to_owned()));
        if let Some(shared) = self.counter.upgrade() {
            shared.tokens.fetch_add(ids.len(), Ordering::Relaxed);
        }
        match result {
            Ok(()) => {
                for ((job, text), vector) in batch.iter().zip(out.chunks_exact(self.dim.max(1))) {
                    let one = &mut open[*job];
                    one.vectors[*text] = Some(vector.to_vec());
                    one.left -= 1;
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

/// Which `(job, text)` go into the next pass: jobs in order, interactive ones first, within a job the longest left.
fn choose(open: &VecDeque<Open>, max_tokens: usize) -> Vec<(usize, usize)> {
    let mut jobs: Vec<usize> = (0..open.len()).collect();
    jobs.sort_by_key(|job| open[*job].job.priority == Priority::Bulk);
    let Some(first) = jobs.first() else { return Vec::new() };
    let priority = open[*first].job.priority;
    let (mut batch, mut tokens) = (Vec::new(), 0);
    for job in jobs.into_iter().filter(|job| open[*job].job.priority == priority) {
        let one = &open[job];
        let mut texts: Vec<usize> =
            (0..one.vectors.len()).filter(|text| one.vectors[*text].is_none()).collect();
        texts.sort_by_key(|text| std::cmp::Reverse(one.job.texts[*text].len()));
        for text in texts {
            let len = one.job.texts[text].len();
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
mod tests {
    use super::*;
    use crate::embed::InputKind;
    use crate::testing::fake_embedder;

    #[tokio::test]
    async fn vectors_come_in_the_order_of_the_texts_whatever_their_lengths() {
        let (handle, _thread) = fake_embedder(16);
        let texts: Vec<String> =
            (0..50).map(|at| "wort ".repeat(1 + at * 7 % 23) + &at.to_string()).collect();
        let all = handle.embed(InputKind::Passage, texts.clone(), Priority::Bulk).await.expect("embeds");
        for (text, vector) in texts.iter().zip(&all) {
            let alone = handle.embed(InputKind::Passage, vec![text.clone()], Priority::Interactive).await;
            assert_eq!(alone.expect("embeds")[0], *vector);
        }
        assert!(handle.embed(InputKind::Raw, Vec::new(), Priority::Bulk).await.expect("embeds").is_empty());
    }

    #[tokio::test]
    async fn an_encoder_that_cannot_be_built_says_why() {
        let (handle, _thread) = fake_embedder(4);
        let failed = start(
            EmbedConfig { max_batch_tokens: 8 },
            handle.tokenizer().clone(),
            handle.info().clone(),
            || Err::<Encoder, _>("no weights".to_owned()),
        );
        assert_eq!(failed.expect_err("fails").to_string(), "the embedder could not start: no weights");
    }

    /// Says by its vectors which way it was called.
    struct Telltale;

    impl PooledEncoder for Telltale {
        fn forward(&mut self, _: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
            out.resize((cu_seqlens.len() - 1) * 4, 1.0);
            Ok(())
        }

        fn forward_bulk(&mut self, _: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
            out.resize((cu_seqlens.len() - 1) * 4, 2.0);
            Ok(())
        }
    }

    #[tokio::test]
    async fn only_bulk_jobs_make_way() {
        let (fake, _fake_thread) = fake_embedder(4);
        let config = EmbedConfig { max_batch_tokens: 8 };
        let (handle, _thread) =
            start(config, fake.tokenizer().clone(), fake.info().clone(), || Ok(Telltale)).expect("starts");
        for (priority, expected) in [(Priority::Interactive, 1.0), (Priority::Bulk, 2.0)] {
            let vectors = handle.embed(InputKind::Raw, vec!["wort".to_owned()], priority).await;
            assert_eq!(vectors.expect("embeds"), [[expected; 4]]);
        }
    }
}
