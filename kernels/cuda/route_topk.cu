// The router of a mixture of experts: softmax, the k likeliest (ties by lower index), renormalised. One warp a row.
#include "device.cuh"

// Experts that a lane holds: 256 in all.
constexpr int kHeld = 8;
constexpr int kNoExpert = kHeld * kWarp;

template <class T>
__device__ __forceinline__ void route_topk(const T* __restrict__ logits,  // [rows, experts]
                                           uint32_t* __restrict__ ids,    // [rows, k], best first
                                           float* __restrict__ weights,   // [rows, k]
                                           const uint32_t* __restrict__ rows, int experts, int k, int renormalize) {
    const uint32_t row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row >= *rows) return;
    const int lane = int(threadIdx.x % kWarp);
    float held[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; j++) {
        const int expert = j * kWarp + lane;
        held[j] = expert < experts ? to_f32(logits[int64_t(row) * experts + expert]) : -INFINITY;
    }
    uint32_t taken = 0;
    int own_id = 0;
    float own_logit = -INFINITY, largest = 0.0f;
    for (int rank = 0; rank < k; rank++) {
        // A NaN compares as minus infinity, and what is past the end is it: a free expert, which has a lower index,
        // always wins against that, so that an id is valid whatever the logits are.
        float best = -INFINITY;
        int id = kNoExpert;
#pragma unroll
        for (int j = 0; j < kHeld; j++) {
            const int expert = j * kWarp + lane;
            if ((taken >> j & 1) == 0 && (id == kNoExpert || held[j] > best)) {
                best = held[j] > -INFINITY ? held[j] : -INFINITY;
                id = expert;
            }
        }
#pragma unroll
        for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
            const float other = __shfl_xor_sync(kAllLanes, best, lanes);
            const int other_id = __shfl_xor_sync(kAllLanes, id, lanes);
            if (other > best || (other == best && other_id < id)) {
                best = other;
                id = other_id;
            }
        }
        if (id % kWarp == lane) taken |= 1u << (id / kWarp);
        if (rank == 0) largest = best;
        if (rank == lane) {
            own_id = id;
            own_logit = best;
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int j = 0; j < kHeld; j++) all += expf(held[j] - largest);
    all = warp_sum(all);
    float weight = lane < k ? expf(own_logit - largest) / all : 0.0f;
    if (renormalize) weight /= warp_sum(weight);
    if (lane < k) {
        ids[int64_t(row) * k + lane] = uint32_t(own_id);
        weights[int64_t(row) * k + lane] = weight;
    }
}

#define ROUTE_TOPK(name, T)                                                                                  \
    KERNEL(128, name, const T* logits, uint32_t* ids, float* weights, const uint32_t* rows, int experts, int k, \
           int renormalize) {                                                                                \
        route_topk<T>(logits, ids, weights, rows, experts, k, renormalize);                                  \
    }

ROUTE_TOPK(route_topk_bf16, bf16)
ROUTE_TOPK(route_topk_f16, f16)
ROUTE_TOPK(route_topk_f32, float)
