//! Rows of an embedding table.

use half::{bf16, f16};

use crate::blocks::BlockFormat;
use crate::buf::ViewMut;
use crate::error::{KernelError, Result, inside, same};
use crate::exec::{Exec, share};
use crate::pack::WeightData;

/// A table `[V, H]`, kept as it was stored.
#[derive(Debug)]
pub struct EmbeddingTable {
    rows: Rows,
    v: usize,
    h: usize,
}

#[derive(Debug)]
enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Blocks(BlockFormat, Vec<u8>),
}

impl EmbeddingTable {
    /// Copies `data` `[v, h]`.
    ///
    /// # Errors
    /// [`KernelError`] when it has another shape.
    pub fn new(data: WeightData<'_>, v: usize, h: usize) -> Result<EmbeddingTable> {
        let found = data.rows(h).ok_or(KernelError::Unsupported {
            op: "embedding table",
            what: "a row length",
            value: h,
        })?;
        same("embedding table", "number of rows", found, v)?;
        let rows = match data {
            WeightData::F32(data) => Rows::F32(data.to_vec()),
            WeightData::F16(data) => Rows::F16(data.to_vec()),
            WeightData::BF16(data) => Rows::BF16(data.to_vec()),
            WeightData::Blocks(format, data) => Rows::Blocks(format, data.to_vec()),
        };
        Ok(EmbeddingTable { rows, v, h })
    }

    /// Rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v
    }

    /// Whether it has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v == 0
    }

    /// Width of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.h
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(data) => data.len() * 4,
            Rows::F16(data) => data.len() * 2,
            Rows::BF16(data) => data.len() * 2,
            Rows::Blocks(_, data) => data.len(),
        }
    }

    /// The table as weights.
    #[must_use]
    pub fn data(&self) -> WeightData<'_> {
        match &self.rows {
            Rows::F32(data) => WeightData::F32(data),
            Rows::F16(data) => WeightData::F16(data),
            Rows::BF16(data) => WeightData::BF16(data),
            Rows::Blocks(format, data) => WeightData::Blocks(*format, data),
        }
    }
}

/// `out [T, H]` = the table's rows for `ids [T]`.
///
/// # Errors
/// [`KernelError`] when shapes do not agree or an id is outside the table.
pub fn embed_rows(exec: &Exec, ids: &[u32], table: &EmbeddingTable, mut out: ViewMut<'_>) -> Result<()> {
    const OP: &str = "embed_rows";
    same(OP, "rows of out", out.n_rows(), ids.len())?;
    same(OP, "columns of out", out.n_cols(), table.h)?;
    for id in ids {
        inside(OP, "token id", *id as usize, table.v)?;
    }
    let raw = out.raw();
    let one = |row: usize| {
        // SAFETY: out is [ids.len(), h] (checked) and each row belongs to one worker.
        let to = unsafe { std::slice::from_raw_parts_mut(raw.at(row, 0), table.h) };
        table.data().row(ids[row] as usize, to);
    };
    if ids.len() < 16 {
        (0..ids.len()).for_each(one);
    } else {
        exec.run(&|worker, workers| share(ids.len(), 1, worker, workers).for_each(one));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;

    #[test]
    fn every_row_is_the_tables_whatever_the_threads_and_a_wrong_id_writes_nothing() {
        let (v, h) = (40, 7);
        let data = fill(v * h, 1);
        let table = EmbeddingTable::new(WeightData::F32(&data), v, h).expect("table");
        let ids: Vec<u32> = (0..33).map(|at| at * 11 % 40).collect();
        for exec in [Exec::Reference, Exec::simd(3)] {
            let mut out = vec![0.0; ids.len() * h];
            let to = ViewMut::new(&mut out, ids.len(), h).expect("out");
            embed_rows(&exec, &ids, &table, to).expect("embeds");
            for (row, id) in out.chunks_exact(h).zip(&ids) {
                assert_eq!(row, &data[*id as usize * h..][..h]);
            }
            let mut out = vec![0.0; 2 * h];
            assert!(embed_rows(&exec, &[1, 40], &table, ViewMut::new(&mut out, 2, h).expect("out")).is_err());
            assert!(out.iter().all(|x| *x == 0.0));
        }
    }
}
