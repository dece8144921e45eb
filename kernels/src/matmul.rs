//! `out [M, N] = x [M, K] · w [N, K]ᵀ (+ bias) (+ out)`.
//!
//! Panels are shared out over the team; each output is one sequential sum over K, so the result of a row depends on
//! nothing but the row.

use crate::buf::{RawRows, View, ViewMut};
use crate::cpu::{Portable, float, int};
use crate::error::{KernelError, Result, at_least, same};
use crate::exec::{Exec, share};
use crate::fp8;
use crate::lora::Deltas;
use crate::pack::{CHUNK, Packed, Segment, WeightFormat, unpack_row};
use crate::workspace::{Quantized, Workspace};

/// The dense product.
///
/// # Errors
/// [`KernelError`] when shapes do not agree or the workspace is too small.
pub fn matmul(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w: &Packed,
    bias: Option<&[f32]>,
    out: ViewMut<'_>,
    add: bool,
) -> Result<()> {
    dense(exec, ws, x, w, bias, out, add, None)
}

/// The dense product plus what the rows' adapters add to it.
///
/// # Errors
/// As [`matmul`]; also when `deltas` belong to another product.
pub fn matmul_adapted(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w: &Packed,
    bias: Option<&[f32]>,
    out: ViewMut<'_>,
    deltas: Option<Deltas<'_>>,
) -> Result<()> {
    dense(exec, ws, x, w, bias, out, false, deltas)
}

fn dense(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w: &Packed,
    bias: Option<&[f32]>,
    mut out: ViewMut<'_>,
    add: bool,
    deltas: Option<Deltas<'_>>,
) -> Result<()> {
    const OP: &str = "matmul";
    same(OP, "columns of x", x.n_cols(), w.k())?;
    same(OP, "rows of out", out.n_rows(), x.n_rows())?;
    same(OP, "columns of out", out.n_cols(), w.n())?;
    if let Some(bias) = bias {
        same(OP, "bias", bias.len(), w.n())?;
    }
    if w.is_gated() {
        return Err(KernelError::Unsupported { op: OP, what: "gated weights, rows", value: w.n() });
    }
    if let Some(deltas) = deltas {
        deltas.check(OP, x.n_rows(), w)?;
    }
    let rows = x.n_rows();
    let stride = ws.max_k;
    let quantized = quantize_if_needed(exec, ws, x, std::slice::from_ref(w))?;
    let task = Product { x, quantized, stride, deltas };
    task.run(exec, w, 0..rows, None, bias, out.raw(), add);
    Ok(())
}

/// Quantises `x` when any of `weights` is made of integers.
pub(crate) fn quantize_if_needed<'a>(
    exec: &Exec,
    ws: &'a mut Workspace,
    x: View<'_>,
    weights: &[Packed],
) -> Result<Option<&'a Quantized>> {
    let integer =
        |w: &Packed| w.formats().any(|format| matches!(format, WeightFormat::Int8 | WeightFormat::Int4));
    if !weights.iter().any(integer) {
        return Ok(None);
    }
    at_least("matmul", "rows of the workspace", ws.max_rows, x.n_rows())?;
    at_least("matmul", "width of the workspace", ws.max_k, x.n_cols())?;
    let (k, stride) = (x.n_cols(), ws.max_k);
    let codes = Shared(ws.quantized.codes.as_mut_ptr());
    let scales = Shared(ws.quantized.scales.as_mut_ptr());
    let sums = Shared(ws.quantized.sums.as_mut_ptr());
    let rows = x.n_rows();
    let one = |row: usize| {
        // SAFETY: row < rows <= max_rows and k <= max_k, so all four ranges are inside their vectors; each row is
        // written by one worker.
        unsafe {
            int::quantize_row(
                x.row(row).as_ptr(),
                k,
                codes.get().add(row * stride),
                scales.get().add(row * stride / 32),
                sums.get().add(row * stride / 16),
            );
        }
    };
    if rows < 8 {
        (0..rows).for_each(one);
    } else {
        exec.run(&|worker, workers| share(rows, 1, worker, workers).for_each(one));
    }
    Ok(Some(&ws.quantized))
}

/// A pointer that workers share; they write disjoint parts.
struct Shared<T>(*mut T);
// SAFETY: used only inside one op, where every worker writes its own rows.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// The input of one or more products.
pub(crate) struct Product<'a> {
    pub(crate) x: View<'a>,
    pub(crate) quantized: Option<&'a Quantized>,
    /// Row stride of the quantised codes.
    pub(crate) stride: usize,
    /// What adapters add to the output's rows.
    pub(crate) deltas: Option<Deltas<'a>>,
}

/// A product with everything resolved, shareable between workers.
pub(crate) struct Job<'a> {
    product: &'a Product<'a>,
    w: &'a Packed,
    rows: std::ops::Range<usize>,
    index: Option<&'a [u32]>,
    bias: Option<&'a [f32]>,
    out: RawRows,
    add: bool,
}

impl Product<'_> {
    /// Computes output rows `rows` of `x · wᵀ`. With `index`, output row `r` is made from input row `index[r]`.
    pub(crate) fn run(
        &self,
        exec: &Exec,
        w: &Packed,
        rows: std::ops::Range<usize>,
        index: Option<&[u32]>,
        bias: Option<&[f32]>,
        out: RawRows,
        add: bool,
    ) {
        if rows.is_empty() {
            return;
        }
        let job = Job { product: self, w, rows, index, bias, out, add };
        if matches!(exec, Exec::Reference) {
            return job.reference();
        }
        let chunks = job.chunks();
        exec.each(chunks, &|at| job.chunk(at));
    }

    /// As [`Product::run`], one part at a time for a caller that shares out the parts of several products.
    pub(crate) fn part<'a>(
        &'a self,
        w: &'a Packed,
        rows: std::ops::Range<usize>,
        index: Option<&'a [u32]>,
        out: RawRows,
    ) -> Job<'a> {
        Job { product: self, w, rows, index, bias: None, out, add: false }
    }
}

impl Job<'_> {
    /// Chunks of panels that the product consists of; none without rows.
    pub(crate) fn chunks(&self) -> usize {
        if self.rows.is_empty() {
            return 0;
        }
        self.w.chunks()
    }

    /// [`Job::chunk`], by plain loops for the reference.
    pub(crate) fn chunk_of(&self, exec: &Exec, at: usize) {
        match exec {
            // The whole product is one chunk's work there, done once.
            Exec::Reference if at == 0 => self.reference(),
            Exec::Reference => {}
            Exec::Simd(_) => self.chunk(at),
        }
    }

    /// Computes chunk `at`. Each output is one sum over K inside its panel, so who computes it changes nothing.
    pub(crate) fn chunk(&self, at: usize) {
        let mut left = at;
        for (part, segment) in self.w.segments().iter().enumerate() {
            let panels = segment.data.shape()[0];
            let chunks = panels.div_ceil(CHUNK);
            if left < chunks {
                return self.panels(part, segment, left * CHUNK..((left + 1) * CHUNK).min(panels));
            }
            left -= chunks;
        }
    }

    fn sink(&self, part: usize, segment: &Segment) -> float::Sink {
        float::Sink {
            out: self.out,
            col: segment.col,
            n: segment.n,
            bias: self.bias.map_or(std::ptr::null(), |bias| bias[segment.col..].as_ptr()),
            add: self.add,
            gated: self.w.is_gated(),
            deltas: self.product.deltas.map(|deltas| deltas.of_part(part)),
        }
    }

    fn panels(&self, part: usize, segment: &Segment, range: std::ops::Range<usize>) {
        let sink = self.sink(part, segment);
        let index = self.index.map_or(std::ptr::null(), <[u32]>::as_ptr);
        let k = self.w.k();
        let rows = (self.rows.start, self.rows.end);
        let range = (range.start, range.end);
        let (panels, panel_bytes) = (segment.data.bytes().as_ptr(), segment.panel_bytes);
        if let (WeightFormat::Int8 | WeightFormat::Int4, Some(quantized)) =
            (segment.format, self.product.quantized)
        {
            let stride = self.product.stride;
            let job = int::IntJob {
                codes: float::InputRows { start: quantized.codes.as_ptr(), stride, index },
                scales: float::InputRows { start: quantized.scales.as_ptr(), stride: stride / 32, index },
                sums: float::InputRows { start: quantized.sums.as_ptr(), stride: stride / 16, index },
                rows,
                k,
                panels,
                panel_bytes,
                range,
                sink,
            };
            // SAFETY: the op checked that x is [rows, k] and out [rows, n]; `quantize_if_needed` filled as many rows
            // with this stride; `pack` made the panels for k; the range is this worker's alone.
            unsafe {
                match (segment.format, segment.group) {
                    (WeightFormat::Int4, _) => int::run_int4(&job),
                    (_, 16) => int::run_int8_16(&job),
                    _ => int::run_int8_32(&job),
                }
            }
            return;
        }
        let x = float::InputRows { start: self.product.x.ptr(), stride: self.product.x.stride(), index };
        let job = float::FloatJob { x, rows, k, panels, panel_bytes, range, sink };
        // SAFETY: as above, for float panels.
        unsafe {
            match segment.format {
                WeightFormat::BF16 => float::run_bf16(&job),
                WeightFormat::F16 => float::run_f16(&job),
                WeightFormat::Fp8 => float::run_fp8(&job),
                _ => float::run_f32(&job),
            }
        }
    }

    /// Plain loops over logical rows.
    fn reference(&self) {
        let k = self.w.k();
        let mut row_weights = vec![0.0_f32; k];
        for (part, segment) in self.w.segments().iter().enumerate() {
            let sink = self.sink(part, segment);
            for panel in 0..segment.data.shape()[0] {
                for row in self.rows.clone() {
                    let mut values = [0.0_f32; 16];
                    for (lane, value) in values.iter_mut().enumerate() {
                        unpack_row(segment, panel * 16 + lane, &mut row_weights);
                        *value = self.reference_dot(segment, panel * 16 + lane, row, &row_weights);
                    }
                    // SAFETY: the op checked the output's shape; one thread runs the reference.
                    unsafe { sink.put::<Portable>(row, panel, values) };
                }
            }
        }
    }

    fn reference_dot(&self, segment: &Segment, packed_row: usize, row: usize, weights: &[f32]) -> f32 {
        let source = self.index.map_or(row, |index| index[row] as usize);
        match (segment.format, self.product.quantized) {
            (WeightFormat::Int8 | WeightFormat::Int4, Some(quantized)) => {
                reference_int(segment, packed_row, quantized, self.product.stride, source, weights.len())
            }
            (WeightFormat::Fp8, _) => reference_fp8(segment, packed_row, self.product.x.row(source)),
            _ => self.product.x.row(source).iter().zip(weights).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum)),
        }
    }
}

/// The dot of one weight row's codes and `x`, times the row's scale.
fn reference_fp8(segment: &Segment, row: usize, x: &[f32]) -> f32 {
    let (panel, lane) = (row / 16, row % 16);
    let bytes = &segment.data.bytes()[panel * segment.panel_bytes..][..segment.panel_bytes];
    let (codes, scales) = bytes.split_at(x.len() * 16);
    let scale = f32::from_le_bytes(scales[lane * 4..lane * 4 + 4].try_into().unwrap_or_default());
    let codes = codes.iter().skip(lane).step_by(16);
    x.iter().zip(codes).fold(0.0, |sum, (x, code)| x.mul_add(fp8::decode(*code), sum)) * scale
}

/// The integer dot of one weight row and one quantised row, group by group.
fn reference_int(
    segment: &Segment,
    row: usize,
    x: &Quantized,
    stride: usize,
    source: usize,
    k: usize,
) -> f32 {
    let (panel, lane) = (row / 16, row % 16);
    let bytes = &segment.data.bytes()[panel * segment.panel_bytes..][..segment.panel_bytes];
    let int8 = segment.format == WeightFormat::Int8;
    let groups = k / segment.group;
    let floats = &bytes[if int8 { k * 16 } else { k * 8 }..];
    let float_at = |at: usize| f32::from_le_bytes(floats[at * 4..at * 4 + 4].try_into().unwrap_or_default());
    let mut total = 0.0_f32;
    for group in 0..groups {
        let (mut dot, mut sum) = (0_i32, 0_i32);
        for at in group * segment.group..(group + 1) * segment.group {
            let code = if int8 {
                i32::from(bytes[(at / 4 * 16 + lane) * 4 + at % 4]) - 128
            } else {
                crate::pack::int4_code(bytes, at, lane)
            };
            let activation = i32::from(x.codes[source * stride + at]);
            dot += code * activation;
            sum += activation;
        }
        let scale = x.scales[source * stride / 32 + group * segment.group / 32];
        total = (dot as f32).mul_add(scale * float_at(group * 16 + lane), total);
        if !int8 {
            total = (-scale * sum as f32).mul_add(float_at((groups + group) * 16 + lane), total);
        }
    }
    total
}

#[cfg(test)]
mod tests;
