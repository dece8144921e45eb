// Rotates q in place and writes rotated k, and v, to the paged cache. One block a row.
//
// Pairs are half-split (i with i + d / 2). Rows of one launch have distinct slots; a row whose slot is kNone pads a
// captured batch and is skipped.
#include "device.cuh"

template <int W>
__device__ __forceinline__ void load_floats(float (&out)[W], const float* from) {
    if constexpr (W == 1) {
        out[0] = *from;
    } else {
        static_assert(W % 4 == 0, "whole 16 bytes");
#pragma unroll
        for (int part = 0; part < W / 4; part++) {
            const Pack<float, 4> four = load<4>(from + part * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) out[part * 4 + i] = four.at[i];
        }
    }
}

template <class T, int W>
__device__ __forceinline__ void rope_kv_write(T* __restrict__ qkv,            // [rows, (hq + 2 hkv) * d]
                                              const float* __restrict__ table,  // [positions][cos d/2 | sin d/2]
                                              const uint32_t* __restrict__ positions,  // [rows]
                                              const uint32_t* __restrict__ slots,      // [rows]
                                              T* __restrict__ kv,  // [blocks][k|v][hkv][16][d]
                                              const uint32_t* __restrict__ rows, int hq, int hkv, int d) {
    const uint32_t row = blockIdx.x;
    if (row >= *rows) return;
    const uint32_t slot = slots[row];
    if (slot == kNone) return;
    const int half = d / 2, packs = half / W;
    T* const heads = qkv + int64_t(row) * (hq + 2 * hkv) * d;
    const float* const cos = table + int64_t(positions[row]) * d;
    // Keys of all kv heads of a block, then their values.
    T* const keys = kv + (int64_t(slot / kBlock) * 2 * hkv * kBlock + slot % kBlock) * d;
    T* const values = keys + int64_t(hkv) * kBlock * d;
    for (int unit = int(threadIdx.x); unit < (hq + hkv) * packs; unit += int(blockDim.x)) {
        const int head = unit / packs, at = unit % packs * W;
        float c[W], s[W];
        load_floats<W>(c, cos + at);
        load_floats<W>(s, cos + half + at);
        const Pack<T, W> a = load<W>(heads + head * d + at), b = load<W>(heads + head * d + half + at);
        Pack<T, W> low, high;
#pragma unroll
        for (int i = 0; i < W; i++) {
            const float x = to_f32(a.at[i]), y = to_f32(b.at[i]);
            low.at[i] = from_f32<T>(x * c[i] - y * s[i]);
            high.at[i] = from_f32<T>(y * c[i] + x * s[i]);
        }
        T* const to = head < hq ? heads + head * d : keys + int64_t(head - hq) * kBlock * d;
        store(to + at, low);
        store(to + half + at, high);
    }
    for (int unit = int(threadIdx.x); unit < hkv * 2 * packs; unit += int(blockDim.x)) {
        const int head = unit / (2 * packs), at = unit % (2 * packs) * W;
        store(values + int64_t(head) * kBlock * d + at, load<W>(heads + (hq + hkv + head) * d + at));
    }
}

#define ROPE_KV_WRITE(name, T, W)                                                                          \
    KERNEL(256, name, T* qkv, const float* table, const uint32_t* positions, const uint32_t* slots, T* kv, \
           const uint32_t* rows, int hq, int hkv, int d) {                                                 \
        rope_kv_write<T, W>(qkv, table, positions, slots, kv, rows, hq, hkv, d);                           \
    }

ROPE_KV_WRITE(rope_kv_write_bf16, bf16, kWide<bf16>)
ROPE_KV_WRITE(rope_kv_write_f16, f16, kWide<f16>)
ROPE_KV_WRITE(rope_kv_write_f32, float, kWide<float>)
ROPE_KV_WRITE(rope_kv_write_bf16_odd, bf16, 1)
ROPE_KV_WRITE(rope_kv_write_f16_odd, f16, 1)
ROPE_KV_WRITE(rope_kv_write_f32_odd, float, 1)
