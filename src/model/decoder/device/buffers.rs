//! Buffers of a step, sized once for the largest: what is uploaded, and activations.

use tarn_kernels::device::sample::Sampling;
use tarn_kernels::device::{Device, Ptr, Use};

use super::super::super::error::Result;
use super::super::super::upload::Uploader;
use super::DeviceFormat;
use super::shape::{Extents, padded};

/// What a step reads, u32, uploaded but for ids that the step before drew. Of lists that are padded, only the first as many
/// as their count are read.
#[derive(Debug)]
pub(super) struct Inputs {
    /// The number of tokens.
    pub(super) tokens: Ptr,
    /// `[tokens]`. What a step draws is put there again, from the first on: a step that follows finds its tokens.
    pub(super) ids: Ptr,
    /// `[tokens]`.
    pub(super) positions: Ptr,
    /// `[tokens]`: where keys and values go.
    pub(super) slots: Ptr,
    /// `[tokens]`: the adapter's slot, or `u32::MAX`.
    pub(super) adapters: Ptr,
    /// `[sequences, 4]`: [`tarn_kernels::SeqSpan`]; a query length of 0 pads.
    pub(super) spans: Ptr,
    /// `[sequences]`: tokens in the cache; 0 pads.
    pub(super) contexts: Ptr,
    /// `[sequences, table_width]`.
    pub(super) tables: Ptr,
    /// The number of rows wanted.
    pub(super) rows: Ptr,
    /// `[sequences]`: which.
    pub(super) wanted: Ptr,
    /// `[sequences]` of [`Sampling`].
    pub(super) how: Ptr,
    /// The number of copies.
    pub(super) copies: Ptr,
    /// `[sequences, 2]`: blocks, from and to.
    pub(super) pairs: Ptr,
}

/// Activations, in the element type where nothing else is said.
#[derive(Debug)]
pub(super) struct Activations {
    /// `[tokens, hidden]`.
    pub(super) residual: Ptr,
    /// `[tokens, hidden]`, normalised.
    pub(super) x: Ptr,
    /// `[tokens, (q + 2 kv) dim]`.
    pub(super) qkv: Ptr,
    /// `[tokens, q dim]`.
    pub(super) attended: Ptr,
    /// `[tokens, hidden]`.
    pub(super) down: Ptr,
    /// Of decoding, `[sequences, q, parts, dim]` and `[sequences, q, parts, 2]` f32.
    pub(super) sums: Ptr,
    pub(super) stats: Ptr,
    /// `[tokens, experts]`.
    pub(super) router_logits: Ptr,
    /// `[tokens, top_k]` u32; zeros for a dense MLP.
    pub(super) expert_ids: Ptr,
    /// `[tokens, top_k]` f32; ones for a dense MLP.
    pub(super) expert_weights: Ptr,
    /// `[experts + 1]` and `[pairs]` u32.
    pub(super) offsets: Ptr,
    pub(super) sorted_pairs: Ptr,
    /// `[pairs, inner]`.
    pub(super) gated: Ptr,
    /// `[pairs, hidden]` f32.
    pub(super) expert_out: Ptr,
    /// `[sequences, hidden]`: the rows wanted, and normalised.
    pub(super) gathered: Ptr,
    pub(super) normed: Ptr,
    /// `[sequences, vocab]` f32.
    pub(super) logits: Ptr,
}

fn words(device: &mut dyn Device, name: &str, count: usize) -> Result<Ptr> {
    Ok(device.alloc(name, count * 4, Use::Read)?)
}

impl Inputs {
    pub(super) fn new(device: &mut dyn Device, extents: &Extents) -> Result<Inputs> {
        let (tokens, sequences) = (extents.tokens, extents.sequences);
        Ok(Inputs {
            tokens: words(device, "number of tokens", 1)?,
            ids: device.alloc("token ids", tokens.max(sequences) * 4, Use::ReadWrite)?,
            positions: words(device, "positions", tokens)?,
            slots: words(device, "slots", tokens)?,
            adapters: words(device, "adapter slots", tokens)?,
            spans: words(device, "spans", sequences * 4)?,
            contexts: words(device, "contexts", sequences)?,
            tables: words(device, "block tables", sequences * extents.table_width)?,
            rows: words(device, "number of rows", 1)?,
            wanted: words(device, "rows wanted", sequences)?,
            how: device.alloc("sampling", sequences * Sampling::BYTES, Use::Read)?,
            copies: words(device, "number of copies", 1)?,
            pairs: words(device, "copies", sequences * 2)?,
        })
    }
}

impl Activations {
    pub(super) fn new(device: &mut dyn Device, extents: &Extents) -> Result<Activations> {
        let Extents { tokens, sequences, hidden, inner, heads, experts, top_k, vocab, routed, .. } = *extents;
        let pairs = tokens * top_k;
        // Fewer sequences are split into more parts.
        let parts = (1..=sequences)
            .map(|count| padded(count, sequences))
            .map(|count| count * extents.decode_parts(count))
            .max()
            .unwrap_or(1);
        let partial = parts * heads.q * 4;
        let (expert_ids, expert_weights) = match routed {
            true => (
                device.alloc("expert ids", pairs * 4, Use::Write)?,
                device.alloc("expert weights", pairs * 4, Use::Write)?,
            ),
            false => {
                let ids = words(device, "the one expert", tokens)?;
                device.upload(ids, 0, &vec![0; tokens * 4])?;
                (
                    ids,
                    Uploader::new(device, extents.dtype, DeviceFormat::Plain, Use::Read)
                        .vector("its weights", &vec![1.0; tokens])?,
                )
            }
        };
        let mut halves = |name: &str, rows: usize, width: usize| {
            device.alloc(name, extents.bytes(rows * width), Use::Write)
        };
        let (residual, x) = (halves("residual", tokens, hidden)?, halves("x", tokens, hidden)?);
        let qkv = halves("qkv", tokens, heads.width())?;
        let attended = halves("attended", tokens, extents.attended())?;
        let down = halves("down", tokens, hidden)?;
        let router_logits = halves("router logits", tokens, experts)?;
        let gated = halves("gated", pairs, inner)?;
        let (gathered, normed) =
            (halves("gathered", sequences, hidden)?, halves("normed", sequences, hidden)?);
        let mut bytes = |name: &str, bytes: usize| device.alloc(name, bytes, Use::Write);
        Ok(Activations {
            residual,
            x,
            qkv,
            attended,
            down,
            router_logits,
            gated,
            gathered,
            normed,
            expert_ids,
            expert_weights,
            sums: bytes("sums of parts", partial * heads.dim)?,
            stats: bytes("weights of parts", partial * 2)?,
            offsets: bytes("expert offsets", (experts + 1) * 4)?,
            sorted_pairs: bytes("sorted pairs", pairs * 4)?,
            expert_out: bytes("experts' rows", pairs * hidden * 4)?,
            logits: bytes("logits", sequences * vocab * 4)?,
        })
    }
}
