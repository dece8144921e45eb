// One vector a sequence from the states of its tokens: their mean, the first or the last, of norm 1 where asked. One
// block a sequence; its threads are strips of rows over lanes of columns.
#include "device.cuh"

constexpr int kThreads = 512;

// As Pooling of the crate.
enum Kind : int { kMean, kCls, kLastToken };

template <class T, int W>
__device__ __forceinline__ void pool(const T* __restrict__ x,                  // [rows, h]
                                     const uint32_t* __restrict__ cu_seqlens,  // [sequences + 1]
                                     float* __restrict__ out,                  // [sequences, h]
                                     int h, int kind, int normalize) {
    SHARED(float, squares, kWarp);
    DYNAMIC_SHARED(memory);
    float* const sums = reinterpret_cast<float*>(memory);  // [strips, h]
    const int thread = int(threadIdx.x), lanes = min(h / W, kThreads), strips = kThreads / lanes;
    int64_t from = cu_seqlens[blockIdx.x], to = cu_seqlens[blockIdx.x + 1];
    const bool empty = from >= to;
    if (kind == kCls) to = empty ? to : from + 1;
    if (kind == kLastToken) from = empty ? from : to - 1;

    const int strip = thread / lanes;
    if (strip < strips) {
        for (int at = thread % lanes * W; at < h; at += lanes * W) {
            float sum[W] = {};
#pragma unroll 4
            for (int64_t row = from + strip; row < to; row += strips) {
                const Pack<T, W> pack = load<W>(x + row * h + at);
#pragma unroll
                for (int i = 0; i < W; i++) sum[i] += to_f32(pack.at[i]);
            }
#pragma unroll
            for (int i = 0; i < W; i++) sums[strip * h + at + i] = sum[i];
        }
    }
    __syncthreads();  // every strip's sums are there
    const float inverse = empty ? 0.0f : 1.0f / float(to - from);
    float square = 0.0f;
    for (int at = thread; at < h; at += kThreads) {
        float sum = 0.0f;
        for (int other = 0; other < strips; other++) sum += sums[other * h + at];
        sum *= inverse;
        sums[at] = sum;
        square = fmaf(sum, sum, square);
    }
    const float norm = fmaxf(sqrtf(block_sum(square, squares)), 1e-12f);
    float* const own = out + int64_t(blockIdx.x) * h;
    for (int at = thread; at < h; at += kThreads) own[at] = normalize != 0 ? sums[at] / norm : sums[at];
}

#define POOL(name, T, W)                                                                                           \
    KERNEL(kThreads, name, const T* x, const uint32_t* cu_seqlens, float* out, int h, int kind, int normalize) {   \
        pool<T, W>(x, cu_seqlens, out, h, kind, normalize);                                                        \
    }

POOL(pool_bf16, bf16, kWide<bf16>)
POOL(pool_f16, f16, kWide<f16>)
POOL(pool_f32, float, kWide<float>)
POOL(pool_bf16_odd, bf16, 1)
POOL(pool_f16_odd, f16, 1)
POOL(pool_f32_odd, float, 1)
