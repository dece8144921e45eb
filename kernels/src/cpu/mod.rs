//! Vector code.
mod isa;
pub(crate) use isa::Isa;
pub(crate) mod attention {
    pub(crate) fn supports(_dim: usize) -> bool { false }
    pub(crate) fn paged(_: &crate::Team, call: &crate::paged_attention::PagedAttention<'_>, out: &mut crate::view::MatrixMut<'_>) { call.reference(out) }
    pub(crate) fn encoder(_: &crate::Team, call: &crate::encoder_attention::EncoderAttention<'_>, out: &mut crate::view::MatrixMut<'_>) { call.reference(out) }
}
pub(crate) mod quantize {
    pub(crate) fn rows<'a>(_: &crate::Team, x: crate::view::Matrix<'_>, rows: impl Iterator<Item = crate::quantize::QuantizedRow<'a>>) {
        rows.zip(0..x.rows).for_each(|(mut out, row)| out.reference(x.row(row)))
    }
}
pub(crate) mod gemm {
    use crate::view::MatrixMut; use crate::matmul::*; use crate::*;
    pub(crate) fn matmul(_: &Team, input: Input<'_>, w: &Packed, e: &Epilogue<'_>, out: &mut MatrixMut<'_>) { crate::matmul::reference(input, w, e, out) }
    pub(crate) fn gated_up(_: &Team, input: Input<'_>, w: &PackedExperts, g: &ExpertGroups, a: Activation, out: &mut MatrixMut<'_>) { crate::gated_up::reference(input, w, g, a, out) }
    pub(crate) fn grouped(_: &Team, input: Input<'_>, w: &PackedExperts, g: &ExpertGroups, out: &mut MatrixMut<'_>) { crate::expert_down::reference(input, w, g, out) }
}
pub(crate) mod norms {
    use crate::view::*; use crate::*;
    pub(crate) fn rms_norm(_: &Team, x: Matrix<'_>, mut r: Option<&mut MatrixMut<'_>>, w: &[f32], eps: f32, out: &mut MatrixMut<'_>) {
        for t in 0..x.rows { match &mut r { None => crate::rms_norm::reference(x.row(t), w, eps, out.row(t)), Some(r) => { r.row(t).iter_mut().zip(x.row(t)).for_each(|(r, x)| *r += x); crate::rms_norm::reference(r.row(t), w, eps, out.row(t)) } } }
    }
    pub(crate) fn layer_norm(_: &Team, x: Matrix<'_>, r: Option<Matrix<'_>>, w: &[f32], b: &[f32], eps: f32, out: &mut MatrixMut<'_>) {
        for t in 0..x.rows { let o = out.row(t); o.copy_from_slice(x.row(t)); if let Some(r) = &r { o.iter_mut().zip(r.row(t)).for_each(|(o, r)| *o += r) } crate::layer_norm::reference(w, b, eps, o) }
    }
}
pub(crate) mod elementwise {
    pub(crate) fn gelu(_: &crate::Team, x: &mut crate::view::MatrixMut<'_>, kind: crate::GeluKind) {
        for t in 0..x.rows { x.row(t).iter_mut().for_each(|v| *v = match kind { crate::GeluKind::Erf => crate::gelu::erf_reference(*v), crate::GeluKind::Tanh => crate::gelu::tanh_reference(*v) }) }
    }
}
pub(crate) mod scan {
    pub(crate) fn scan(_: super::Isa, m: crate::view::Matrix<'_>, q: &[f32], rows: impl Iterator<Item = usize>, f: &mut dyn FnMut(usize, f32)) { rows.for_each(|r| f(r, crate::scan_topk::reference(m, r, q))) }
}
