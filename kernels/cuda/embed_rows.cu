// out = the rows of a table that ids name; a row of zeros for an id past the table. A pack a thread.
#include "device.cuh"

template <class T, int W>
__device__ __forceinline__ void embed_rows(const uint32_t* __restrict__ ids,  // [rows]
                                           const T* __restrict__ table,       // [vocab, h]
                                           T* __restrict__ out,               // [rows, h]
                                           const uint32_t* __restrict__ rows, int vocab, int h) {
    const uint32_t row = blockIdx.x;
    const int at = int(blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (row >= *rows || at >= h) return;
    const uint32_t id = ids[row];
    Pack<T, W> pack = {};
    if (id < uint32_t(vocab)) pack = load<W>(table + int64_t(id) * h + at);
    store(out + int64_t(row) * h + at, pack);
}

#define EMBED_ROWS(name, T, W)                                                                                        \
    KERNEL(256, name, const uint32_t* ids, const T* table, T* out, const uint32_t* rows, int vocab, int h) {          \
        embed_rows<T, W>(ids, table, out, rows, vocab, h);                                                            \
    }

EMBED_ROWS(embed_rows_bf16, bf16, kWide<bf16>)
EMBED_ROWS(embed_rows_f16, f16, kWide<f16>)
EMBED_ROWS(embed_rows_f32, float, kWide<float>)
EMBED_ROWS(embed_rows_bf16_odd, bf16, 1)
EMBED_ROWS(embed_rows_f16_odd, f16, 1)
EMBED_ROWS(embed_rows_f32_odd, float, 1)
