// A device that runs one block after another, and a block's threads as fibers. See docs/GPU.md.
#pragma once
#include <cstdarg>
#include <memory>
#include <string>
#include <vector>

#include "emu.h"
#include "fiber.h"
#include "shadow.h"

namespace emu {

#ifdef EMU_CHECKED
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

/// What a buffer is to the launch that it is passed to.
enum class Use : int { kRead, kWrite, kReadWrite, kShared };

/// Memory that kernels may touch, between two red zones of 0xff: a NaN in every float type, a huge index.
struct Region {
    std::string name;
    Use use;
    size_t bytes;
    std::unique_ptr<unsigned char[]> owner;
    unsigned char* base;
    Shadow shadow;

    static constexpr size_t kRedZone = 256;
    static constexpr unsigned char kFill = 0xff;

    Region(std::string name, size_t bytes, Use use);
    bool holds(const void* address) const { return address >= base && address < base + bytes; }
    /// Where the red zones were written, as an offset from the start.
    bool trampled(long* offset) const;
};

struct Copy {
    unsigned char* to;
    unsigned char data[16];
};

enum class Status { kReady, kBarrier, kWarp, kDone };

/// An operation of a warp in which a lane waits for the others.
struct Pending {
    Op op;
    uint32_t mask;
    int line;
    uint32_t value;
    int argument;
    uint32_t result;
    const uint32_t* a;
    const uint32_t* b;
    float* c;
    uint32_t* out;
    const void* row;
};

struct Thread {
    Fiber fiber;
    unsigned at[3];
    unsigned linear;
    Status status;
    const char* barrier_file;
    int barrier_line;
    Pending pending;
    std::vector<Copy> uncommitted;
    std::vector<std::vector<Copy>> groups;

    unsigned warp() const { return linear / 32; }
    unsigned lane() const { return linear % 32; }
};

struct Machine {
    std::vector<std::unique_ptr<Region>> buffers;
    std::vector<std::unique_ptr<Region>> shared;
    std::vector<const void*> declarations;  // of `shared`, null for the dynamic part
    std::vector<std::unique_ptr<Thread>> threads;
    unsigned thread_count = 0;
    unsigned grid[3], block[3], at[3];
    const Entry* entry = nullptr;
    void** arguments = nullptr;
    Thread* current = nullptr;
    Clock clock;
    bool reversed = false;
    bool failed = false;
    std::string error;

    Region* find(const void* address);
    /// Records what went wrong, naming kernel, block and thread, and leaves the fiber for good.
    [[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    void note(const std::string& what);
    bool launch(const char* kernel, size_t dynamic_bytes, void** arguments, const unsigned* sizes, int count);
    std::string thread_name(unsigned linear) const;
    std::string place(const void* address) const;

  private:
    bool check(const char* kernel, size_t dynamic_bytes, const unsigned* sizes, int count);
    void run_block();
    bool release_barrier();
    void say_deadlock();
};

extern thread_local Machine* machine;

const char* name_of(Op op);

/// From now on what a kernel does to be killed is its failure. The library must stay loaded.
void catch_signals();

/// One access of the current thread: bounds, and in the checked build initialisation and races.
void access(const void* address, size_t bytes, Kind kind);

}  // namespace emu
