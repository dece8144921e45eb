// out = words[id] + positions[position] + types[type], before the norm. One block a token; an index that a table does not
// have adds nothing.
#include "device.cuh"

template <class T>
struct Table {
    const T* rows;
    uint32_t count;
};

template <int W, class T>
__device__ __forceinline__ void add(float (&sum)[W], const Table<T>& table, uint32_t row, int h, int at) {
    if (row >= table.count) return;
    const Pack<T, W> pack = load<W>(table.rows + int64_t(row) * h + at);
#pragma unroll
    for (int i = 0; i < W; i++) sum[i] += to_f32(pack.at[i]);
}

template <class T, int W>
__device__ __forceinline__ void encoder_embed(const uint32_t* __restrict__ ids,           // [rows]
                                              const uint32_t* __restrict__ position_ids,  // [rows]
                                              const uint32_t* __restrict__ type_ids,      // [rows], or null: all 0
                                              const Table<T>& words, const Table<T>& positions, const Table<T>& types,
                                              T* __restrict__ out,  // [rows, h]
                                              const uint32_t* __restrict__ rows, int h) {
    const uint32_t row = blockIdx.x;
    if (row >= *rows) return;
    const uint32_t id = ids[row], position = position_ids[row], type = type_ids != nullptr ? type_ids[row] : 0;
    for (int at = int(threadIdx.x) * W; at < h; at += int(blockDim.x) * W) {
        float sum[W] = {};
        add(sum, words, id, h, at);
        add(sum, positions, position, h, at);
        add(sum, types, type, h, at);
        Pack<T, W> result;
#pragma unroll
        for (int i = 0; i < W; i++) result.at[i] = from_f32<T>(sum[i]);
        store(out + int64_t(row) * h + at, result);
    }
}

// words [vocab, h], positions [position_rows, h], types [type_rows, h]
#define ENCODER_EMBED(name, T, W)                                                                                  \
    KERNEL(256, name, const uint32_t* ids, const uint32_t* position_ids, const uint32_t* type_ids, const T* words, \
           const T* positions, const T* types, T* out, const uint32_t* rows, int vocab, int position_rows,         \
           int type_rows, int h) {                                                                                 \
        encoder_embed<T, W>(ids, position_ids, type_ids, {words, uint32_t(vocab)},                                 \
                            {positions, uint32_t(position_rows)}, {types, uint32_t(type_rows)}, out, rows, h);     \
    }

ENCODER_EMBED(encoder_embed_bf16, bf16, kWide<bf16>)
ENCODER_EMBED(encoder_embed_f16, f16, kWide<f16>)
ENCODER_EMBED(encoder_embed_f32, float, kWide<float>)
ENCODER_EMBED(encoder_embed_bf16_odd, bf16, 1)
ENCODER_EMBED(encoder_embed_f16_odd, f16, 1)
ENCODER_EMBED(encoder_embed_f32_odd, float, 1)
