// Tensor-core tiles: products of many tokens with weight rows.
//
// A block's tokens and weight rows come in steps of 64 columns through three stages of shared memory. Its eight warps lie
// 2 x 4 over the tile: each has M tiles of 16 tokens and N tiles of 8 weight rows. Fp8 weights come as codes; each thread
// widens those that it copied into one of two further tiles, while the other may still be read.
#pragma once
#include "fp8.cuh"

constexpr int kThreads = 256;
constexpr int kColumns = 64;
constexpr int kStages = 3;
// A row's 16-byte parts, and the rows that a part of every thread makes.
template <class T>
constexpr int kChunks = kColumns / kWide<T>;
template <class T>
constexpr int kPass = kThreads / kChunks<T>;
// Of a block.
template <int M>
constexpr int kTokens = 2 * M * 16;
template <int N>
constexpr int kRows = 4 * N * 8;

// Rows of 64 columns in shared memory, 16-byte chunks permuted by row: eight rows of a column lie in different banks.
template <class T>
__device__ __forceinline__ T* chunk(T* base, int row, int at) {
    return base + row * kColumns + (at ^ row % 8) * 8;
}

// c = x · w over k. `row_of` is the row of x that a token is, kNone for none; weight rows are `first_row..n`. `memory` has
// the stages, and behind them the tiles of widened weights where there are such.
template <class T, int M, int N, class W, class RowOf>
__device__ __forceinline__ void multiply(float (&c)[M][N][4], unsigned char* memory, const T* x, const RowOf& row_of,
                                         const W* w, int first_row, int n, int k) {
    constexpr bool kCodes = sizeof(W) < sizeof(T);
    constexpr int kStage = kColumns * (kTokens<M> * int(sizeof(T)) + kRows<N> * int(sizeof(W)));
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int steps = (k + kColumns - 1) / kColumns;
    const auto tokens_of = [&](int stage) { return reinterpret_cast<T*>(memory + stage * kStage); };
    const auto weights_of = [&](int stage) { return reinterpret_cast<W*>(tokens_of(stage) + kTokens<M> * kColumns); };
    const auto fetch = [&](int step, int stage) {
        if (step < steps) {
            const int at = thread % kChunks<T>, column = step * kColumns + at * kWide<T>;
#pragma unroll
            for (int pass = 0; pass < kTokens<M> / kPass<T>; pass++) {
                const int token = thread / kChunks<T> + pass * kPass<T>;
                const uint32_t row = row_of(token);
                const bool has = row != kNone && column < k;
                cp_async16(chunk(tokens_of(stage), token, at), has ? x + int64_t(row) * k + column : x, has ? 16 : 0);
            }
            const int weight_at = thread % kChunks<W>, weight_column = step * kColumns + weight_at * kWide<W>;
#pragma unroll
            for (int pass = 0; pass < kRows<N> / kPass<W>; pass++) {
                const int row = thread / kChunks<W> + pass * kPass<W>;
                const bool has = first_row + row < n && weight_column < k;
                W* const rows = weights_of(stage);
                W* const to = kCodes ? rows + (pass * kThreads + thread) * kWide<W> : chunk(rows, row, weight_at);
                cp_async16(to, has ? w + int64_t(first_row + row) * k + weight_column : w, has ? 16 : 0);
            }
        }
        cp_async_commit();
    };
    // A stage's weights as T: where they are, or widened.
    const auto rows_of = [&](int step, int stage) {
        if constexpr (kCodes) {
            T* const rows = reinterpret_cast<T*>(memory + kStages * kStage) + step % 2 * kRows<N> * kColumns;
#pragma unroll
            for (int pass = 0; pass < kRows<N> / kPass<W>; pass++) {
                const W* const own = weights_of(stage) + (pass * kThreads + thread) * kWide<W>;
                const auto pairs = widened<T, W>(load<4>(reinterpret_cast<const uint32_t*>(own)));
                const int row = thread / kChunks<W> + pass * kPass<W>;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    T* const to = chunk(rows, row, thread % kChunks<W> * 2 + half);
                    const uint32_t* const from = pairs.at + half * 4;
                    store(reinterpret_cast<uint32_t*>(to), Pack<uint32_t, 4>{{from[0], from[1], from[2], from[3]}});
                }
            }
            return rows;
        } else {
            return weights_of(stage);
        }
    };
#pragma unroll
    for (int ahead = 0; ahead < kStages - 1; ahead++) fetch(ahead, ahead);
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        cp_async_wait<kStages - 2>();
        T* const rows = rows_of(step, stage);
        __syncthreads();  // the stage is there, and the one before is free
        fetch(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
        T* const tokens = tokens_of(stage);
#pragma unroll
        for (int part = 0; part < kColumns / 16; part++) {
            uint32_t a[M][4];
#pragma unroll
            for (int i = 0; i < M; i++) {
                const int token = (warp / 4 * M + i) * 16 + lane % 16;
                ldmatrix_x4(a[i], chunk(tokens, token, part * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                uint32_t b[4];
                const int row = (warp % 4 * N + j) * 8 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(b, chunk(rows, row, part * 2 + lane / 8 % 2));
                const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
                for (int i = 0; i < M; i++) {
                    mma_m16n8k16<T>(c[i][j], a[i], first);
                    mma_m16n8k16<T>(c[i][j + 1], a[i], second);
                }
            }
        }
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }
}
