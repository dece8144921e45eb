// The two products of a mixture of experts for few tokens, and the sum over a token's experts.
//
// Everything is indexed by (token, rank) pair; `sorted_pairs` only says which pairs are an expert's. In w13 eight gate
// rows alternate with their eight up rows: a panel of 16 has both, and a lane's accumulators hold a gate (row g) with
// its up (row g + 8). Weights are of the activations' type, or fp8 codes with a scale a row that the sums are multiplied by.
#include "expert_stream.cuh"

__device__ __forceinline__ float silu(float x) {
    return x / (1.0f + __expf(-x));
}

// act [pairs, inner] = silu(x · w1 + delta1) * (x · w3 + delta3); deltas are those of tokens with an adapter.
template <class T, class W, int N>
__device__ __forceinline__ void expert_up(const T* __restrict__ x,           // [tokens, k]
                                          const W* __restrict__ w13,         // [experts, 2 inner, k]
                                          const float* __restrict__ scales,  // [experts, 2 inner] of fp8 weights
                                          const T* __restrict__ delta,  // [pairs, 2 inner] as w13, or null
                                          const uint32_t* __restrict__ slots,         // [tokens], with delta
                                          const uint32_t* __restrict__ offsets,       // [experts + 1]
                                          const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                          T* __restrict__ act,                        // [pairs, inner]
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
        stream<T, N>(c, w13 + int64_t(expert) * n * k, first_row, n, k, 0, k, own,
                     reinterpret_cast<Pack<uint32_t, 4>*>(memory));
        __syncthreads();  // the ring of every warp is free for its sums
        leave<N>(c, sums);
        __syncthreads();  // all sums are there
        // A gate is accumulator `i` of its lane, its up accumulator i + 2.
        for (int unit = thread; unit < kPanels * N * 2 * kWarp; unit += kThreads) {
            const int lane = unit % kWarp, i = unit / kWarp % 2, tile = unit / kWarp / 2 % N, panel = unit / kWarp / 2 / N;
            const uint32_t row = first + uint32_t(tile * kTile + lane % 4 * 2 + i);
            const int gate_row = first_row + panel * kPanel + lane / 4;
            if (row >= end || gate_row >= n) continue;
            const int64_t scale = int64_t(expert) * n + gate_row;
            float gate = joined<N>(sums, panel, tile, i, lane) * scale_of<W>(scales, scale);
            float up = joined<N>(sums, panel, tile, i + 2, lane) * scale_of<W>(scales, scale + 8);
            const int64_t pair = sorted_pairs[row];
            if (delta != nullptr && slots[pair / ranks] != kNone) {
                gate += to_f32(delta[pair * n + gate_row]);
                up += to_f32(delta[pair * n + gate_row + 8]);
            }
            act[pair * inner + first_row / 2 + panel * 8 + lane / 4] = from_f32<T>(silu(gate) * up);
        }
        __syncthreads();  // the sums are read before the ring is filled again
    }
}

// y [pairs, n] = act · w2 + delta.
template <class T, class W, int N>
__device__ __forceinline__ void expert_down(const T* __restrict__ act,         // [pairs, k]
                                            const W* __restrict__ w2,          // [experts, n, k]
                                            const float* __restrict__ scales,  // [experts, n] of fp8 weights
                                            const T* __restrict__ delta,  // [pairs, n] or null
                                            const uint32_t* __restrict__ slots,         // [tokens], with delta
                                            const uint32_t* __restrict__ offsets,       // [experts + 1]
                                            const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                            float* __restrict__ y,                      // [pairs, n]
                                            int ranks, int n, int k) {
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
            own[tile] = row < end ? act + int64_t(sorted_pairs[row]) * k : nullptr;
        }
        float c[kPanels][N][4] = {};
        stream<T, N>(c, w2 + int64_t(expert) * n * k, first_row, n, k, 0, k, own,
                     reinterpret_cast<Pack<uint32_t, 4>*>(memory));
        __syncthreads();  // the ring of every warp is free for its sums
        leave<N>(c, sums);
        __syncthreads();  // all sums are there
        for (int unit = thread; unit < kPanels * N * 4 * kWarp; unit += kThreads) {
            const Place place = place_of(unit);
            const uint32_t row = first + uint32_t(place.tile * kTile + place.token);
            const int out_row = first_row + place.row;
            if (row >= end || out_row >= n) continue;
            float sum = joined<N>(sums, place) * scale_of<W>(scales, int64_t(expert) * n + out_row);
            const int64_t pair = sorted_pairs[row];
            if (delta != nullptr && slots[pair / ranks] != kNone) sum += to_f32(delta[pair * n + out_row]);
            y[pair * n + out_row] = sum;
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

#define EXPERT_UP(name, T, W, N)                                                                                       \
    KERNEL_FOR(kThreads, 2, name, const T* x, const W* w13, const float* scales, const T* delta, const uint32_t* slots, \
               const uint32_t* offsets, const uint32_t* sorted_pairs, T* act, int ranks, int inner, int k) {            \
        expert_up<T, W, N>(x, w13, scales, delta, slots, offsets, sorted_pairs, act, ranks, inner, k);                  \
    }
#define EXPERT_DOWN(name, T, W, N)                                                                                      \
    KERNEL_FOR(kThreads, 2, name, const T* act, const W* w2, const float* scales, const T* delta, const uint32_t* slots, \
               const uint32_t* offsets, const uint32_t* sorted_pairs, float* y, int ranks, int n, int k) {              \
        expert_down<T, W, N>(act, w2, scales, delta, slots, offsets, sorted_pairs, y, ranks, n, k);                     \
    }
#define EXPERT_COMBINE(name, T, W)                                                                                 \
    KERNEL(256, name, const float* y, const float* weights, T* out, const uint32_t* tokens, int ranks, int n) {    \
        expert_combine<T, W>(y, weights, out, tokens, ranks, n);                                                   \
    }

EXPERT_UP(expert_up_bf16_n1, bf16, bf16, 1)
EXPERT_UP(expert_up_bf16_n4, bf16, bf16, 4)
EXPERT_UP(expert_up_f16_n1, f16, f16, 1)
EXPERT_UP(expert_up_f16_n4, f16, f16, 4)
EXPERT_UP(expert_up_fp8_bf16_n1, bf16, fp8, 1)
EXPERT_UP(expert_up_fp8_bf16_n2, bf16, fp8, 2)
EXPERT_UP(expert_up_fp8_f16_n1, f16, fp8, 1)
EXPERT_UP(expert_up_fp8_f16_n2, f16, fp8, 2)
EXPERT_DOWN(expert_down_bf16_n1, bf16, bf16, 1)
EXPERT_DOWN(expert_down_bf16_n4, bf16, bf16, 4)
EXPERT_DOWN(expert_down_f16_n1, f16, f16, 1)
EXPERT_DOWN(expert_down_f16_n4, f16, f16, 4)
EXPERT_DOWN(expert_down_fp8_bf16_n1, bf16, fp8, 1)
EXPERT_DOWN(expert_down_fp8_bf16_n2, bf16, fp8, 2)
EXPERT_DOWN(expert_down_fp8_f16_n1, f16, fp8, 1)
EXPERT_DOWN(expert_down_fp8_f16_n2, f16, fp8, 2)
EXPERT_COMBINE(expert_combine_bf16, bf16, 4)
EXPERT_COMBINE(expert_combine_f16, f16, 4)
EXPERT_COMBINE(expert_combine_f32, float, 4)
EXPERT_COMBINE(expert_combine_bf16_odd, bf16, 1)
EXPERT_COMBINE(expert_combine_f16_odd, f16, 1)
EXPERT_COMBINE(expert_combine_f32_odd, float, 1)
