// The two products of a mixture of experts for many tokens: tensor-core tiles over all experts in one launch.
//
// A block has 64 pairs of one expert and 128 weight rows; the grid's x is an upper bound of the tiles of pairs, each of
// which finds its expert from the offsets, so that all tiles of an expert run together and share its weights in L2. Both
// sides come in steps of 64 columns through three stages. Everything is indexed as in expert_stream.cu, and the weights
// are the same: in w13 eight gate rows alternate with their eight up rows, so that a lane has a gate in one product of 8
// columns and its up in the next.
#include "device.cuh"

constexpr int kThreads = 256;
constexpr int kPairs = 64;
constexpr int kRows = 128;
constexpr int kColumns = 64;
constexpr int kStages = 3;
constexpr int kChunks = kColumns / 8;
// Warps lie 2 x 4 over the tile: each has 32 pairs and 32 weight rows.
constexpr int kWarpPairs = 32;
constexpr int kWarpRows = 32;

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

// Rows of 64 columns in shared memory, 16-byte chunks permuted by row: eight rows of a column lie in different banks.
template <class T>
__device__ __forceinline__ T* chunk(T* base, int row, int at) {
    return base + row * kColumns + (at ^ row % 8) * 8;
}

// A warp's sums: [pair tiles of 16][weight tiles of 8].
using Sums = float[2][kWarpRows / 8][4];

// c = x · w over k. `pairs` are rows of x in `row_of`, kNone for none; weight rows are `first_row..n`.
template <class T>
__device__ __forceinline__ void multiply(Sums& c, T* stages, const T* x, const uint32_t* row_of, const T* w, int first_row,
                                         int n, int k) {
    constexpr int kStage = (kPairs + kRows) * kColumns;
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int steps = (k + kColumns - 1) / kColumns;
    const auto fetch = [&](int step, int stage) {
        if (step < steps) {
            T* const own = stages + stage * kStage;
            for (int unit = thread; unit < (kPairs + kRows) * kChunks; unit += kThreads) {
                const int row = unit / kChunks, at = unit % kChunks, column = step * kColumns + at * 8;
                const T* from = w;
                bool has = column < k;
                if (row < kPairs) {
                    has = has && row_of[row] != kNone;
                    if (has) from = x + int64_t(row_of[row]) * k + column;
                } else {
                    const int weight_row = first_row + row - kPairs;
                    has = has && weight_row < n;
                    if (has) from = w + int64_t(weight_row) * k + column;
                }
                cp_async16(chunk(own, row, at), from, has ? 16 : 0);
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int ahead = 0; ahead < kStages - 1; ahead++) fetch(ahead, ahead);
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // the stage is there, and the one before is free
        fetch(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
        T* const pairs = stages + stage * kStage;
        T* const rows = pairs + kPairs * kColumns;
#pragma unroll
        for (int part = 0; part < kColumns / 16; part++) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int row = warp / 4 * kWarpPairs + i * 16 + lane % 16;
                ldmatrix_x4(a[i], chunk(pairs, row, part * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < kWarpRows / 16; j++) {
                uint32_t b[4];
                const int row = warp % 4 * kWarpRows + j * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(b, chunk(rows, row, part * 2 + lane / 8 % 2));
                const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma_m16n8k16<T>(c[i][j * 2], a[i], first);
                    mma_m16n8k16<T>(c[i][j * 2 + 1], a[i], second);
                }
            }
        }
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }
}

// The pair that accumulator `i` of this lane belongs to, or kNone.
__device__ __forceinline__ uint32_t pair_at(const uint32_t* pair_of, int tile, int i) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    return pair_of[warp / 4 * kWarpPairs + tile * 16 + i / 2 * 8 + lane / 4];
}

// act [pairs, inner] = silu(x · w1 + delta1) * (x · w3 + delta3); deltas are those of tokens with an adapter.
template <class T>
__device__ __forceinline__ void expert_up(const T* __restrict__ x,      // [tokens, k]
                                          const T* __restrict__ w13,    // [experts, 2 inner, k]
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
    const int thread = int(threadIdx.x), n = 2 * inner, first_row = int(blockIdx.y) * kRows;
    if (thread < kPairs) {
        const uint32_t row = work.first + uint32_t(thread);
        pair_of[thread] = row < work.end ? sorted_pairs[row] : kNone;
        row_of[thread] = row < work.end ? sorted_pairs[row] / uint32_t(ranks) : kNone;
    }
    __syncthreads();  // the tile's pairs are there
    Sums c = {};
    multiply<T>(c, reinterpret_cast<T*>(memory), x, row_of, w13 + int64_t(work.expert) * n * k, first_row, n, k);
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
        for (int j = 0; j < kWarpRows / 16; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t pair = pair_at(pair_of, tile, i);
                const int column = thread % 4 * 2 + i % 2;
                const int gate_row = first_row + thread / kWarp % 4 * kWarpRows + j * 16 + column;
                if (pair == kNone || gate_row >= n) continue;
                float gate = c[tile][j * 2][i], up = c[tile][j * 2 + 1][i];
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
template <class T>
__device__ __forceinline__ void expert_down(const T* __restrict__ act,    // [pairs, k]
                                            const T* __restrict__ w2,     // [experts, n, k]
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
    const int thread = int(threadIdx.x), first_row = int(blockIdx.y) * kRows;
    if (thread < kPairs) {
        const uint32_t row = work.first + uint32_t(thread);
        pair_of[thread] = row < work.end ? sorted_pairs[row] : kNone;
    }
    __syncthreads();  // the tile's pairs are there
    Sums c = {};
    multiply<T>(c, reinterpret_cast<T*>(memory), act, pair_of, w2 + int64_t(work.expert) * n * k, first_row, n, k);
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
        for (int j = 0; j < kWarpRows / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t pair = pair_at(pair_of, tile, i);
                const int row = first_row + thread / kWarp % 4 * kWarpRows + j * 8 + thread % 4 * 2 + i % 2;
                if (pair == kNone || row >= n) continue;
                float sum = c[tile][j][i];
                if (delta != nullptr && slots[pair / uint32_t(ranks)] != kNone) {
                    sum += to_f32(delta[int64_t(pair) * n + row]);
                }
                y[int64_t(pair) * n + row] = sum;
            }
        }
    }
}

#define EXPERT_UP_TILES(name, T)                                                                                      \
    KERNEL(kThreads, name, const T* x, const T* w13, const T* delta, const uint32_t* slots, const uint32_t* offsets,  \
           const uint32_t* sorted_pairs, T* act, int experts, int ranks, int inner, int k) {                          \
        expert_up<T>(x, w13, delta, slots, offsets, sorted_pairs, act, experts, ranks, inner, k);                     \
    }
#define EXPERT_DOWN_TILES(name, T)                                                                                    \
    KERNEL(kThreads, name, const T* act, const T* w2, const T* delta, const uint32_t* slots, const uint32_t* offsets, \
           const uint32_t* sorted_pairs, float* y, int experts, int ranks, int n, int k) {                            \
        expert_down<T>(act, w2, delta, slots, offsets, sorted_pairs, y, experts, ranks, n, k);                        \
    }

EXPERT_UP_TILES(expert_up_tiles_bf16, bf16)
EXPERT_UP_TILES(expert_up_tiles_f16, f16)
EXPERT_DOWN_TILES(expert_down_tiles_bf16, bf16)
EXPERT_DOWN_TILES(expert_down_tiles_f16, f16)
