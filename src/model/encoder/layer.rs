//! A layer's pass: attention, then the MLP, each normalised with what went into it.

use tarn_kernels::{Exec, Packed, encoder_attention, gelu, layer_norm, matmul};

use super::super::config::EncoderConfig;
use super::super::error::Result;
use super::State;

#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Dense {
    pub(super) weight: Packed,
    pub(super) bias: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) qkv: Dense,
    pub(super) output: Dense,
    pub(super) attention_norm: Norm,
    pub(super) up: Dense,
    pub(super) down: Dense,
    pub(super) mlp_norm: Norm,
}

impl Layer {
    pub(super) fn forward(
        &self,
        exec: &Exec,
        config: &EncoderConfig,
        state: &mut State,
        tokens: usize,
        cu_seqlens: &[u32],
    ) -> Result<()> {
        let head_dim = config.hidden / config.heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let State { x, extra, qkv, attended, inner, ws, .. } = state;
        matmul(
            exec,
            ws,
            x.head(tokens)?,
            &self.qkv.weight,
            Some(&self.qkv.bias),
            qkv.head_mut(tokens)?,
            false,
        )?;
        let out = attended.head_mut(tokens)?;
        encoder_attention(exec, ws, qkv.head(tokens)?, config.heads, head_dim, cu_seqlens, scale, out)?;
        let bias = Some(&self.output.bias[..]);
        matmul(exec, ws, attended.head(tokens)?, &self.output.weight, bias, extra.head_mut(tokens)?, false)?;
        let norm = &self.attention_norm;
        let out = attended.head_mut(tokens)?;
        layer_norm(
            exec,
            extra.head(tokens)?,
            Some(x.head(tokens)?),
            &norm.weight,
            &norm.bias,
            config.eps,
            out,
        )?;
        let bias = Some(&self.up.bias[..]);
        matmul(exec, ws, attended.head(tokens)?, &self.up.weight, bias, inner.head_mut(tokens)?, false)?;
        gelu(exec, inner.head_mut(tokens)?, config.activation.kind())?;
        let bias = Some(&self.down.bias[..]);
        matmul(exec, ws, inner.head(tokens)?, &self.down.weight, bias, extra.head_mut(tokens)?, false)?;
        let norm = &self.mlp_norm;
        let out = x.head_mut(tokens)?;
        layer_norm(
            exec,
            extra.head(tokens)?,
            Some(attended.head(tokens)?),
            &norm.weight,
            &norm.bias,
            config.eps,
            out,
        )?;
        Ok(())
    }
}
