//! From token states to one vector a sequence.

use crate::buf::{View, ViewMut};
use crate::cpu::math;
use crate::error::{Result, inside, same};
use crate::exec::Exec;

/// How a sequence's states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    LastToken,
}

/// `out [B, H]` from `x [T, H]`; sequence `i` is rows `cu_seqlens[i]..cu_seqlens[i + 1]`. With `normalize`, each
/// vector gets L2 norm 1. An empty sequence becomes zeros.
///
/// # Errors
/// [`crate::KernelError`] when shapes do not agree.
pub fn pool(
    _exec: &Exec,
    x: View<'_>,
    cu_seqlens: &[u32],
    pooling: Pooling,
    normalize: bool,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "pool";
    same(OP, "rows of out", out.n_rows() + 1, cu_seqlens.len())?;
    same(OP, "columns of out", out.n_cols(), x.n_cols())?;
    for (at, pair) in cu_seqlens.windows(2).enumerate() {
        let (from, to) = (pair[0] as usize, pair[1] as usize);
        inside(OP, "sequence end", to, x.n_rows() + 1)?;
        let vector = out.row(at);
        vector.fill(0.0);
        if from >= to {
            continue;
        }
        match pooling {
            Pooling::Mean => {
                for row in from..to {
                    vector.iter_mut().zip(x.row(row)).for_each(|(sum, x)| *sum += x);
                }
                let inverse = 1.0 / (to - from) as f32;
                vector.iter_mut().for_each(|x| *x *= inverse);
            }
            Pooling::Cls => vector.copy_from_slice(x.row(from)),
            Pooling::LastToken => vector.copy_from_slice(x.row(to - 1)),
        }
        if normalize {
            let norm = math::dot(vector, vector).sqrt().max(1e-12);
            vector.iter_mut().for_each(|x| *x /= norm);
        }
    }
    Ok(())
}
