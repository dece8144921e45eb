//! Packs what an adapter does to one layer.

use tarn_kernels::LowRank;

use super::super::error::Result;
use super::tensors::{Found, Site, Target};
use super::{Extents, LoraLayer};

/// The updates of layer `at`.
pub(super) fn layer(found: &Found<'_>, extents: &Extents, at: usize) -> Result<LoraLayer> {
    let Extents { hidden, inner, q, kv, experts, .. } = *extents;
    let get = |target, expert| found.get(Site { layer: at, target, expert });
    let plain = |parts: &[(usize, Target)], expert: usize, k: usize| -> Result<Option<LowRank>> {
        let parts: Vec<_> = parts.iter().map(|(n, target)| (*n, get(*target, expert))).collect();
        let any = parts.iter().any(|(_, factors)| factors.is_some());
        Ok(if any { Some(LowRank::plain(&parts, k)?) } else { None })
    };
    let gated = |expert: usize| -> Result<Option<LowRank>> {
        if let Some(factors) = get(Target::GateUp, expert) {
            return Ok(Some(LowRank::gated_shared(factors, inner, hidden)?));
        }
        let (gate, up) = (get(Target::Gate, expert), get(Target::Up, expert));
        let any = gate.is_some() || up.is_some();
        Ok(if any { Some(LowRank::gated(gate, up, inner, hidden)?) } else { None })
    };
    let all = 0..experts.max(1);
    Ok(LoraLayer {
        qkv: plain(&[(q, Target::Query), (kv, Target::Key), (kv, Target::Value)], 0, hidden)?,
        output: plain(&[(hidden, Target::Output)], 0, q)?,
        router: plain(&[(experts, Target::Router)], 0, hidden)?,
        w13: all.clone().map(gated).collect::<Result<_>>()?,
        w2: all.map(|expert| plain(&[(hidden, Target::Down)], expert, inner)).collect::<Result<_>>()?,
    })
}
