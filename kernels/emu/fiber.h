// A thread of a block: its own stack, and a switch to and from the scheduler.
#pragma once
#include <cstddef>

namespace emu {

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    void* context = nullptr;  // where there is no switch of our own

    static constexpr size_t kStack = 128 * 1024;

    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    /// The next `resume` calls `body`, which must never return.
    void prepare(void (*body)());
    /// From the scheduler into the fiber.
    void resume();
    /// From the fiber back to the scheduler.
    void suspend();
    bool owns(const void* address) const {
        return address >= stack && address < stack + kStack;
    }
};

}  // namespace emu
