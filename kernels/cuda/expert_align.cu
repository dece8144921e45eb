// Sorts the (token, rank) pairs of a step by expert, stable in the order of pairs: the token-expert alignment.
//
// A worked example: 2 tokens, 2 experts each, of 3; ids [2, 0 | 0, 1] give offsets [0, 2, 3, 4] and sorted pairs
// [1, 2, 3, 0]. An id that is no expert (kNone) is left out. With adapter slots a pair's expert is a virtual one, slot *
// base + id, and pairs of tokens without an adapter are left out: LoRA is an ordinary grouped product over those. One
// block; each warp has a run of pairs.
#include "device.cuh"

constexpr int kWarps = 32;

// The lanes of the warp that have the same expert.
struct Peers {
    uint32_t expert;
    int rank;
    int count;
    bool valid;
    bool leads;
};

__device__ __forceinline__ Peers peers_of(const uint32_t* ids, const uint32_t* slots, uint32_t pair, uint32_t end, int k,
                                          int base, int experts) {
    Peers own;
    own.expert = pair < end ? ids[pair] : kNone;
    if (slots != nullptr && own.expert < uint32_t(base)) {
        const uint32_t slot = slots[pair / uint32_t(k)];
        own.expert = slot == kNone ? kNone : slot * uint32_t(base) + own.expert;
    }
    own.valid = own.expert < uint32_t(experts);
    const uint32_t same = __match_any_sync(kAllLanes, own.expert);
    own.rank = __popc(same & ((1u << threadIdx.x % kWarp) - 1));
    own.count = __popc(same);
    own.leads = own.valid && own.rank == 0;
    return own;
}

KERNEL(1024, expert_align, const uint32_t* __restrict__ ids,  // [tokens * k]
       const uint32_t* __restrict__ slots,          // [tokens] or null
       const uint32_t* __restrict__ tokens, int k, int base, int experts,
       uint32_t* __restrict__ offsets,       // [experts + 1]
       uint32_t* __restrict__ sorted_pairs)  // [tokens * k]
{
    DYNAMIC_SHARED(memory);
    // [warps][experts]: pairs of a warp, then where its next one goes.
    uint32_t* const cursor = reinterpret_cast<uint32_t*>(memory);
    SHARED(uint32_t, start, 257);
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const uint32_t pairs = *tokens * uint32_t(k);
    const uint32_t run = (pairs + kWarps * kWarp - 1) / (kWarps * kWarp) * kWarp;
    const uint32_t begin = uint32_t(warp) * run, end = min(begin + run, pairs);
    uint32_t* const own = cursor + warp * experts;
    for (int expert = lane; expert < experts; expert += kWarp) own[expert] = 0;
    __syncwarp();
    for (uint32_t at = begin; at < end; at += kWarp) {
        const Peers peers = peers_of(ids, slots, at + uint32_t(lane), end, k, base, experts);
        if (peers.leads) own[peers.expert] += uint32_t(peers.count);
        __syncwarp();
    }
    __syncthreads();
    // Exclusive sums over warps; the whole of an expert goes to `start`.
    if (thread < experts) {
        uint32_t sum = 0;
        for (int w = 0; w < kWarps; w++) {
            const uint32_t count = cursor[w * experts + thread];
            cursor[w * experts + thread] = sum;
            sum += count;
        }
        start[thread] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        uint32_t before = 0;
        for (int first = 0; first < experts; first += kWarp) {
            const bool has = first + lane < experts;
            const uint32_t count = has ? start[first + lane] : 0;
            uint32_t sum = count;
#pragma unroll
            for (int by = 1; by < kWarp; by *= 2) {
                const uint32_t other = __shfl_up_sync(kAllLanes, sum, by);
                if (lane >= by) sum += other;
            }
            if (has) start[first + lane] = before + sum - count;
            before += __shfl_sync(kAllLanes, sum, kWarp - 1);
        }
        if (lane == 0) start[experts] = before;
    }
    __syncthreads();
    for (int expert = thread; expert <= experts; expert += int(blockDim.x)) offsets[expert] = start[expert];
    for (uint32_t at = begin; at < end; at += kWarp) {
        const Peers peers = peers_of(ids, slots, at + uint32_t(lane), end, k, base, experts);
        if (peers.valid) {
            sorted_pairs[start[peers.expert] + own[peers.expert] + uint32_t(peers.rank)] = at + uint32_t(lane);
        }
        __syncwarp();
        if (peers.leads) own[peers.expert] += uint32_t(peers.count);
        __syncwarp();
    }
}
