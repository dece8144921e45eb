// Exact nearest rows of a matrix by dot product with queries: scan_topk keeps the best of each part of the rows,
// merge_topk those of all parts.
//
// A score and its row are one integer of the order of results: larger scores, then lower rows. A block collects what
// beats its k-th best so far and sorts when the next tile might not fit; after a few tiles hardly a row does.
#include "order.cuh"

using u64 = unsigned long long;

constexpr int kScanThreads = 256;
constexpr int kMergeThreads = 1024;
// Lanes that share a row, and rows that such a group has at once.
constexpr int kLanes = 8;
constexpr int kGroupRows = 4;
constexpr int kStepRows = kWarp / kLanes * kGroupRows;

// The value of a key.
__device__ __forceinline__ float value_of(uint32_t key) {
    return __int_as_float(int(key & 0x80000000u ? key & 0x7fffffffu : ~key));
}

// What is found so far; a tile is one candidate a thread.
struct Best {
    u64* held;        // [size]
    uint32_t* count;  // of `held`
    int size, k;
    u64 least = 0;  // the k-th best

    __device__ __forceinline__ void offer(u64 candidate) const {
        if (candidate > least) held[atomicAdd(count, 1u)] = candidate;
    }
};

// After each tile, by the whole block: keeps the best k, sorted, where the next tile might not fit, and at the end.
__device__ __forceinline__ void settle(Best& best, bool end) {
    __syncthreads();  // the tile's candidates are there
    const int thread = int(threadIdx.x), threads = int(blockDim.x), count = int(*best.count);
    if (end || count + threads > best.size) {
        u64* const held = best.held;
        for (int at = count + thread; at < best.size; at += threads) held[at] = 0;
        // Bitonic sort, largest first.
        for (int width = 2; width <= best.size; width *= 2) {
            for (int gap = width / 2; gap > 0; gap /= 2) {
                __syncthreads();  // the step before is done
                for (int pair = thread; pair < best.size / 2; pair += threads) {
                    const int low = 2 * pair - (pair & (gap - 1)), high = low + gap;
                    const u64 a = held[low], b = held[high];
                    if ((a < b) == ((low & width) == 0)) {
                        held[low] = b;
                        held[high] = a;
                    }
                }
            }
        }
        __syncthreads();  // all is sorted
        best.least = held[best.k - 1];
        if (thread == 0) *best.count = uint32_t(best.k);
    }
    __syncthreads();  // the count is read before it grows
}

// Where a query's element is in shared memory: what the lanes of a group read together is one run of 16 bytes a lane.
template <int W>
__device__ __forceinline__ int place(int at) {
    return ((at / (kLanes * W) * (W / 4) + at % W / 4) * kLanes + at / W % kLanes) * 4 + at % 4;
}

template <class T, int Q>
__device__ __forceinline__ void scan_topk(const T* __restrict__ matrix,       // [rows, d]
                                          const float* __restrict__ queries,  // [count, d]
                                          const uint32_t* __restrict__ keep,  // a bit a row, or null
                                          u64* __restrict__ found,            // [count, k, parts]
                                          const uint32_t* __restrict__ rows, int count, int d, int k, int size,
                                          int parts) {
    constexpr int W = kWide<T>;
    SHARED(uint32_t, counts, Q);
    DYNAMIC_SHARED(memory);
    const int padded = (d + kLanes * W - 1) / (kLanes * W) * (kLanes * W);
    u64* const held = reinterpret_cast<u64*>(memory);                  // [Q, size]
    float* const own = reinterpret_cast<float*>(held + Q * int64_t(size));  // [Q, padded]
    // Blocks of one part are neighbours: they find its rows in the cache.
    const int tiles = (count + Q - 1) / Q, first_query = int(blockIdx.x) % tiles * Q, part = int(blockIdx.x) / tiles;
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, mine = lane % kLanes;

    for (int at = thread; at < Q * d; at += kScanThreads) {
        const int q = at / d;
        const bool has = first_query + q < count;
        own[q * padded + place<W>(at % d)] = has ? queries[int64_t(first_query + q) * d + at % d] : 0.0f;
    }
    if (thread < Q) counts[thread] = 0;
    __syncthreads();  // the queries are there
    Best best[Q];
#pragma unroll
    for (int q = 0; q < Q; q++) best[q] = Best{held + q * size, counts + q, size, k};

    const int64_t n = *rows, each = (n + int64_t(parts) * kScanThreads - 1) / (int64_t(parts) * kScanThreads) * kScanThreads;
    const int64_t begin = part * each, end = begin + each < n ? begin + each : n;
    for (int64_t first = begin; first < end; first += kScanThreads) {
        for (int step = 0; step < kWarp; step += kStepRows) {
            int64_t row[kGroupRows];
            bool has[kGroupRows];
            float sum[Q][kGroupRows] = {};
#pragma unroll
            for (int r = 0; r < kGroupRows; r++) {
                row[r] = first + warp * kWarp + step + r * (kWarp / kLanes) + lane / kLanes;
                has[r] = row[r] < end && (keep == nullptr || (keep[row[r] / 32] >> row[r] % 32 & 1) != 0);
            }
#pragma unroll 2
            for (int at = mine * W; at < d; at += kLanes * W) {
                Pack<T, W> pack[kGroupRows] = {};
#pragma unroll
                for (int r = 0; r < kGroupRows; r++) {
                    if (has[r]) pack[r] = load<W>(matrix + row[r] * d + at);
                }
#pragma unroll
                for (int q = 0; q < Q; q++) {
#pragma unroll
                    for (int i = 0; i < W; i += 4) {
                        const Pack<float, 4> query = load<4>(own + q * padded + place<W>(at + i));
#pragma unroll
                        for (int r = 0; r < kGroupRows; r++) {
#pragma unroll
                            for (int j = 0; j < 4; j++) {
                                sum[q][r] = fmaf(to_f32(pack[r].at[i + j]), query.at[j], sum[q][r]);
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int q = 0; q < Q; q++) {
#pragma unroll
                for (int r = 0; r < kGroupRows; r++) {
#pragma unroll
                    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
                        sum[q][r] += __shfl_xor_sync(kAllLanes, sum[q][r], lanes);
                    }
                    if (mine == r && has[r]) best[q].offer(u64(key_of(sum[q][r])) << 32 | ~uint32_t(row[r]));
                }
            }
        }
#pragma unroll
        for (int q = 0; q < Q; q++) settle(best[q], false);
    }
#pragma unroll
    for (int q = 0; q < Q; q++) {
        if (first_query + q >= count) continue;
        settle(best[q], true);
        for (int rank = thread; rank < k; rank += kScanThreads) {
            found[(int64_t(first_query + q) * k + rank) * parts + part] = best[q].held[rank];
        }
    }
}

// Best first; kNone and minus infinity where there are fewer rows than k.
__device__ __forceinline__ void merge(const u64* __restrict__ found,  // [count, k, parts]
                                      uint32_t* __restrict__ ids,     // [count, k]
                                      float* __restrict__ scores,     // [count, k]
                                      int k, int size, int parts) {
    SHARED(uint32_t, count, 1);
    DYNAMIC_SHARED(memory);
    const int thread = int(threadIdx.x);
    if (thread == 0) count[0] = 0;
    __syncthreads();  // the count is there
    Best best = {reinterpret_cast<u64*>(memory), count, size, k};
    const int64_t all = int64_t(k) * parts, base = int64_t(blockIdx.x) * all;
    for (int64_t first = 0; first < all; first += kMergeThreads) {
        if (first + thread < all) best.offer(found[base + first + thread]);
        settle(best, false);
    }
    settle(best, true);
    for (int rank = thread; rank < k; rank += kMergeThreads) {
        const u64 own = best.held[rank];
        // Of nothing, this is kNone.
        ids[int64_t(blockIdx.x) * k + rank] = ~uint32_t(own);
        scores[int64_t(blockIdx.x) * k + rank] = own != 0 ? value_of(uint32_t(own >> 32)) : -INFINITY;
    }
}

#define SCAN_TOPK(name, blocks, T, Q)                                                                              \
    KERNEL_FOR(kScanThreads, blocks, name, const T* matrix, const float* queries, const uint32_t* keep, u64* found, \
               const uint32_t* rows, int count, int d, int k, int size, int parts) {                                \
        scan_topk<T, Q>(matrix, queries, keep, found, rows, count, d, k, size, parts);                              \
    }

SCAN_TOPK(scan_topk_bf16_1, 3, bf16, 1)
SCAN_TOPK(scan_topk_f16_1, 3, f16, 1)
SCAN_TOPK(scan_topk_f32_1, 3, float, 1)
SCAN_TOPK(scan_topk_bf16_4, 2, bf16, 4)
SCAN_TOPK(scan_topk_f16_4, 2, f16, 4)
SCAN_TOPK(scan_topk_f32_4, 2, float, 4)

KERNEL(kMergeThreads, merge_topk, const u64* found, uint32_t* ids, float* scores, int k, int size, int parts) {
    merge(found, ids, scores, k, size, parts);
}
