// out = (x + residual - mean) / deviation * weight + bias, or of x alone. One block a row; the row stays in registers, and
// the deviation is of its differences from the mean.
#include "device.cuh"

// Packs a thread keeps.
constexpr int kPacks = 4;

template <class T, int W>
__device__ __forceinline__ void layer_norm(const T* __restrict__ x,           // [rows, h]
                                           const T* __restrict__ residual,    // [rows, h] or null
                                           const float* __restrict__ weight,  // [h]
                                           const float* __restrict__ bias,    // [h]
                                           T* __restrict__ out,               // [rows, h]
                                           const uint32_t* __restrict__ rows, int h, float eps) {
    SHARED(float, sums, kWarp);
    SHARED(float, squares, kWarp);
    if (blockIdx.x >= *rows) return;
    const int64_t base = int64_t(blockIdx.x) * h;
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    float kept[kPacks][W];
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
        const int at = (p * threads + thread) * W;
        if (at >= h) continue;
        const Pack<T, W> own = load<W>(x + base + at);
#pragma unroll
        for (int i = 0; i < W; i++) kept[p][i] = to_f32(own.at[i]);
        if (residual != nullptr) {
            const Pack<T, W> before = load<W>(residual + base + at);
#pragma unroll
            for (int i = 0; i < W; i++) kept[p][i] += to_f32(before.at[i]);
        }
#pragma unroll
        for (int i = 0; i < W; i++) sum += kept[p][i];
    }
    const float mean = block_sum(sum, sums) / float(h);
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
        if ((p * threads + thread) * W >= h) continue;
#pragma unroll
        for (int i = 0; i < W; i++) {
            kept[p][i] -= mean;
            square = fmaf(kept[p][i], kept[p][i], square);
        }
    }
    const float scale = rsqrtf(block_sum(square, squares) / float(h) + eps);
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
        const int at = (p * threads + thread) * W;
        if (at >= h) continue;
        Pack<T, W> result;
#pragma unroll
        for (int i = 0; i < W; i++) result.at[i] = from_f32<T>(fmaf(kept[p][i] * scale, weight[at + i], bias[at + i]));
        store(out + base + at, result);
    }
}

#define LAYER_NORM(name, T, W)                                                                                 \
    KERNEL(1024, name, const T* x, const T* residual, const float* weight, const float* bias, T* out,          \
           const uint32_t* rows, int h, float eps) {                                                           \
        layer_norm<T, W>(x, residual, weight, bias, out, rows, h, eps);                                        \
    }

LAYER_NORM(layer_norm_bf16, bf16, kWide<bf16>)
LAYER_NORM(layer_norm_f16, f16, kWide<f16>)
LAYER_NORM(layer_norm_f32, float, kWide<float>)
LAYER_NORM(layer_norm_bf16_odd, bf16, 1)
LAYER_NORM(layer_norm_f16_odd, f16, 1)
LAYER_NORM(layer_norm_f32_odd, float, 1)
