//! Rows of an embedding table.

use half::{bf16, f16};

use crate::blocks::BlockFormat;
use crate::buf::ViewMut;
use crate::error::{KernelError, Result, inside, same};
use crate::exec::Exec;
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
pub fn embed_rows(_exec: &Exec, ids: &[u32], table: &EmbeddingTable, mut out: ViewMut<'_>) -> Result<()> {
    const OP: &str = "embed_rows";
    same(OP, "rows of out", out.n_rows(), ids.len())?;
    same(OP, "columns of out", out.n_cols(), table.h)?;
    for (row, id) in ids.iter().enumerate() {
        inside(OP, "token id", *id as usize, table.v)?;
        table.data().row(*id as usize, out.row(row));
    }
    Ok(())
}
