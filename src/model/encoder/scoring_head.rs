//! The head of a cross-encoder: one logit a text.
//!
//! `out · tanh(dense · first token) + bias`: what BERT spreads over pooler and classifier, XLM-R keeps in one head. The
//! dense layer is a product like any other, packed for the CPU or on a device; what follows it is a [`Label`], which the
//! host computes in both cases.

use tarn_kernels::{Buf, DType, Exec, WeightFormat, Workspace, matmul};

use super::super::config::HeadStyle;
use super::super::error::{ModelError, Result};
use super::super::weights::Tensors;
use super::layer::Dense;
use super::load::DenseTensors;

/// A head's weights as the files have them.
pub(super) struct HeadTensors<'a> {
    /// `[hidden, hidden]`.
    pub(super) dense: DenseTensors<'a>,
    pub(super) label: Label,
}

/// What becomes a logit after the dense layer: the one label's row.
#[derive(Debug)]
pub(super) struct Label {
    /// `[hidden]`.
    weight: Vec<f32>,
    bias: f32,
}

/// A head on the CPU.
#[derive(Debug)]
pub(super) struct ScoringLayers {
    dense: Dense,
    label: Label,
    first: Buf,
    pooled: Buf,
}

impl<'a> HeadTensors<'a> {
    pub(super) fn find(tensors: &'a Tensors<'_>, style: HeadStyle, hidden: usize) -> Result<HeadTensors<'a>> {
        let (dense, last) = match style {
            HeadStyle::Pooler => ("pooler.dense", "classifier"),
            HeadStyle::Classifier => ("classifier.dense", "classifier.out_proj"),
        };
        let dense = DenseTensors::find(tensors, &[dense.to_owned()], hidden, hidden)?;
        let mut weight = vec![0.0; hidden];
        tensors.get(&format!("{last}.weight"), &[1, hidden])?.data().row(0, &mut weight);
        let bias = tensors.vector(&format!("{last}.bias"), 1)?[0];
        Ok(HeadTensors { dense, label: Label { weight, bias } })
    }
}

impl Label {
    /// The logit of what the dense layer makes of a first token, `[hidden]`.
    pub(super) fn logit(&self, dense: &[f32]) -> f32 {
        dense.iter().zip(&self.weight).map(|(x, weight)| x.tanh() * weight).sum::<f32>() + self.bias
    }
}

impl ScoringLayers {
    /// A head of width `hidden` for up to `sequences` texts a pass.
    pub(super) fn new(
        found: HeadTensors<'_>,
        hidden: usize,
        sequences: usize,
        target: Option<WeightFormat>,
    ) -> Result<ScoringLayers> {
        Ok(ScoringLayers {
            dense: found.dense.pack(target)?,
            label: found.label,
            first: Buf::zeros(DType::F32, &[sequences, hidden])?,
            pooled: Buf::zeros(DType::F32, &[sequences, hidden])?,
        })
    }

    /// Memory of the weights in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        self.dense.weight.bytes() + 4 * (self.dense.bias.len() + self.label.weight.len() + 1)
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
        check_first_tokens(cu_seqlens)?;
        let sequences = cu_seqlens.len() - 1;
        let states = states.view()?;
        let mut first = self.first.view_mut()?;
        for (row, start) in cu_seqlens[..sequences].iter().enumerate() {
            first.row(row).copy_from_slice(states.row(*start as usize));
        }
        let (first, bias) = (self.first.head(sequences)?, Some(&self.dense.bias[..]));
        matmul(exec, ws, first, &self.dense.weight, bias, self.pooled.head_mut(sequences)?, false)?;
        let pooled = self.pooled.view()?;
        out.clear();
        out.extend((0..sequences).map(|row| self.label.logit(pooled.row(row))));
        Ok(())
    }
}

/// Refuses a sequence without a token: it has no first one to score.
pub(super) fn check_first_tokens(cu_seqlens: &[u32]) -> Result<()> {
    if cu_seqlens.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(ModelError::Batch { what: "a sequence without a token".to_owned() });
    }
    Ok(())
}

/// What says that pairs are to be scored by a model that cannot.
pub(super) fn no_head() -> ModelError {
    ModelError::Batch { what: "pairs to score, and a model without a head".to_owned() }
}
