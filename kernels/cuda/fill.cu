// Values of -scale..scale from a hash of their number and the seed (SplitMix64's finaliser); as fp8, their codes. Value i
// is out[i / run * pitch + i % run]: runs stand apart where those of another matrix have their places between them.
#include "fp8.cuh"

__device__ __forceinline__ float value_at(uint64_t at, uint64_t seed) {
    uint64_t z = at + seed * 0x9e3779b97f4a7c15ull + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    // 24 bits: exact in a float.
    return float(uint32_t(z >> 40)) / float(1 << 23) - 1.0f;
}

template <class T>
__device__ __forceinline__ void fill(T* __restrict__ out,  // [len / run, pitch], of which the first run of each row
                                     uint64_t len, uint64_t run, uint64_t pitch, uint64_t seed, float scale) {
    constexpr uint64_t W = kWide<T>;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x * W;
    for (uint64_t at = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W; at < len; at += stride) {
        // A run that is followed by another one is whole packs.
        T* to = out + at / run * pitch + at % run;
        if (at + W <= len) {
            Pack<T, W> pack;
#pragma unroll
            for (uint64_t i = 0; i < W; i++) pack.at[i] = from_f32<T>(value_at(at + i, seed) * scale);
            store(to, pack);
        } else {
            for (uint64_t i = at; i < len; i++) to[i - at] = from_f32<T>(value_at(i, seed) * scale);
        }
    }
}

#define FILL(name, T)                                                                                     \
    KERNEL(256, name, T* out, uint64_t len, uint64_t run, uint64_t pitch, uint64_t seed, float scale) { \
        fill<T>(out, len, run, pitch, seed, scale);                                                       \
    }

FILL(fill_bf16, bf16)
FILL(fill_f16, f16)
FILL(fill_f32, float)
FILL(fill_fp8, fp8)
