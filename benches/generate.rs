//! Prefill, decode and 16 streams beside candle's own quantised Llama, on one GGUF file, in one run.
//!
//! `cargo bench --bench generate -- MODEL.gguf [threads]`
//!
//! Tarn and candle take turns, five rounds after a warm-up; medians and the ratio of medians are printed. Both use
//! the same file, the same token ids and the same number of threads (candle through rayon's global pool).

use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tarn::model::{Decoder, DtypeChoice, ForwardBatch, KvCache, LoadOptions, ModelSource};
use tarn_kernels::{Exec, SeqSpan, Team};

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
    let mut decoder = Decoder::load(
        &source,
        LoadOptions {
            dtype: DtypeChoice::Auto,
            max_num_batched_tokens: PROMPT,
            max_num_seqs: STREAMS,
            dummy_weights: false,
            exec: Exec::Simd(Team::new(threads)),
            progress: None,
        },
    )?;
    let blocks =
        PROMPT.div_ceil(16) + DECODE.div_ceil(16) + STREAMS * ((STREAM_CONTEXT + DECODE) / 16 + 1) + 1;
    let mut kv = KvCache::new(decoder.kv_spec(), blocks)?;

    let mut file = std::fs::File::open(&path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut candle = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;

    let mut rows: Vec<[f64; 5]> = Vec::new();
    for round in 0..=ROUNDS {
        let (tarn_prefill, tarn_decode) = tarn_one(&mut decoder, &mut kv)?;
        let (candle_prefill, candle_decode) = candle_one(&mut candle)?;
        let streams = tarn_streams(&mut decoder, &mut kv)?;
        if round > 0 {
            rows.push([tarn_prefill, candle_prefill, tarn_decode, candle_decode, streams]);
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
    let one = median(2).max(median(3));
    println!(
        "{STREAMS} streams:      tarn {:8.1}  over the larger one stream {:.2}",
        median(4),
        median(4) / one
    );
    Ok(())
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len).map(|at| 1000 + (at as u32 * 37) % 20_000).collect()
}

fn argmax(row: &[f32]) -> u32 {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32)
}

fn tarn_one(decoder: &mut Decoder, kv: &mut KvCache) -> anyhow::Result<(f64, f64)> {
    let table: Vec<u32> = (0..(PROMPT + DECODE).div_ceil(16) as u32).collect();
    let ids = prompt(PROMPT);
    let started = Instant::now();
    let mut next = step(decoder, kv, &[(&ids, 0)], std::slice::from_ref(&table))?[0];
    let prefill = PROMPT as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for at in 0..DECODE {
        next = step(decoder, kv, &[(&[next], PROMPT + at)], std::slice::from_ref(&table))?[0];
    }
    Ok((prefill, DECODE as f64 / started.elapsed().as_secs_f64()))
}

fn tarn_streams(decoder: &mut Decoder, kv: &mut KvCache) -> anyhow::Result<f64> {
    let each = (STREAM_CONTEXT + DECODE).div_ceil(16) as u32;
    let tables: Vec<Vec<u32>> = (0..STREAMS as u32).map(|s| (s * each..(s + 1) * each).collect()).collect();
    let ids = prompt(STREAM_CONTEXT);
    let mut next = Vec::new();
    for table in &tables {
        next.push(step(decoder, kv, &[(&ids, 0)], std::slice::from_ref(table))?[0]);
    }
    let started = Instant::now();
    for at in 0..DECODE {
        let inputs: Vec<[u32; 1]> = next.iter().map(|id| [*id]).collect();
        let parts: Vec<(&[u32], usize)> = inputs.iter().map(|id| (&id[..], STREAM_CONTEXT + at)).collect();
        next = step(decoder, kv, &parts, &tables)?;
    }
    Ok((STREAMS * DECODE) as f64 / started.elapsed().as_secs_f64())
}

/// One forward pass over `(new ids, tokens already cached)` a sequence; the greedy next id of each.
fn step(
    decoder: &mut Decoder,
    kv: &mut KvCache,
    parts: &[(&[u32], usize)],
    tables: &[Vec<u32>],
) -> anyhow::Result<Vec<u32>> {
    let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut flat, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for ((new, cached), table) in parts.iter().zip(tables) {
        spans.push(SeqSpan {
            query_start: ids.len() as u32,
            query_len: new.len() as u32,
            context_len: (cached + new.len()) as u32,
            table_start: flat.len() as u32,
        });
        flat.extend_from_slice(table);
        for (at, id) in new.iter().enumerate() {
            let position = cached + at;
            ids.push(*id);
            positions.push(position as u32);
            slots.push(table[position / 16] * 16 + (position % 16) as u32);
        }
        rows.push(ids.len() as u32 - 1);
    }
    let batch = ForwardBatch {
        input_ids: &ids,
        positions: &positions,
        slot_mapping: &slots,
        sequences: &spans,
        block_tables: &flat,
        logits_rows: &rows,
    };
    let logits = decoder.forward(&batch, kv)?;
    Ok((0..rows.len()).map(|row| argmax(logits.row(row))).collect())
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
