//! Times of the ops that a decode step and a prefill are made of, at SmolLM2-360M's shapes.
//!
//! `cargo bench -p tarn-kernels [-- THREADS]`: the best of several rounds, in microseconds, with the rate that bounds
//! the op (weight bytes for a product of one row, multiply-adds for one of many).

use std::hint::black_box;
use std::time::Instant;

use tarn_kernels::blocks::BlockFormat;
use tarn_kernels::{
    AdapterRows, Exec, Factors, HeadLayout, KvCacheBuf, LowRank, NO_ADAPTER, Packed, RopeTable, RowsOf,
    SOFTMAX_BLOCK, SeqSpan, Team, View, ViewMut, WeightData, Workspace, argmax, matmul, matmul_adapted, pack,
    paged_attention, rms_norm, rope_kv_write, shrink, softmax_stats,
};

const HIDDEN: usize = 960;
const INNER: usize = 2560;
const VOCAB: usize = 49_152;
const HEADS: HeadLayout = HeadLayout { q: 15, kv: 5, dim: 64 };
const ROUNDS: usize = 7;

type Outcome = tarn_kernels::Result<()>;

fn main() -> Outcome {
    let named = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let threads = named.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let exec = Exec::Simd(Team::new(threads));
    println!("{threads} threads, best of {ROUNDS} rounds");
    for (name, n, k) in [
        ("qkv", HEADS.width(), HIDDEN),
        ("o", HIDDEN, HIDDEN),
        ("up", 2 * INNER, HIDDEN),
        ("down", HIDDEN, INNER),
        ("head", VOCAB, HIDDEN),
    ] {
        products(&exec, name, n, k)?;
    }
    for (rows, adapters) in [(1, 1), (16, 0), (16, 1), (16, 16), (128, 4)] {
        adapted(&exec, rows, adapters)?;
    }
    for (queries, context) in [(1, 128), (1, 2048), (512, 512)] {
        attention(&exec, queries, context)?;
    }
    for rows in [1, 16, 512] {
        norm(&exec, rows)?;
    }
    sampling(&exec)
}

/// The best time of one call in seconds, each round as many calls as take about 20 ms.
fn best(mut call: impl FnMut() -> Outcome) -> tarn_kernels::Result<f64> {
    let started = Instant::now();
    call()?;
    let once = started.elapsed().as_secs_f64().max(1e-7);
    let calls = ((0.02 / once) as usize).clamp(1, 20_000);
    let mut least = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        least = least.min(started.elapsed().as_secs_f64() / calls as f64);
    }
    Ok(least)
}

/// `len` values in -1..1.
fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Q8_0 blocks of small weights.
fn q8_0(weights: usize) -> Vec<u8> {
    let scale = [0x66, 0x1e]; // about 0.006 as f16
    (0..weights / 32)
        .flat_map(|block| scale.into_iter().chain((0..32).map(move |at| (block * 7 + at * 13) as u8)))
        .collect()
}

fn products(exec: &Exec, name: &str, n: usize, k: usize) -> Outcome {
    let (floats, blocks) = (values(n * k), q8_0(n * k));
    let int8 = pack::dense(WeightData::Blocks(BlockFormat::Q8_0, &blocks), n, k, None)?;
    let f32 = pack::dense(WeightData::F32(&floats), n, k, None)?;
    for (format, w) in [("int8", &int8), ("f32", &f32)] {
        for rows in [1, 16, 128] {
            let seconds = product(exec, w, rows)?;
            println!(
                "matmul {name:5} {format:5} {rows:4} x [{n}, {k}]: {:9.1} us {:7.1} GB/s {:8.1} GFMA/s",
                seconds * 1e6,
                w.bytes() as f64 / seconds * 1e-9,
                (rows * n * k) as f64 / seconds * 1e-9
            );
        }
    }
    Ok(())
}

fn product(exec: &Exec, w: &Packed, rows: usize) -> tarn_kernels::Result<f64> {
    let x = values(rows * w.k());
    let mut out = vec![0.0; rows * w.n()];
    let mut ws = Workspace::new(rows, w.k())?;
    best(|| {
        let to = ViewMut::new(&mut out, rows, w.n())?;
        matmul(exec, &mut ws, View::new(black_box(&x), rows, w.k())?, w, None, to, false)
    })
}

/// q, k and v with adapters of rank 16; half of the rows are the base model's where there are several.
fn adapted(exec: &Exec, rows: usize, adapters: usize) -> Outcome {
    const RANK: usize = 16;
    let (n, k) = (HEADS.width(), HIDDEN);
    let blocks = q8_0(n * k);
    let w = pack::dense(WeightData::Blocks(BlockFormat::Q8_0, &blocks), n, k, None)?;
    let (a, b) = (values(RANK * k), values(n * RANK));
    let factors = Factors { a: WeightData::F32(&a), b: &b, rank: RANK };
    let updates = (0..adapters)
        .map(|_| LowRank::plain(&[(n, Some(factors))], k))
        .collect::<tarn_kernels::Result<Vec<_>>>()?;
    let of: Vec<u32> = (0..rows)
        .map(|row| {
            if adapters == 0 || (rows > 1 && row % 2 == 0) { NO_ADAPTER } else { (row / 2 % adapters) as u32 }
        })
        .collect();
    let x = values(rows * k);
    let mut out = vec![0.0; rows * n];
    let mut ws = Workspace::new(rows, k)?;
    let mut scratch = AdapterRows::new(rows.max(adapters), RANK)?;
    let seconds = best(|| {
        let x = View::new(black_box(&x), rows, k)?;
        scratch.group(&of, adapters)?;
        let deltas = shrink(exec, x, RowsOf::Output, &mut scratch, &|adapter, _| updates.get(adapter))?;
        matmul_adapted(exec, &mut ws, x, &w, None, ViewMut::new(&mut out, rows, n)?, deltas)
    })?;
    println!("qkv int8 {rows:4} rows, {adapters:3} adapters of rank {RANK}: {:9.1} us", seconds * 1e6);
    Ok(())
}

fn attention(exec: &Exec, queries: usize, context: usize) -> Outcome {
    let blocks = context.div_ceil(16);
    let mut kv = KvCacheBuf::new(1, blocks, HEADS.kv, HEADS.dim)?;
    let table: Vec<u32> = (0..blocks as u32).collect();
    let rope = RopeTable::new(&values(HEADS.dim / 2), 1.0, context)?;
    let positions: Vec<u32> = (0..context as u32).collect();
    let mut qkv = values(context * HEADS.width());
    let all = ViewMut::new(&mut qkv, context, HEADS.width())?;
    rope_kv_write(exec, all, HEADS, &rope, &positions, &positions, kv.layer_mut(0)?)?;
    let query_len = queries as u32;
    let span = SeqSpan { query_start: 0, query_len, context_len: context as u32, table_start: 0 };
    let rows = View::new(&qkv, context, HEADS.width())?.rows(context - queries, context)?;
    let mut out = vec![0.0; queries * HEADS.q * HEADS.dim];
    let seconds = best(|| {
        let to = ViewMut::new(&mut out, queries, HEADS.q * HEADS.dim)?;
        paged_attention(exec, black_box(rows), HEADS, kv.layer(0)?, &[span], &table, 0.125, None, to)
    })?;
    println!("paged_attention {queries:4} queries, context {context:5}: {:9.1} us", seconds * 1e6);
    let mut fresh = values(queries * HEADS.width());
    let at = &positions[context - queries..];
    let seconds = best(|| {
        let rows = ViewMut::new(&mut fresh, queries, HEADS.width())?;
        rope_kv_write(exec, rows, HEADS, &rope, at, at, kv.layer_mut(0)?)
    })?;
    println!("rope_kv_write   {queries:4} rows:                  {:9.1} us", seconds * 1e6);
    Ok(())
}

fn norm(exec: &Exec, rows: usize) -> Outcome {
    let (x, weight) = (values(rows * HIDDEN), values(HIDDEN));
    let (mut residual, mut out) = (vec![0.0; rows * HIDDEN], vec![0.0; rows * HIDDEN]);
    let seconds = best(|| {
        let sum = Some(ViewMut::new(&mut residual, rows, HIDDEN)?);
        let to = ViewMut::new(&mut out, rows, HIDDEN)?;
        rms_norm(exec, View::new(black_box(&x), rows, HIDDEN)?, sum, &weight, 1e-5, to)
    })?;
    println!("rms_norm        {rows:4} rows of {HIDDEN}:           {:9.1} us", seconds * 1e6);
    Ok(())
}

fn sampling(exec: &Exec) -> Outcome {
    let logits = values(VOCAB);
    let seconds = best(|| {
        black_box(argmax(exec, black_box(&logits)));
        Ok(())
    })?;
    println!("argmax of {VOCAB}:        {:9.1} us", seconds * 1e6);
    let mut sums = vec![0.0; VOCAB.div_ceil(SOFTMAX_BLOCK)];
    let seconds = best(|| {
        black_box(softmax_stats(exec, black_box(&logits), 1.25, &mut sums)?);
        Ok(())
    })?;
    println!("softmax_stats of {VOCAB}: {:9.1} us", seconds * 1e6);
    Ok(())
}
