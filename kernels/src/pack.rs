//! The only writer of packed weights: from a checkpoint's rows to the panels of [`Packed`].
//!
//! Packing keeps a source's numbers: GGUF codes and scales are moved, not recomputed, unless a `target` asks for
//! another format. Panels are independent, so a team packs them side by side.

use std::sync::Mutex;

use half::{bf16, f16};

use crate::error::{KernelError, Result, expect_shape};
use crate::gguf::{Block, Codes};
use crate::packed::{GROUP, LANES, code_at};
use crate::quantize;
use crate::{Buf, DType, Exec, Packed, PackedExperts, WeightData, WeightFormat};

/// Packs a row-major `[n, k]` matrix. `target` `None` keeps the source's own format.
pub fn dense(exec: &Exec, data: WeightData<'_>, n: usize, k: usize, target: Option<WeightFormat>) -> Result<Packed> {
    dense_rows(exec, &[(data, n)], k, target)
}

/// Packs matrices of the same `k` as one: their rows, stacked (a fused qkv is `[(q, ..), (k, ..), (v, ..)]`).
///
/// Without a `target`, parts of different integer formats become `Int8`, which holds all of them exactly, and any
/// other mixture `F32`.
pub fn dense_rows(
    exec: &Exec,
    parts: &[(WeightData<'_>, usize)],
    k: usize,
    target: Option<WeightFormat>,
) -> Result<Packed> {
    for (data, rows) in parts {
        data.expect("pack::dense_rows", *rows, k)?;
    }
    let n = parts.iter().map(|(_, rows)| rows).sum();
    let plan = Plan::new(parts.iter().map(|(data, _)| data), target);
    let source = |row: usize| {
        let mut row = row;
        for &(data, rows) in parts {
            if row < rows {
                return Some((data, row));
            }
            row -= rows;
        }
        None
    };
    Ok(plan.pack(exec, &source, n, k))
}

/// Packs the gate and up matrices `[i, h]` of each expert into one: in a panel, 8 gate rows stand before their 8 up
/// rows, so that [`gated_up`](crate::gated_up) has both in one vector.
pub fn gate_up(
    exec: &Exec,
    gate: &[WeightData<'_>],
    up: &[WeightData<'_>],
    i: usize,
    h: usize,
    target: Option<WeightFormat>,
) -> Result<PackedExperts> {
    expect_shape("pack::gate_up", "up", &[up.len()], &[gate.len()])?;
    for data in gate.iter().chain(up) {
        data.expect("pack::gate_up", i, h)?;
    }
    let plan = Plan::new(gate.iter().chain(up), target);
    let experts = gate.iter().zip(up).map(|(&gate, &up)| {
        let source = |row: usize| {
            let (of_pair, lane) = (row / LANES * (LANES / 2), row % LANES);
            let (data, row) = if lane < 8 { (gate, of_pair + lane) } else { (up, of_pair + lane - 8) };
            (row < i).then_some((data, row))
        };
        plan.pack(exec, &source, i.div_ceil(LANES / 2) * LANES, h)
    });
    Ok(PackedExperts { experts: experts.collect(), width: i })
}

/// Packs one `[n, k]` matrix an expert.
pub fn experts(
    exec: &Exec,
    w2: &[WeightData<'_>],
    n: usize,
    k: usize,
    target: Option<WeightFormat>,
) -> Result<PackedExperts> {
    for data in w2 {
        data.expect("pack::experts", n, k)?;
    }
    let plan = Plan::new(w2.iter(), target);
    let pack = |&data| plan.pack(exec, &|row| (row < n).then_some((data, row)), n, k);
    Ok(PackedExperts { experts: w2.iter().map(pack).collect(), width: n })
}

/// The row-major `[n, k]` matrix that a packed one stands for.
pub fn unpack(packed: &Packed) -> Vec<f32> {
    (0..packed.n * packed.k).map(|i| packed.weight(i / packed.k, i % packed.k)).collect()
}

/// One row of a source, or `None` for a row of padding.
type Source<'a, 'd> = &'a (dyn Fn(usize) -> Option<(WeightData<'d>, usize)> + Sync);

/// What the packed form of some sources is.
#[derive(Debug, Clone, Copy)]
struct Plan {
    format: WeightFormat,
    group: usize,
    mins: bool,
    scale_dtype: DType,
}

impl Plan {
    fn new<'d, 'a: 'd>(sources: impl Iterator<Item = &'d WeightData<'a>> + Clone, target: Option<WeightFormat>) -> Plan {
        let format = target.or_else(|| sources.clone().map(natural_format).reduce(join)).unwrap_or(WeightFormat::F32);
        let exact = || sources.clone().filter_map(|data| exact_block(data, format));
        let finest = exact().map(Block::group).min().unwrap_or(GROUP);
        let half = exact().all(Block::has_half_scales);
        Plan {
            format,
            group: finest,
            mins: format == WeightFormat::Int4 || exact().any(Block::has_min),
            scale_dtype: if half { DType::F16 } else { DType::F32 },
        }
    }

    fn pack(&self, exec: &Exec, source: Source<'_, '_>, n: usize, k: usize) -> Packed {
        let panels = n.div_ceil(LANES);
        let k_padded = if self.format.is_integer() { k.next_multiple_of(GROUP) } else { k };
        let panel = [panels, k_padded, LANES];
        let mut packed = Packed {
            n,
            k,
            format: self.format,
            group: self.group,
            weights: match self.format {
                WeightFormat::F32 => Buf::zeros(DType::F32, &panel),
                WeightFormat::F16 => Buf::zeros(DType::F16, &panel),
                WeightFormat::BF16 => Buf::zeros(DType::BF16, &panel),
                WeightFormat::Int8 => Buf::zeros(DType::U32, &[panels, k_padded / 4, LANES]),
                WeightFormat::Int4 => Buf::zeros(DType::U32, &[panels, k_padded / 8, LANES]),
            },
            scales: None,
            mins: None,
        };
        if self.format.is_integer() {
            let groups = Buf::zeros(self.scale_dtype, &[panels, k_padded / self.group, LANES]);
            packed.mins = self.mins.then(|| Buf::zeros(self.scale_dtype, groups.shape()));
            packed.scales = Some(groups);
        }
        if packed.weights.is_empty() {
            return packed;
        }
        let panel_bytes = packed.weights.bytes() / panels;
        let scale_bytes = packed.scales.as_ref().map_or(1, |scales| scales.bytes() / panels);
        let mut none = Vec::new();
        let mut also_none = Vec::new();
        let chunks = packed.weights.as_bytes_mut().chunks_exact_mut(panel_bytes).enumerate();
        let scales = packed.scales.as_mut().map_or(none.as_mut_slice(), Buf::as_bytes_mut).chunks_exact_mut(scale_bytes);
        let mins = packed.mins.as_mut().map_or(also_none.as_mut_slice(), Buf::as_bytes_mut).chunks_exact_mut(scale_bytes);
        // A lock a panel is nothing beside decoding sixteen rows, and it lets the panels be handed out safely.
        let work = Mutex::new((chunks, scales, mins));
        exec.each(panels, &|_| {
            let next = {
                let mut work = work.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                work.0.next().map(|chunk| (chunk, work.1.next(), work.2.next()))
            };
            if let Some(((panel, weights), scales, mins)) = next {
                let mut out = PanelOut { weights, scales: scales.unwrap_or_default(), mins: mins.unwrap_or_default() };
                self.pack_panel(source, n, k, panel, &mut out);
            }
        });
        packed
    }

    fn pack_panel(&self, source: Source<'_, '_>, n: usize, k: usize, panel: usize, out: &mut PanelOut<'_>) {
        let mut floats = vec![0.0; k];
        let mut codes = Codes::default();
        for lane in 0..LANES.min(n - panel * LANES) {
            let Some((data, row)) = source(panel * LANES + lane) else { continue };
            if !self.format.is_integer() {
                data.decode_row(row, &mut floats);
                out.floats(self.format, lane, &floats);
                continue;
            }
            codes.clear();
            match data.blocks().filter(|_| exact_block(&data, self.format).is_some()) {
                Some((block, bytes)) => {
                    let size = block.row_bytes(k);
                    block.codes(&bytes[row * size..(row + 1) * size], &mut codes);
                    if block == Block::Q4_0 && self.format == WeightFormat::Int4 {
                        codes.codes.iter_mut().for_each(|code| *code += 8);
                        codes.mins.iter_mut().zip(&codes.scales).for_each(|(min, scale)| *min = 8.0 * scale);
                    }
                }
                None => {
                    data.decode_row(row, &mut floats);
                    match self.format {
                        WeightFormat::Int4 => quantize::weights_int4(&floats, &mut codes),
                        _ => quantize::weights_int8(&floats, &mut codes),
                    }
                }
            }
            out.codes(self, k.next_multiple_of(GROUP), lane, &codes);
        }
    }
}

/// One panel's share of a packed matrix.
struct PanelOut<'a> {
    weights: &'a mut [u8],
    scales: &'a mut [u8],
    mins: &'a mut [u8],
}

impl PanelOut<'_> {
    fn floats(&mut self, format: WeightFormat, lane: usize, values: &[f32]) {
        for (k, &value) in values.iter().enumerate() {
            let at = k * LANES + lane;
            match format {
                WeightFormat::F16 => put(self.weights, at, f16::from_f32(value).to_ne_bytes()),
                WeightFormat::BF16 => put(self.weights, at, bf16::from_f32(value).to_ne_bytes()),
                _ => put(self.weights, at, value.to_ne_bytes()),
            }
        }
    }

    fn codes(&mut self, plan: &Plan, k_padded: usize, lane: usize, row: &Codes) {
        for (k, &code) in row.codes.iter().enumerate() {
            let byte = &mut self.weights[code_at(plan.format, k_padded, lane, k)];
            match plan.format {
                WeightFormat::Int4 if k % GROUP >= GROUP / 2 => *byte |= (code as u8) << 4,
                WeightFormat::Int4 => *byte |= code as u8,
                _ => *byte = (code as u8) ^ 0x80,
            }
        }
        // A source of groups of 32 in a matrix of groups of 16 states each scale twice.
        let groups = k_padded / plan.group;
        let repeat = groups / row.scales.len().max(1);
        for group in 0..groups {
            let at = group * LANES + lane;
            let put_scale = |bytes: &mut [u8], value: f32| match plan.scale_dtype {
                DType::F16 => put(bytes, at, f16::from_f32(value).to_ne_bytes()),
                _ => put(bytes, at, value.to_ne_bytes()),
            };
            put_scale(self.scales, row.scales[group / repeat]);
            if plan.mins {
                put_scale(self.mins, row.mins[group / repeat]);
            }
        }
    }
}

fn put<const B: usize>(bytes: &mut [u8], at: usize, value: [u8; B]) {
    bytes[at * B..(at + 1) * B].copy_from_slice(&value);
}

fn natural_format(data: &WeightData<'_>) -> WeightFormat {
    match data {
        WeightData::F32(_) => WeightFormat::F32,
        WeightData::F16(_) => WeightFormat::F16,
        WeightData::BF16(_) => WeightFormat::BF16,
        WeightData::Q8_0(_) | WeightData::Q5_0(_) | WeightData::Q5K(_) | WeightData::Q6K(_) => WeightFormat::Int8,
        WeightData::Q4_0(_) | WeightData::Q4_1(_) | WeightData::Q4K(_) => WeightFormat::Int4,
    }
}

/// The format that holds two sources' numbers exactly.
fn join(a: WeightFormat, b: WeightFormat) -> WeightFormat {
    match (a, b) {
        _ if a == b => a,
        _ if a.is_integer() && b.is_integer() => WeightFormat::Int8,
        _ => WeightFormat::F32,
    }
}

/// The block type of a source whose codes fit `format` unchanged.
fn exact_block(data: &WeightData<'_>, format: WeightFormat) -> Option<Block> {
    let (block, _) = data.blocks()?;
    let fits = match format {
        WeightFormat::Int8 => true,
        WeightFormat::Int4 => block.is_nibbles(),
        _ => false,
    };
    fits.then_some(block)
}

/// The error for a matrix that an operation cannot multiply with.
pub(crate) fn expect_k(op: &'static str, packed: &Packed, k: usize) -> Result<(), KernelError> {
    expect_shape(op, "input features", &[k], &[packed.k])
}

#[cfg(test)]
mod tests;
