//! Prefill, decode and 16 streams beside candle's own quantised Llama, on one GGUF file, in one run.
//!
//! `cargo bench --bench generate -- MODEL.gguf [threads]`
//!
//! Everything of ours runs as in the server, through [`start`] and an [`EngineHandle`] with scheduler, sampler and
//! channels; only HTTP and text are missing. Tarn and candle take turns, five rounds after a warm-up; medians and the
//! ratio of medians are printed. Both use the same file, the same token ids and the same number of threads (candle
//! through rayon's global pool). candle has no batching: its one stream is what it has for 16.

use std::sync::Arc;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tarn::engine::{
    EngineConfig, EngineHandle, Event, ModelRunner, Priority, Request, RequestId, SamplingParams, start,
};
use tarn::model::{Decoder, DtypeChoice, Exec, KvCache, LoadOptions, ModelSource, Team};

const PROMPT: usize = 512;
const DECODE: usize = 64;
const STREAMS: usize = 16;
const STREAM_CONTEXT: usize = 64;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(path) = args.next() else {
        println!("not run: no model (cargo bench --bench generate -- MODEL.gguf [threads])");
        return Ok(());
    };
    let threads = args.next().map_or(Ok(std::thread::available_parallelism()?.get()), |arg| arg.parse())?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;

    let source = ModelSource::open(std::path::Path::new(&path))?;
    let blocks = (PROMPT + DECODE).div_ceil(16) + STREAMS * ((STREAM_CONTEXT + DECODE).div_ceil(16) + 1) + 1;
    let config = EngineConfig {
        max_num_seqs: STREAMS,
        max_num_batched_tokens: PROMPT,
        max_waiting: STREAMS,
        prefix_cache: false,
        speculation: None,
    };
    let build = move || {
        let options = LoadOptions {
            dtype: DtypeChoice::Auto,
            max_num_batched_tokens: PROMPT,
            max_num_seqs: STREAMS,
            dummy_weights: false,
            exec: Exec::Simd(Team::new(threads)),
            progress: None,
        };
        let decoder = Decoder::load(&source, options).map_err(|error| error.to_string())?;
        let kv = KvCache::new(decoder.kv_spec(), blocks).map_err(|error| error.to_string())?;
        Ok(ModelRunner::new(decoder, kv, PROMPT + DECODE + 1))
    };
    let (engine, _thread) = start(config, build)?;

    let mut file = std::fs::File::open(&path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut candle = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;

    let mut rows: Vec<[f64; 6]> = Vec::new();
    for round in 0..=ROUNDS {
        let (tarn_prefill, tarn_decode) = tarn_one(&engine)?;
        let (candle_prefill, candle_decode) = candle_one(&mut candle)?;
        let (greedy, drawn) = (tarn_streams(&engine, 0.0)?, tarn_streams(&engine, 0.8)?);
        if round > 0 {
            rows.push([tarn_prefill, candle_prefill, tarn_decode, candle_decode, greedy, drawn]);
        }
    }
    let median = |at: usize| {
        let mut column: Vec<f64> = rows.iter().map(|row| row[at]).collect();
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    };
    println!("{path}, {threads} threads, medians of {ROUNDS} rounds, tokens per second");
    println!(
        "prefill {PROMPT}:     tarn {:8.1}  candle {:8.1}  ratio {:.2}",
        median(0),
        median(1),
        median(0) / median(1)
    );
    println!(
        "decode {DECODE}:       tarn {:8.1}  candle {:8.1}  ratio {:.2}",
        median(2),
        median(3),
        median(2) / median(3)
    );
    for (temperature, at) in [(0.0, 4), (0.8, 5)] {
        println!(
            "{STREAMS} streams at {temperature}: tarn {:8.1}  over tarn's one {:.2}  over candle's one {:.2}",
            median(at),
            median(at) / median(2),
            median(at) / median(3)
        );
    }
    Ok(())
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len).map(|at| 1000 + (at as u32 * 37) % 20_000).collect()
}

fn argmax(row: &[f32]) -> u32 {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32)
}

fn request(prompt: Vec<u32>, max_tokens: u32, temperature: f32, seed: u64) -> Request {
    Request {
        id: RequestId::new(),
        customer: Arc::from("bench"),
        priority: Priority::Interactive,
        cache_salt: None,
        prompt,
        sampling: SamplingParams { temperature, seed: Some(seed), ..SamplingParams::default() },
        max_tokens,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        n: 1,
        deadline: None,
        adapter: None,
        constraint: None,
    }
}

fn tarn_one(engine: &EngineHandle) -> anyhow::Result<(f64, f64)> {
    let started = Instant::now();
    let mut stream = engine.submit(request(prompt(PROMPT), DECODE as u32 + 1, 0.0, 0))?;
    let mut first = None;
    while let Some(event) = stream.blocking_next() {
        match event {
            // The first token is drawn in the step that ends the prompt, as in candle's first call.
            Event::Token { .. } => {
                first.get_or_insert_with(Instant::now);
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt { .. } | Event::Finished { .. } | Event::Done(_) => {}
        }
    }
    let first = first.ok_or_else(|| anyhow::anyhow!("the engine gave no token"))?;
    let prefill = PROMPT as f64 / (first - started).as_secs_f64();
    Ok((prefill, DECODE as f64 / first.elapsed().as_secs_f64()))
}

/// Tokens per second of all streams from the moment that the last one has its first token.
fn tarn_streams(engine: &EngineHandle, temperature: f32) -> anyhow::Result<f64> {
    let mut streams = (0..STREAMS)
        .map(|at| {
            let mut prompt = prompt(STREAM_CONTEXT);
            prompt[0] += at as u32;
            engine.submit(request(prompt, DECODE as u32 + STREAMS as u32, temperature, at as u64))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut counted = 0;
    let mut since = None;
    // Streams advance in step, so reading them in turn keeps up with the engine.
    while !streams.is_empty() {
        let mut open = Vec::with_capacity(streams.len());
        for mut stream in streams {
            loop {
                match stream.blocking_next() {
                    Some(Event::Token { .. }) => {
                        counted += usize::from(since.is_some());
                        open.push(stream);
                        break;
                    }
                    Some(Event::Failed(error)) => return Err(error.into()),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        since.get_or_insert_with(Instant::now);
        streams = open;
    }
    let since = since.ok_or_else(|| anyhow::anyhow!("no stream had a token"))?;
    Ok(counted as f64 / since.elapsed().as_secs_f64())
}

fn candle_one(model: &mut ModelWeights) -> anyhow::Result<(f64, f64)> {
    model.clear_kv_cache();
    let ids = Tensor::new(prompt(PROMPT), &Device::Cpu)?.unsqueeze(0)?;
    let started = Instant::now();
    let mut next = argmax(&model.forward(&ids, 0)?.flatten_all()?.to_vec1::<f32>()?);
    let prefill = PROMPT as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for at in 0..DECODE {
        let input = Tensor::new(&[next], &Device::Cpu)?.unsqueeze(0)?;
        next = argmax(&model.forward(&input, PROMPT + at)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok((prefill, DECODE as f64 / started.elapsed().as_secs_f64()))
}
