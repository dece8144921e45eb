//! The ops of an encoder that a decoder does not have, and the search over a customer's matrix.

use super::ops::{B, HALF};
use super::{Bench, Done, Encode, Work};
use crate::device::encoder_attention::{EncoderAttention, encoder_attention};
use crate::device::encoder_embed::{EncoderEmbed, Table, encoder_embed};
use crate::device::gelu::{Gelu, gelu};
use crate::device::layer_norm::{LayerNorm, layer_norm};
use crate::device::pool::{Pool, pool};
use crate::device::scan_topk::{ScanTopk, scan_topk};
use crate::device::{Launch, Ptr};
use crate::error::Result;
use crate::{DType, GeluKind, Pooling};

/// Parts of a matrix, enough for a large GPU.
const PARTS: usize = 528;

impl Bench<'_> {
    pub(super) fn encode(&mut self, of: Encode, done: Done<'_>) -> Result<()> {
        let Encode { passages, tokens, h, inner, heads } = of;
        let (rows, vocab) = (passages * tokens, self.model.vocab);
        let table = |bench: &mut Bench<'_>, name: &str, count: usize| -> Result<Table> {
            Ok(Table { rows: bench.weights(name, count * h)?, count })
        };
        let moves = |elements: usize| Work { bytes: elements * B, ..Work::default() };
        done(self.time("encoder_embed", format!("{rows} × {h}"), moves(4 * rows * h), &|bench| {
            let ids: Vec<u32> = (0..rows).map(|at| (at * 7919 % vocab) as u32).collect();
            let positions: Vec<u32> = (0..rows).map(|at| (at % tokens) as u32).collect();
            let op = EncoderEmbed {
                ids: bench.indices("ids", &ids)?,
                position_ids: bench.indices("positions", &positions)?,
                type_ids: Ptr::NONE,
                words: table(bench, "words", vocab)?,
                positions: table(bench, "positions", tokens)?,
                types: table(bench, "types", 1)?,
                out: bench.space("out", rows * h * B)?,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                h,
            };
            Ok(vec![encoder_embed(&op)?])
        })?);
        done(self.time("layer_norm", format!("{rows} × {h}"), moves(3 * rows * h), &|bench| {
            let op = LayerNorm {
                x: bench.weights("x", rows * h)?,
                residual: bench.weights("residual", rows * h)?,
                weight: bench.random("weight", DType::F32, h)?,
                bias: bench.random("bias", DType::F32, h)?,
                out: bench.space("out", rows * h * B)?,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                h,
                eps: 1e-5,
            };
            Ok(vec![layer_norm(&op)?])
        })?);
        let work = Work { flops: passages * tokens * tokens * 4 * h, ..moves(4 * rows * h) };
        done(self.time("encoder_attention", format!("{passages} × {tokens} × {h}"), work, &|bench| {
            let op = EncoderAttention {
                qkv: bench.weights("qkv", rows * 3 * h)?,
                cu_seqlens: bench.bounds(passages, tokens)?,
                out: bench.space("out", rows * h * B)?,
                dtype: HALF,
                sequences: passages,
                max_tokens: tokens,
                heads,
                dim: h / heads,
                scale: 0.1,
            };
            Ok(vec![encoder_attention(&op)?])
        })?);
        done(self.time("gelu", format!("{rows} × {inner}"), moves(2 * rows * inner), &|bench| {
            let op = Gelu {
                x: bench.weights("x", rows * inner)?,
                bias: Ptr::NONE,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                n: inner,
                kind: GeluKind::Erf,
            };
            Ok(vec![gelu(&op)?])
        })?);
        let work = Work { bytes: rows * h * B + passages * h * 4, ..Work::default() };
        done(self.time("pool", format!("{passages} × {tokens} × {h}"), work, &|bench| {
            let op = Pool {
                x: bench.weights("x", rows * h)?,
                cu_seqlens: bench.bounds(passages, tokens)?,
                out: bench.space("out", passages * h * 4)?,
                dtype: HALF,
                sequences: passages,
                h,
                pooling: Pooling::Mean,
                normalize: true,
            };
            Ok(vec![pool(&op)?])
        })?);
        Ok(())
    }

    /// The nearest `k` of `rows` rows of width `d` to one query.
    pub(super) fn search(&mut self, [rows, d, k]: [usize; 3], done: Done<'_>) -> Result<()> {
        let matrix = rows * d * B;
        let work = Work { bytes: matrix, flops: 2 * rows * d, streamed: matrix };
        done(self.time("scan_topk", format!("{rows} × {d}, best {k}"), work, &|bench| {
            let mut op = ScanTopk {
                matrix: bench.weights("matrix", rows * d)?,
                queries: bench.random("queries", DType::F32, d)?,
                keep: Ptr::NONE,
                scratch: Ptr::NONE,
                ids: bench.space("ids", k * 4)?,
                scores: bench.space("scores", k * 4)?,
                rows: bench.indices("rows", &[rows as u32])?,
                dtype: HALF,
                max_rows: rows,
                max_parts: PARTS,
                count: 1,
                d,
                k,
            };
            op.scratch = bench.space("scratch", op.scratch_bytes())?;
            Ok::<Vec<Launch>, _>(scan_topk(&op)?.to_vec())
        })?);
        Ok(())
    }

    /// Where each of `passages` of `tokens` tokens begins.
    fn bounds(&mut self, passages: usize, tokens: usize) -> Result<Ptr> {
        let bounds: Vec<u32> = (0..=passages).map(|at| (at * tokens) as u32).collect();
        self.indices("bounds", &bounds)
    }
}
