// The two products of a mixture of experts for many tokens: tensor-core tiles over all experts in one launch.
//
// A block has 64 pairs of one expert and 128 weight rows; the grid's x is an upper bound of the tiles of pairs, each of
// which finds its expert from the offsets, so that all tiles of an expert run together and share its weights in L2.
// Everything is indexed as in expert_stream.cu, and the weights are the same: in w13 eight gate rows alternate with their
// eight up rows, so that a lane has a gate in one product of 8 columns and its up in the next.
#include "tiles.cuh"

// Tiles of 16 pairs and of 8 weight rows that a warp has.
constexpr int kPairTiles = 2;
constexpr int kRowTiles = 4;
constexpr int kPairs = kTokens<kPairTiles>;
constexpr int kWarpPairs = kPairTiles * 16;
constexpr int kWarpRows = kRowTiles * 8;

__device__ __forceinline__ float silu(float x) {
    return x / (1.0f + __expf(-x));
}

// The pairs of a tile: sorted rows `first..end` of `expert`; none past the last tile.
struct Work {
    int expert;
    uint32_t first, end;
};

__device__ __forceinline__ Work work_of(const uint32_t* offsets, int experts, uint32_t tile) {
    for (int expert = 0; expert < experts; expert++) {
        const uint32_t begin = offsets[expert], end = offsets[expert + 1];
        const uint32_t tiles = (end - begin + kPairs - 1) / kPairs;
        if (tile < tiles) return Work{expert, begin + tile * kPairs, end};
        tile -= tiles;
    }
    return Work{-1, 0, 0};
}

// The pair that accumulator `i` of this lane belongs to, or kNone.
__device__ __forceinline__ uint32_t pair_at(const uint32_t* pair_of, int tile, int i) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    return pair_of[warp / 4 * kWarpPairs + tile * 16 + i / 2 * 8 + lane / 4];
}

// act [pairs, inner] = silu(x · w1 + delta1) * (x · w3 + delta3); deltas are those of tokens with an adapter.
template <class T, class W>
__device__ __forceinline__ void expert_up(const T* __restrict__ x,           // [tokens, k]
                                          const W* __restrict__ w13,         // [experts, 2 inner, k]
                                          const float* __restrict__ scales,  // [experts, 2 inner] of fp8 weights
                                          const T* __restrict__ delta,  // [pairs, 2 inner] as w13, or null
                                          const uint32_t* __restrict__ slots,         // [tokens], with delta
                                          const uint32_t* __restrict__ offsets,       // [experts + 1]
                                          const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                          T* __restrict__ act,                        // [pairs, inner]
                                          int experts, int ranks, int inner, int k) {
    SHARED(uint32_t, pair_of, kPairs);
    SHARED(uint32_t, row_of, kPairs);
    DYNAMIC_SHARED(memory);
    const Work work = work_of(offsets, experts, blockIdx.x);
    if (work.expert < 0) return;
    const int thread = int(threadIdx.x), n = 2 * inner, first_row = int(blockIdx.y) * kRows<kRowTiles>;
    if (thread < kPairs) {
        const uint32_t row = work.first + uint32_t(thread);
        pair_of[thread] = row < work.end ? sorted_pairs[row] : kNone;
        row_of[thread] = row < work.end ? sorted_pairs[row] / uint32_t(ranks) : kNone;
    }
    __syncthreads();  // the tile's pairs are there
    float c[kPairTiles][kRowTiles][4] = {};
    const auto token_of = [&](int pair) { return row_of[pair]; };
    multiply<T, kPairTiles, kRowTiles>(c, memory, x, token_of, w13 + int64_t(work.expert) * n * k, first_row, n, k);
#pragma unroll
    for (int tile = 0; tile < kPairTiles; tile++) {
#pragma unroll
        for (int j = 0; j < kRowTiles / 2; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t pair = pair_at(pair_of, tile, i);
                const int column = thread % 4 * 2 + i % 2;
                const int gate_row = first_row + thread / kWarp % 4 * kWarpRows + j * 16 + column;
                if (pair == kNone || gate_row >= n) continue;
                const int64_t scale = int64_t(work.expert) * n + gate_row;
                float gate = c[tile][j * 2][i] * scale_of<W>(scales, scale);
                float up = c[tile][j * 2 + 1][i] * scale_of<W>(scales, scale + 8);
                if (delta != nullptr && slots[pair / uint32_t(ranks)] != kNone) {
                    gate += to_f32(delta[int64_t(pair) * n + gate_row]);
                    up += to_f32(delta[int64_t(pair) * n + gate_row + 8]);
                }
                act[int64_t(pair) * inner + (gate_row - column) / 2 + column] = from_f32<T>(silu(gate) * up);
            }
        }
    }
}

// y [pairs, n] = act · w2 + delta.
template <class T, class W>
__device__ __forceinline__ void expert_down(const T* __restrict__ act,         // [pairs, k]
                                            const W* __restrict__ w2,          // [experts, n, k]
                                            const float* __restrict__ scales,  // [experts, n] of fp8 weights
                                            const T* __restrict__ delta,  // [pairs, n] or null
                                            const uint32_t* __restrict__ slots,         // [tokens], with delta
                                            const uint32_t* __restrict__ offsets,       // [experts + 1]
                                            const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                            float* __restrict__ y,                      // [pairs, n]
                                            int experts, int ranks, int n, int k) {
    SHARED(uint32_t, pair_of, kPairs);
    DYNAMIC_SHARED(memory);
    const Work work = work_of(offsets, experts, blockIdx.x);
    if (work.expert < 0) return;
    const int thread = int(threadIdx.x), first_row = int(blockIdx.y) * kRows<kRowTiles>;
    if (thread < kPairs) {
        const uint32_t row = work.first + uint32_t(thread);
        pair_of[thread] = row < work.end ? sorted_pairs[row] : kNone;
    }
    __syncthreads();  // the tile's pairs are there
    float c[kPairTiles][kRowTiles][4] = {};
    const auto own_of = [&](int pair) { return pair_of[pair]; };
    multiply<T, kPairTiles, kRowTiles>(c, memory, act, own_of, w2 + int64_t(work.expert) * n * k, first_row, n, k);
#pragma unroll
    for (int tile = 0; tile < kPairTiles; tile++) {
#pragma unroll
        for (int j = 0; j < kRowTiles; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t pair = pair_at(pair_of, tile, i);
                const int row = first_row + thread / kWarp % 4 * kWarpRows + j * 8 + thread % 4 * 2 + i % 2;
                if (pair == kNone || row >= n) continue;
                float sum = c[tile][j][i] * scale_of<W>(scales, int64_t(work.expert) * n + row);
                if (delta != nullptr && slots[pair / uint32_t(ranks)] != kNone) {
                    sum += to_f32(delta[int64_t(pair) * n + row]);
                }
                y[int64_t(pair) * n + row] = sum;
            }
        }
    }
}

#define EXPERT_UP_TILES(name, T, W)                                                                                   \
    KERNEL(kThreads, name, const T* x, const W* w13, const float* scales, const T* delta, const uint32_t* slots,      \
           const uint32_t* offsets, const uint32_t* sorted_pairs, T* act, int experts, int ranks, int inner, int k) { \
        expert_up<T, W>(x, w13, scales, delta, slots, offsets, sorted_pairs, act, experts, ranks, inner, k);          \
    }
#define EXPERT_DOWN_TILES(name, T, W)                                                                                 \
    KERNEL(kThreads, name, const T* act, const W* w2, const float* scales, const T* delta, const uint32_t* slots,     \
           const uint32_t* offsets, const uint32_t* sorted_pairs, float* y, int experts, int ranks, int n, int k) {   \
        expert_down<T, W>(act, w2, scales, delta, slots, offsets, sorted_pairs, y, experts, ranks, n, k);             \
    }

EXPERT_UP_TILES(expert_up_tiles_bf16, bf16, bf16)
EXPERT_UP_TILES(expert_up_tiles_f16, f16, f16)
EXPERT_UP_TILES(expert_up_tiles_fp8_bf16, bf16, fp8)
EXPERT_UP_TILES(expert_up_tiles_fp8_f16, f16, fp8)
EXPERT_DOWN_TILES(expert_down_tiles_bf16, bf16, bf16)
EXPERT_DOWN_TILES(expert_down_tiles_f16, f16, f16)
EXPERT_DOWN_TILES(expert_down_tiles_fp8_bf16, bf16, fp8)
EXPERT_DOWN_TILES(expert_down_tiles_fp8_f16, f16, fp8)
