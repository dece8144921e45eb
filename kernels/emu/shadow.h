// What is known of every two bytes of memory: whether they were written, by whom, and who has read them since.
//
// Two accesses of a block are ordered by a __syncthreads between them (its epoch), or by a __syncwarp of their warp
// (its generation). Nothing orders two blocks of one launch; launches follow one another. Shuffles, votes and products
// order nothing. Accesses that are not ordered, touch the same bytes, one of them a write and not both atomic, race:
// it is found whatever order the emulator ran them in.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

enum class Kind { kRead, kWrite, kAtomic };

/// Who accesses, and when.
struct Moment {
    uint32_t serial;  // of the block, over all launches; 0 is "never"
    uint32_t epoch;
    uint32_t generation;
    uint16_t warp;
    uint8_t lane;
};

struct Clock {
    uint32_t serial = 0;
    uint32_t first_serial = 1;  // of the running launch
    uint32_t epoch = 0;
    std::vector<uint32_t> generation;  // a warp
};

struct Readers {
    uint32_t serial = 0;
    uint32_t epoch = 0;
    uint32_t generation = 0;
    uint32_t lanes = 0;
    uint16_t warp = 0;
};

struct Cell {
    bool initialised = false;
    bool atomic = false;
    bool in_flight = false;  // an asynchronous copy that nobody has waited for
    Moment writer = {};
    // Of two warps or blocks: any third reader conflicts with no writer that these two do not conflict with.
    Readers readers[2];
};

struct Conflict {
    const char* what = nullptr;
    uint16_t warp = 0;
    uint8_t lane = 0;
    bool other_block = false;
};

struct Shadow {
    static constexpr size_t kGranule = 2;
    std::vector<Cell> cells;

    void resize(size_t bytes, bool initialised);
    void forget();
    /// Records the access and says what it conflicts with.
    Conflict record(size_t offset, size_t bytes, Kind kind, const Moment& now, const Clock& clock);
    void fly(size_t offset, size_t bytes, bool in_flight);
};

}  // namespace emu
