//! Products with weights, `kernels/cuda/dense.cu` for few tokens and `kernels/cuda/dense_tiles.cu` for many.

use super::{Launch, Product, ProductShape, Ptr, Weights, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

const THREADS: usize = 256;
const STAGES: usize = 3;
/// Tokens of one product of the stream, and of a narrow block.
const TILE: usize = 8;
/// Weight rows of a block of the stream.
const ROWS: usize = 32;
/// 16-byte parts of each thread in the stream's ring, at most (`kDepth`).
const SLOTS: usize = 25;
/// Tokens that weights are streamed past once.
const FEW: usize = 32;
/// Up to so many weight rows each has a block: the stream would have blocks for a few multiprocessors only.
const NARROW: usize = 256;
/// Columns of a step of the tiles.
const COLUMNS: usize = 64;
/// So many large tiles keep half the multiprocessors of an H100 at work; with fewer, small ones end sooner.
const ENOUGH: usize = 66;

/// Operands of [`dense`]. `x` and `out` have room for `max_rows` rows; those of `out` past `rows` may hold anything
/// afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Dense {
    /// `[rows, k]`.
    pub x: Ptr,
    /// `[n, k]`, scales `[n]`.
    pub w: Weights,
    /// `[n]` f32, or none.
    pub bias: Ptr,
    /// `[rows, n]` of `out_dtype`.
    pub out: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `x` and of plain `w`; bf16 or f16 beside fp8.
    pub dtype: DType,
    /// `dtype` or f32.
    pub out_dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Weight rows, the width of `out`.
    pub n: usize,
    /// Width of `x`, a multiple of 8, with fp8 weights of 16.
    pub k: usize,
}

/// `out = x · w + bias`. With many tokens, plain weights and no bias it is also a [`Product`], of `max_rows` rows.
///
/// # Errors
/// [`KernelError`] when 16-byte accesses do not fit the shape, or for another element type of `out`.
pub fn dense(op: &Dense) -> Result<Launch> {
    const OP: &str = "device::dense";
    op.w.fit(OP, &[op.k])?;
    if op.out_dtype != op.dtype && op.out_dtype != DType::F32 {
        return Err(KernelError::DType { op: OP, found: op.out_dtype, expected: op.dtype });
    }
    let narrow_rows = op.w.choose(NARROW, 0);
    let launch = if op.w.choose(op.dtype == DType::F32, false) || (op.max_rows <= FEW && op.n <= narrow_rows)
    {
        narrow(OP, op)?
    } else if op.max_rows <= FEW {
        stream(OP, op)?
    } else {
        tiles(OP, op)?.or(product(op))
    };
    let (n, k) = (int(OP, "weight rows", op.n)?, int(OP, "a width", op.k)?);
    Ok(launch.ptr(op.x).ptrs(&op.w.ptrs()).ptrs(&[op.bias, op.out, op.rows]).ints(&[n, k]))
}

/// Names of a kernel's entries for bf16 and f16: with results of that type, and of f32.
struct Entries {
    own: [&'static str; 2],
    f32: [&'static str; 2],
}

impl Entries {
    fn name(&self, op: &'static str, of: &Dense) -> Result<&'static str> {
        let [bf16, f16] = if of.out_dtype == DType::F32 { self.f32 } else { self.own };
        by_type(op, of.dtype, [Some(bf16), Some(f16), None])
    }
}

fn narrow(op: &'static str, of: &Dense) -> Result<Launch> {
    // Weight rows of a block.
    let (name, rows) = if of.dtype == DType::F32 {
        ("dense_narrow_f32", 4)
    } else {
        let entries = Entries {
            own: ["dense_narrow_bf16", "dense_narrow_f16"],
            f32: ["dense_narrow_bf16_f32", "dense_narrow_f16_f32"],
        };
        (entries.name(op, of)?, 1)
    };
    let threads = (of.k * of.dtype.size() / 16).next_multiple_of(32).min(THREADS);
    let grid =
        [extent(op, "weight rows", of.n.div_ceil(rows))?, extent(op, "rows", of.max_rows.div_ceil(TILE))?, 1];
    Ok(Launch::new(name, grid, threads, 0))
}

fn stream(op: &'static str, of: &Dense) -> Result<Launch> {
    // Tokens of fp8 weights take twice the ring: two tiles at most.
    let tiles = match of.max_rows.div_ceil(TILE) {
        0 | 1 => 1,
        2 => 2,
        _ => of.w.choose(4, 2),
    };
    let plain = match tiles {
        1 => {
            Entries { own: ["dense_bf16_n1", "dense_f16_n1"], f32: ["dense_bf16_f32_n1", "dense_f16_f32_n1"] }
        }
        2 => {
            Entries { own: ["dense_bf16_n2", "dense_f16_n2"], f32: ["dense_bf16_f32_n2", "dense_f16_f32_n2"] }
        }
        _ => {
            Entries { own: ["dense_bf16_n4", "dense_f16_n4"], f32: ["dense_bf16_f32_n4", "dense_f16_f32_n4"] }
        }
    };
    let fp8 = match tiles {
        1 => Entries {
            own: ["dense_fp8_bf16_n1", "dense_fp8_f16_n1"],
            f32: ["dense_fp8_bf16_f32_n1", "dense_fp8_f16_f32_n1"],
        },
        _ => Entries {
            own: ["dense_fp8_bf16_n2", "dense_fp8_f16_n2"],
            f32: ["dense_fp8_bf16_f32_n2", "dense_fp8_f16_f32_n2"],
        },
    };
    // What a thread copies in a stage; with as many stages as leave room for two blocks on a multiprocessor.
    let slots = ROWS / 8 + tiles * of.w.choose(1, 2);
    let ring = SLOTS / slots * slots * THREADS * 16;
    let sums = THREADS / 32 * ROWS * TILE * tiles * 4;
    let grid = [
        extent(op, "weight rows", of.n.div_ceil(ROWS))?,
        extent(op, "rows", of.max_rows.div_ceil(tiles * TILE))?,
        1,
    ];
    Ok(Launch::new(of.w.choose(plain, fp8).name(op, of)?, grid, THREADS, ring.max(sums)))
}

/// Whole matrices: libraries take no bias of another type than `out`'s, and no codes with a scale a row.
fn product(of: &Dense) -> Option<Product> {
    let Dense { x, out, dtype, out_dtype, max_rows: rows, n, k, .. } = *of;
    match of.w {
        Weights::Plain(w) if of.bias == Ptr::NONE => {
            Some(Product { x, w, out, shape: ProductShape { rows, n, k, dtype, out_dtype } })
        }
        _ => None,
    }
}

fn tiles(op: &'static str, of: &Dense) -> Result<Launch> {
    // Tokens and weight rows of a block.
    let (tokens, rows, plain, fp8) = if of.max_rows.div_ceil(128) * of.n.div_ceil(256) >= ENOUGH {
        let plain = Entries {
            own: ["dense_tiles_bf16_128", "dense_tiles_f16_128"],
            f32: ["dense_tiles_bf16_f32_128", "dense_tiles_f16_f32_128"],
        };
        let fp8 = Entries {
            own: ["dense_tiles_fp8_bf16_128", "dense_tiles_fp8_f16_128"],
            f32: ["dense_tiles_fp8_bf16_f32_128", "dense_tiles_fp8_f16_f32_128"],
        };
        (128, 256, plain, fp8)
    } else {
        let plain = Entries {
            own: ["dense_tiles_bf16_64", "dense_tiles_f16_64"],
            f32: ["dense_tiles_bf16_f32_64", "dense_tiles_f16_f32_64"],
        };
        let fp8 = Entries {
            own: ["dense_tiles_fp8_bf16_64", "dense_tiles_fp8_f16_64"],
            f32: ["dense_tiles_fp8_bf16_f32_64", "dense_tiles_fp8_f16_f32_64"],
        };
        (64, 64, plain, fp8)
    };
    let grid = [
        extent(op, "rows", of.max_rows.div_ceil(tokens))?,
        extent(op, "weight rows", of.n.div_ceil(rows))?,
        1,
    ];
    let shared = tile_bytes(of.w, of.dtype, tokens, rows);
    Ok(Launch::new(of.w.choose(plain, fp8).name(op, of)?, grid, THREADS, shared))
}

/// Shared memory of a block of `tiles.cuh` with so many tokens and weight rows: the stages, and two tiles of what fp8
/// weights are widened to.
pub(super) fn tile_bytes(weights: Weights, dtype: DType, tokens: usize, rows: usize) -> usize {
    let element = dtype.size();
    let stages = STAGES * COLUMNS * (tokens * element + rows * weights.size(dtype));
    stages + weights.choose(0, 2 * rows * COLUMNS * element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_products_of_many_tokens_are_products_of_all_the_rows_there_is_room_for() {
        let many = Dense {
            x: Ptr(16),
            w: Weights::Plain(Ptr(32)),
            bias: Ptr::NONE,
            out: Ptr(48),
            rows: Ptr(64),
            dtype: DType::F16,
            out_dtype: DType::F32,
            max_rows: FEW + 1,
            n: 300,
            k: 64,
        };
        let shape = ProductShape { rows: FEW + 1, n: 300, k: 64, dtype: DType::F16, out_dtype: DType::F32 };
        let product = Product { x: Ptr(16), w: Ptr(32), out: Ptr(48), shape };
        let of = |op: &Dense| dense(op).expect("fits").product;
        assert_eq!(of(&many), Some(product));
        assert_eq!(dense(&many).expect("fits").by_kernel().product, None);
        for other in [
            Dense { max_rows: FEW, ..many },
            Dense { bias: Ptr(80), ..many },
            Dense { w: Weights::Fp8 { codes: Ptr(32), scales: Ptr(80) }, ..many },
            Dense { dtype: DType::F32, ..many },
        ] {
            assert_eq!(of(&other), None, "{other:?}");
        }
    }
}
