// Whole blocks of one layer's cache to other places of it. Of no element type: a block is 16-byte packs, one a thread.
#include "device.cuh"

KERNEL(256, kv_copy, uint32_t* kv,  // [blocks, packs, 4]
       const uint32_t* pairs,       // [copies, 2]: from, to; no block is two targets, or a target and a source
       const uint32_t* copies, int packs) {
    const uint32_t copy = blockIdx.x;
    const int at = int(blockIdx.y * blockDim.x + threadIdx.x);
    if (copy >= *copies || at >= packs) return;
    const int64_t from = pairs[copy * 2], to = pairs[copy * 2 + 1];
    store(kv + (to * packs + at) * 4, load<4>(kv + (from * packs + at) * 4));
}
