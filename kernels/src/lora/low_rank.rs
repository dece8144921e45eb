//! One adapter's update of one product, packed.

use crate::error::{KernelError, Result, same};
use crate::pack::{self, Packed, WeightData};

/// Most products that were fused into one (q, k, v).
pub(super) const PARTS: usize = 3;

/// One low-rank update: `B [n, rank] · A [rank, k]`, the scale already in B.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// A, `[rank, k]`.
    pub a: WeightData<'a>,
    /// B, `[n, rank]`.
    pub b: &'a [f32],
    /// The rank.
    pub rank: usize,
}

/// The update of one product by one adapter, packed.
#[derive(Debug)]
pub struct LowRank {
    /// All A below each other.
    pub(super) a: Packed,
    /// Of each fused part of the product.
    parts: Vec<Option<Up>>,
    gated: bool,
}

/// B in panels, and which columns of `x · Aᵀ` it takes.
#[derive(Debug)]
struct Up {
    b: Packed,
    /// First column for plain or gate rows, and for up rows.
    from: (usize, usize),
}

impl LowRank {
    /// Packs the update of a product with `parts` fused below each other, `(n, factors)` each.
    ///
    /// # Errors
    /// [`KernelError`] when an extent does not agree with the data, or there is nothing to pack.
    pub fn plain(parts: &[(usize, Option<Factors<'_>>)], k: usize) -> Result<LowRank> {
        const OP: &str = "lora::plain";
        if parts.len() > PARTS {
            return Err(KernelError::Unsupported { op: OP, what: "fused products", value: parts.len() });
        }
        let (mut down, mut ups, mut from) = (Vec::new(), Vec::new(), 0);
        for (n, factors) in parts {
            let Some(factors) = factors else {
                ups.push(None);
                continue;
            };
            let b = pack::dense(WeightData::F32(factors.b), *n, factors.rank, None)?;
            ups.push(Some(Up { b, from: (from, from) }));
            down.push((factors.a, factors.rank));
            from += factors.rank;
        }
        Ok(LowRank { a: pack_down(OP, &down, k)?, parts: ups, gated: false })
    }

    /// Packs the updates of gate and up, `n` rows each, of a product with gated panels.
    ///
    /// # Errors
    /// As [`LowRank::plain`].
    pub fn gated(gate: Option<Factors<'_>>, up: Option<Factors<'_>>, n: usize, k: usize) -> Result<LowRank> {
        const OP: &str = "lora::gated";
        // The panels have one rank: the shorter B gets columns of zeros, read against a row of A that exists.
        let rank = gate.map_or(0, |gate| gate.rank).max(up.map_or(0, |up| up.rank));
        let (mut down, mut from) = (Vec::new(), 0);
        let mut place = |factors: Option<Factors<'_>>| -> Result<(Vec<f32>, usize)> {
            let mut wide = vec![0.0; n * rank];
            let Some(factors) = factors else { return Ok((wide, 0)) };
            same(OP, "elements of B", factors.b.len(), n * factors.rank)?;
            if factors.rank > 0 {
                for (to, row) in wide.chunks_exact_mut(rank).zip(factors.b.chunks_exact(factors.rank)) {
                    to[..factors.rank].copy_from_slice(row);
                }
            }
            let at = from;
            from += factors.rank;
            Ok((wide, at))
        };
        let ((gate_b, gate_from), (up_b, up_from)) = (place(gate)?, place(up)?);
        down.extend(gate.iter().chain(&up).map(|factors| (factors.a, factors.rank)));
        // The last B's zeros reach past the last A: one more block of zero rows is there for them.
        let total: usize = down.iter().map(|(_, rank)| rank).sum();
        let missing = (gate_from.max(up_from) + rank).saturating_sub(total);
        let zeros = vec![0.0; missing * k];
        if missing > 0 {
            down.push((WeightData::F32(&zeros), missing));
        }
        Self::with_gated_panels(OP, &down, (&gate_b, gate_from), (&up_b, up_from), (n, rank, k))
    }

    /// Packs one update of gate and up together: `B [2 n, rank]`, the gate's rows first, and one A for both.
    ///
    /// # Errors
    /// As [`LowRank::plain`].
    pub fn gated_shared(factors: Factors<'_>, n: usize, k: usize) -> Result<LowRank> {
        const OP: &str = "lora::gated_shared";
        same(OP, "elements of B", factors.b.len(), 2 * n * factors.rank)?;
        let (gate, up) = factors.b.split_at(n * factors.rank);
        let down = [(factors.a, factors.rank)];
        Self::with_gated_panels(OP, &down, (gate, 0), (up, 0), (n, factors.rank, k))
    }

    fn with_gated_panels(
        op: &'static str,
        down: &[(WeightData<'_>, usize)],
        gate: (&[f32], usize),
        up: (&[f32], usize),
        (n, rank, k): (usize, usize, usize),
    ) -> Result<LowRank> {
        let a = pack_down(op, down, k)?;
        let b = pack::gate_up(&[WeightData::F32(gate.0)], &[WeightData::F32(up.0)], n, rank, None)?;
        let b = b.into_first().ok_or(KernelError::Unsupported { op, what: "experts", value: 0 })?;
        Ok(LowRank { a, parts: vec![Some(Up { b, from: (gate.1, up.1) })], gated: true })
    }

    /// Columns of scratch that a row needs.
    #[must_use]
    pub fn width(&self) -> usize {
        self.a.n()
    }

    /// Whether it updates gate and up.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// A `[width, k]`, and B `[n, width]` with the rows of all `parts` below each other (of gate, then of up), so that
    /// the update is B · A. What a part does not take is zero.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the parts are not those that were packed.
    pub fn unpack(&self, parts: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
        const OP: &str = "lora::unpack";
        same(OP, "fused products", parts.len(), self.parts.len())?;
        let (width, halves) = (self.width(), if self.gated { 2 } else { 1 });
        let mut b = vec![0.0; parts.iter().sum::<usize>() * halves * width];
        let mut rows = b.chunks_exact_mut(width);
        for (n, up) in parts.iter().zip(&self.parts) {
            let Some(Up { b, from }) = up else {
                rows.by_ref().take(*n).for_each(drop);
                continue;
            };
            same(OP, "rows of B", b.n(), *n)?;
            let (values, rank) = (pack::unpack(b), b.k());
            for (half, from) in [from.0, from.1].into_iter().take(halves).enumerate() {
                let own = values[half * n * rank..].chunks_exact(rank);
                own.take(*n)
                    .zip(rows.by_ref())
                    .for_each(|(row, to)| to[from..from + rank].copy_from_slice(row));
            }
        }
        Ok((pack::unpack(&self.a), b))
    }

    pub(super) fn entry(&self) -> Entry {
        let mut parts = [NOTHING; PARTS];
        for (part, up) in parts.iter_mut().zip(&self.parts) {
            if let Some(Up { b, from }) = up {
                let panels = b.segments()[0].data.bytes().as_ptr().cast();
                *part = Panels { b: panels, n: b.n(), rank: b.k(), from: *from };
            }
        }
        Entry { parts, gated: self.gated, update: self }
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.parts.iter().flatten().map(|up| up.b.bytes()).sum::<usize>()
    }
}

/// A of all parts below each other in panels; one run of panels where all have one type.
fn pack_down(op: &'static str, down: &[(WeightData<'_>, usize)], k: usize) -> Result<Packed> {
    if down.is_empty() || down.iter().any(|(_, rank)| *rank == 0) {
        return Err(KernelError::Unsupported { op, what: "a rank", value: 0 });
    }
    pack::dense_rows(down, k, None)
}

/// What the product reads of a group's update.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Of each fused part; rank 0 where there is no update.
    pub(super) parts: [Panels; PARTS],
    pub(super) gated: bool,
    /// What it was made of; null for no update.
    update: *const LowRank,
}

// SAFETY: the pointers are made by `shrink` and followed there and in the ops that take its result, all of which
// borrow the updates that they point into; between ops nobody follows them. What they point to is never written.
unsafe impl Send for Entry {}
// SAFETY: as for Send.
unsafe impl Sync for Entry {}

/// B of one part in panels of 16 columns, `[rank][16]` f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    pub(super) b: *const f32,
    pub(super) n: usize,
    pub(super) rank: usize,
    pub(super) from: (usize, usize),
}

const NOTHING: Panels = Panels { b: std::ptr::null(), n: 0, rank: 0, from: (0, 0) };

impl Entry {
    /// No update.
    pub(super) const NONE: Entry = Entry { parts: [NOTHING; PARTS], gated: false, update: std::ptr::null() };

    /// The update that this was made of.
    ///
    /// # Safety
    /// The update is still borrowed.
    pub(super) unsafe fn update<'a>(&self) -> Option<&'a LowRank> {
        // SAFETY: null, or made from a reference that the caller says is alive.
        unsafe { self.update.as_ref() }
    }
}
