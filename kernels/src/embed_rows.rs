//! Token ids to rows of an embedding table.

use half::{bf16, f16};

use crate::error::{Result, expect_below, expect_shape};
use crate::gguf::Block;
use crate::{Exec, ViewMut, WeightData};

/// An embedding table `[vocab, hidden]`, kept in its source's format: a step reads a handful of rows.
#[derive(Debug)]
pub struct EmbeddingTable {
    rows: Rows,
    vocab: usize,
    hidden: usize,
}

#[derive(Debug)]
enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Blocks(Block, Vec<u8>),
}

impl EmbeddingTable {
    /// A copy of the row-major `[vocab, hidden]` matrix.
    pub fn new(data: WeightData<'_>, vocab: usize, hidden: usize) -> Result<EmbeddingTable> {
        data.expect("EmbeddingTable::new", vocab, hidden)?;
        let rows = match (data, data.blocks()) {
            (_, Some((block, bytes))) => Rows::Blocks(block, bytes.to_vec()),
            (WeightData::F16(values), _) => Rows::F16(values.to_vec()),
            (WeightData::BF16(values), _) => Rows::BF16(values.to_vec()),
            (WeightData::F32(values), _) => Rows::F32(values.to_vec()),
            _ => Rows::F32(Vec::new()),
        };
        Ok(EmbeddingTable { rows, vocab, hidden })
    }

    /// Rows of the table.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Length of a row.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Memory that the table takes.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(values) => values.len() * 4,
            Rows::F16(values) => values.len() * 2,
            Rows::BF16(values) => values.len() * 2,
            Rows::Blocks(_, bytes) => bytes.len(),
        }
    }

    fn row(&self, id: usize, out: &mut [f32]) {
        match &self.rows {
            Rows::F32(values) => WeightData::F32(values).decode_row(id, out),
            Rows::F16(values) => WeightData::F16(values).decode_row(id, out),
            Rows::BF16(values) => WeightData::BF16(values).decode_row(id, out),
            Rows::Blocks(block, bytes) => {
                let size = block.row_bytes(self.hidden);
                block.decode_row(&bytes[id * size..(id + 1) * size], out);
            }
        }
    }
}

/// `out[t] = table[ids[t]]`, for `out` `[T, H]`.
pub fn embed_rows(exec: &Exec, ids: &[u32], table: &EmbeddingTable, mut out: ViewMut<'_>) -> Result<()> {
    const OP: &str = "embed_rows";
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[ids.len(), table.hidden])?;
    expect_below(OP, "token id", ids, table.vocab)?;
    let rows = out.shared();
    let copy = |t: usize| {
        // SAFETY: row t is written by the task t only.
        table.row(ids[t] as usize, unsafe { rows.row(t) });
    };
    // A row is a few hundred bytes: sharing pays for a prompt, not for a decode step.
    if ids.len() < 64 { (0..ids.len()).for_each(copy) } else { exec.each(ids.len(), &copy) }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buf, DType};

    #[test]
    fn rows_are_copied_in_the_order_of_the_ids_from_every_format() {
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let brains: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        for data in [WeightData::F32(&values), WeightData::F16(&halves), WeightData::BF16(&brains)] {
            let table = EmbeddingTable::new(data, 3, 2).unwrap();
            let mut out = Buf::zeros(DType::F32, &[2, 2]);
            embed_rows(&Exec::Reference, &[2, 0], &table, out.view_mut()).unwrap();
            assert_eq!(out.as_f32().unwrap(), [4.0, 5.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_an_error() {
        let table = EmbeddingTable::new(WeightData::F32(&[0.0; 4]), 2, 2).unwrap();
        let mut out = Buf::zeros(DType::F32, &[1, 2]);
        assert!(embed_rows(&Exec::Reference, &[2], &table, out.view_mut()).is_err());
    }
}
