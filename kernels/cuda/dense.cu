// out = x · w + bias for few tokens, whose weights are read once.
//
// Three kernels share the operands: the stream of expert_stream.cuh, for tokens that tensor cores take at once; a block
// a weight row, where so few weight rows leave the stream too few blocks; the same with four weight rows a block for f32.
#include "expert_stream.cuh"

// Stages of the ring: as many as leave room for two blocks on a multiprocessor. With few weight rows it has one, which must
// keep memory busy alone.
template <class T, class W, int N>
constexpr int kDepth = 25 / kSlots<T, W, N>;

// 8 N tokens with 32 weight rows a block.
template <class T, class W, class O, int N>
__device__ __forceinline__ void dense_stream(const T* __restrict__ x,           // [rows, k]
                                             const W* __restrict__ w,           // [n, k]
                                             const float* __restrict__ scales,  // [n] of fp8 weights
                                             const float* __restrict__ bias,    // [n] or null
                                             O* __restrict__ out,               // [rows, n]
                                             const uint32_t* __restrict__ rows, int n, int k) {
    const int first_row = int(blockIdx.x) * kPanels * kPanel;
    const int first = int(blockIdx.y) * N * kTile, tokens = int(*rows) - first;
    if (tokens <= 0) return;
    DYNAMIC_SHARED(memory);
    const int thread = int(threadIdx.x), g = thread % kWarp / 4;
    const T* own[N];
#pragma unroll
    for (int tile = 0; tile < N; tile++) {
        const int token = tile * kTile + g;
        own[tile] = token < tokens ? x + int64_t(first + token) * k : nullptr;
    }
    float c[kPanels][N][4] = {};
    auto* const ring = reinterpret_cast<Pack<uint32_t, 4>*>(memory);
    stream<T, N, kDepth<T, W, N>>(c, w, first_row, n, k, 0, k, own, ring);
    float* const sums = reinterpret_cast<float*>(memory);
    __syncthreads();  // the ring of every warp is free for its sums
    leave<N>(c, sums);
    __syncthreads();  // all sums are there
    for (int unit = thread; unit < kPanels * N * 4 * kWarp; unit += kThreads) {
        const Place place = place_of(unit);
        const int token = place.tile * kTile + place.token, row = first_row + place.row;
        if (token >= tokens || row >= n) continue;
        const float sum = joined<N>(sums, place) * scale_of<W>(scales, row) + (bias == nullptr ? 0.0f : bias[row]);
        out[int64_t(first + token) * n + row] = from_f32<O>(sum);
    }
}

// Eight tokens with R weight rows a block, whose threads share k.
template <class T, class O, int R>
__device__ __forceinline__ void dense_narrow(const T* __restrict__ x,         // [rows, k]
                                             const T* __restrict__ w,         // [n, k]
                                             const float* __restrict__ bias,  // [n] or null
                                             O* __restrict__ out,             // [rows, n]
                                             const uint32_t* __restrict__ rows, int n, int k) {
    constexpr int W = kWide<T>;
    SHARED(float, partial, kWarps * R * kTile);
    const int first_row = int(blockIdx.x) * R, first = int(blockIdx.y) * kTile, tokens = int(*rows) - first;
    if (tokens <= 0) return;
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    float sum[R][kTile] = {};
    for (int at = thread * W; at < k; at += threads * W) {
        Pack<T, W> weights[R];
#pragma unroll
        for (int r = 0; r < R; r++) weights[r] = load<W>(w + int64_t(min(first_row + r, n - 1)) * k + at);
        Pack<T, W> own[kTile] = {};
#pragma unroll
        for (int token = 0; token < kTile; token++) {
            if (token < tokens) own[token] = load<W>(x + int64_t(first + token) * k + at);
        }
#pragma unroll
        for (int token = 0; token < kTile; token++) {
#pragma unroll
            for (int r = 0; r < R; r++) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    sum[r][token] = fmaf(to_f32(weights[r].at[i]), to_f32(own[token].at[i]), sum[r][token]);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int token = 0; token < kTile; token++) {
            const float all = warp_sum(sum[r][token]);
            if (thread % kWarp == 0) partial[(thread / kWarp * R + r) * kTile + token] = all;
        }
    }
    __syncthreads();  // every warp's sums are there
    const int row = first_row + thread / kTile, token = thread % kTile;
    if (thread >= R * kTile || row >= n || token >= tokens) return;
    float all = bias == nullptr ? 0.0f : bias[row];
    for (int warp = 0; warp < threads / kWarp; warp++) all += partial[warp * R * kTile + thread];
    out[int64_t(first + token) * n + row] = from_f32<O>(all);
}

#define DENSE_STREAM(name, T, W, O, N)                                                                         \
    KERNEL_FOR(kThreads, 2, name, const T* x, const W* w, const float* scales, const float* bias, O* out,       \
               const uint32_t* rows, int n, int k) {                                                            \
        dense_stream<T, W, O, N>(x, w, scales, bias, out, rows, n, k);                                          \
    }
#define DENSE_NARROW(name, T, O, R)                                                                             \
    KERNEL_FOR(kThreads, 2, name, const T* x, const T* w, const float*, const float* bias, O* out,              \
               const uint32_t* rows, int n, int k) {                                                            \
        dense_narrow<T, O, R>(x, w, bias, out, rows, n, k);                                                     \
    }

DENSE_STREAM(dense_bf16_n1, bf16, bf16, bf16, 1)
DENSE_STREAM(dense_bf16_n2, bf16, bf16, bf16, 2)
DENSE_STREAM(dense_bf16_n4, bf16, bf16, bf16, 4)
DENSE_STREAM(dense_bf16_f32_n1, bf16, bf16, float, 1)
DENSE_STREAM(dense_bf16_f32_n2, bf16, bf16, float, 2)
DENSE_STREAM(dense_bf16_f32_n4, bf16, bf16, float, 4)
DENSE_STREAM(dense_fp8_bf16_n1, bf16, fp8, bf16, 1)
DENSE_STREAM(dense_fp8_bf16_n2, bf16, fp8, bf16, 2)
DENSE_STREAM(dense_fp8_bf16_f32_n1, bf16, fp8, float, 1)
DENSE_STREAM(dense_fp8_bf16_f32_n2, bf16, fp8, float, 2)
DENSE_STREAM(dense_f16_n1, f16, f16, f16, 1)
DENSE_STREAM(dense_f16_n2, f16, f16, f16, 2)
DENSE_STREAM(dense_f16_n4, f16, f16, f16, 4)
DENSE_STREAM(dense_f16_f32_n1, f16, f16, float, 1)
DENSE_STREAM(dense_f16_f32_n2, f16, f16, float, 2)
DENSE_STREAM(dense_f16_f32_n4, f16, f16, float, 4)
DENSE_STREAM(dense_fp8_f16_n1, f16, fp8, f16, 1)
DENSE_STREAM(dense_fp8_f16_n2, f16, fp8, f16, 2)
DENSE_STREAM(dense_fp8_f16_f32_n1, f16, fp8, float, 1)
DENSE_STREAM(dense_fp8_f16_f32_n2, f16, fp8, float, 2)
DENSE_NARROW(dense_narrow_bf16, bf16, bf16, 1)
DENSE_NARROW(dense_narrow_bf16_f32, bf16, float, 1)
DENSE_NARROW(dense_narrow_f16, f16, f16, 1)
DENSE_NARROW(dense_narrow_f16_f32, f16, float, 1)
DENSE_NARROW(dense_narrow_f32, float, float, 4)
