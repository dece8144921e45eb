// Adapters of many rows at once: v = A · x, then out = scale * B · v (or is added to it), each row with its adapter.
//
// Pairs are grouped by adapter (for experts: by virtual expert, slot * experts + expert) by expert_align; rows without an
// adapter are in no group. The shrink has few weight rows and much k, so that k is split over the grid and each part
// leaves its own sums; the expand adds them in one order, rounds v as the adapter's layer would, and needs no pipeline:
// its weights are a few steps long.
#include "expert_stream.cuh"

constexpr int kMaxRank = 256;
// Between the rows of v in shared memory, so that eight of them lie in different banks.
constexpr int kPad = 8;

// v [parts][max_pairs][rank] = A · x over each part of k.
template <class T, int N>
__device__ __forceinline__ void lora_shrink(const T* __restrict__ x,  // [pairs / ranks, k]
                                            const T* __restrict__ a,  // [adapters, rank, k]
                                            const uint32_t* __restrict__ offsets,       // [adapters + 1]
                                            const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                            float* __restrict__ v, int max_pairs, int ranks, int rank, int k) {
    const int adapter = int(blockIdx.y), first_row = int(blockIdx.x) * kPanels * kPanel;
    const uint32_t begin = offsets[adapter], end = offsets[adapter + 1];
    const int parts = int(gridDim.z), part = int(blockIdx.z);
    const int each = ((k + kStep<T> - 1) / kStep<T> + parts - 1) / parts * kStep<T>;
    const int from = min(part * each, k), to = min(from + each, k);
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
        stream<T, N>(c, a + int64_t(adapter) * rank * k, first_row, rank, k, from, to, own,
                     reinterpret_cast<Pack<uint32_t, 4>*>(memory));
        __syncthreads();  // the ring of every warp is free for its sums
        leave<N>(c, sums);
        __syncthreads();  // all sums are there
        for (int unit = thread; unit < kPanels * N * 4 * kWarp; unit += kThreads) {
            const Place place = place_of(unit);
            const uint32_t row = first + uint32_t(place.tile * kTile + place.token);
            const int out_row = first_row + place.row;
            if (row >= end || out_row >= rank) continue;
            v[(int64_t(part) * max_pairs + sorted_pairs[row]) * rank + out_row] = joined<N>(sums, place);
        }
        __syncthreads();  // the sums are read before the ring is filled again
    }
}

// out [pairs, n] = scale * B · v, or += it.
template <class T, int N>
__device__ __forceinline__ void lora_expand(const float* __restrict__ v,  // [parts][max_pairs][rank]
                                            const T* __restrict__ b,      // [adapters, n, rank]
                                            const float* __restrict__ scales,           // [adapters / experts]
                                            const uint32_t* __restrict__ offsets,       // [adapters + 1]
                                            const uint32_t* __restrict__ sorted_pairs,  // [pairs]
                                            T* __restrict__ out, int parts, int max_pairs, int experts, int n, int rank,
                                            int add) {
    SHARED(T, tokens, N * kTile * (kMaxRank + kPad));
    const int adapter = int(blockIdx.y);
    const uint32_t begin = offsets[adapter], end = offsets[adapter + 1];
    if (begin == end) return;
    const float scale = scales[adapter / experts];
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const int first_row = (int(blockIdx.x) * kWarps + warp) * kPanels * kPanel;
    const int stride = rank + kPad, steps = (rank + kStep<T> - 1) / kStep<T>;
    const T* const own = b + int64_t(adapter) * n * rank;
    for (uint32_t first = begin; first < end; first += N * kTile) {
        for (int unit = thread; unit < N * kTile * rank; unit += kThreads) {
            const int token = unit / rank, at = unit % rank;
            const uint32_t row = first + uint32_t(token);
            float sum = 0.0f;
            if (row < end) {
                const int64_t place = int64_t(sorted_pairs[row]) * rank + at;
                for (int part = 0; part < parts; part++) sum += v[int64_t(part) * max_pairs * rank + place];
            }
            tokens[token * stride + at] = from_f32<T>(sum);
        }
        __syncthreads();  // v is there
        float c[kPanels][N][4] = {};
        for (int step = 0; step < steps; step++) {
            const int column = step * kStep<T> + t * kWide<T>;
            Pack<uint32_t, 4> rows[2 * kPanels] = {};
#pragma unroll
            for (int at = 0; at < 2 * kPanels; at++) {
                const int row = first_row + at * 8 + g;
                if (row < n && column < rank) {
                    rows[at] = load<4>(reinterpret_cast<const uint32_t*>(own + int64_t(row) * rank + column));
                }
            }
#pragma unroll
            for (int tile = 0; tile < N; tile++) {
                Pack<uint32_t, 4> token = {};
                if (column < rank) {
                    token = load<4>(reinterpret_cast<const uint32_t*>(tokens + (tile * kTile + g) * stride + column));
                }
                multiply<T, N>(c, tile, rows, token);
            }
        }
#pragma unroll
        for (int panel = 0; panel < kPanels; panel++) {
#pragma unroll
            for (int tile = 0; tile < N; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t row = first + uint32_t(tile * kTile + t * 2 + i % 2);
                    const int out_row = first_row + panel * kPanel + g + i / 2 * 8;
                    if (row >= end || out_row >= n) continue;
                    T* const to = out + int64_t(sorted_pairs[row]) * n + out_row;
                    const float before = add ? to_f32(*to) : 0.0f;
                    *to = from_f32<T>(fmaf(scale, c[panel][tile][i], before));
                }
            }
        }
        __syncthreads();  // v is read before it is replaced
    }
}

#define LORA_SHRINK(name, T, N)                                                                                       \
    KERNEL_FOR(kThreads, 2, name, const T* x, const T* a, const uint32_t* offsets, const uint32_t* sorted_pairs, float* v,   \
           int max_pairs, int ranks, int rank, int k) {                                                               \
        lora_shrink<T, N>(x, a, offsets, sorted_pairs, v, max_pairs, ranks, rank, k);                                 \
    }
#define LORA_EXPAND(name, T, N)                                                                                       \
    KERNEL_FOR(kThreads, 2, name, const float* v, const T* b, const float* scales, const uint32_t* offsets,                  \
           const uint32_t* sorted_pairs, T* out, int parts, int max_pairs, int experts, int n, int rank, int add) {   \
        lora_expand<T, N>(v, b, scales, offsets, sorted_pairs, out, parts, max_pairs, experts, n, rank, add);         \
    }

LORA_SHRINK(lora_shrink_bf16, bf16, 2)
LORA_SHRINK(lora_shrink_f16, f16, 2)
LORA_EXPAND(lora_expand_bf16, bf16, 2)
LORA_EXPAND(lora_expand_f16, f16, 2)
