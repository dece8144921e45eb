// What every kernel is written in: element types, 16-byte accesses, asynchronous copies, tensor-core products,
// reductions. Under nvcc these are CUDA and PTX; under the emulator (kernels/emu) the host's.
#pragma once

#ifdef TARN_EMULATED
#include "emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

using bf16 = __nv_bfloat16;
using f16 = __half;

// An entry with its largest block.
#define KERNEL(max_threads, name, ...) extern "C" __global__ void __launch_bounds__(max_threads) name(__VA_ARGS__)
// The same where shared memory allows `blocks` a multiprocessor at most: registers are then not saved for more.
#define KERNEL_FOR(max_threads, blocks, name, ...) \
    extern "C" __global__ void __launch_bounds__(max_threads, blocks) name(__VA_ARGS__)
// Shared memory of a size that the compiler knows; 16-byte aligned.
#define SHARED(type, name, elements) __shared__ __align__(16) type name[elements]
// Shared memory of the launch's size.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
// Tokens of a block of the KV cache.
constexpr int kBlock = 16;
// A slot or id that means "none": rows that pad a captured batch have it.
constexpr uint32_t kNone = 0xffffffffu;

// ---- element types ----

#ifdef TARN_EMULATED
__device__ __forceinline__ float to_f32(bf16 value) { return emu::widen(value); }
__device__ __forceinline__ float to_f32(f16 value) { return emu::widen(value); }
#else
__device__ __forceinline__ float to_f32(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_f32(f16 value) { return __half2float(value); }
#endif
__device__ __forceinline__ float to_f32(float value) { return value; }

template <class T>
__device__ __forceinline__ T from_f32(float value);
#ifdef TARN_EMULATED
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float value) { return emu::narrow_bf16(value); }
template <>
__device__ __forceinline__ f16 from_f32<f16>(float value) { return emu::narrow_f16(value); }
#else
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ f16 from_f32<f16>(float value) { return __float2half_rn(value); }
#endif
template <>
__device__ __forceinline__ float from_f32<float>(float value) { return value; }

// ---- packs: W elements that move together ----

template <class T>
constexpr int kWide = 16 / int(sizeof(T));

template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
    T at[W];
};

// Two elements as the register that tensor cores take.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
    const Pack<T, 2> pair = {{from_f32<T>(low), from_f32<T>(high)}};
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

// A whole 16 bytes goes as one access; a pack of one element is the path for odd widths.
template <int W, class T>
__device__ __forceinline__ Pack<T, W> load(const T* from) {
    Pack<T, W> pack;
    if constexpr (sizeof(pack) == 16) {
#ifdef TARN_EMULATED
        emu::load16(&pack, from);
#else
        *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(from);
#endif
    } else {
        static_assert(W == 1, "a pack is 16 bytes or one element");
        pack.at[0] = *from;
    }
    return pack;
}

template <int W, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, W>& pack) {
    if constexpr (sizeof(pack) == 16) {
#ifdef TARN_EMULATED
        emu::store16(to, &pack);
#else
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&pack);
#endif
    } else {
        static_assert(W == 1, "a pack is 16 bytes or one element");
        *to = pack.at[0];
    }
}

// ---- asynchronous copies to shared memory ----

// Copies `bytes` (16, or 0: zeros are written and `from` is not read) past L1.
__device__ __forceinline__ void cp_async16(void* to, const void* from, int bytes) {
#ifdef TARN_EMULATED
    emu::cp_async16(to, from, bytes);
#else
    const uint32_t shared = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared), "l"(from), "r"(bytes)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef TARN_EMULATED
    emu::cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `LEFT` of this thread's groups are in flight. Other threads see the data after a barrier.
template <int LEFT>
__device__ __forceinline__ void cp_async_wait() {
#ifdef TARN_EMULATED
    emu::cp_async_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// ---- tensor cores ----

// c[16x8] += a[16x16] * b[16x8] over a warp. Lane (g, t) = (lane / 4, lane % 4) holds, as pairs:
// a = {(g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)}, b = {(2t, g), (2t + 8, g)}, c = {(g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1)}.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#ifdef TARN_EMULATED
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::mma(true, a, b, c, __LINE__);
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::mma(false, a, b, c, __LINE__);
}
#else
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Four 8x8 matrices of 16-bit elements: lanes 8i..8i+7 give the rows of matrix i, each 16 bytes of shared memory.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
#ifdef TARN_EMULATED
    emu::ldmatrix(out, 4, false, row, __LINE__);
#else
    const uint32_t shared = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
#endif
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
#ifdef TARN_EMULATED
    emu::ldmatrix(out, 4, true, row, __LINE__);
#else
    const uint32_t shared = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared)
                 : "memory");
#endif
}

// ---- reductions ----

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
    return value;
}

// The sum over the block, the same for all of its threads. `partial` is [kWarp], and another one for each sum.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    const int thread = int(threadIdx.x), warps = int(blockDim.x) / kWarp;
    value = warp_sum(value);
    if (thread % kWarp == 0) partial[thread / kWarp] = value;
    __syncthreads();  // the warps' sums are there
    float all = 0.0f;
    for (int warp = 0; warp < warps; warp++) all += partial[warp];
    return all;
}
