// Causal attention of many tokens a sequence over the paged cache (flash attention), on tensor cores.
//
// A block has 64 query rows of one sequence and kv head: a row is a (token, query head of the group) pair, so that a
// group shares the keys that are fetched. Each of its four warps has 16 rows; keys and values come in tiles of 32 tokens
// through two stages. Scores, probabilities and results stay in registers. Sequences have any length; a query sees all
// earlier tokens and its own, or the last `window` of them.
#include "device.cuh"

constexpr int kThreads = 128;
constexpr int kRows = 64;
constexpr int kWarpRows = 16;
constexpr int kTokens = 32;
constexpr float kLog2E = 1.4426950408889634f;

// The part of a batch that belongs to one sequence.
struct Span {
    uint32_t query_start, query_len, context_len, table_start;
};

// Rows of D elements in shared memory, 16-byte chunks permuted by row: eight rows of a column lie in different banks.
template <class T, int D>
__device__ __forceinline__ T* chunk(T* base, int row, int at) {
    return base + row * D + (at ^ row % 8) * 8;
}

template <class T, int D>
struct Tile {
    float scores[kTokens / 8][4];
    float out[D / 8][4];
    float maximum[2], weight[2];  // of rows g and g + 8; the weight is this lane's part
    int from[2], to[2];           // the tokens that they see
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

template <class T, int D>
__device__ __forceinline__ void paged_prefill(const T* __restrict__ qkv,  // [rows, width], q first
                                              const T* __restrict__ kv,   // [blocks][k|v][hkv][16][d]
                                              const uint32_t* __restrict__ tables,
                                              const Span* __restrict__ spans,  // [sequences]
                                              T* __restrict__ out,             // [rows, hq * d]
                                              int width, int hq, int hkv, int d, float scale, int window) {
    const Span span = spans[blockIdx.z];
    const int group = hq / hkv, kv_head = int(blockIdx.y), first_row = int(blockIdx.x) * kRows;
    const int rows = min(int(span.query_len) * group - first_row, kRows);
    if (rows <= 0) return;
    // The position of the first query in its sequence.
    const int start = int(span.context_len) - int(span.query_len);

    DYNAMIC_SHARED(memory);
    T* const queries = reinterpret_cast<T*>(memory);
    T* const stages = queries + kRows * D;
    constexpr int kStage = 2 * kTokens * D, kChunks = D / 8;
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;

    const int last_position = start + (first_row + rows - 1) / group, first_position = start + first_row / group;
    const int end = last_position + 1, begin = window > 0 ? max(first_position + 1 - window, 0) / kTokens * kTokens : 0;

    // Columns past the head's and tokens past the last one that is seen become zeros.
    const uint32_t* const table = tables + span.table_start;
    const int64_t half = int64_t(hkv) * kBlock * d;
    const auto fetch = [&](int first, int stage) {
        T* const keys = stages + stage * kStage;
        for (int unit = thread; unit < kTokens * kChunks; unit += kThreads) {
            const int row = unit / kChunks, at = unit % kChunks, token = first + row;
            const bool has = token < end && at * 8 < d;
            const T* from = kv;
            if (has) {
                from += int64_t(table[token / kBlock]) * 2 * half + (int64_t(kv_head) * kBlock + token % kBlock) * d + at * 8;
            }
            cp_async16(chunk<T, D>(keys, row, at), from, has ? 16 : 0);
            cp_async16(chunk<T, D>(keys + kTokens * D, row, at), has ? from + half : from, has ? 16 : 0);
        }
        cp_async_commit();
    };
    for (int unit = thread; unit < kRows * kChunks; unit += kThreads) {
        const int row = unit / kChunks, at = unit % kChunks;
        const bool has = row < rows && at * 8 < d;
        const T* from = qkv;
        if (has) {
            const int token = (first_row + row) / group, head = kv_head * group + (first_row + row) % group;
            from += (int64_t(span.query_start) + token) * width + head * d + at * 8;
        }
        cp_async16(chunk<T, D>(queries, row, at), from, has ? 16 : 0);
    }
    // The queries travel with the first tile.
    fetch(begin, 0);

    Tile<T, D> tile = {};
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int position = start + (first_row + warp * kWarpRows + g + row * 8) / group;
        tile.to[row] = position + 1;
        tile.from[row] = window > 0 ? max(position + 1 - window, 0) : 0;
        tile.maximum[row] = -INFINITY;
    }
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
        T* const keys = stages + stage * kStage;
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
        const int at = warp * kWarpRows + g + row * 8;
        if (at >= rows) continue;
        const int token = (first_row + at) / group, head = kv_head * group + (first_row + at) % group;
        T* const to = out + (int64_t(span.query_start) + token) * hq * d + head * d;
        const float inverse = 1.0f / tile.weight[row];
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const int column = j * 8 + t * 2;
            if (column >= d) continue;
            to[column] = from_f32<T>(tile.out[j][row * 2] * inverse);
            to[column + 1] = from_f32<T>(tile.out[j][row * 2 + 1] * inverse);
        }
    }
}

#define PAGED_PREFILL(name, T, D)                                                                              \
    KERNEL(kThreads, name, const T* qkv, const T* kv, const uint32_t* tables, const Span* spans, T* out,       \
           int width, int hq, int hkv, int d, float scale, int window) {                                       \
        paged_prefill<T, D>(qkv, kv, tables, spans, out, width, hq, hkv, d, scale, window);                    \
    }

PAGED_PREFILL(paged_prefill_bf16_64, bf16, 64)
PAGED_PREFILL(paged_prefill_bf16_128, bf16, 128)
PAGED_PREFILL(paged_prefill_f16_64, f16, 64)
PAGED_PREFILL(paged_prefill_f16_128, f16, 128)
