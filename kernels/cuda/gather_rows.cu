// out[i] = x[at[i]] + residual[at[i]], or x alone; zeros where `at` is none. A pack a thread.
#include "device.cuh"

template <class T, int W>
__device__ __forceinline__ void gather_rows(const T* __restrict__ x,         // [.., h]
                                            const T* __restrict__ residual,  // as x, or null
                                            const uint32_t* __restrict__ at,  // [rows]
                                            T* __restrict__ out,              // [rows, h]
                                            const uint32_t* __restrict__ rows, int h) {
    const uint32_t row = blockIdx.x;
    const int column = int(blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (row >= *rows || column >= h) return;
    const uint32_t from = at[row];
    Pack<T, W> pack = {};
    if (from != kNone) {
        pack = load<W>(x + int64_t(from) * h + column);
        if (residual != nullptr) {
            const Pack<T, W> before = load<W>(residual + int64_t(from) * h + column);
#pragma unroll
            for (int i = 0; i < W; i++) pack.at[i] = from_f32<T>(to_f32(before.at[i]) + to_f32(pack.at[i]));
        }
    }
    store(out + int64_t(row) * h + column, pack);
}

#define GATHER_ROWS(name, T, W)                                                                                       \
    KERNEL(256, name, const T* x, const T* residual, const uint32_t* at, T* out, const uint32_t* rows, int h) {       \
        gather_rows<T, W>(x, residual, at, out, rows, h);                                                             \
    }

GATHER_ROWS(gather_rows_bf16, bf16, kWide<bf16>)
GATHER_ROWS(gather_rows_f16, f16, kWide<f16>)
GATHER_ROWS(gather_rows_f32, float, kWide<float>)
GATHER_ROWS(gather_rows_bf16_odd, bf16, 1)
GATHER_ROWS(gather_rows_f16_odd, f16, 1)
GATHER_ROWS(gather_rows_f32_odd, float, 1)
