// The two products of a mixture of experts for few tokens: each weight is read once, straight from memory into the
// tensor cores' registers.
//
// A block has 32 weight rows (two panels of 16) of one expert; its eight warps take turns along k. The product is
// out[16 weight rows x 8 tokens] += w[16 x 16] * x[16 x 8]: tokens are the short side, so that one token wastes no
// weight. The order of k inside a step is free as long as w and x agree, so lane (g, t) takes the 8 neighbours at
// 8 t of rows g and g + 8: 16-byte copies feed the lane's own fragments, and only the lane that copied reads them, so
// that the pipeline needs no barrier.
//
// In w13 eight gate rows alternate with their eight up rows: a panel of 16 has both, and a lane's accumulators hold a
// gate (row g) with its up (row g + 8).
#include "device.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStages = 3;
constexpr int kPanels = 2;
constexpr int kPanel = 16;
// Tokens of one product.
constexpr int kTile = 8;
// Elements along k that a warp takes at once: four lanes with 8 each.
constexpr int kStep = 32;
constexpr int kOwn = 8;

// What a lane copies in a stage: its two rows of each panel, and its token of each tile.
template <int N>
constexpr int kSlots = 2 * kPanels + N;

__device__ __forceinline__ float silu(float x) {
    return x / (1.0f + __expf(-x));
}

// c [panels][token tiles] = w · x over this warp's part of k. `rows` are of w, `x[tile]` this lane's token or null.
template <class T, int N>
__device__ __forceinline__ void stream(float (&c)[kPanels][N][4], const T* w, int first_row, int n, int k,
                                       const T* const (&x)[N], Pack<uint32_t, 4>* ring) {
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const int steps = (k + kStep - 1) / kStep;
    const auto slot = [&](int stage, int at) { return ring + (stage * kSlots<N> + at) * kThreads + thread; };
    const auto start = [&](int step, int stage) {
        const int column = step * kStep + t * kOwn;
        const bool inside = step < steps && column < k;
        if (step < steps) {
#pragma unroll
            for (int at = 0; at < 2 * kPanels; at++) {
                const int row = first_row + at * 8 + g;
                const bool has = inside && row < n;
                cp_async16(slot(stage, at), has ? w + int64_t(row) * k + column : w, has ? 16 : 0);
            }
#pragma unroll
            for (int tile = 0; tile < N; tile++) {
                const bool has = inside && x[tile] != nullptr;
                cp_async16(slot(stage, 2 * kPanels + tile), has ? x[tile] + column : w, has ? 16 : 0);
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int ahead = 0; ahead < kStages - 1; ahead++) start(warp + ahead * kWarps, ahead);
    int stage = 0;
    for (int step = warp; step < steps; step += kWarps) {
        cp_async_wait<kStages - 2>();
        Pack<uint32_t, 4> rows[2 * kPanels];
#pragma unroll
        for (int at = 0; at < 2 * kPanels; at++) rows[at] = load<4>(&slot(stage, at)->at[0]);
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
            const Pack<uint32_t, 4> token = load<4>(&slot(stage, 2 * kPanels + tile)->at[0]);
#pragma unroll
            for (int panel = 0; panel < kPanels; panel++) {
                const Pack<uint32_t, 4>&upper = rows[2 * panel], &lower = rows[2 * panel + 1];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const uint32_t a[4] = {upper.at[2 * half], lower.at[2 * half], upper.at[2 * half + 1],
                                           lower.at[2 * half + 1]};
                    const uint32_t b[2] = {token.at[2 * half], token.at[2 * half + 1]};
                    mma_m16n8k16<T>(c[panel][tile], a, b);
                }
            }
        }
        // The stage that was read in the step before is free.
        start(step + (kStages - 1) * kWarps, stage == 0 ? kStages - 1 : stage - 1);
        stage = stage == kStages - 1 ? 0 : stage + 1;
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

// act [rows, inner] = silu(x · w1 + delta1) * (x · w3 + delta3) of the sorted rows of each expert.
template <class T, int N>
__device__ __forceinline__ void expert_up(const T* __restrict__ x,    // [tokens, k]
                                          const T* __restrict__ w13,  // [experts, 2 inner, k]
                                          const T* __restrict__ delta,  // [rows, 2 inner] in the order of w13, or null
                                          const uint32_t* __restrict__ offsets,       // [experts + 1]
                                          const uint32_t* __restrict__ sorted_pairs,  // [rows]
                                          T* __restrict__ act,                        // [rows, inner]
                                          int ranks, int inner, int k) {
    const int expert = int(blockIdx.y), n = 2 * inner, first_row = int(blockIdx.x) * kPanels * kPanel;
    const uint32_t begin = offsets[expert], end = offsets[expert + 1];
    DYNAMIC_SHARED(memory);
    float* const sums = reinterpret_cast<float*>(memory);
    const int thread = int(threadIdx.x), g = thread % kWarp / 4;
    for (uint32_t first = begin; first < end; first += N * kTile) {
        const T* own[N];
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
            const uint32_t row = first + uint32_t(tile * kTile + g);
            own[tile] = row < end ? x + int64_t(sorted_pairs[row] / uint32_t(ranks)) * k : nullptr;
        }
        float c[kPanels][N][4] = {};
        stream<T, N>(c, w13 + int64_t(expert) * n * k, first_row, n, k, own, reinterpret_cast<Pack<uint32_t, 4>*>(memory));
        __syncthreads();  // the ring of every warp is free for its sums
        leave<N>(c, sums);
        __syncthreads();  // all sums are there
        // A gate is accumulator `i` of its lane, its up accumulator i + 2.
        for (int unit = thread; unit < kPanels * N * 2 * kWarp; unit += kThreads) {
            const int lane = unit % kWarp, i = unit / kWarp % 2, tile = unit / kWarp / 2 % N, panel = unit / kWarp / 2 / N;
            const uint32_t row = first + uint32_t(tile * kTile + lane % 4 * 2 + i);
            const int gate_row = first_row + panel * kPanel + lane / 4;
            if (row >= end || gate_row >= n) continue;
            float gate = joined<N>(sums, panel, tile, i, lane), up = joined<N>(sums, panel, tile, i + 2, lane);
            if (delta != nullptr) {
                gate += to_f32(delta[int64_t(row) * n + gate_row]);
                up += to_f32(delta[int64_t(row) * n + gate_row + 8]);
            }
            act[int64_t(row) * inner + first_row / 2 + panel * 8 + lane / 4] = from_f32<T>(silu(gate) * up);
        }
        __syncthreads();  // the sums are read before the ring is filled again
    }
}

// y [pairs, n] = act · w2 + delta, each row where its (token, rank) pair is.
template <class T, int N>
__device__ __forceinline__ void expert_down(const T* __restrict__ act,    // [rows, k]
                                            const T* __restrict__ w2,     // [experts, n, k]
                                            const T* __restrict__ delta,  // [rows, n] or null
                                            const uint32_t* __restrict__ offsets,       // [experts + 1]
                                            const uint32_t* __restrict__ sorted_pairs,  // [rows]
                                            float* __restrict__ y,                      // [pairs, n]
                                            int n, int k) {
    const int expert = int(blockIdx.y), first_row = int(blockIdx.x) * kPanels * kPanel;
    const uint32_t begin = offsets[expert], end = offsets[expert + 1];
    DYNAMIC_SHARED(memory);
    float* const sums = reinterpret_cast<float*>(memory);
    const int thread = int(threadIdx.x), g = thread % kWarp / 4;
    for (uint32_t first = begin; first < end; first += N * kTile) {
        const T* own[N];
#pragma unroll
        for (int tile = 0; tile < N; tile++) {
            const uint32_t row = first + uint32_t(tile * kTile + g);
            own[tile] = row < end ? act + int64_t(row) * k : nullptr;
        }
        float c[kPanels][N][4] = {};
        stream<T, N>(c, w2 + int64_t(expert) * n * k, first_row, n, k, own, reinterpret_cast<Pack<uint32_t, 4>*>(memory));
        __syncthreads();  // the ring of every warp is free for its sums
        leave<N>(c, sums);
        __syncthreads();  // all sums are there
        // Neighbouring threads write neighbouring rows of w2: columns of y.
        for (int unit = thread; unit < kPanels * N * 4 * kWarp; unit += kThreads) {
            const int panel_row = unit % kPanel, panel = unit / kPanel % kPanels;
            const int token = unit / (kPanel * kPanels) % kTile, tile = unit / (kPanel * kPanels * kTile);
            const uint32_t row = first + uint32_t(tile * kTile + token);
            const int out_row = first_row + panel * kPanel + panel_row;
            if (row >= end || out_row >= n) continue;
            const int lane = panel_row % 8 * 4 + token / 2, i = panel_row / 8 * 2 + token % 2;
            float sum = joined<N>(sums, panel, tile, i, lane);
            if (delta != nullptr) sum += to_f32(delta[int64_t(row) * n + out_row]);
            y[int64_t(sorted_pairs[row]) * n + out_row] = sum;
        }
        __syncthreads();  // the sums are read before the ring is filled again
    }
}

// out [tokens, n] = Σ over ranks of weight * y, in the order of ranks.
template <class T, int W>
__device__ __forceinline__ void expert_combine(const float* __restrict__ y,        // [tokens * ranks, n]
                                               const float* __restrict__ weights,  // [tokens, ranks]
                                               T* __restrict__ out,                // [tokens, n]
                                               const uint32_t* __restrict__ tokens, int ranks, int n) {
    const uint32_t token = blockIdx.y;
    if (token >= *tokens) return;
    const int at = int(blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    float sum[W] = {};
    for (int rank = 0; rank < ranks; rank++) {
        const int64_t pair = int64_t(token) * ranks + rank;
        const float weight = weights[pair];
        const Pack<float, W> part = load<W>(y + pair * n + at);
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] = fmaf(weight, part.at[i], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < W; i++) out[int64_t(token) * n + at + i] = from_f32<T>(sum[i]);
}

#define EXPERT_UP(name, T, N)                                                                                      \
    KERNEL(kThreads, name, const T* x, const T* w13, const T* delta, const uint32_t* offsets,                      \
           const uint32_t* sorted_pairs, T* act, int ranks, int inner, int k) {                                    \
        expert_up<T, N>(x, w13, delta, offsets, sorted_pairs, act, ranks, inner, k);                               \
    }
#define EXPERT_DOWN(name, T, N)                                                                                    \
    KERNEL(kThreads, name, const T* act, const T* w2, const T* delta, const uint32_t* offsets,                     \
           const uint32_t* sorted_pairs, float* y, int n, int k) {                                                 \
        expert_down<T, N>(act, w2, delta, offsets, sorted_pairs, y, n, k);                                         \
    }
#define EXPERT_COMBINE(name, T, W)                                                                                 \
    KERNEL(256, name, const float* y, const float* weights, T* out, const uint32_t* tokens, int ranks, int n) {    \
        expert_combine<T, W>(y, weights, out, tokens, ranks, n);                                                   \
    }

EXPERT_UP(expert_up_bf16_n1, bf16, 1)
EXPERT_UP(expert_up_bf16_n4, bf16, 4)
EXPERT_UP(expert_up_f16_n1, f16, 1)
EXPERT_UP(expert_up_f16_n4, f16, 4)
EXPERT_DOWN(expert_down_bf16_n1, bf16, 1)
EXPERT_DOWN(expert_down_bf16_n4, bf16, 4)
EXPERT_DOWN(expert_down_f16_n1, f16, 1)
EXPERT_DOWN(expert_down_f16_n4, f16, 4)
EXPERT_COMBINE(expert_combine_bf16, bf16, 4)
EXPERT_COMBINE(expert_combine_f16, f16, 4)
EXPERT_COMBINE(expert_combine_f32, float, 4)
EXPERT_COMBINE(expert_combine_bf16_odd, bf16, 1)
EXPERT_COMBINE(expert_combine_f16_odd, f16, 1)
EXPERT_COMBINE(expert_combine_f32_odd, float, 1)
