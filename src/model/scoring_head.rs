//! The head of a cross-encoder: one logit a text.

use tarn_kernels::{Buf, DType, Exec, Packed, Workspace, matmul, pack};

use super::config::HeadStyle;
use super::error::{ModelError, Result};
use super::weights::Tensors;

/// `out · tanh(dense · first token) + bias`: what BERT spreads over pooler and classifier, XLM-R keeps in one head.
#[derive(Debug)]
pub(super) struct ScoringLayers {
    dense: Packed,
    dense_bias: Vec<f32>,
    /// One label's row, `[hidden]`.
    out: Vec<f32>,
    out_bias: f32,
    first: Buf,
    pooled: Buf,
}

impl ScoringLayers {
    /// Loads a head of width `hidden` for up to `sequences` texts a pass.
    pub(super) fn load(
        tensors: &Tensors<'_>,
        style: HeadStyle,
        hidden: usize,
        sequences: usize,
        target: Option<tarn_kernels::WeightFormat>,
    ) -> Result<ScoringLayers> {
        let (dense, last) = match style {
            HeadStyle::Pooler => ("pooler.dense", "classifier"),
            HeadStyle::Classifier => ("classifier.dense", "classifier.out_proj"),
        };
        let weight = tensors.get(&format!("{dense}.weight"), &[hidden, hidden])?;
        let mut out = vec![0.0; hidden];
        tensors.get(&format!("{last}.weight"), &[1, hidden])?.data().row(0, &mut out);
        Ok(ScoringLayers {
            dense: pack::dense(weight.data(), hidden, hidden, target)?,
            dense_bias: tensors.vector(&format!("{dense}.bias"), hidden)?,
            out,
            out_bias: tensors.vector(&format!("{last}.bias"), 1)?[0],
            first: Buf::zeros(DType::F32, &[sequences, hidden])?,
            pooled: Buf::zeros(DType::F32, &[sequences, hidden])?,
        })
    }

    /// Memory of the weights in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        self.dense.bytes() + 4 * (self.dense_bias.len() + self.out.len() + 1)
    }

    /// One logit a sequence from the token states `[tokens, hidden]`.
    pub(super) fn logits(
        &mut self,
        exec: &Exec,
        ws: &mut Workspace,
        states: &Buf,
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if cu_seqlens.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ModelError::Batch { what: "a sequence without a token".to_owned() });
        }
        let sequences = cu_seqlens.len() - 1;
        let states = states.view()?;
        let mut first = self.first.view_mut()?;
        for (row, start) in cu_seqlens[..sequences].iter().enumerate() {
            first.row(row).copy_from_slice(states.row(*start as usize));
        }
        let (first, bias) = (self.first.head(sequences)?, Some(&self.dense_bias[..]));
        matmul(exec, ws, first, &self.dense, bias, self.pooled.head_mut(sequences)?, false)?;
        let pooled = self.pooled.view()?;
        out.clear();
        out.extend((0..sequences).map(|row| {
            let dot: f32 = pooled.row(row).iter().zip(&self.out).map(|(x, weight)| x.tanh() * weight).sum();
            dot + self.out_bias
        }));
        Ok(())
    }
}
