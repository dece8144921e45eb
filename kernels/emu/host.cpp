// What the tests call, as they would the driver.
#include <cstdio>

#include "machine.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* emu_new(int reversed) {
    auto* machine = new emu::Machine();
    machine->reversed = reversed != 0;
    return machine;
}

EXPORT void emu_delete(void* machine) { delete static_cast<emu::Machine*>(machine); }

EXPORT void* emu_alloc(void* machine, const char* name, size_t bytes, int use) {
    auto& own = *static_cast<emu::Machine*>(machine);
    own.buffers.emplace_back(new emu::Region(name, bytes, emu::Use(use)));
    return own.buffers.back()->base;
}

EXPORT int emu_launch(void* machine, const char* kernel, const unsigned* grid, const unsigned* block,
                      size_t dynamic_bytes, void** arguments, const unsigned* sizes, int count, char* error,
                      size_t capacity) {
    auto& own = *static_cast<emu::Machine*>(machine);
    for (int axis = 0; axis < 3; axis++) own.grid[axis] = grid[axis], own.block[axis] = block[axis];
    if (own.launch(kernel, dynamic_bytes, arguments, sizes, count)) return 0;
    snprintf(error, capacity, "%s", own.error.c_str());
    return 1;
}

// Rounds through a 16-bit type: 0 bfloat16, 1 half.
EXPORT void emu_round(int type, const float* in, float* out, size_t count) {
    for (size_t at = 0; at < count; at++) {
        out[at] = type == 0 ? emu::widen(emu::narrow_bf16(in[at])) : emu::widen(emu::narrow_f16(in[at]));
    }
}
