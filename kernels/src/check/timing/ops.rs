//! The ops of a step, one after another.

use super::{Bench, Done, Format, Work};
use crate::check::hash;
use crate::device::expert_align::{ExpertAlign, expert_align};
use crate::device::expert_stream::{self, Delta, Experts, expert_combine};
use crate::device::expert_tiles;
use crate::device::paged_decode::{PagedDecode, paged_decode};
use crate::device::paged_prefill::{PagedPrefill, paged_prefill};
use crate::device::rms_norm::{RmsNorm, rms_norm};
use crate::device::rope_kv_write::{RopeKvWrite, rope_kv_write};
use crate::device::route_topk::{RouteTopk, route_topk};
use crate::device::sample::{Sample, Sampling, sample};
use crate::device::{Launch, Ptr, Weights};
use crate::error::Result;
use crate::kv::BLOCK;
use crate::{DType, SeqSpan};

pub(super) const HALF: DType = DType::BF16;
/// Bytes of an element.
pub(super) const B: usize = 2;
/// Blocks of a launch of the attention of one token that fill a large GPU twice.
const BLOCKS: usize = 264;

impl Bench<'_> {
    pub(super) fn decode(&mut self, sequences: usize, context: usize, done: Done<'_>) -> Result<()> {
        self.rows(sequences, done)?;
        let (m, heads) = (self.model, self.model.heads);
        let kv_bytes = sequences * context * 2 * heads.kv * heads.dim * B;
        let parts = BLOCKS.div_ceil(sequences * heads.kv).min(context.div_ceil(4 * BLOCK));
        let work = Work {
            bytes: kv_bytes,
            flops: sequences * context * 4 * heads.q * heads.dim,
            streamed: kv_bytes,
        };
        done(self.time(
            "paged_decode",
            format!("{sequences} × {context}, {parts} parts"),
            work,
            &|bench| {
                let (kv, tables, table_width) = bench.cache(sequences, context)?;
                let op = PagedDecode {
                    qkv: bench.weights("qkv", sequences * heads.width())?,
                    kv,
                    tables,
                    contexts: bench.indices("contexts", &vec![context as u32; sequences])?,
                    sums: bench.space("sums", sequences * heads.q * parts * heads.dim * 4)?,
                    stats: bench.space("stats", sequences * heads.q * parts * 2 * 4)?,
                    out: bench.space("out", sequences * heads.q * heads.dim * B)?,
                    dtype: HALF,
                    sequences,
                    table_width,
                    parts,
                    heads,
                    scale: 0.1,
                    window: None,
                };
                Ok(paged_decode(&op)?.to_vec())
            },
        )?);
        self.experts(sequences, expert_stream::expert_up, expert_stream::expert_down, done)?;
        self.product("dense head", [sequences, m.vocab, m.h], DType::F32, Format::Plain, done)?;
        let work = Work { bytes: sequences * m.vocab * 4, ..Work::default() };
        done(self.time("sample", format!("{sequences} × {}", m.vocab), work, &|bench| {
            let how = Sampling {
                temperature: 0.8,
                top_p: 0.95,
                min_p: 0.0,
                top_k: 0,
                seed: 1,
                position: 1,
                repetition: 1.0,
                frequency: 0.0,
                presence: 0.0,
                mask: u32::MAX,
            };
            let words: Vec<u32> = how
                .to_bytes()
                .chunks_exact(4)
                .map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]]))
                .collect();
            let op = Sample {
                logits: bench.random("logits", DType::F32, sequences * m.vocab)?,
                how: bench.indices("how", &words.repeat(sequences))?,
                ids: bench.space("ids", sequences * 4)?,
                rows: bench.indices("rows", &[sequences as u32])?,
                max_rows: sequences,
                vocab: m.vocab,
            };
            Ok(vec![sample(&op)?])
        })?);
        Ok(())
    }

    pub(super) fn prefill(&mut self, tokens: usize, done: Done<'_>) -> Result<()> {
        self.rows(tokens, done)?;
        let heads = self.model.heads;
        // Every query sees half of the keys, in the mean.
        let flops = 2 * tokens * (tokens + 1) * heads.q * heads.dim;
        let work = Work { bytes: tokens * 2 * heads.width() * B, flops, streamed: 0 };
        done(self.time("paged_prefill", format!("{tokens}"), work, &|bench| {
            let (kv, tables, _) = bench.cache(1, tokens)?;
            let span = SeqSpan {
                query_start: 0,
                query_len: tokens as u32,
                context_len: tokens as u32,
                table_start: 0,
            };
            let spans = [span.query_start, span.query_len, span.context_len, span.table_start];
            let op = PagedPrefill {
                qkv: bench.weights("qkv", tokens * heads.width())?,
                kv,
                tables,
                spans: bench.indices("spans", &spans)?,
                out: bench.space("out", tokens * heads.q * heads.dim * B)?,
                dtype: HALF,
                sequences: 1,
                max_queries: tokens,
                heads,
                scale: 0.1,
                window: None,
            };
            Ok(vec![paged_prefill(&op)?])
        })?);
        self.experts(tokens, expert_tiles::expert_up, expert_tiles::expert_down, done)
    }

    /// What is done with every row before attention.
    fn rows(&mut self, rows: usize, done: Done<'_>) -> Result<()> {
        let (m, heads) = (self.model, self.model.heads);
        let work = Work { bytes: 4 * rows * m.h * B, ..Work::default() };
        done(self.time("rms_norm", format!("{rows} × {}", m.h), work, &|bench| {
            let op = RmsNorm {
                x: bench.weights("x", rows * m.h)?,
                residual: bench.weights("residual", rows * m.h)?,
                weight: bench.random("weight", DType::F32, m.h)?,
                out: bench.space("out", rows * m.h * B)?,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                h: m.h,
                eps: 1e-5,
            };
            Ok(vec![rms_norm(&op)?])
        })?);
        for format in Format::ALL {
            let op = format.name(["dense qkv", "dense qkv fp8"]);
            self.product(op, [rows, heads.width(), m.h], HALF, format, done)?;
        }
        let work = Work { bytes: 2 * rows * heads.width() * B, ..Work::default() };
        done(self.time("rope_kv_write", format!("{rows} × {}", heads.width()), work, &|bench| {
            let numbers: Vec<u32> = (0..rows as u32).collect();
            let (kv, ..) = bench.cache(1, rows)?;
            let op = RopeKvWrite {
                qkv: bench.weights("qkv", rows * heads.width())?,
                table: bench.random("table", DType::F32, rows * heads.dim)?,
                positions: bench.indices("positions", &numbers)?,
                slots: bench.indices("slots", &numbers)?,
                kv,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                heads,
            };
            Ok(vec![rope_kv_write(&op)?])
        })?);
        Ok(())
    }

    fn product(
        &mut self,
        op: &'static str,
        shape: [usize; 3],
        out: DType,
        format: Format,
        done: Done<'_>,
    ) -> Result<()> {
        let [rows, n, k] = shape;
        let weights = format.bytes(n, k);
        let bytes = weights + rows * (k * B + n * out.size());
        let work = Work { bytes, flops: 2 * rows * n * k, streamed: weights };
        let extents = format!("{rows} × {n} × {k}");
        let build = |bench: &mut Bench<'_>| Ok(vec![bench.dense(shape, out, format)?]);
        self.device.clear();
        if !self.device.has_library() || self.dense(shape, out, format)?.product.is_none() {
            done(self.time(op, extents, work, &build)?);
            return Ok(());
        }
        done(self.time(op, format!("{extents}, cuBLASLt"), work, &build)?);
        done(self.time(op, format!("{extents}, tiles"), work, &|bench| {
            Ok(vec![bench.dense(shape, out, format)?.by_kernel()])
        })?);
        Ok(())
    }

    /// The router and the mixture.
    fn experts(&mut self, tokens: usize, up: Product, down: Product, done: Done<'_>) -> Result<()> {
        let m = self.model;
        let ids = routed(tokens, m.ranks, m.experts);
        let hit = (0..m.experts as u32).filter(|expert| ids.contains(expert)).count();
        let (pairs, shape) = (tokens * m.ranks, format!("{tokens} tokens, {hit} experts hit"));
        for format in Format::ALL {
            let op = format.name(["dense output", "dense output fp8"]);
            self.product(op, [tokens, m.h, m.heads.q * m.heads.dim], HALF, format, done)?;
        }
        self.product("dense router", [tokens, m.experts, m.h], HALF, Format::Plain, done)?;
        let work = Work { bytes: tokens * m.experts * B + pairs * 8, ..Work::default() };
        done(self.time("route_topk", format!("{tokens} × {}", m.experts), work, &|bench| {
            let op = RouteTopk {
                logits: bench.weights("logits", tokens * m.experts)?,
                ids: bench.space("ids", pairs * 4)?,
                weights: bench.space("weights", pairs * 4)?,
                rows: bench.indices("rows", &[tokens as u32])?,
                dtype: HALF,
                max_rows: tokens,
                experts: m.experts,
                k: m.ranks,
                renormalize: true,
            };
            Ok(vec![route_topk(&op)?])
        })?);
        let work = Work { bytes: 2 * pairs * 4, ..Work::default() };
        done(self.time("expert_align", format!("{pairs} pairs"), work, &|bench| {
            Ok(vec![bench.aligned(&ids, tokens)?.1])
        })?);
        for format in Format::ALL {
            let weights = format.bytes(hit * 2 * m.inner, m.h);
            let work = Work {
                bytes: weights + (tokens * m.h + pairs * m.inner) * B,
                flops: 2 * pairs * 2 * m.inner * m.h,
                streamed: weights,
            };
            let op = format.name(["expert_up", "expert_up fp8"]);
            done(self.time(op, shape.clone(), work, &|bench| {
                let (experts, align) = bench.aligned(&ids, tokens)?;
                bench.device.launch(&align)?;
                let x = bench.weights("x", tokens * m.h)?;
                let w13 = bench.stored("w13", format, m.experts * 2 * m.inner, m.h)?;
                let act = bench.space("act", pairs * m.inner * B)?;
                Ok(vec![up(&experts, x, w13, Delta::NONE, act)?])
            })?);
        }
        for format in Format::ALL {
            let weights = format.bytes(hit * m.h, m.inner);
            let work = Work {
                bytes: weights + pairs * (m.inner * B + m.h * 4),
                flops: 2 * pairs * m.inner * m.h,
                streamed: weights,
            };
            let op = format.name(["expert_down", "expert_down fp8"]);
            done(self.time(op, shape.clone(), work, &|bench| {
                let (experts, align) = bench.aligned(&ids, tokens)?;
                bench.device.launch(&align)?;
                let act = bench.weights("act", pairs * m.inner)?;
                let w2 = bench.stored("w2", format, m.experts * m.h, m.inner)?;
                let y = bench.space("y", pairs * m.h * 4)?;
                Ok(vec![down(&experts, act, w2, Delta::NONE, y)?])
            })?);
        }
        let work = Work { bytes: pairs * m.h * 4 + tokens * m.h * B, ..Work::default() };
        done(self.time("expert_combine", format!("{pairs} × {}", m.h), work, &|bench| {
            let (experts, _) = bench.aligned(&ids, tokens)?;
            let y = bench.random("y", DType::F32, pairs * m.h)?;
            let weights = bench.random("weights", DType::F32, pairs)?;
            let out = bench.space("out", tokens * m.h * B)?;
            let rows = bench.indices("tokens", &[tokens as u32])?;
            Ok(vec![expert_combine(&experts, y, weights, out, rows)?])
        })?);
        Ok(())
    }

    /// The mixture's shape over `ids`, and the launch that sorts them.
    fn aligned(&mut self, ids: &[u32], tokens: usize) -> Result<(Experts, Launch)> {
        let m = self.model;
        let shape = Experts {
            offsets: self.space("offsets", (m.experts + 1) * 4)?,
            sorted_pairs: self.space("sorted_pairs", ids.len() * 4)?,
            dtype: HALF,
            experts: m.experts,
            ranks: m.ranks,
            max_tokens: tokens,
            h: m.h,
            inner: m.inner,
        };
        let align = expert_align(&ExpertAlign {
            ids: self.indices("ids", ids)?,
            slots: Ptr::NONE,
            tokens: self.indices("tokens", &[tokens as u32])?,
            offsets: shape.offsets,
            sorted_pairs: shape.sorted_pairs,
            k: m.ranks,
            base: m.experts,
            experts: m.experts,
        })?;
        Ok((shape, align))
    }

    /// A layer's cache of random keys and values, the tables of `sequences`, blocks in no order, and a table's width.
    fn cache(&mut self, sequences: usize, context: usize) -> Result<(Ptr, Ptr, usize)> {
        let heads = self.model.heads;
        let width = context.div_ceil(BLOCK);
        let blocks = sequences * width;
        let kv = self.weights("kv", blocks * 2 * heads.kv * BLOCK * heads.dim)?;
        let mut tables: Vec<u32> = (0..blocks as u32).collect();
        tables.sort_by_key(|block| hash(u64::from(*block), 7));
        Ok((kv, self.indices("tables", &tables)?, width))
    }
}

type Product = fn(&Experts, Ptr, Weights, Delta, Ptr) -> Result<Launch>;

/// `ranks` different experts of each token, spread by a hash.
pub(super) fn routed(tokens: usize, ranks: usize, experts: usize) -> Vec<u32> {
    let token = |token: usize| {
        let mut all: Vec<u32> = (0..experts as u32).collect();
        all.sort_by_key(|expert| hash((token * experts) as u64 + u64::from(*expert), 9));
        all.truncate(ranks);
        all
    };
    (0..tokens).flat_map(token).collect()
}
