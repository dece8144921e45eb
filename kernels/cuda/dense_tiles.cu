// out = x · w + bias for many tokens, on tensor-core tiles.
//
// The grid's x are tiles of tokens: neighbouring blocks share weights in L2. Sums go through shared memory, each warp's
// alone, so that whole 16 bytes are written.
#include "tiles.cuh"

// Between the rows of a warp's sums, so that eight of them lie in different banks.
constexpr int kPad = 8;

// out = sums [tokens of the warp, kColumns + pad] + bias, V columns at once. The warp's are `first..tokens`, `first_row..n`.
template <class W, class O, int M, int N, int V>
__device__ __forceinline__ void finish(const float* sums, [[maybe_unused]] const float* scales, const float* bias, O* out,
                                       int first, int tokens, int first_row, int n) {
    constexpr int kPacks = N * 8 / V;
    for (int unit = int(threadIdx.x) % kWarp; unit < M * 16 * kPacks; unit += kWarp) {
        const int token = unit / kPacks, column = unit % kPacks * V, row = first_row + column;
        if (first + token >= tokens || row >= n) continue;
        constexpr int kQuad = V < 4 ? V : 4;
        Pack<O, V> result;
#pragma unroll
        for (int i = 0; i < V; i += kQuad) {
            const Pack<float, kQuad> sum = load<kQuad>(sums + token * (N * 8 + kPad) + column + i);
            Pack<float, kQuad> add = {};
            if (bias != nullptr) add = load<kQuad>(bias + row + i);
#pragma unroll
            for (int j = 0; j < kQuad; j++) {
                result.at[i + j] = from_f32<O>(sum.at[j] * scale_of<W>(scales, row + i + j) + add.at[j]);
            }
        }
        store(out + int64_t(first + token) * n + row, result);
    }
}

template <class T, class W, class O, int M, int N>
__device__ __forceinline__ void dense_tiles(const T* __restrict__ x,           // [rows, k]
                                            const W* __restrict__ w,           // [n, k]
                                            const float* __restrict__ scales,  // [n] of fp8 weights
                                            const float* __restrict__ bias,    // [n] or null
                                            O* __restrict__ out,             // [rows, n]
                                            const uint32_t* __restrict__ rows, int n, int k) {
    DYNAMIC_SHARED(memory);
    const int first = int(blockIdx.x) * kTokens<M>, first_row = int(blockIdx.y) * kRows<N>, tokens = int(*rows);
    if (first >= tokens) return;
    const auto row_of = [&](int token) { return first + token < tokens ? uint32_t(first + token) : kNone; };
    float c[M][N][4] = {};
    multiply<T, M, N>(c, memory, x, row_of, w, first_row, n, k);
    __syncthreads();  // the stages are free for sums
    constexpr int kWidth = N * 8 + kPad;
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    float* const sums = reinterpret_cast<float*>(memory) + warp * M * 16 * kWidth;
#pragma unroll
    for (int tile = 0; tile < M; tile++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[(tile * 16 + i / 2 * 8 + lane / 4) * kWidth + j * 8 + lane % 4 * 2 + i % 2] = c[tile][j][i];
            }
        }
    }
    __syncwarp();  // the warp's sums are there
    const int own_first = first + warp / 4 * M * 16, own_row = first_row + warp % 4 * N * 8;
    if (n % kWide<O> == 0) {
        finish<W, O, M, N, kWide<O>>(sums, scales, bias, out, own_first, tokens, own_row, n);
    } else {
        finish<W, O, M, N, 1>(sums, scales, bias, out, own_first, tokens, own_row, n);
    }
}

#define DENSE_TILES(name, T, W, O, M, N)                                                                        \
    KERNEL(kThreads, name, const T* x, const W* w, const float* scales, const float* bias, O* out,              \
           const uint32_t* rows, int n, int k) {                                                                \
        dense_tiles<T, W, O, M, N>(x, w, scales, bias, out, rows, n, k);                                        \
    }

DENSE_TILES(dense_tiles_bf16_64, bf16, bf16, bf16, 2, 2)
DENSE_TILES(dense_tiles_bf16_128, bf16, bf16, bf16, 4, 8)
DENSE_TILES(dense_tiles_bf16_f32_64, bf16, bf16, float, 2, 2)
DENSE_TILES(dense_tiles_bf16_f32_128, bf16, bf16, float, 4, 8)
DENSE_TILES(dense_tiles_fp8_bf16_64, bf16, fp8, bf16, 2, 2)
DENSE_TILES(dense_tiles_fp8_bf16_128, bf16, fp8, bf16, 4, 8)
DENSE_TILES(dense_tiles_fp8_bf16_f32_64, bf16, fp8, float, 2, 2)
DENSE_TILES(dense_tiles_fp8_bf16_f32_128, bf16, fp8, float, 4, 8)
DENSE_TILES(dense_tiles_f16_64, f16, f16, f16, 2, 2)
DENSE_TILES(dense_tiles_f16_128, f16, f16, f16, 4, 8)
DENSE_TILES(dense_tiles_f16_f32_64, f16, f16, float, 2, 2)
DENSE_TILES(dense_tiles_f16_f32_128, f16, f16, float, 4, 8)
DENSE_TILES(dense_tiles_fp8_f16_64, f16, fp8, f16, 2, 2)
DENSE_TILES(dense_tiles_fp8_f16_128, f16, fp8, f16, 4, 8)
DENSE_TILES(dense_tiles_fp8_f16_f32_64, f16, fp8, float, 2, 2)
DENSE_TILES(dense_tiles_fp8_f16_f32_128, f16, fp8, float, 4, 8)
