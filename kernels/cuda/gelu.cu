// x = activation(x + bias) in place. A thread has one pack of a row.
#include "device.cuh"

// As GeluKind of the crate.
enum Kind : int { kErf, kTanh, kRelu };

__device__ __forceinline__ float activate(float x, int kind) {
    if (kind == kErf) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if (kind == kTanh) return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * fmaf(0.044715f * x * x, x, x)));
    return fmaxf(x, 0.0f);
}

template <class T, int W>
__device__ __forceinline__ void gelu(T* __restrict__ x,               // [rows, n]
                                     const float* __restrict__ bias,  // [n] or null
                                     const uint32_t* __restrict__ rows, int n, int parts, int kind) {
    const uint32_t row = blockIdx.x / uint32_t(parts);
    const int at = (int(blockIdx.x % uint32_t(parts)) * int(blockDim.x) + int(threadIdx.x)) * W;
    if (row >= *rows || at >= n) return;
    T* const own = x + int64_t(row) * n + at;
    Pack<T, W> pack = load<W>(own);
#pragma unroll
    for (int i = 0; i < W; i++) {
        const float value = to_f32(pack.at[i]);
        pack.at[i] = from_f32<T>(activate(bias != nullptr ? value + bias[at + i] : value, kind));
    }
    store(own, pack);
}

#define GELU(name, T, W)                                                                                    \
    KERNEL(256, name, T* x, const float* bias, const uint32_t* rows, int n, int parts, int kind) {          \
        gelu<T, W>(x, bias, rows, n, parts, kind);                                                          \
    }

GELU(gelu_bf16, bf16, kWide<bf16>)
GELU(gelu_f16, f16, kWide<f16>)
GELU(gelu_f32, float, kWide<float>)
GELU(gelu_bf16_odd, bf16, 1)
GELU(gelu_f16_odd, f16, 1)
GELU(gelu_f32_odd, float, 1)
