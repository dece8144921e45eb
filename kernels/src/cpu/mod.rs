//! SIMD: one set of generic loops, compiled once for each instruction set.
//!
//! [`Isa`] names the few vector operations that the hot loops need, always 16 f32 lanes wide. The loops are
//! `#[inline(always)]` generics; [`dispatch!`](crate::cpu::dispatch) compiles them inside functions with the right
//! `target_feature`s. All instruction sets perform the same operations in the same order, so that they agree to
//! the bit where the operations are exact or fused alike.

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod float;
pub(crate) mod int;
pub(crate) mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// Lanes of a vector, rows of a weight panel, keys of a KV block.
pub(crate) const LANES: usize = 16;

/// What the bits of an fp8 code are worth, over what they would be as those of a half: the difference of their biases.
pub(crate) const FP8_UNITS: f32 = 256.0;

/// 16 f32 (or i32) lanes.
///
/// # Safety
/// Every method may be called only where the instruction set of the implementing type is available, and the
/// pointers must be readable (or writable) for 16 elements.
#[allow(clippy::missing_safety_doc, reason = "the trait's contract covers every method")]
pub(crate) unsafe trait Isa: Copy {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn set1(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn load_bf16(p: *const half::bf16) -> Self::F;
    unsafe fn load_f16(p: *const half::f16) -> Self::F;
    /// The values of 16 codes of [`crate::fp8`] in units of [`FP8_UNITS`]: their bits are those of a half's value.
    unsafe fn load_fp8(p: *const u8) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// `a * b + c`, fused.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;

    unsafe fn izero() -> Self::I;
    unsafe fn iset1(x: i32) -> Self::I;
    /// 64 bytes of weights, four a lane.
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    /// Low and high nibbles of 64 bytes.
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I);
    /// Adds to every lane the dot product of its four unsigned weights and the four signed activations in `x`.
    unsafe fn dot4(acc: Self::I, weights: Self::I, x: i32) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::F;
}

/// The instruction set of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// AVX-512 with VNNI.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Anything.
    Portable,
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Runs `work` with a lower instruction set on this thread.
#[cfg(test)]
pub(crate) fn with_level<T>(level: Level, work: impl FnOnce() -> T) -> T {
    FORCED.set(Some(level));
    let result = work();
    FORCED.set(None);
    result
}

/// What this machine has (the standard library caches the answer).
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = FORCED.get() {
        return level;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// The instruction set that ops use on this machine, by name.
#[must_use]
pub fn level_name() -> &'static str {
    match level() {
        Level::Avx512 => "AVX-512 with VNNI",
        Level::Avx2 => "AVX2 with FMA and F16C",
        Level::Portable => "portable",
    }
}

/// Defines `fn name(args)` that runs the generic `inner::<S>(args)` compiled for this machine's instruction set.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $inner:ident) => {
        $(#[$meta])*
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's contract; this function is entered only where AVX-512 was detected.
                unsafe { $inner::<$crate::cpu::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's contract; this function is entered only where AVX2 was detected.
                unsafe { $inner::<$crate::cpu::Avx2>($($arg),*) }
            }
            match $crate::cpu::level() {
                // SAFETY: `level` detected the features; the rest is the caller's contract.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: the portable set needs no features; the rest is the caller's contract.
                _ => unsafe { $inner::<$crate::cpu::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;
