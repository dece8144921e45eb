//! `expert_tiles.cu`, by the cases of [`super::expert_stream`] in its own shapes.

use super::CheckDevice;
use super::expert_stream::{Products, Shape, run_products};
use crate::device::expert_tiles::{expert_down, expert_up};

/// One pair; widths below, at and beside a step, a warp's rows, a block's; empty experts; more pairs on one expert than a
/// tile has; more steps than stages.
const SHAPES: [Shape; 7] = [
    Shape { tokens: 1, ranks: 1, experts: 1, h: 8, inner: 8, one_expert: false, long: false },
    Shape { tokens: 5, ranks: 2, experts: 8, h: 64, inner: 72, one_expert: false, long: false },
    Shape { tokens: 70, ranks: 1, experts: 2, h: 72, inner: 40, one_expert: true, long: false },
    Shape { tokens: 33, ranks: 2, experts: 3, h: 136, inner: 64, one_expert: false, long: false },
    Shape { tokens: 4, ranks: 1, experts: 1, h: 328, inner: 16, one_expert: false, long: false },
    Shape { tokens: 100, ranks: 2, experts: 8, h: 256, inner: 448, one_expert: false, long: true },
    Shape { tokens: 300, ranks: 2, experts: 4, h: 128, inner: 64, one_expert: false, long: true },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    run_products(device, small, "expert_tiles", &SHAPES, &Products { up: expert_up, down: expert_down })
}
