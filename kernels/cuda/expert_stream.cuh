// Products of a few tokens with weights that are read once, straight from memory into the tensor cores' registers.
//
// A block has 32 weight rows (two panels of 16) of one expert; its eight warps take turns along k. The product is
// out[16 weight rows x 8 tokens] += w[16 x 16] * x[16 x 8]: tokens are the short side, so that one token wastes no
// weight. The order of k inside a step is free as long as w and x agree, so lane (g, t) takes the 8 neighbours at
// 8 t of rows g and g + 8: 16-byte copies feed the lane's own fragments, and only the lane that copied reads them, so
// that the pipeline needs no barrier. Of fp8 weights these are 16 neighbours at 16 t, widened in registers.
#pragma once
#include "fp8.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Of the ring, where many blocks lie on a multiprocessor.
constexpr int kStages = 3;
constexpr int kPanels = 2;
constexpr int kPanel = 16;
// Tokens of one product.
constexpr int kTile = 8;
// Elements along k that a warp takes at once: four lanes with 16 bytes of a weight row each.
template <class W>
constexpr int kStep = 4 * kWide<W>;

// 16-byte parts of the token's elements that meet 16 bytes of a weight row.
template <class T, class W>
constexpr int kParts = kWide<W> / kWide<T>;

// What a lane copies in a stage: its two rows of each panel, and its token of each tile.
template <class T, class W, int N>
constexpr int kSlots = 2 * kPanels + N * kParts<T, W>;

// One step: c += rows · token, of each panel.
template <class T, int N, int P>
__device__ __forceinline__ void multiply(float (&c)[kPanels][N][4], int tile, const Pack<uint32_t, P> (&rows)[2 * kPanels],
                                         const Pack<uint32_t, P>& token) {
#pragma unroll
    for (int panel = 0; panel < kPanels; panel++) {
        const Pack<uint32_t, P>&upper = rows[2 * panel], &lower = rows[2 * panel + 1];
#pragma unroll
        for (int part = 0; part < P / 2; part++) {
            const uint32_t a[4] = {upper.at[2 * part], lower.at[2 * part], upper.at[2 * part + 1], lower.at[2 * part + 1]};
            const uint32_t b[2] = {token.at[2 * part], token.at[2 * part + 1]};
            mma_m16n8k16<T>(c[panel][tile], a, b);
        }
    }
}

// c [panels][token tiles] = w · x over this warp's part of columns `from..to`. Rows of w are `first_row..n`, `stride`
// apart; `x[tile]` is this lane's token or null. The ring has S stages.
template <class T, int N, int S = kStages, class W>
__device__ __forceinline__ void stream(float (&c)[kPanels][N][4], const W* w, int first_row, int n, int stride,
                                       int from, int to, const T* const (&x)[N], Pack<uint32_t, 4>* ring) {
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const int steps = (to - from + kStep<W> - 1) / kStep<W>;
    const auto slot = [&](int stage, int at) { return ring + (stage * kSlots<T, W, N> + at) * kThreads + thread; };
    const auto start = [&](int step, int stage) {
        const int column = from + step * kStep<W> + t * kWide<W>;
        const bool inside = step < steps && column < to;
        if (step < steps) {
#pragma unroll
            for (int at = 0; at < 2 * kPanels; at++) {
                const int row = first_row + at * 8 + g;
                const bool has = inside && row < n;
                cp_async16(slot(stage, at), has ? w + int64_t(row) * stride + column : w, has ? 16 : 0);
            }
#pragma unroll
            for (int tile = 0; tile < N; tile++) {
                const bool has = inside && x[tile] != nullptr;
#pragma unroll
                for (int part = 0; part < kParts<T, W>; part++) {
                    const void* const own = has ? static_cast<const void*>(x[tile] + column + part * kWide<T>) : w;
                    cp_async16(slot(stage, 2 * kPanels + tile * kParts<T, W> + part), own, has ? 16 : 0);
                }
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int ahead = 0; ahead < S - 1; ahead++) start(warp + ahead * kWarps, ahead);
    int stage = 0;
    for (int step = warp; step < steps; step += kWarps) {
        cp_async_wait<S - 2>();
        constexpr int kPairs = kWide<W> / 2;
        Pack<uint32_t, kPairs> rows[2 * kPanels];
#pragma unroll
        for (int at = 0; at < 2 * kPanels; at++) rows[at] = widened<T, W>(load<4>(&slot(stage, at)->at[0]));
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
            Pack<uint32_t, kPairs> token;
#pragma unroll
            for (int part = 0; part < kParts<T, W>; part++) {
                const auto own = load<4>(&slot(stage, 2 * kPanels + tile * kParts<T, W> + part)->at[0]);
#pragma unroll
                for (int i = 0; i < 4; i++) token.at[part * 4 + i] = own.at[i];
            }
            multiply<T, N>(c, tile, rows, token);
        }
        // The stage that was read in the step before is free.
        start(step + (S - 1) * kWarps, stage == 0 ? S - 1 : stage - 1);
        stage = stage == S - 1 ? 0 : stage + 1;
    }
}

// Leaves each warp's accumulators in shared memory, [warps][panels][N][4][lanes].
template <int N>
__device__ __forceinline__ void leave(const float (&c)[kPanels][N][4], float* sums) {
    const int thread = int(threadIdx.x);
    float* const own = sums + thread / kWarp * kPanels * N * 4 * kWarp + thread % kWarp;
#pragma unroll
    for (int panel = 0; panel < kPanels; panel++) {
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) own[((panel * N + tile) * 4 + i) * kWarp] = c[panel][tile][i];
        }
    }
}

// The sum over warps of accumulator `i` of `lane`.
template <int N>
__device__ __forceinline__ float joined(const float* sums, int panel, int tile, int i, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; warp++) {
        sum += sums[(((warp * kPanels + panel) * N + tile) * 4 + i) * kWarp + lane];
    }
    return sum;
}

// Where a sum belongs: neighbouring units are neighbouring weight rows, which are neighbouring columns of the output.
struct Place {
    int row;  // of the block's weight rows
    int tile, token;
};

__device__ __forceinline__ Place place_of(int unit) {
    constexpr int kRows = kPanels * kPanel;
    return Place{unit % kRows, unit / (kRows * kTile), unit / kRows % kTile};
}

template <int N>
__device__ __forceinline__ float joined(const float* sums, const Place& place) {
    const int row = place.row % kPanel;
    return joined<N>(sums, place.row / kPanel, place.tile, row / 8 * 2 + place.token % 2, row % 8 * 4 + place.token / 2);
}
