//! Requests to an engine whose weights are dummies, and how long it takes.
//!
//! Prompts are random ids and answers are drawn at temperature 1, so that sequences do not meet; nothing ends an answer but
//! its length. Neither prefix cache nor prompt lookup.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use tarn_kernels::DType;
use tarn_kernels::device::fill;

use super::super::device::{self, Place};
use crate::engine::{
    AdapterLease, Adapters, DeviceRunner, EngineConfig, EngineHandle, EngineThread, Event, EventStream,
    Priority, Request, RequestId, SamplingParams, start,
};
use crate::model::{
    DecoderConfig, DeviceAdapters, DeviceDecoder, DeviceFormat, DeviceOptions, Exec, ExpertProbe, KvSpec,
    LoraAdapter, ModelConfig, ModelSource,
};

/// Steps in which the experts are counted.
const PROBED: usize = 8;
/// Most tokens that an answer may be ahead of its reader.
const UNREAD: usize = 250;

/// How the engine is sized.
#[derive(Debug, Clone)]
pub(super) struct Size {
    pub(super) config: DecoderConfig,
    pub(super) max_num_seqs: usize,
    pub(super) max_num_batched_tokens: usize,
    pub(super) max_model_len: usize,
    /// Tokens that the cache holds.
    pub(super) cached_tokens: usize,
}

/// Requests that come at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wave {
    pub(super) requests: usize,
    /// Tokens.
    pub(super) prompt: usize,
    /// Tokens.
    pub(super) answer: usize,
}

/// What steps of one size took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// The median.
    pub(super) seconds: f64,
    /// Distinct experts that a layer hit, in the mean.
    pub(super) experts: f64,
}

/// An engine on a device, and who asks it.
#[derive(Debug)]
pub(super) struct Traffic {
    size: Size,
    engine: EngineHandle,
    probe: Arc<ExpertProbe>,
    adapters: Vec<AdapterLease>,
    asked: u64,
    _thread: EngineThread,
}

impl Size {
    /// How the decoder is loaded.
    pub(super) fn options(
        &self,
        projections: DeviceFormat,
        adapters: Option<DeviceAdapters>,
    ) -> DeviceOptions {
        DeviceOptions {
            dtype: DType::BF16,
            projections,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            max_model_len: self.max_model_len,
            adapters,
            dummy_weights: true,
            progress: None,
        }
    }

    fn blocks(&self) -> usize {
        self.cached_tokens.div_ceil(KvSpec::BLOCK_SIZE)
    }

    /// Bytes of the device's memory that it takes with `options`.
    pub(super) fn bytes(&self, options: &DeviceOptions) -> anyhow::Result<u64> {
        let takes = DeviceDecoder::footprint(&self.config, options)?;
        let cache = self.blocks() * takes.block;
        Ok((takes.weights + takes.adapters + takes.workspace + cache) as u64)
    }
}

impl Traffic {
    /// Starts an engine with dummy weights in `projections` on the device of `place`, with as many dummy adapters as it has
    /// room for.
    pub(super) fn start(
        place: &Place,
        size: &Size,
        projections: DeviceFormat,
        room: Option<DeviceAdapters>,
    ) -> anyhow::Result<Traffic> {
        let config = EngineConfig {
            max_num_seqs: size.max_num_seqs,
            max_num_batched_tokens: size.max_num_batched_tokens,
            max_waiting: 2 * size.max_num_seqs,
            prefix_cache: false,
            speculation: None,
        };
        let source = ModelSource::of_dummies(ModelConfig::Decoder(size.config.clone()));
        let probe = Arc::new(ExpertProbe::default());
        let (options, blocks, window) = (size.options(projections, room), size.blocks(), size.max_model_len);
        let (place, watched) = (place.clone(), probe.clone());
        let (engine, thread) = start(config, move || {
            let device = device::open(&place, tarn_kernels::gpu::Priority::Foreground)
                .map_err(|error| format!("{error:#}"))?;
            let decoder = DeviceDecoder::load(device, &source, &options)
                .and_then(|decoder| decoder.with_blocks(blocks))
                .map_err(|error| error.to_string())?;
            Ok(DeviceRunner::new(decoder.probed(watched), Exec::simd(1), window))
        })?;
        let adapters = room.map_or(Ok(Vec::new()), |room| leases(&size.config, room))?;
        Ok(Traffic { size: size.clone(), engine, probe, adapters, asked: 0, _thread: thread })
    }

    /// Steps in which `batch` sequences of about `context` tokens get a token each, and nothing else: `count` for the time,
    /// then some for the experts. `adapters`: the first sequences have each another one.
    pub(super) fn steps(
        &mut self,
        batch: usize,
        context: usize,
        count: usize,
        adapters: usize,
    ) -> anyhow::Result<Steps> {
        let prompt = context.saturating_sub(count / 2).max(1);
        // The first begins to answer while the last ones are still read.
        let ahead = 2 * (batch * prompt).div_ceil(self.size.max_num_batched_tokens) + 8;
        let answer = ahead + count + PROBED + 2;
        anyhow::ensure!(answer <= UNREAD, "answers of {answer} tokens that nobody reads: this is a bug");
        let mut all = (0..batch)
            .map(|at| self.ask(prompt, answer, at, adapters))
            .collect::<anyhow::Result<Vec<EventStream>>>()?;
        // Once the last has begun, all are answered at every step: its tokens are the clock.
        for stream in &mut all {
            token(stream)?;
        }
        let (others, last) = all.split_at_mut(batch - 1);
        let clock = &mut last[0];
        while let Some(event) = clock.next().now_or_never() {
            is_token(event)?;
        }
        token(clock)?;
        let mut took = Vec::with_capacity(count);
        let mut since = Instant::now();
        for _ in 0..count {
            token(clock)?;
            took.push(since.elapsed().as_secs_f64());
            since = Instant::now();
        }
        self.probe.look(true);
        let looked = (0..PROBED).try_for_each(|_| token(clock));
        self.probe.look(false);
        looked?;
        for stream in others.iter_mut().chain([clock]) {
            block_on(read(stream))?;
        }
        let experts = self.probe.take(batch);
        let experts = experts.with_context(|| format!("no step of {batch} sequences was looked at"))?;
        Ok(Steps { seconds: median(took), experts })
    }

    /// Output tokens a second of `wave`, from when it comes until its last token; the first `adapters` requests have each
    /// another adapter.
    pub(super) fn wave(&mut self, wave: Wave, adapters: usize) -> anyhow::Result<f64> {
        let since = Instant::now();
        let all = (0..wave.requests)
            .map(|at| self.ask(wave.prompt, wave.answer, at, adapters))
            .collect::<anyhow::Result<Vec<EventStream>>>()?;
        // All at once: an engine gives up on a reader that is too far behind.
        let answers = all.into_iter().map(|mut stream| async move { read(&mut stream).await });
        let tokens = block_on(join_all(answers)).into_iter().sum::<anyhow::Result<usize>>()?;
        let seconds = since.elapsed().as_secs_f64();
        let expected = wave.requests * wave.answer;
        anyhow::ensure!(tokens == expected, "{tokens} tokens came of {expected}");
        Ok(tokens as f64 / seconds)
    }

    /// Seconds until the first token behind a prompt of `tokens` tokens, the median of `times`, after one that does not count.
    pub(super) fn prefill(&mut self, tokens: usize, times: usize) -> anyhow::Result<f64> {
        let mut took = Vec::with_capacity(times);
        for at in 0..=times {
            let since = Instant::now();
            let mut stream = self.ask(tokens, 1, 0, 0)?;
            token(&mut stream)?;
            if at > 0 {
                took.push(since.elapsed().as_secs_f64());
            }
            block_on(read(&mut stream))?;
        }
        Ok(median(took))
    }

    /// Request `at` of those that come together, of which the first have adapters.
    fn ask(
        &mut self,
        prompt: usize,
        answer: usize,
        at: usize,
        adapters: usize,
    ) -> anyhow::Result<EventStream> {
        self.asked += 1;
        let (seed, vocab) = (self.asked, self.size.config.vocab);
        let id =
            |at: u64| (f64::from(fill::value(at, seed) + 1.0) / 2.0 * vocab as f64) as u32 % vocab as u32;
        let adapter = match at < adapters {
            true => Some(self.adapters.get(at).context("an adapter that there is no room for")?.clone()),
            false => None,
        };
        Ok(self.engine.submit(Request {
            id: RequestId::new(),
            customer: "gpu-check".into(),
            priority: Priority::Interactive,
            cache_salt: None,
            prompt: (0..prompt as u64).map(id).collect(),
            sampling: SamplingParams { seed: Some(seed), ..SamplingParams::default() },
            max_tokens: answer as u32,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            n: 1,
            deadline: None,
            adapter,
            constraint: None,
        })?)
    }
}

/// An adapter for each place; a path is the number of one.
fn leases(config: &DecoderConfig, room: DeviceAdapters) -> anyhow::Result<Vec<AdapterLease>> {
    let config = config.clone();
    let adapters = Adapters::new(room.slots, move |path| {
        let seed = path.to_string_lossy().bytes().fold(0, |seed, byte| seed << 8 | u64::from(byte));
        Ok(LoraAdapter::of_dummies(&config, room.max_rank, seed))
    });
    (0..room.slots)
        .map(|at| {
            let name = at.to_string();
            adapters.load(&name, name.as_ref(), true)?;
            Ok(adapters.acquire(&name)?)
        })
        .collect()
}

/// Waits for the next token.
fn token(stream: &mut EventStream) -> anyhow::Result<()> {
    while !is_token(stream.blocking_next())? {}
    Ok(())
}

/// Whether it is a token; an error where an answer ended before its time.
fn is_token(event: Option<Event>) -> anyhow::Result<bool> {
    match event {
        Some(Event::Token { .. }) => Ok(true),
        Some(Event::Prompt { .. }) => Ok(false),
        Some(Event::Failed(error)) => Err(error.into()),
        other => anyhow::bail!("an answer ended too early: {other:?}"),
    }
}

/// Waits for the end: how many tokens came.
async fn read(stream: &mut EventStream) -> anyhow::Result<usize> {
    let mut tokens = 0;
    loop {
        match stream.next().await {
            Some(Event::Token { .. }) => tokens += 1,
            Some(Event::Done(_)) => return Ok(tokens),
            Some(Event::Failed(error)) => return Err(error.into()),
            Some(_) => {}
            None => anyhow::bail!("the engine ended"),
        }
    }
}

/// The middle one; of none, 0.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
