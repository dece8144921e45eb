//! Adapters on the device: slots of the largest rank, filled by whoever loads an adapter ([`AdapterLoader`]), else when a
//! step first needs it.
//!
//! The products that are one on the device have one update: q, k and v, and gate and up. Their As are below each other,
//! and B is zero where a part does not take a column. A slot's place is the same for every adapter, so that a list of
//! launches serves all of them; what an adapter does not update is zero.

use std::sync::Arc;

use tarn_kernels::LowRank;
use tarn_kernels::device::expert_stream::interleave;
use tarn_kernels::device::fill::{Fill, fill};
use tarn_kernels::device::{Device, Ptr, Use};

use super::super::super::error::{ModelError, Result};
use super::super::super::lora::{LoraAdapter, LoraLayer};
use super::super::super::upload::narrow;
use super::super::super::weights::DummyTensor;
use super::adapter_loader::{AdapterLoader, Place, SlotTable};
use super::shape::Extents;

/// Writes bytes of a buffer, from an offset on.
pub(super) type Upload<'a> = &'a mut dyn FnMut(Ptr, usize, &[u8]) -> tarn_kernels::Result<()>;

/// Memory of all slots, and which adapter is in which.
#[derive(Debug)]
pub(super) struct AdapterSlots {
    pub(super) layers: Arc<[LayerUpdates]>,
    pub(super) scratch: Scratch,
    table: Arc<SlotTable>,
    /// What their memory is to kernels.
    r#use: Use,
}

/// The updates of a layer's products.
#[derive(Debug)]
pub(super) struct LayerUpdates {
    pub(super) qkv: Update,
    pub(super) output: Update,
    /// Of no columns for a dense MLP.
    pub(super) router: Update,
    pub(super) w13: Update,
    pub(super) w2: Update,
}

/// The updates of one product by all slots: A `[slots, experts, rank, k]`, B `[slots, experts, n, rank]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    pub(super) a: Ptr,
    pub(super) b: Ptr,
    /// 1 for a product of tokens.
    pub(super) experts: usize,
    pub(super) rank: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// What launches of adapters share.
#[derive(Debug)]
pub(super) struct Scratch {
    /// `[slots + 1]` and `[tokens]` u32: tokens by slot.
    pub(super) token_offsets: Ptr,
    pub(super) sorted_tokens: Ptr,
    /// `[slots * experts + 1]` and `[pairs]` u32: pairs by virtual expert.
    pub(super) pair_offsets: Ptr,
    pub(super) sorted_pairs: Ptr,
    /// `[parts, rows, rank]` f32, of the largest product.
    pub(super) v: Ptr,
    /// `[pairs, 2 inner]` and `[pairs, hidden]`.
    pub(super) up: Ptr,
    pub(super) down: Ptr,
    /// `[slots]` f32, ones: B has the scale.
    pub(super) scales: Ptr,
}

impl AdapterSlots {
    /// Room for as many as `extents` has slots; their memory is to kernels what the weights' is.
    pub(super) fn new(device: &mut dyn Device, extents: &Extents, r#use: Use) -> Result<AdapterSlots> {
        let layers = (0..extents.layers)
            .map(|at| LayerUpdates::new(device, extents, r#use, at))
            .collect::<Result<_>>()?;
        let table = Arc::new(SlotTable::new(extents.slots));
        Ok(AdapterSlots { layers, scratch: Scratch::new(device, extents)?, table, r#use })
    }

    /// The slot of each of `adapters`, which are distinct; those that are in none replace the least recently used.
    pub(super) fn bring(
        &mut self,
        device: &mut dyn Device,
        extents: &Extents,
        adapters: &[Arc<LoraAdapter>],
    ) -> Result<Vec<u32>> {
        let places = self.table.places(adapters)?.into_iter().zip(adapters);
        let brought = places.map(|(place, adapter)| match place {
            Place::Filled(at) => Ok(at as u32),
            Place::Empty(filling) => {
                self.fill(device, extents, filling.at, adapter)?;
                let at = filling.at as u32;
                filling.end(adapter);
                Ok(at)
            }
        });
        brought.collect()
    }

    /// Brings an adapter to slot `at`, behind what is queued.
    fn fill(
        &self,
        device: &mut dyn Device,
        extents: &Extents,
        at: usize,
        adapter: &LoraAdapter,
    ) -> Result<()> {
        match adapter.dummy() {
            None => {
                let put = &mut |to, from, bytes: &[u8]| device.upload(to, from, bytes);
                let mut layers = self.layers.iter().zip(0..);
                layers.try_for_each(|(updates, layer)| updates.fill(put, extents, at, adapter.layer(layer)))
            }
            Some(seed) if self.r#use == Use::ReadWrite => {
                self.layers.iter().try_for_each(|updates| updates.dummies(device, extents, at, seed))
            }
            Some(_) => Err(ModelError::Batch { what: "a dummy adapter of weights that are none".to_owned() }),
        }
    }

    /// What fills slots from other threads.
    pub(super) fn loader(&self, device: &dyn Device, extents: &Extents) -> Result<AdapterLoader> {
        Ok(AdapterLoader::new(device.copier()?, *extents, self.layers.clone(), self.table.clone()))
    }
}

impl Scratch {
    fn new(device: &mut dyn Device, extents: &Extents) -> Result<Scratch> {
        let Extents { tokens, hidden, inner, experts, top_k, slots, .. } = *extents;
        let pairs = tokens * top_k;
        let v = |rows: usize, rank: usize, k: usize| extents.shrink_parts(k) * rows * rank * 4;
        let largest = [
            v(tokens, extents.rank(3), hidden),
            v(tokens, extents.rank(1), extents.attended()),
            v(pairs, extents.rank(2), hidden),
            v(pairs, extents.rank(1), inner),
        ];
        let scales = device.alloc("adapters' scales", slots * 4, Use::Read)?;
        let ones: Vec<u8> = (0..slots).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
        device.upload(scales, 0, &ones)?;
        let mut bytes = |name: &str, bytes: usize| device.alloc(name, bytes, Use::Write);
        Ok(Scratch {
            scales,
            token_offsets: bytes("offsets of adapters", (slots + 1) * 4)?,
            sorted_tokens: bytes("tokens by adapter", tokens * 4)?,
            pair_offsets: bytes("offsets of adapters' experts", (slots * experts + 1) * 4)?,
            sorted_pairs: bytes("pairs by adapter", pairs * 4)?,
            v: bytes("way down of adapters", largest.into_iter().max().unwrap_or(0))?,
            up: bytes("updates of w13", extents.bytes(pairs * 2 * inner))?,
            down: bytes("updates of w2", extents.bytes(pairs * hidden))?,
        })
    }
}

impl LayerUpdates {
    fn new(device: &mut dyn Device, extents: &Extents, r#use: Use, at: usize) -> Result<LayerUpdates> {
        let Extents { hidden, inner, heads, experts, routed, .. } = *extents;
        let attended = extents.attended();
        let mut update = |part: &str, experts: usize, fused: usize, n: usize, k: usize| -> Result<Update> {
            let rank = extents.rank(fused);
            let mut alloc = |factor: &str, elements: usize| {
                let bytes = extents.bytes(extents.slots * experts * elements);
                device.alloc(&format!("layer {at}: {factor} of {part}"), bytes, r#use)
            };
            Ok(Update { a: alloc("A", rank * k)?, b: alloc("B", n * rank)?, experts, rank, n, k })
        };
        Ok(LayerUpdates {
            qkv: update("qkv", 1, 3, heads.width(), hidden)?,
            output: update("output", 1, 1, hidden, attended)?,
            router: update("router", 1, 1, if routed { experts } else { 0 }, hidden)?,
            w13: update("w13", experts, 2, 2 * inner, hidden)?,
            w2: update("w2", experts, 1, hidden, inner)?,
        })
    }

    /// Writes what an adapter does to this layer into a slot.
    pub(super) fn fill(
        &self,
        put: Upload<'_>,
        extents: &Extents,
        slot: usize,
        layer: &LoraLayer,
    ) -> Result<()> {
        let (q, kv) = (extents.attended(), extents.heads.kv * extents.heads.dim);
        let mut all = |update: &Update, expert: usize, from: Option<&LowRank>, parts: &[usize]| {
            update.fill(put, extents, slot * update.experts + expert, from, parts)
        };
        all(&self.qkv, 0, layer.qkv.as_ref(), &[q, kv, kv])?;
        all(&self.output, 0, layer.output.as_ref(), &[extents.hidden])?;
        if extents.routed {
            all(&self.router, 0, layer.router.as_ref(), &[extents.experts])?;
        }
        for (expert, (w13, w2)) in layer.w13.iter().zip(&layer.w2).enumerate() {
            all(&self.w13, expert, w13.as_ref(), &[extents.inner])?;
            all(&self.w2, expert, w2.as_ref(), &[extents.hidden])?;
        }
        Ok(())
    }

    /// Fills a slot with random updates of every product.
    fn dummies(&self, device: &mut dyn Device, extents: &Extents, slot: usize, seed: u64) -> Result<()> {
        let LayerUpdates { qkv, output, router, w13, w2 } = self;
        [qkv, output, router, w13, w2]
            .into_iter()
            .filter(|update| update.n > 0)
            .try_for_each(|update| update.dummies(device, extents, slot, seed))
    }
}

impl Update {
    /// Fills A and B of all experts of `slot` with random values: of the largest rank, and of all columns.
    fn dummies(&self, device: &mut dyn Device, extents: &Extents, slot: usize, seed: u64) -> Result<()> {
        for (to, elements) in [(self.a, self.rank * self.k), (self.b, self.n * self.rank)] {
            let len = self.experts * elements;
            let out = to.offset(slot * extents.bytes(len));
            // The address makes the values of every place others.
            let seed = seed ^ out.0;
            device.launch(&fill(&Fill {
                out,
                dtype: extents.dtype,
                len,
                seed,
                scale: DummyTensor::BOUND,
            })?)?;
        }
        Ok(())
    }

    /// Writes A and B of virtual expert `at`; zeros for none. `parts` are the fused products' outputs.
    fn fill(
        &self,
        put: Upload<'_>,
        extents: &Extents,
        at: usize,
        from: Option<&LowRank>,
        parts: &[usize],
    ) -> Result<()> {
        let (mut a, mut b) = (vec![0.0; self.rank * self.k], vec![0.0; self.n * self.rank]);
        if let Some(from) = from {
            let width = from.width();
            if width > self.rank {
                let what = format!("an adapter of rank {width}, the device has room for {}", self.rank);
                return Err(ModelError::Batch { what });
            }
            let (down, up) = from.unpack(parts)?;
            a[..down.len()].copy_from_slice(&down);
            b.chunks_exact_mut(self.rank)
                .zip(up.chunks_exact(width))
                .for_each(|(to, row)| to[..width].copy_from_slice(row));
            if from.is_gated() {
                let (gate, up) = b.split_at(self.n / 2 * self.rank);
                b = interleave(gate, up, self.n / 2, self.rank)?;
            }
        }
        for (to, values) in [(self.a, a), (self.b, b)] {
            let mut bytes = vec![0; extents.bytes(values.len())];
            narrow(extents.dtype, &values, &mut bytes);
            put(to, at * bytes.len(), &bytes)?;
        }
        Ok(())
    }
}
