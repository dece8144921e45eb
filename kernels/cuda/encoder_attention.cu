// Bidirectional attention over sequences packed one after another (flash attention), on tensor cores.
//
// A block has query rows of one sequence and head; every query sees every token of its sequence. Sequences have any
// length, and end anywhere in a tile.
#include "flash_tile.cuh"

template <class T, int D>
__device__ __forceinline__ void encoder_attention(const T* __restrict__ qkv,  // [rows, q|k|v][heads][d]
                                                  const uint32_t* __restrict__ cu_seqlens,  // [sequences + 1]
                                                  T* __restrict__ out,                      // [rows][heads][d]
                                                  int heads, int d, float scale) {
    const int64_t begin = cu_seqlens[blockIdx.z];
    const int len = int(cu_seqlens[blockIdx.z + 1] - uint32_t(begin)), first_row = int(blockIdx.x) * kRows;
    const int rows = min(len - first_row, kRows);
    if (rows <= 0) return;

    DYNAMIC_SHARED(memory);
    T* const queries = reinterpret_cast<T*>(memory);
    T* const stages = queries + kRows * D;
    constexpr int kChunks = D / 8;
    const int thread = int(threadIdx.x), hidden = heads * d;
    // This head's columns of the sequence's first row.
    const T* const own = qkv + begin * 3 * hidden + int64_t(blockIdx.y) * d;

    // Columns past the head's and tokens past the sequence's become zeros.
    const auto fetch = [&](int first, int stage) {
        T* const keys = stages + stage * kStage<D>;
        for (int unit = thread; unit < kTokens * kChunks; unit += kThreads) {
            const int row = unit / kChunks, at = unit % kChunks, token = first + row;
            const bool has = token < len && at * 8 < d;
            const T* const from = has ? own + int64_t(token) * 3 * hidden + hidden + at * 8 : own;
            cp_async16(chunk<T, D>(keys, row, at), from, has ? 16 : 0);
            cp_async16(chunk<T, D>(keys + kTokens * D, row, at), has ? from + hidden : from, has ? 16 : 0);
        }
        cp_async_commit();
    };
    for (int unit = thread; unit < kRows * kChunks; unit += kThreads) {
        const int row = unit / kChunks, at = unit % kChunks;
        const bool has = row < rows && at * 8 < d;
        const T* const from = has ? own + int64_t(first_row + row) * 3 * hidden + at * 8 : own;
        cp_async16(chunk<T, D>(queries, row, at), from, has ? 16 : 0);
    }
    Tile<T, D> tile = {};
    tile.to[0] = tile.to[1] = len;
    sweep<T, D>(tile, queries, stages, 0, len, scale, fetch);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int at = thread / kWarp * kWarpRows + thread % kWarp / 4 + row * 8;
        if (at >= rows) continue;
        write_row<T, D>(tile, row, out + (begin + first_row + at) * hidden + int64_t(blockIdx.y) * d, d);
    }
}

#define ENCODER_ATTENTION(name, T, D)                                                                              \
    KERNEL(kThreads, name, const T* qkv, const uint32_t* cu_seqlens, T* out, int heads, int d, float scale) {      \
        encoder_attention<T, D>(qkv, cu_seqlens, out, heads, d, scale);                                            \
    }

ENCODER_ATTENTION(encoder_attention_bf16_32, bf16, 32)
ENCODER_ATTENTION(encoder_attention_bf16_64, bf16, 64)
ENCODER_ATTENTION(encoder_attention_bf16_128, bf16, 128)
ENCODER_ATTENTION(encoder_attention_f16_32, f16, 32)
ENCODER_ATTENTION(encoder_attention_f16_64, f16, 64)
ENCODER_ATTENTION(encoder_attention_f16_128, f16, 128)
