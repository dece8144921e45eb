// From logits to a token on the device: adjustments, then greedy or a draw after temperature, top-k, min-p and top-p.
//
// Tokens have one order, likeliest first, ties by lower id, and each truncation keeps a prefix of it. A prefix is found
// by the weight (or number) of its tokens: first in a histogram of distances from the largest logit, then bit by bit of
// the logit among those at that distance. Weights are integers, so that sums do not depend on the order of atomics and a
// seed gives the same token every time. Without truncation tokens are drawn in the order of ids, as on the CPU.
#include "order.cuh"

using u64 = unsigned long long;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = 1024;
// Bins a unit of distance, in units of the temperature: weights end before the last bin.
constexpr float kBinsPerUnit = 32.0f;
// The weight of the likeliest token. What weighs less than its 2^-40 is never drawn.
constexpr float kOne = 1099511627776.0f;
// Below this temperature the likeliest token is taken.
constexpr float kGreedyBelow = 1e-5f;

// How a row is sampled.
struct Sampling {
    float temperature, top_p, min_p;
    uint32_t top_k;  // 0: all
    uint32_t seed[2], position[2];
    float repetition, frequency, presence;
    uint32_t mask;  // row of `masks`, or kNone
};

// A uniform number in 24 bits for (seed, position): the first word of Philox4x32-10.
__device__ __forceinline__ uint32_t philox(const Sampling& how) {
    uint32_t counter[4] = {how.position[0], how.position[1], 0, 0}, key[2] = {how.seed[0], how.seed[1]};
    for (int round = 0; round < 10; round++) {
        const uint32_t a = __umulhi(counter[0], 0xD2511F53u), b = counter[0] * 0xD2511F53u;
        const uint32_t c = __umulhi(counter[2], 0xCD9E8D57u), d = counter[2] * 0xCD9E8D57u;
        counter[0] = c ^ counter[1] ^ key[0];
        counter[2] = a ^ counter[3] ^ key[1];
        counter[1] = d;
        counter[3] = b;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter[0] >> 8;
}

__device__ __forceinline__ u64 shuffle_up(u64 value, int by) {
    const uint32_t low = __shfl_up_sync(kAllLanes, uint32_t(value), by);
    const uint32_t high = __shfl_up_sync(kAllLanes, uint32_t(value >> 32), by);
    return u64(high) << 32 | low;
}

// The sum over this lane and those before it.
__device__ __forceinline__ u64 running_sum(u64 value) {
    const int lane = int(threadIdx.x % kWarp);
#pragma unroll
    for (int by = 1; by < kWarp; by *= 2) {
        const u64 other = shuffle_up(value, by);
        if (lane >= by) value += other;
    }
    return value;
}

__device__ __forceinline__ u64 from_lane(u64 value, int lane) {
    const uint32_t low = __shfl_sync(kAllLanes, uint32_t(value), lane);
    return u64(__shfl_sync(kAllLanes, uint32_t(value >> 32), lane)) << 32 | low;
}

// The sum over the block, the same for all of its threads; `parts` is [kWarps].
__device__ __forceinline__ u64 block_sum(u64 value, u64* parts) {
    const int lane = int(threadIdx.x % kWarp);
    value = running_sum(value);
    if (lane == kWarp - 1) parts[threadIdx.x / kWarp] = value;
    __syncthreads();  // the warps' parts are there
    const u64 sum = from_lane(running_sum(lane < kWarps ? parts[lane] : 0), kWarp - 1);
    __syncthreads();  // the parts are read before they are replaced
    return sum;
}

// ---- adjustments ----

// Mask, then bias, then penalties of the tokens seen, in place. Ids of one list are distinct.
KERNEL(kThreads, adjust_logits, float* __restrict__ logits,  // [rows, vocab]
       const Sampling* __restrict__ how,                     // [rows]
       const uint32_t* __restrict__ masks,                   // [.., words]: a bit a token
       const uint32_t* __restrict__ bias_offsets,            // [rows + 1]
       const uint32_t* __restrict__ bias_ids, const float* __restrict__ biases,
       const uint32_t* __restrict__ seen_offsets,  // [rows + 1]
       const uint32_t* __restrict__ seen_ids,
       const uint32_t* __restrict__ seen_counts,  // how often it was generated; 0: only in the prompt
       const uint32_t* __restrict__ rows, int vocab, int words) {
    const uint32_t row = blockIdx.x;
    if (row >= *rows) return;
    const Sampling own = how[row];
    float* const x = logits + int64_t(row) * vocab;
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    if (own.mask != kNone) {
        const uint32_t* const mask = masks + int64_t(own.mask) * words;
        for (int id = thread; id < vocab; id += threads) {
            if (id / 32 >= words || (mask[id / 32] >> id % 32 & 1) == 0) x[id] = -INFINITY;
        }
        __syncthreads();  // a bias comes after the mask
    }
    const uint32_t bias_begin = bias_offsets[row], bias_end = bias_offsets[row + 1];
    for (uint32_t at = bias_begin + uint32_t(thread); at < bias_end; at += uint32_t(threads)) {
        if (bias_ids[at] < uint32_t(vocab)) x[bias_ids[at]] += biases[at];
    }
    __syncthreads();  // penalties come after the bias
    for (uint32_t at = seen_offsets[row] + uint32_t(thread); at < seen_offsets[row + 1]; at += uint32_t(threads)) {
        if (seen_ids[at] >= uint32_t(vocab)) continue;
        float value = x[seen_ids[at]];
        if (own.repetition != 1.0f) value = value > 0.0f ? value / own.repetition : value * own.repetition;
        const uint32_t count = seen_counts[at];
        if (count > 0) value -= own.frequency * float(count) + own.presence;
        x[seen_ids[at]] = value;
    }
}

// ---- the draw ----

struct Largest {
    float value;
    uint32_t id;
    bool broken;
};

__device__ __forceinline__ Largest better(const Largest& a, const Largest& b) {
    const bool second = b.value > a.value || (b.value == a.value && b.id < a.id);
    return Largest{second ? b.value : a.value, second ? b.id : a.id, a.broken || b.broken};
}

__device__ __forceinline__ Largest warp_largest(Largest own) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const Largest other = {__shfl_xor_sync(kAllLanes, own.value, lanes), __shfl_xor_sync(kAllLanes, own.id, lanes),
                               __shfl_xor_sync(kAllLanes, uint32_t(own.broken), lanes) != 0};
        own = better(own, other);
    }
    return own;
}

// The row and what its threads share.
struct Row {
    const float* x;
    int vocab;
    float max, inverse;
    u64* sums;         // [kBins], by distance
    uint32_t* counts;  // [kBins]
    u64* digit_sums;         // [256]
    uint32_t* digit_counts;  // [256]
    u64* found;              // [4]

    __device__ __forceinline__ u64 weight(float value) const { return u64(expf((value - max) * inverse) * kOne); }
    __device__ __forceinline__ int bin(float value) const {
        return int(fminf((max - value) * inverse * kBinsPerUnit, float(kBins - 1)));
    }
};

// The first of `n` bins in which the running sum reaches `goal`, for the whole block: found = {bin, before, number
// before}; the last bin with anything where none does.
__device__ __forceinline__ void find_bin(const Row& row, const u64* sums, const uint32_t* counts, int n, u64 goal,
                                         bool by_count) {
    if (threadIdx.x < kWarp) {
        const int lane = int(threadIdx.x);
        u64 before = 0, before_count = 0;
        bool done = false;
        for (int first = 0; first < n && !done; first += kWarp) {
            const u64 sum = running_sum(sums[first + lane]), count = running_sum(counts[first + lane]);
            const u64 reached = by_count ? before_count + count : before + sum;
            const uint32_t enough = __ballot_sync(kAllLanes, reached >= goal);
            if (enough != 0) {
                done = true;
                if (lane == __ffs(enough) - 1) {
                    row.found[0] = u64(first + lane);
                    row.found[1] = before + sum - sums[first + lane];
                    row.found[2] = before_count + count - counts[first + lane];
                }
            }
            before += from_lane(sum, kWarp - 1);
            before_count += from_lane(count, kWarp - 1);
        }
        if (!done && lane == 0) row.found[0] = kNone;
    }
    __syncthreads();  // what was found is there
}

// The shortest prefix whose weight (or number) reaches a goal.
struct Prefix {
    u64 weight;       // of the whole prefix
    uint32_t key;     // of its last token
    uint32_t places;  // tokens with that key in it
};

__device__ __forceinline__ Prefix prefix_of(const Row& row, u64 goal, bool by_count, u64 all) {
    const int thread = int(threadIdx.x);
    find_bin(row, row.sums, row.counts, kBins, goal, by_count);
    if (row.found[0] == kNone) {
        __syncthreads();  // everyone has seen it
        return Prefix{all, 0, 0};
    }
    const int bin = int(row.found[0]);
    u64 before = row.found[1], before_count = row.found[2];
    uint32_t key = 0;
    // Larger keys are likelier: digits are counted from the top.
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (thread < 256) {
            row.digit_sums[thread] = 0;
            row.digit_counts[thread] = 0;
        }
        __syncthreads();  // digits are cleared
        for (int id = thread; id < row.vocab; id += kThreads) {
            const float value = row.x[id];
            const u64 weight = row.weight(value);
            const uint32_t own = key_of(value);
            if (weight == 0 || row.bin(value) != bin || (shift < 24 && own >> (shift + 8) != key)) continue;
            const int digit = 255 - int(own >> shift & 255);
            atomicAdd(row.digit_sums + digit, weight);
            atomicAdd(row.digit_counts + digit, 1u);
        }
        __syncthreads();  // digits are there
        find_bin(row, row.digit_sums, row.digit_counts, 256, by_count ? goal - before_count : goal - before, by_count);
        key = key << 8 | (255 - uint32_t(row.found[0]));
        before += row.found[1];
        before_count += row.found[2];
    }
    // All tokens with one key have one weight.
    const int digit = 255 - int(key & 255);
    const u64 each = row.digit_sums[digit] / row.digit_counts[digit];
    const u64 places = by_count ? goal - before_count : (goal - before + each - 1) / each;
    __syncthreads();  // the digits are read before they are cleared again
    return Prefix{before + places * each, key, uint32_t(places)};
}

// The token, in the order of ids, with which the sum of `measure` reaches `goal`; `segments` is [kWarps].
template <class Measure>
__device__ __forceinline__ void walk(const Row& row, u64 goal, u64* segments, const Measure& measure, uint32_t* out) {
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int each = (row.vocab + kWarps * kWarp - 1) / (kWarps * kWarp) * kWarp;
    const int begin = warp * each, end = min(begin + each, row.vocab);
    u64 own = 0;
    for (int id = begin + lane; id < end; id += kWarp) own += measure(row.x[id]);
    own = running_sum(own);
    if (lane == kWarp - 1) segments[warp] = own;
    __syncthreads();  // the segments' sums are there
    u64 before = 0;
    for (int other = 0; other < warp; other++) before += segments[other];
    if (before < goal && before + segments[warp] >= goal) {
        for (int first = begin; first < end; first += kWarp) {
            const u64 value = first + lane < end ? measure(row.x[first + lane]) : 0;
            const u64 sum = before + running_sum(value);
            const uint32_t enough = __ballot_sync(kAllLanes, sum >= goal);
            if (enough != 0) {
                if (lane == __ffs(enough) - 1) *out = uint32_t(first + lane);
                break;
            }
            before = from_lane(sum, kWarp - 1);
        }
    }
}

// ids [rows]: kNone where no token can be drawn (a NaN, an infinity, or nothing allowed).
KERNEL(kThreads, sample, const float* __restrict__ logits,  // [rows, vocab]
       const Sampling* __restrict__ how,                    // [rows]
       uint32_t* __restrict__ ids, const uint32_t* __restrict__ rows, int vocab) {
    SHARED(u64, sums, kBins);
    SHARED(uint32_t, counts, kBins);
    SHARED(u64, digit_sums, 256);
    SHARED(uint32_t, digit_counts, 256);
    SHARED(u64, found, 4);
    SHARED(u64, segments, kWarps);
    SHARED(float, warp_values, kWarps);
    SHARED(uint32_t, warp_ids, kWarps);
    if (blockIdx.x >= *rows) return;
    const Sampling own = how[blockIdx.x];
    const float* const x = logits + int64_t(blockIdx.x) * vocab;
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;

    Largest largest = {-INFINITY, kNone, false};
    for (int id = thread; id < vocab; id += kThreads) {
        const float value = x[id];
        largest = better(largest, Largest{value, uint32_t(id), !(value < INFINITY)});
    }
    largest = warp_largest(largest);
    if (lane == 0) {
        warp_values[warp] = largest.broken ? INFINITY : largest.value;
        warp_ids[warp] = largest.id;
    }
    __syncthreads();  // the warps' largest are there
    const int other = min(lane, kWarps - 1);
    largest = warp_largest(Largest{warp_values[other], warp_ids[other], false});
    const bool broken = !(largest.value > -INFINITY && largest.value < INFINITY);
    if (broken || own.temperature < kGreedyBelow) {
        if (thread == 0) ids[blockIdx.x] = broken ? kNone : largest.id;
        return;
    }

    const Row row = {x, vocab, largest.value, 1.0f / own.temperature, sums, counts, digit_sums, digit_counts, found};
    for (int bin = thread; bin < kBins; bin += kThreads) sums[bin] = counts[bin] = 0;
    __syncthreads();  // bins are cleared
    const bool minimal = own.min_p > 0.0f;
    const u64 least = minimal ? u64(own.min_p * kOne) : 1;
    u64 all = 0, likely = 0;
    for (int id = thread; id < vocab; id += kThreads) {
        const u64 weight = row.weight(x[id]);
        if (weight == 0) continue;
        all += weight;
        likely += weight >= least ? weight : 0;
        atomicAdd(sums + row.bin(x[id]), weight);
        atomicAdd(counts + row.bin(x[id]), 1u);
    }
    all = block_sum(all, segments);
    likely = block_sum(likely, segments);
    u64 kept = minimal ? likely : all;
    if (own.top_k > 0) {
        const u64 best = prefix_of(row, own.top_k, true, all).weight;
        kept = best < kept ? best : kept;
    }
    if (own.top_p < 1.0f) {
        const u64 wanted = u64(double(own.top_p) * double(kept));
        kept = prefix_of(row, wanted > 0 ? wanted : 1, false, all).weight;
    }
    // kept * uniform / 2^24, plus one: the token in whose share that number falls.
    const u64 uniform = philox(own);
    const u64 goal = (kept >> 24) * uniform + (((kept & 0xffffffu) * uniform) >> 24) + 1;
    if (own.top_k == 0 && own.top_p >= 1.0f && !minimal) {
        walk(row, goal, segments, [&](float value) { return row.weight(value); }, ids + blockIdx.x);
        return;
    }
    const Prefix drawn = prefix_of(row, goal, false, all);
    walk(row, drawn.places, segments, [&](float value) { return u64(key_of(value) == drawn.key); }, ids + blockIdx.x);
}
