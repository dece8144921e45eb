//! What adapters add to a step, one product after another: both halves of each, of tokens and of virtual experts.

use super::ops::{B, HALF, routed};
use super::{Bench, Done, Work};
use crate::device::expert_align::{ExpertAlign, expert_align};
use crate::device::lora::{Adapters, lora_expand, lora_shrink};
use crate::device::{Launch, Ptr};
use crate::error::Result;

/// Columns of a part of the way down, about.
const COLUMNS: usize = 512;

/// A product with updates.
struct Product {
    /// Names of its halves.
    ops: [&'static str; 2],
    /// 1 for a product of tokens.
    experts: usize,
    /// Pairs of a token, and rows of its input.
    ranks: usize,
    rows: usize,
    /// Of the fused parts together.
    rank: usize,
    n: usize,
    k: usize,
}

impl Bench<'_> {
    pub(super) fn adapters(
        &mut self,
        sequences: usize,
        adapters: usize,
        rank: usize,
        done: Done<'_>,
    ) -> Result<()> {
        let m = self.model;
        let attended = m.heads.q * m.heads.dim;
        let token = |ops, rank, n, k| Product { ops, experts: 1, ranks: 1, rows: sequences, rank, n, k };
        let pair =
            |ops, rows, rank, n, k| Product { ops, experts: m.experts, ranks: m.ranks, rows, rank, n, k };
        for product in [
            token(["lora_shrink qkv", "lora_expand qkv"], 3 * rank, m.heads.width(), m.h),
            token(["lora_shrink output", "lora_expand output"], rank, m.h, attended),
            pair(["lora_shrink w13", "lora_expand w13"], sequences, 2 * rank, 2 * m.inner, m.h),
            pair(["lora_shrink w2", "lora_expand w2"], sequences * m.ranks, rank, m.h, m.inner),
        ] {
            self.update(sequences, adapters, &product, done)?;
        }
        Ok(())
    }

    /// The two halves of the update of a product, where the sequences have the adapters in turn.
    fn update(&mut self, sequences: usize, adapters: usize, product: &Product, done: Done<'_>) -> Result<()> {
        let Product { ops, experts, ranks, rows, rank, n, k } = *product;
        let ids = routed(sequences, ranks, experts);
        let (pairs, virtuals) = (ids.len(), adapters * experts);
        let virtual_of = |(pair, id): (usize, &u32)| (pair / ranks % adapters) * experts + *id as usize;
        let mut hit: Vec<usize> = ids.iter().enumerate().map(virtual_of).collect();
        hit.sort_unstable();
        hit.dedup();
        let hit = hit.len();
        let parts = (k / COLUMNS).clamp(1, 8);
        let shape = format!("{pairs} × {n} × {k}, rank {rank}, {hit} of {virtuals}");
        let v = parts * pairs * rank * 4;
        let a = hit * rank * k * B;
        let work = Work { bytes: a + rows * k * B + v, flops: 2 * pairs * rank * k, streamed: a };
        done(self.time(ops[0], shape.clone(), work, &|bench| {
            let (update, sort) = bench.grouped(&ids, sequences, adapters, product, parts)?;
            bench.device.launch(&sort)?;
            let x = bench.weights("x", rows * k)?;
            let a = bench.weights("a", virtuals * rank * k)?;
            Ok(vec![lora_shrink(&update, x, a, pairs / rows, k)?])
        })?);
        let b = hit * n * rank * B;
        let work = Work { bytes: b + v + pairs * n * B, flops: 2 * pairs * rank * n, streamed: b };
        done(self.time(ops[1], shape, work, &|bench| {
            let (mut update, sort) = bench.grouped(&ids, sequences, adapters, product, parts)?;
            bench.device.launch(&sort)?;
            update.v = bench.random("v", crate::DType::F32, parts * pairs * rank)?;
            let b = bench.weights("b", virtuals * n * rank)?;
            let scales = bench.random("scales", crate::DType::F32, adapters)?;
            let out = bench.space("out", pairs * n * B)?;
            Ok(vec![lora_expand(&update, b, scales, out, n, false)?])
        })?);
        Ok(())
    }

    /// What the halves share, and the launch that groups the pairs.
    fn grouped(
        &mut self,
        ids: &[u32],
        sequences: usize,
        adapters: usize,
        product: &Product,
        parts: usize,
    ) -> Result<(Adapters, Launch)> {
        let Product { experts, ranks, rank, .. } = *product;
        let slots: Vec<u32> = (0..sequences).map(|at| (at % adapters) as u32).collect();
        let shape = Adapters {
            offsets: self.space("offsets", (adapters * experts + 1) * 4)?,
            sorted_pairs: self.space("sorted_pairs", ids.len() * 4)?,
            v: self.space("v", parts * ids.len() * rank * 4)?,
            dtype: HALF,
            adapters: adapters * experts,
            experts,
            max_pairs: ids.len(),
            rank,
            parts,
        };
        // The pairs of one expert are the tokens: their ids are the slots.
        let (ids, slots) = match experts {
            1 => (self.indices("ids", &slots)?, Ptr::NONE),
            _ => (self.indices("ids", ids)?, self.indices("slots", &slots)?),
        };
        let sort = expert_align(&ExpertAlign {
            ids,
            slots,
            tokens: self.indices("tokens", &[sequences as u32])?,
            offsets: shape.offsets,
            sorted_pairs: shape.sorted_pairs,
            k: ranks,
            base: if experts == 1 { adapters } else { experts },
            experts: adapters * experts,
        })?;
        Ok((shape, sort))
    }
}
