// Floats as integers of the same order.
#pragma once
#include "device.cuh"

// Grows with the value: the order of keys is the total order of values, as on the CPU.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
