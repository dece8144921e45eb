// Causal attention of many tokens a sequence over the paged cache (flash attention), on tensor cores.
//
// A block has query rows of one sequence and kv head: a row is a (token, query head of the group) pair, so that a group
// shares the keys that are fetched. Sequences have any length; a query sees all earlier tokens and its own, or the last
// `window` of them.
#include "flash_tile.cuh"

// The part of a batch that belongs to one sequence.
struct Span {
    uint32_t query_start, query_len, context_len, table_start;
};

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
    constexpr int kChunks = D / 8;
    const int thread = int(threadIdx.x);
    // Of this lane's two rows, the first.
    const int own_row = thread / kWarp * kWarpRows + thread % kWarp / 4;

    const int last_position = start + (first_row + rows - 1) / group, first_position = start + first_row / group;
    const int end = last_position + 1, begin = window > 0 ? max(first_position + 1 - window, 0) / kTokens * kTokens : 0;

    // Columns past the head's and tokens past the last one that is seen become zeros.
    const uint32_t* const table = tables + span.table_start;
    const int64_t half = int64_t(hkv) * kBlock * d;
    const auto fetch = [&](int first, int stage) {
        T* const keys = stages + stage * kStage<D>;
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
    Tile<T, D> tile = {};
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int position = start + (first_row + own_row + row * 8) / group;
        tile.to[row] = position + 1;
        tile.from[row] = window > 0 ? max(position + 1 - window, 0) : 0;
    }
    sweep<T, D>(tile, queries, stages, begin, end, scale, fetch);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int at = own_row + row * 8;
        if (at >= rows) continue;
        const int token = (first_row + at) / group, head = kv_head * group + (first_row + at) % group;
        write_row<T, D>(tile, row, out + (int64_t(span.query_start) + token) * hq * d + head * d, d);
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
