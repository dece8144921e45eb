//! The operations of [`Isa`] without any instruction set.

use super::{Isa, LANES};

/// Plain Rust; `mul_add` is fused everywhere, so results equal those of the SIMD sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

// SAFETY: no method needs a CPU feature; pointers are used for 16 elements as the contract says.
unsafe impl Isa for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn set1(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: readable for 16 elements by contract.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::F {
        // SAFETY: readable for 16 elements by contract.
        unsafe { p.cast::<[half::bf16; LANES]>().read_unaligned() }.map(half::bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::F {
        // SAFETY: readable for 16 elements by contract.
        unsafe { p.cast::<[half::f16; LANES]>().read_unaligned() }.map(half::f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_fp8(p: *const u8) -> Self::F {
        // SAFETY: readable for 16 elements by contract.
        let codes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        codes.map(|code| half::f16::from_bits((i16::from(code as i8) << 7) as u16 & 0xbf80).to_f32())
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: writable for 16 elements by contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn iset1(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        // SAFETY: readable for 64 bytes by contract.
        unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() }.map(i32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I) {
        (v.map(|x| x & 0x0f0f_0f0f), v.map(|x| (x >> 4) & 0x0f0f_0f0f))
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, weights: Self::I, x: i32) -> Self::I {
        let x = x.to_le_bytes();
        std::array::from_fn(|lane| {
            let w = weights[lane].to_le_bytes();
            (0..4).fold(acc[lane], |sum, at| sum + i32::from(w[at]) * i32::from(x[at] as i8))
        })
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        v.map(|x| x as f32)
    }
}
