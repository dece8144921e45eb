// Kernels for the emulator's own tests: what it computes, and faults that it must name.
#include "device.cuh"

// ---- right ----

// out [7][32]: the votes and shuffles of one warp.
KERNEL(32, self_collectives, const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x, own = in[lane];
    out[lane] = __ballot_sync(kAllLanes, own > 100);
    out[32 + lane] = __match_any_sync(kAllLanes, own % 3);
    out[64 + lane] = __shfl_sync(kAllLanes, own, 5);
    out[96 + lane] = __shfl_xor_sync(kAllLanes, own, 9);
    out[128 + lane] = __shfl_up_sync(kAllLanes, own, 3);
    out[160 + lane] = __shfl_down_sync(kAllLanes, own, 4);
    uint32_t odd = 0;
    if (lane % 2 == 1) odd = __shfl_sync(0xaaaaaaaau, own, 31);
    out[192 + lane] = odd;
}

// c [16, 8] = a [16, 16] · b [8, 16]^T through ldmatrix; b again as [16, 8] through the transposed form.
KERNEL(32, self_mma, const bf16* a, const bf16* b, const bf16* b_rows, float* c, float* c_transposed) {
    SHARED(bf16, tile_a, 256);
    SHARED(bf16, tile_b, 128);
    SHARED(bf16, tile_rows, 128);
    const int lane = int(threadIdx.x);
    store(tile_a + lane * 8, load<8>(a + lane * 8));
    if (lane < 16) {
        store(tile_b + lane * 8, load<8>(b + lane * 8));
        store(tile_rows + lane * 8, load<8>(b_rows + lane * 8));
    }
    __syncwarp();
    uint32_t left[4], right[4], rows[4];
    ldmatrix_x4(left, tile_a + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4(right, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
    ldmatrix_x4_trans(rows, tile_rows + lane % 16 * 8);
    float sum[4] = {}, sum_transposed[4] = {};
    const uint32_t pair[2] = {right[0], right[1]}, pair_rows[2] = {rows[0], rows[1]};
    mma_m16n8k16<bf16>(sum, left, pair);
    mma_m16n8k16<bf16>(sum_transposed, left, pair_rows);
    for (int i = 0; i < 4; i++) {
        const int at = (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
        c[at] = sum[i];
        c_transposed[at] = sum_transposed[i];
    }
}

// Counts to the number of threads of all blocks, and adds as many halves.
KERNEL(64, self_atomics, uint32_t* counters, float* sum, unsigned long long* wide) {
    atomicAdd(wide, 1ull << 33);
    atomicAdd(counters, 1u);
    atomicMax(counters + 1, blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(sum, 0.5f);
}

// A value to the left neighbour: across a warp's lanes, across warps, through an asynchronous copy.
KERNEL(64, self_handed_on, const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, box, 64 * 4);
    const int thread = int(threadIdx.x);
    box[thread] = in[thread * 4];
    __syncwarp();
    out[thread] = box[thread / 32 * 32 + (thread + 1) % 32];
    __syncthreads();
    cp_async16(box + thread * 4, in + thread * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    out[64 + thread] = box[(thread + 1) % 64 * 4];
}

// ---- wrong ----

KERNEL(32, self_reads_past_the_end, const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }
KERNEL(32, self_writes_past_the_end, float* out) { out[threadIdx.x + 1] = 1.0f; }
KERNEL(32, self_writes_input, const float* in, float* out) {
    const_cast<float*>(in)[threadIdx.x] = 1.0f;
    out[threadIdx.x] = 1.0f;
}
KERNEL(32, self_reads_unwritten, float* out) {
    SHARED(float, box, 32);
    if (threadIdx.x != 7) box[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = box[threadIdx.x];
}
KERNEL(64, self_no_barrier, float* out) {
    SHARED(float, box, 64);
    box[threadIdx.x] = 0.0f;
    __syncthreads();
    box[threadIdx.x] = float(threadIdx.x);
    __syncwarp();
    out[threadIdx.x] = box[threadIdx.x ^ 32];
}
KERNEL(64, self_no_barrier_before_reuse, float* out) {
    SHARED(float, box, 64);
    box[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = box[threadIdx.x ^ 32];
    if (threadIdx.x >= 32) box[threadIdx.x] = 0.0f;
}
KERNEL(32, self_warp_without_sync, float* out) {
    SHARED(float, box, 32);
    box[threadIdx.x] = float(threadIdx.x);
    const float other = __shfl_xor_sync(kAllLanes, 1.0f, 1);  // orders no memory
    out[threadIdx.x] = box[threadIdx.x ^ 1] + other;
}
KERNEL(32, self_blocks_meet, float* out) {
    if (threadIdx.x == 0) out[0] = float(blockIdx.x);
}
KERNEL(64, self_divergent_barrier, float* out) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 0.0f;
        __syncthreads();
    }
}
KERNEL(64, self_thread_ends_before_barrier, float* out) {
    if (threadIdx.x == 40) return;
    __syncthreads();
    out[threadIdx.x] = 0.0f;
}
KERNEL(32, self_lane_ends_before_shuffle, float* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}
KERNEL(32, self_masks_differ, float* out) {
    const uint32_t mask = threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u;
    out[threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 1);
}
KERNEL(32, self_reads_before_the_wait, const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, box, 32 * 4);
    cp_async16(box + threadIdx.x * 4, in + threadIdx.x * 4, 16);
    cp_async_commit();
    out[threadIdx.x] = box[threadIdx.x * 4];
    cp_async_wait<0>();
}
KERNEL(32, self_reads_anothers_copy, const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, box, 32 * 4);
    cp_async16(box + threadIdx.x * 4, in + threadIdx.x * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
    if (threadIdx.x % 2 == 1) out[threadIdx.x] = box[(threadIdx.x ^ 1) * 4];
}
KERNEL(64, self_copies_over_readers, const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, box, 64 * 4);
    for (int i = 0; i < 4; i++) box[threadIdx.x * 4 + i] = 0;
    __syncthreads();
    out[threadIdx.x] = box[(threadIdx.x ^ 32) * 4];
    cp_async16(box + threadIdx.x * 4, in + threadIdx.x * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
}
KERNEL(32, self_ends_in_flight, const uint32_t* in, uint32_t* out) {
    SHARED(uint32_t, box, 32 * 4);
    cp_async16(box + threadIdx.x * 4, in + threadIdx.x * 4, 16);
    cp_async_commit();
    out[threadIdx.x] = 0;
}
KERNEL(32, self_misaligned, const float* in, float* out) {
    const Pack<float, 4> pack = load<4>(in + threadIdx.x + 1);
    out[threadIdx.x] = pack.at[0];
}
KERNEL(32, self_divides_by_zero, const int* in, int* out) { out[threadIdx.x] = 7 / (in[threadIdx.x] - 1); }
KERNEL(32, self_far_away, const float* in, float* out) {
    out[threadIdx.x] = in[int64_t(threadIdx.x + 1) << 44];
}
