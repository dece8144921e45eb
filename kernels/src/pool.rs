//! A sequence's rows to one vector: the embedding.

use crate::encoder_attention::check_cu_seqlens;
use crate::error::{Result, expect_shape};
use crate::{Exec, View, ViewMut};

/// How a sequence's rows become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    Cls,
    /// The last.
    LastToken,
}

/// One vector a sequence: `out[b]` `[B, H]` from the rows `cu_seqlens[b]..cu_seqlens[b + 1]` of `x` `[T, H]`, divided
/// by its Euclidean norm if `normalize`. An empty sequence gives zeros.
pub fn pool(
    exec: &Exec,
    x: View<'_>,
    cu_seqlens: &[u32],
    pooling: Pooling,
    normalize: bool,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "pool";
    let x = x.f32(OP, "x")?;
    let mut out = out.f32(OP, "out")?;
    check_cu_seqlens(OP, cu_seqlens, x.rows)?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[cu_seqlens.len() - 1, x.cols])?;
    let rows = out.shared();
    exec.each(cu_seqlens.len() - 1, &|b| {
        let range = cu_seqlens[b] as usize..cu_seqlens[b + 1] as usize;
        // SAFETY: row b is written by task b only.
        let out = unsafe { rows.row(b) };
        out.fill(0.0);
        let add = |out: &mut [f32], t: usize| out.iter_mut().zip(x.row(t)).for_each(|(o, v)| *o += v);
        match pooling {
            Pooling::Cls => range.take(1).for_each(|t| add(out, t)),
            Pooling::LastToken => range.last().into_iter().for_each(|t| add(out, t)),
            Pooling::Mean => {
                let len = range.len().max(1) as f32;
                range.for_each(|t| add(out, t));
                out.iter_mut().for_each(|o| *o /= len);
            }
        }
        if normalize {
            let norm = out.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
            let inverse = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
            out.iter_mut().for_each(|o| *o *= inverse);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buf, DType, Team};

    #[test]
    fn every_pooling_reads_only_its_own_sequence() {
        let x = Buf::from_f32(&[3.0, 0.0, 0.0, 4.0, 5.0, 5.0], &[3, 2]).unwrap();
        for (pooling, expected) in [
            (Pooling::Mean, [1.5, 2.0, 5.0, 5.0]),
            (Pooling::Cls, [3.0, 0.0, 5.0, 5.0]),
            (Pooling::LastToken, [0.0, 4.0, 5.0, 5.0]),
        ] {
            for exec in [Exec::Reference, Exec::Simd(Team::new(2))] {
                let mut out = Buf::zeros(DType::F32, &[2, 2]);
                pool(&exec, x.view(), &[0, 2, 3], pooling, false, out.view_mut()).unwrap();
                assert_eq!(out.as_f32().unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_normalised_vector_has_length_one_and_an_empty_sequence_is_zero() {
        let x = Buf::from_f32(&[3.0, 4.0], &[1, 2]).unwrap();
        let mut out = Buf::zeros(DType::F32, &[2, 2]);
        pool(&Exec::Reference, x.view(), &[0, 1, 1], Pooling::Mean, true, out.view_mut()).unwrap();
        assert_eq!(out.as_f32().unwrap(), [0.6, 0.8, 0.0, 0.0]);
    }
}
