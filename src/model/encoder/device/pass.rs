//! A pass as a list of launches: for a shape the same every time, whatever is in the buffers.

use tarn_kernels::DType;
use tarn_kernels::device::dense::{Dense, dense};
use tarn_kernels::device::encoder_attention::{EncoderAttention, encoder_attention};
use tarn_kernels::device::encoder_embed::{EncoderEmbed, encoder_embed};
use tarn_kernels::device::gather_rows::{GatherRows, gather_rows};
use tarn_kernels::device::gelu::{Gelu, gelu};
use tarn_kernels::device::layer_norm::{LayerNorm, layer_norm};
use tarn_kernels::device::pool::{Pool, pool};
use tarn_kernels::device::{Device, Launch, Ptr, Use};

use super::super::super::config::EncoderConfig;
use super::super::super::error::Result;
use super::super::scoring_head::no_head;
use super::shape::{Limits, Shape, Wanted};
use super::weights::{DenseWeights, NormWeights, Weights};

/// All that the launches of an encoder point to.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) dtype: DType,
    pub(super) weights: Weights,
    pub(super) buffers: Buffers,
}

/// What a pass reads and writes, sized once for the largest.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The number of tokens, u32.
    pub(super) tokens: Ptr,
    /// `[tokens]` u32.
    pub(super) ids: Ptr,
    /// `[tokens]` u32.
    pub(super) positions: Ptr,
    /// `[sequences + 1]` u32; the end again where sequences pad.
    pub(super) cu_seqlens: Ptr,
    /// `[tokens, hidden]`: what a layer takes and gives.
    x: Ptr,
    /// `[tokens, hidden]`: before a norm.
    sum: Ptr,
    /// `[tokens, 3 hidden]`.
    qkv: Ptr,
    /// `[tokens, hidden]`: what attention gives, then what the MLP takes.
    attended: Ptr,
    /// `[tokens, intermediate]`.
    inner: Ptr,
    /// `[sequences, hidden]` f32: vectors, or what the head's dense layer gives.
    pub(super) pooled: Ptr,
    /// Where the model scores pairs.
    pub(super) head: Option<HeadBuffers>,
}

/// What only a model with a head reads and writes.
#[derive(Debug)]
pub(super) struct HeadBuffers {
    /// `[tokens]` u32: the text of the pair that a token is of.
    pub(super) types: Ptr,
    /// The number of sequences, u32.
    pub(super) sequences: Ptr,
    /// `[sequences, hidden]`: states of first tokens.
    first: Ptr,
}

impl Buffers {
    pub(super) fn new(
        device: &mut dyn Device,
        config: &EncoderConfig,
        dtype: DType,
        limits: Limits,
    ) -> Result<Buffers> {
        let Limits { tokens, sequences, .. } = limits;
        let mut words = |name: &str, count: usize| device.alloc(name, count * 4, Use::Read);
        let (count, ids) = (words("number of tokens", 1)?, words("token ids", tokens)?);
        let (positions, cu_seqlens) = (words("positions", tokens)?, words("bounds", sequences + 1)?);
        let mut activations =
            |name: &str, width: usize| device.alloc(name, tokens * width * dtype.size(), Use::Write);
        Ok(Buffers {
            tokens: count,
            ids,
            positions,
            cu_seqlens,
            x: activations("x", config.hidden)?,
            sum: activations("sum", config.hidden)?,
            qkv: activations("qkv", 3 * config.hidden)?,
            attended: activations("attended", config.hidden)?,
            inner: activations("inner", config.intermediate)?,
            pooled: device.alloc("pooled", sequences * config.hidden * 4, Use::Write)?,
            head: config.head.map(|_| HeadBuffers::new(device, config.hidden, dtype, limits)).transpose()?,
        })
    }
}

impl HeadBuffers {
    fn new(device: &mut dyn Device, hidden: usize, dtype: DType, limits: Limits) -> Result<HeadBuffers> {
        let first = limits.sequences * hidden * dtype.size();
        Ok(HeadBuffers {
            types: device.alloc("types", limits.tokens * 4, Use::Read)?,
            sequences: device.alloc("number of sequences", 4, Use::Read)?,
            first: device.alloc("first tokens", first, Use::Write)?,
        })
    }
}

/// The launches of one pass, being written down.
struct Pass<'a> {
    config: &'a EncoderConfig,
    parts: &'a Parts,
    shape: Shape,
    list: Vec<Launch>,
}

impl Parts {
    /// From token ids to what is wanted, a row a sequence.
    pub(super) fn list(&self, config: &EncoderConfig, shape: Shape) -> Result<Vec<Launch>> {
        let mut pass = Pass { config, parts: self, shape, list: Vec::new() };
        let Buffers { x, sum, qkv, attended, inner, .. } = self.buffers;
        pass.embed()?;
        pass.norm(sum, Ptr::NONE, &self.weights.norm, x)?;
        for layer in &self.weights.layers {
            pass.dense(x, &layer.qkv, qkv)?;
            pass.attend()?;
            pass.dense(attended, &layer.output, sum)?;
            pass.norm(sum, x, &layer.attention_norm, attended)?;
            pass.dense(attended, &layer.up, inner)?;
            pass.activate()?;
            pass.dense(inner, &layer.down, sum)?;
            pass.norm(sum, attended, &layer.mlp_norm, x)?;
        }
        match shape.wanted {
            Wanted::Vectors => pass.pool()?,
            Wanted::HeadRows => pass.head()?,
        }
        Ok(pass.list)
    }
}

impl Pass<'_> {
    fn push(&mut self, launch: tarn_kernels::Result<Launch>) -> Result<()> {
        self.list.push(launch?);
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        let Parts { dtype, weights, buffers } = self.parts;
        self.push(encoder_embed(&EncoderEmbed {
            ids: buffers.ids,
            position_ids: buffers.positions,
            type_ids: buffers.head.as_ref().map_or(Ptr::NONE, |head| head.types),
            words: weights.words,
            positions: weights.positions,
            types: weights.types,
            out: buffers.sum,
            rows: buffers.tokens,
            dtype: *dtype,
            max_rows: self.shape.tokens,
            h: self.config.hidden,
        }))
    }

    fn norm(&mut self, x: Ptr, residual: Ptr, by: &NormWeights, out: Ptr) -> Result<()> {
        self.push(layer_norm(&LayerNorm {
            x,
            residual,
            weight: by.weight,
            bias: by.bias,
            out,
            rows: self.parts.buffers.tokens,
            dtype: self.parts.dtype,
            max_rows: self.shape.tokens,
            h: self.config.hidden,
            eps: self.config.eps,
        }))
    }

    fn dense(&mut self, x: Ptr, by: &DenseWeights, out: Ptr) -> Result<()> {
        self.push(dense(&self.product(x, by, out)))
    }

    /// A product of all tokens.
    fn product(&self, x: Ptr, by: &DenseWeights, out: Ptr) -> Dense {
        Dense {
            x,
            w: by.weight,
            bias: by.bias,
            out,
            rows: self.parts.buffers.tokens,
            dtype: self.parts.dtype,
            out_dtype: self.parts.dtype,
            max_rows: self.shape.tokens,
            n: by.n,
            k: by.k,
        }
    }

    fn attend(&mut self) -> Result<()> {
        let Parts { dtype, buffers, .. } = self.parts;
        let dim = self.config.hidden / self.config.heads;
        self.push(encoder_attention(&EncoderAttention {
            qkv: buffers.qkv,
            cu_seqlens: buffers.cu_seqlens,
            out: buffers.attended,
            dtype: *dtype,
            sequences: self.shape.sequences,
            max_tokens: self.shape.longest,
            heads: self.config.heads,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
        }))
    }

    fn activate(&mut self) -> Result<()> {
        self.push(gelu(&Gelu {
            x: self.parts.buffers.inner,
            bias: Ptr::NONE,
            rows: self.parts.buffers.tokens,
            dtype: self.parts.dtype,
            max_rows: self.shape.tokens,
            n: self.config.intermediate,
            kind: self.config.activation.kind(),
        }))
    }

    fn pool(&mut self) -> Result<()> {
        let Parts { dtype, buffers, .. } = self.parts;
        self.push(pool(&Pool {
            x: buffers.x,
            cu_seqlens: buffers.cu_seqlens,
            out: buffers.pooled,
            dtype: *dtype,
            sequences: self.shape.sequences,
            h: self.config.hidden,
            pooling: self.config.pooling,
            normalize: self.config.normalize,
        }))
    }

    /// The head's dense layer on first tokens: `cu_seqlens` are their rows.
    fn head(&mut self) -> Result<()> {
        let Parts { dtype, weights, buffers } = self.parts;
        let (Some(by), Some(head)) = (&weights.head, &buffers.head) else { return Err(no_head()) };
        self.push(gather_rows(&GatherRows {
            x: buffers.x,
            residual: Ptr::NONE,
            at: buffers.cu_seqlens,
            out: head.first,
            rows: head.sequences,
            dtype: *dtype,
            max_rows: self.shape.sequences,
            h: self.config.hidden,
        }))?;
        self.push(dense(&Dense {
            rows: head.sequences,
            max_rows: self.shape.sequences,
            out_dtype: DType::F32,
            ..self.product(head.first, by, buffers.pooled)
        }))
    }
}
