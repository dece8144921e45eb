// What flash attention on tensor cores is made of: a block has 64 query rows, 16 for each of its four warps; keys and
// values come in tiles of 32 tokens through two stages. Scores, probabilities and results stay in registers.
#pragma once
#include "device.cuh"

constexpr int kThreads = 128;
constexpr int kRows = 64;
constexpr int kWarpRows = 16;
constexpr int kTokens = 32;
// log2(e): exponentials are binary.
constexpr float kLog2E = 1.4426950408889634f;

// Elements of a stage: the keys of a tile, then its values.
template <int D>
constexpr int kStage = 2 * kTokens * D;

// Rows of D elements in shared memory, 16-byte chunks permuted by row: eight rows of a column lie in different banks.
template <class T, int D>
__device__ __forceinline__ T* chunk(T* base, int row, int at) {
    static_assert(D >= 64 || D == 32, "a row is a whole or half of a line of banks");
    return base + row * D + (D == 32 ? at ^ row / 2 % 4 : at ^ row % 8) * 8;
}

template <class T, int D>
struct Tile {
    float scores[kTokens / 8][4];
    float out[D / 8][4];
    float maximum[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
    float weight[2];                            // the same, this lane's part
    int from[2], to[2];                         // the tokens that they see
};

// scores = q · keys
template <class T, int D>
__device__ __forceinline__ void score(Tile<T, D>& tile, const uint32_t (&q)[D / 16][4], T* keys) {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int j = 0; j < kTokens / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) tile.scores[j][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int pair = 0; pair < kTokens / 16; pair++) {
            uint32_t b[4];
            ldmatrix_x4(b, chunk<T, D>(keys, pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma_m16n8k16<T>(tile.scores[pair * 2], q[step], first);
            mma_m16n8k16<T>(tile.scores[pair * 2 + 1], q[step], second);
        }
    }
}

// Scores of the tokens from `first` on become probabilities; what came before is shrunk to the new maximum.
template <class T, int D>
__device__ __forceinline__ void soften(Tile<T, D>& tile, int first, float scale) {
    const int t = int(threadIdx.x) % 4;
    float largest[2] = {tile.maximum[0], tile.maximum[1]};
#pragma unroll
    for (int j = 0; j < kTokens / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = first + j * 8 + t * 2 + i % 2, row = i / 2;
            const bool seen = token >= tile.from[row] && token < tile.to[row];
            tile.scores[j][i] = seen ? tile.scores[j][i] * scale : -INFINITY;
            largest[row] = fmaxf(largest[row], tile.scores[j][i]);
        }
    }
    float shrink[2], base[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(kAllLanes, largest[row], 1));
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(kAllLanes, largest[row], 2));
        // A row that has seen nothing yet has no maximum to subtract.
        base[row] = largest[row] == -INFINITY ? 0.0f : largest[row];
        shrink[row] = exp2f(tile.maximum[row] - base[row]);
        tile.maximum[row] = largest[row];
        tile.weight[row] *= shrink[row];
    }
#pragma unroll
    for (int j = 0; j < kTokens / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            tile.scores[j][i] = exp2f(tile.scores[j][i] - base[i / 2]);
            tile.weight[i / 2] += tile.scores[j][i];
        }
    }
    // Late tiles seldom move a maximum.
    if (__any_sync(kAllLanes, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) tile.out[j][i] *= shrink[i / 2];
        }
    }
}

// out += probabilities · values
template <class T, int D>
__device__ __forceinline__ void average(Tile<T, D>& tile, T* values) {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int pair = 0; pair < kTokens / 16; pair++) {
        const float(&low)[4] = tile.scores[pair * 2], (&high)[4] = tile.scores[pair * 2 + 1];
        const uint32_t p[4] = {pair_of<T>(low[0], low[1]), pair_of<T>(low[2], low[3]), pair_of<T>(high[0], high[1]),
                               pair_of<T>(high[2], high[3])};
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, chunk<T, D>(values, pair * 16 + lane % 16, j * 2 + lane / 16));
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma_m16n8k16<T>(tile.out[j * 2], p, first);
            mma_m16n8k16<T>(tile.out[j * 2 + 1], p, second);
        }
    }
}

// All tiles of the tokens `begin..end`. `fetch(first, stage)` starts the copies of the tile from `first` on and commits
// them, the first time those of the queries too.
template <class T, int D, class Fetch>
__device__ __forceinline__ void sweep(Tile<T, D>& tile, T* queries, T* stages, int begin, int end, float scale,
                                      const Fetch& fetch) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    fetch(begin, 0);
    uint32_t q[D / 16][4];
    int stage = 0;
    for (int first = begin; first < end; first += kTokens) {
        if (first + kTokens < end) {
            fetch(first + kTokens, stage ^ 1);
        } else {
            cp_async_commit();
        }
        cp_async_wait<1>();
        __syncthreads();  // the tile of every thread is there
        if (first == begin) {
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
                ldmatrix_x4(q[step], chunk<T, D>(queries, warp * kWarpRows + lane % 16, step * 2 + lane / 16));
            }
        }
        T* const keys = stages + stage * kStage<D>;
        score<T, D>(tile, q, keys);
        soften<T, D>(tile, first, scale * kLog2E);
        average<T, D>(tile, keys + kTokens * D);
        __syncthreads();  // the stage may be filled again
        stage ^= 1;
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        tile.weight[row] += __shfl_xor_sync(kAllLanes, tile.weight[row], 1);
        tile.weight[row] += __shfl_xor_sync(kAllLanes, tile.weight[row], 2);
    }
}

// The first `d` columns of the warp's row g + 8 * `row` after the sweep.
template <class T, int D>
__device__ __forceinline__ void write_row(const Tile<T, D>& tile, int row, T* to, int d) {
    const float inverse = 1.0f / tile.weight[row];
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        const int column = j * 8 + int(threadIdx.x) % 4 * 2;
        if (column >= d) continue;
        to[column] = from_f32<T>(tile.out[j][row * 2] * inverse);
        to[column + 1] = from_f32<T>(tile.out[j][row * 2 + 1] * inverse);
    }
}
