// residual += x; out = residual / rms(residual) * weight, or of x alone. One block a row; the row stays in registers.
#include "device.cuh"

// Packs a thread keeps.
constexpr int kPacks = 4;

template <class T, int W>
__device__ __forceinline__ void rms_norm(const T* __restrict__ x,           // [rows, h]
                                         T* __restrict__ residual,          // [rows, h] or null
                                         const float* __restrict__ weight,  // [h]
                                         T* __restrict__ out,               // [rows, h]
                                         const uint32_t* __restrict__ rows, int h, float eps) {
    SHARED(float, partial, kWarp);
    if (blockIdx.x >= *rows) return;
    const int64_t base = int64_t(blockIdx.x) * h;
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    Pack<T, W> kept[kPacks];
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
        const int at = (p * threads + thread) * W;
        if (at >= h) continue;
        kept[p] = load<W>(x + base + at);
        if (residual != nullptr) {
            const Pack<T, W> before = load<W>(residual + base + at);
#pragma unroll
            for (int i = 0; i < W; i++) kept[p].at[i] = from_f32<T>(to_f32(before.at[i]) + to_f32(kept[p].at[i]));
            store(residual + base + at, kept[p]);
        }
#pragma unroll
        for (int i = 0; i < W; i++) squares = fmaf(to_f32(kept[p].at[i]), to_f32(kept[p].at[i]), squares);
    }
    const float scale = rsqrtf(block_sum(squares, partial) / float(h) + eps);
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
        const int at = (p * threads + thread) * W;
        if (at >= h) continue;
        Pack<T, W> result;
#pragma unroll
        for (int i = 0; i < W; i++) result.at[i] = from_f32<T>(to_f32(kept[p].at[i]) * scale * weight[at + i]);
        store(out + base + at, result);
    }
}

#define RMS_NORM(name, T, W)                                                                                      \
    KERNEL(1024, name, const T* x, T* residual, const float* weight, T* out, const uint32_t* rows, int h, float eps) { \
        rms_norm<T, W>(x, residual, weight, out, rows, h, eps);                                                   \
    }

RMS_NORM(rms_norm_bf16, bf16, kWide<bf16>)
RMS_NORM(rms_norm_f16, f16, kWide<f16>)
RMS_NORM(rms_norm_f32, float, kWide<float>)
RMS_NORM(rms_norm_bf16_odd, bf16, 1)
RMS_NORM(rms_norm_f16_odd, f16, 1)
RMS_NORM(rms_norm_f32_odd, float, 1)
