// The device's vocabulary on the host: what `kernels/cuda/device.cuh` includes in place of CUDA's headers.
//
// Only declarations and thin wrappers: the work is in machine.cpp, warp.cpp and shadow.cpp, which are never
// instrumented. A kernel that uses anything else does not compile, and that is the definition of the subset.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "number.h"

struct emu_dim {
    unsigned x, y, z;
};

namespace emu {

/// What a warp does together.
enum class Op : int { kSyncWarp, kShfl, kShflXor, kShflDown, kShflUp, kBallot, kMatchAny, kMma, kLdmatrix };

// The identity of a thread does not change inside it: `const` lets the compiler read it once.
__attribute__((const)) unsigned thread_at(int axis);
__attribute__((const)) unsigned block_at(int axis);
__attribute__((const)) unsigned block_extent(int axis);
__attribute__((const)) unsigned grid_extent(int axis);

/// Memory of the block for a declaration: the same for all of its threads, with a red zone on both sides.
void* static_shared(const void* declaration, const char* name, size_t bytes);
void* dynamic_shared();

void sync_threads(const char* file, int line);
uint32_t warp_u32(Op op, uint32_t mask, uint32_t value, int argument, int line);
void mma(bool bfloat, const uint32_t* a, const uint32_t* b, float* c, int line);
void ldmatrix(uint32_t* out, int matrices, bool transposed, const void* row, int line);

void load16(void* out, const void* from);
void store16(void* to, const void* value);
void cp_async16(void* to, const void* from, int bytes);
void cp_async_commit();
void cp_async_wait(int left);

enum class Rmw : int { kAdd, kMax, kExchange, kCompareExchange };
uint32_t atomic_u32(Rmw op, uint32_t* at, uint32_t value, uint32_t compare);
uint64_t atomic_add_u64(uint64_t* at, uint64_t value);
float atomic_add_f32(float* at, float value);

/// How the emulator finds a kernel and checks what it is called with.
struct Entry {
    const char* name;
    unsigned max_threads;
    int arguments;
    const unsigned* sizes;
    void (*call)(void* function, void** arguments);
    void* function;
    const Entry* next;

    static const Entry* named(const char* name);

    template <class... A>
    Entry(const char* name, unsigned max_threads, void (*function)(A...))
        : name(name),
          max_threads(max_threads),
          arguments(sizeof...(A)),
          call(&Entry::unpack<A...>),
          function(reinterpret_cast<void*>(function)) {
        static const unsigned kSizes[] = {unsigned(sizeof(A))..., 0};
        sizes = kSizes;
        enroll(this);
    }

  private:
    static void enroll(Entry* entry);
    template <size_t... I>
    struct Indices {};
    template <size_t N, size_t... I>
    struct Count : Count<N - 1, N - 1, I...> {};
    template <size_t... I>
    struct Count<0, I...> {
        using All = Indices<I...>;
    };
    template <class... A, size_t... I>
    __attribute__((no_sanitize("thread"))) static void spread(void* function, void** arguments, Indices<I...>) {
        reinterpret_cast<void (*)(A...)>(function)(*static_cast<A*>(arguments[I])...);
    }
    template <class... A>
    __attribute__((no_sanitize("thread"))) static void unpack(void* function, void** arguments) {
        spread<A...>(function, arguments, typename Count<sizeof...(A)>::All());
    }
};

}  // namespace emu

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

#define threadIdx (emu_dim{emu::thread_at(0), emu::thread_at(1), emu::thread_at(2)})
#define blockIdx (emu_dim{emu::block_at(0), emu::block_at(1), emu::block_at(2)})
#define blockDim (emu_dim{emu::block_extent(0), emu::block_extent(1), emu::block_extent(2)})
#define gridDim (emu_dim{emu::grid_extent(0), emu::grid_extent(1), emu::grid_extent(2)})

#define __syncthreads() emu::sync_threads(__FILE__, __LINE__)
#define __syncwarp() ((void)emu::warp_u32(emu::Op::kSyncWarp, 0xffffffffu, 0, 0, __LINE__))
#define __ballot_sync(mask, predicate) \
    emu::warp_u32(emu::Op::kBallot, mask, (predicate) ? 1u : 0u, 0, __LINE__)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, predicate) == (mask))
#define __match_any_sync(mask, value) emu::warp_u32(emu::Op::kMatchAny, mask, value, 0, __LINE__)

namespace emu {
inline float shuffle(Op op, uint32_t mask, float value, int argument, int line) {
    return float_of(warp_u32(op, mask, bits_of(value), argument, line));
}
inline uint32_t shuffle(Op op, uint32_t mask, uint32_t value, int argument, int line) {
    return warp_u32(op, mask, value, argument, line);
}
inline int shuffle(Op op, uint32_t mask, int value, int argument, int line) {
    return int(warp_u32(op, mask, uint32_t(value), argument, line));
}
}  // namespace emu
#define __shfl_sync(mask, value, lane) emu::shuffle(emu::Op::kShfl, mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) emu::shuffle(emu::Op::kShflXor, mask, value, lanes, __LINE__)
#define __shfl_down_sync(mask, value, by) emu::shuffle(emu::Op::kShflDown, mask, value, by, __LINE__)
#define __shfl_up_sync(mask, value, by) emu::shuffle(emu::Op::kShflUp, mask, value, by, __LINE__)

inline int __popc(uint32_t value) { return __builtin_popcount(value); }
inline int __ffs(uint32_t value) { return __builtin_ffs(int(value)); }
inline int __clz(uint32_t value) { return value == 0 ? 32 : __builtin_clz(value); }
// Selectors that copy a sign are not in the subset.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t out = 0;
    for (int at = 0; at < 4; at++) out |= uint32_t(bytes >> ((selector >> 4 * at & 7) * 8) & 0xff) << 8 * at;
    return out;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float __expf(float value) { return expf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int_as_float(int value) { return emu::float_of(uint32_t(value)); }
inline uint32_t __float_as_uint(float value) { return emu::bits_of(value); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) { return emu::atomic_u32(emu::Rmw::kAdd, at, value, 0); }
inline uint32_t atomicMax(uint32_t* at, uint32_t value) { return emu::atomic_u32(emu::Rmw::kMax, at, value, 0); }
inline uint32_t atomicExch(uint32_t* at, uint32_t value) { return emu::atomic_u32(emu::Rmw::kExchange, at, value, 0); }
inline uint32_t atomicCAS(uint32_t* at, uint32_t compare, uint32_t value) {
    return emu::atomic_u32(emu::Rmw::kCompareExchange, at, value, compare);
}
// CUDA's 64-bit type, which is as wide as uint64_t and another one.
using ulonglong = unsigned long long;
inline ulonglong atomicAdd(ulonglong* at, ulonglong value) {
    return emu::atomic_add_u64(reinterpret_cast<uint64_t*>(at), value);
}
inline float atomicAdd(float* at, float value) { return emu::atomic_add_f32(at, value); }

#define KERNEL(max_threads, name, ...)                                 \
    extern "C" void name(__VA_ARGS__);                                 \
    static emu::Entry entry_of_##name(#name, max_threads, &name);      \
    extern "C" void name(__VA_ARGS__)

#define KERNEL_FOR(max_threads, blocks, name, ...) KERNEL(max_threads, name, __VA_ARGS__)

#define SHARED(type, name, elements)                                                             \
    static const char shared_##name = 0;                                                         \
    type* const name = static_cast<type*>(emu::static_shared(&shared_##name, #name, sizeof(type) * (elements)))
#define DYNAMIC_SHARED(name) unsigned char* const name = static_cast<unsigned char*>(emu::dynamic_shared())
