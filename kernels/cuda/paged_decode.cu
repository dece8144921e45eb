// Attention of one new token a sequence over the paged cache, split over the context (flash decoding).
//
// A block has one sequence, one kv head with up to G of its query heads, and one part of the context. Each of its
// warps takes every n-th block of 16 tokens through its own two-stage pipeline of asynchronous copies, so that no
// barrier of the block is in the loop. `paged_decode_merge` joins the parts. The number of parts is the launch's;
// context lengths are read from device memory, and a sequence of length 0 pads a captured batch.
#include "device.cuh"

constexpr int kStages = 2;
constexpr float kLog2E = 1.4426950408889634f;

// The blocks of 16 tokens that a part has, and the tokens that the query sees.
struct Part {
    int from, to;
    int first, last;
};

__device__ __forceinline__ Part part_of(int context, int window, int part, int parts) {
    Part own;
    own.to = context;
    own.from = window > 0 ? max(context - window, 0) : 0;
    const int first = own.from / kBlock, last = (own.to + kBlock - 1) / kBlock;
    const int each = (last - first + parts - 1) / parts;
    own.first = first + part * each;
    own.last = min(own.first + each, last);
    return own;
}

// Starts the copy of the keys and values of one block of tokens; tokens outside of the part become zeros.
template <class T>
__device__ __forceinline__ void fetch(T* stage, const T* keys, const T* values, int block, const Part& part, int d) {
    const int packs = d / kWide<T>;
    for (int unit = int(threadIdx.x % kWarp); unit < kBlock * packs; unit += kWarp) {
        const int token = block * kBlock + unit / packs;
        const int bytes = token >= part.from && token < part.to ? 16 : 0;
        cp_async16(stage + unit * kWide<T>, keys + unit * kWide<T>, bytes);
        cp_async16(stage + kBlock * d + unit * kWide<T>, values + unit * kWide<T>, bytes);
    }
}

template <class T, int G>
__device__ __forceinline__ void paged_decode(const T* __restrict__ qkv,  // [sequences, width], q first
                                             const T* __restrict__ kv,   // [blocks][k|v][hkv][16][d]
                                             const uint32_t* __restrict__ tables,    // [sequences, table_width]
                                             const uint32_t* __restrict__ contexts,  // [sequences]
                                             float* __restrict__ sums,   // [sequences][hq][parts][d]
                                             float* __restrict__ stats,  // [sequences][hq][parts][maximum, weight]
                                             int width, int table_width, int hq, int hkv, int d, float scale,
                                             int window) {
    constexpr int W = kWide<T>;
    const int sequence = int(blockIdx.z), parts = int(gridDim.x);
    const Part part = part_of(int(contexts[sequence]), window, int(blockIdx.x), parts);
    if (part.first >= part.last) return;
    const int group = hq / hkv, tiles = (group + G - 1) / G;
    const int kv_head = int(blockIdx.y) / tiles, first_head = kv_head * group + int(blockIdx.y) % tiles * G;
    const int heads = min(G, (kv_head + 1) * group - first_head);

    DYNAMIC_SHARED(memory);
    const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    T* const stages = reinterpret_cast<T*>(memory) + warp * kStages * 2 * kBlock * d;
    SHARED(float, all_scores, 4 * G * kBlock);
    float* const scores = all_scores + warp * G * kBlock;

    // `row_lanes` lanes share a token, each with one pack of its dimensions.
    const int packs = d / W;
    int row_lanes = 1;
    while (row_lanes < packs) row_lanes *= 2;
    const int step = kWarp / row_lanes, column = lane % row_lanes, sub = lane / row_lanes;
    const bool has = column < packs;

    float q[G][W], acc[G][W], maximum[G], weight[G];
#pragma unroll
    for (int h = 0; h < G; h++) {
        maximum[h] = -INFINITY;
        weight[h] = 0.0f;
        Pack<T, W> own = {};
        if (has && h < heads) own = load<W>(qkv + int64_t(sequence) * width + (first_head + h) * d + column * W);
#pragma unroll
        for (int i = 0; i < W; i++) {
            q[h][i] = has && h < heads ? to_f32(own.at[i]) * (scale * kLog2E) : 0.0f;
            acc[h][i] = 0.0f;
        }
    }

    const uint32_t* const table = tables + int64_t(sequence) * table_width;
    const int64_t half = int64_t(hkv) * kBlock * d;
    const auto start = [&](int block, int stage) {
        const T* const keys = kv + int64_t(table[block]) * 2 * half + int64_t(kv_head) * kBlock * d;
        fetch(stages + stage * 2 * kBlock * d, keys, keys + half, block, part, d);
    };
    if (part.first + warp < part.last) start(part.first + warp, 0);
    cp_async_commit();
    int stage = 0;
    for (int block = part.first + warp; block < part.last; block += warps) {
        if (block + warps < part.last) start(block + warps, stage ^ 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncwarp();  // every lane's copies of this stage are there
        const T* const keys = stages + stage * 2 * kBlock * d;
        for (int row = sub; row < kBlock; row += step) {
            Pack<T, W> key = {};
            if (has) key = load<W>(keys + row * d + column * W);
            float dot[G];
#pragma unroll
            for (int h = 0; h < G; h++) {
                dot[h] = 0.0f;
#pragma unroll
                for (int i = 0; i < W; i++) dot[h] = fmaf(q[h][i], has ? to_f32(key.at[i]) : 0.0f, dot[h]);
            }
            for (int lanes = row_lanes / 2; lanes > 0; lanes /= 2) {
#pragma unroll
                for (int h = 0; h < G; h++) dot[h] += __shfl_xor_sync(kAllLanes, dot[h], lanes);
            }
            if (column == 0) {
#pragma unroll
                for (int h = 0; h < G; h++) scores[h * kBlock + row] = dot[h];
            }
        }
        __syncwarp();  // scores are there
        const int token = block * kBlock + lane % kBlock;
        const bool seen = token >= part.from && token < part.to;
#pragma unroll
        for (int h = 0; h < G; h++) {
            const float score = seen ? scores[h * kBlock + lane % kBlock] : -INFINITY;
            const float largest = fmaxf(maximum[h], warp_max(score));
            const float p = exp2f(score - largest), shrink = exp2f(maximum[h] - largest);
            maximum[h] = largest;
            // Both halves of the warp have all 16 scores.
            weight[h] = fmaf(weight[h], shrink, 0.5f * warp_sum(p));
            __syncwarp();  // both halves have read the scores
            if (lane < kBlock) scores[h * kBlock + lane] = p;
#pragma unroll
            for (int i = 0; i < W; i++) acc[h][i] *= shrink;
        }
        __syncwarp();  // probabilities are there
        const T* const values = keys + kBlock * d;
        for (int row = sub; row < kBlock; row += step) {
            Pack<T, W> value = {};
            if (has) value = load<W>(values + row * d + column * W);
#pragma unroll
            for (int h = 0; h < G; h++) {
                const float p = scores[h * kBlock + row];
#pragma unroll
                for (int i = 0; i < W; i++) acc[h][i] = fmaf(p, has ? to_f32(value.at[i]) : 0.0f, acc[h][i]);
            }
        }
        __syncwarp();  // the stage may be filled again
        stage ^= 1;
    }
    __syncthreads();  // all warps are done with their stages, which now take their results

    // [warps][G][d], then [warps][G][maximum, weight].
    float* const results = reinterpret_cast<float*>(memory);
    float* const result_stats = results + warps * G * d;
#pragma unroll
    for (int h = 0; h < G; h++) {
        for (int lanes = row_lanes; lanes < kWarp; lanes *= 2) {
#pragma unroll
            for (int i = 0; i < W; i++) acc[h][i] += __shfl_xor_sync(kAllLanes, acc[h][i], lanes);
        }
        if (has && sub == 0) {
#pragma unroll
            for (int i = 0; i < W; i++) results[(warp * G + h) * d + column * W + i] = acc[h][i];
        }
        if (lane == 0) {
            result_stats[(warp * G + h) * 2] = maximum[h];
            result_stats[(warp * G + h) * 2 + 1] = weight[h];
        }
    }
    __syncthreads();
    for (int unit = int(threadIdx.x); unit < heads * d; unit += int(blockDim.x)) {
        const int h = unit / d, at = unit % d;
        float largest = -INFINITY;
        for (int w = 0; w < warps; w++) largest = fmaxf(largest, result_stats[(w * G + h) * 2]);
        float sum = 0.0f, total = 0.0f;
        for (int w = 0; w < warps; w++) {
            const float share = exp2f(result_stats[(w * G + h) * 2] - largest);
            sum = fmaf(share, results[(w * G + h) * d + at], sum);
            total = fmaf(share, result_stats[(w * G + h) * 2 + 1], total);
        }
        const int64_t to = (int64_t(sequence) * hq + first_head + h) * parts + blockIdx.x;
        sums[to * d + at] = sum;
        if (at == 0) {
            stats[to * 2] = largest;
            stats[to * 2 + 1] = total;
        }
    }
}

template <class T>
__device__ __forceinline__ void paged_decode_merge(const float* __restrict__ sums, const float* __restrict__ stats,
                                                   const uint32_t* __restrict__ contexts,
                                                   T* __restrict__ out,  // [sequences, hq * d]
                                                   int parts, int d, int window) {
    const int head = int(blockIdx.x), hq = int(gridDim.x), sequence = int(blockIdx.y);
    const int context = int(contexts[sequence]);
    const int64_t first = (int64_t(sequence) * hq + head) * parts;
    for (int at = int(threadIdx.x); at < d; at += int(blockDim.x)) {
        float largest = -INFINITY, sum = 0.0f, total = 0.0f;
        for (int part = 0; part < parts; part++) {
            const Part own = part_of(context, window, part, parts);
            if (own.first < own.last) largest = fmaxf(largest, stats[(first + part) * 2]);
        }
        for (int part = 0; part < parts; part++) {
            const Part own = part_of(context, window, part, parts);
            if (own.first >= own.last) continue;
            const float share = exp2f(stats[(first + part) * 2] - largest);
            sum = fmaf(share, sums[(first + part) * d + at], sum);
            total = fmaf(share, stats[(first + part) * 2 + 1], total);
        }
        out[(int64_t(sequence) * hq + head) * d + at] = from_f32<T>(context == 0 ? 0.0f : sum / total);
    }
}

#define PAGED_DECODE(name, T, G)                                                                                     \
    KERNEL(128, name, const T* qkv, const T* kv, const uint32_t* tables, const uint32_t* contexts, float* sums,      \
           float* stats, int width, int table_width, int hq, int hkv, int d, float scale, int window) {              \
        paged_decode<T, G>(qkv, kv, tables, contexts, sums, stats, width, table_width, hq, hkv, d, scale, window);   \
    }
#define PAGED_DECODE_MERGE(name, T)                                                                                  \
    KERNEL(256, name, const float* sums, const float* stats, const uint32_t* contexts, T* out, int parts, int d,     \
           int window) {                                                                                             \
        paged_decode_merge<T>(sums, stats, contexts, out, parts, d, window);                                         \
    }

PAGED_DECODE(paged_decode_bf16_g1, bf16, 1)
PAGED_DECODE(paged_decode_bf16_g4, bf16, 4)
PAGED_DECODE(paged_decode_bf16_g8, bf16, 8)
PAGED_DECODE(paged_decode_f16_g1, f16, 1)
PAGED_DECODE(paged_decode_f16_g4, f16, 4)
PAGED_DECODE(paged_decode_f16_g8, f16, 8)
PAGED_DECODE(paged_decode_f32_g1, float, 1)
PAGED_DECODE(paged_decode_f32_g4, float, 4)
PAGED_DECODE(paged_decode_f32_g8, float, 8)
PAGED_DECODE_MERGE(paged_decode_merge_bf16, bf16)
PAGED_DECODE_MERGE(paged_decode_merge_f16, f16)
PAGED_DECODE_MERGE(paged_decode_merge_f32, float)
