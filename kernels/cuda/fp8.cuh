// Weights as OCP e4m3 codes, a byte each, that are widened to the activations' type for 16-bit tensor-core products.
#pragma once
#include "device.cuh"

// Sign, four bits of exponent with a bias of 7, three of mantissa; no infinities.
struct fp8 {
    uint8_t code;
};

// The code nearest to a value of at most ±448, the even one of two.
template <>
__device__ __forceinline__ fp8 from_f32<fp8>(float value) {
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    // Below 2^-6 codes are multiples of 2^-9; from there on they are a float's first bits, with another bias.
    const uint32_t code = magnitude < 0x3c800000u
                              ? uint32_t(rintf(fabsf(value) * 512.0f))
                              : ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
    return {uint8_t(code | ((bits >> 24) & 0x80u))};
}

// Both elements of a register times a power of two, `by` in both halves.
#ifdef TARN_EMULATED
template <class T>
__device__ __forceinline__ uint32_t pair_times(uint32_t pair, uint32_t by) {
    Pack<T, 2> of, times;
    memcpy(&of, &pair, sizeof(pair));
    memcpy(&times, &by, sizeof(by));
    return pair_of<T>(to_f32(of.at[0]) * to_f32(times.at[0]), to_f32(of.at[1]) * to_f32(times.at[1]));
}
#else
template <class T>
__device__ __forceinline__ uint32_t pair_times(uint32_t pair, uint32_t by);
// A product alone takes sm_90 for bf16; a sum with -0 changes nothing.
template <>
__device__ __forceinline__ uint32_t pair_times<bf16>(uint32_t pair, uint32_t by) {
    uint32_t product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(pair), "r"(by), "r"(0x80008000u));
    return product;
}
template <>
__device__ __forceinline__ uint32_t pair_times<f16>(uint32_t pair, uint32_t by) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(by));
    return product;
}
#endif

// How far a code's exponent and mantissa go to the right from below the sign of a T, and 2^(bias of T - 7) twice.
template <class T>
constexpr int kCodeShift = 0;
template <>
constexpr int kCodeShift<bf16> = 4;
template <>
constexpr int kCodeShift<f16> = 1;
template <class T>
constexpr uint32_t kCodeUnit = 0;
template <>
constexpr uint32_t kCodeUnit<bf16> = 0x7b807b80u;
template <>
constexpr uint32_t kCodeUnit<f16> = 0x5c005c00u;

// Codes 2 `half` and 2 `half` + 1 of a word's four as the register that tensor cores take. Exact: read with the larger
// bias, a code's bits are its value times a power of two, subnormals too. The codes of NaN become ±480.
template <class T>
__device__ __forceinline__ uint32_t widened(uint32_t codes, int half) {
    const uint32_t high = __byte_perm(codes, 0, half == 0 ? 0x1404 : 0x3424);
    return pair_times<T>((high & 0x80008000u) | (high & 0x7f007f00u) >> kCodeShift<T>, kCodeUnit<T>);
}

// A lane's 16 bytes of weights as registers of pairs of T; 16-bit weights are that already.
template <class T, class W>
__device__ __forceinline__ Pack<uint32_t, kWide<W> / 2> widened(const Pack<uint32_t, 4>& weights) {
    if constexpr (sizeof(W) == sizeof(T)) {
        return weights;
    } else {
        Pack<uint32_t, 8> pairs;
#pragma unroll
        for (int at = 0; at < 8; at++) pairs.at[at] = widened<T>(weights.at[at / 2], at % 2);
        return pairs;
    }
}

// What a product with weight row `row` is multiplied by: codes have a scale a row, other weights none.
template <class W>
__device__ __forceinline__ float scale_of([[maybe_unused]] const float* scales, [[maybe_unused]] int64_t row) {
    if constexpr (sizeof(W) == 1) {
        return scales[row];
    } else {
        return 1.0f;
    }
}
