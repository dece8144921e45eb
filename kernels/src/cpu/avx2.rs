//! The operations of [`Isa`] in AVX2 with FMA and F16C.
use std::arch::x86_64::*;

use super::Isa;

/// Two 256-bit registers a vector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

/// 16 fp8 codes as halves: sign, and exponent and mantissa one place behind it.
///
/// # Safety
/// AVX2 is there; 16 bytes are readable.
#[inline(always)]
pub(super) unsafe fn halves_of_fp8(p: *const u8) -> __m256i {
    // SAFETY: the caller's contract.
    unsafe {
        let signed = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
        _mm256_and_si256(_mm256_slli_epi16::<7>(signed), _mm256_set1_epi16(0xbf80_u16 as i16))
    }
}

// SAFETY: the methods are inlined into functions that enable the features they use (`dispatch!`); unaligned loads
// and stores touch exactly 16 elements, as the contract allows.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one argument for all: the impl's SAFETY note")]
unsafe impl Isa for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn set1(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::F {
        unsafe {
            let half = |p: *const half::bf16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [half(p), half(p.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::F {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(p: *const u8) -> Self::F {
        unsafe {
            let halves = halves_of_fp8(p);
            let low = _mm256_castsi256_si128(halves);
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn izero() -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn iset1(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I) {
        unsafe {
            let low = _mm256_set1_epi8(0x0f);
            let one = |v| (_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16::<4>(v), low));
            let (a, b) = (one(v[0]), one(v[1]));
            ([a.0, b.0], [a.1, b.1])
        }
    }
    /// Widened to 16 bits: `vpmaddubsw` would saturate on two products of 255 * 127.
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, weights: Self::I, x: i32) -> Self::I {
        unsafe {
            let b = x.to_le_bytes().map(|byte| byte as i8 as i16);
            let even = _mm256_set1_epi32((i32::from(b[0]) & 0xffff) | (i32::from(b[2]) << 16));
            let odd = _mm256_set1_epi32((i32::from(b[1]) & 0xffff) | (i32::from(b[3]) << 16));
            let low = _mm256_set1_epi16(0xff);
            let one = |acc, w| {
                let acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, low), even));
                _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), odd))
            };
            [one(acc[0], weights[0]), one(acc[1], weights[1])]
        }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
}
