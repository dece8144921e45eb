// The hooks that `-fsanitize=thread` makes the compiler call before every access to memory. They are ours: the
// sanitizer's own library is never linked.
#include "machine.h"

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));

namespace {

void hook(const void* address, size_t bytes, emu::Kind kind) {
    // Static initialisers run outside of a launch.
    if (emu::machine == nullptr || emu::machine->current == nullptr) return;
    if (emu::machine->current->fiber.owns(address)) return;
    // Constants of the kernels' own image.
    if (kind == emu::Kind::kRead && address >= static_cast<const void*>(&__ehdr_start) && address < static_cast<const void*>(&_end)) {
        return;
    }
    emu::access(address, bytes, kind);
}

}  // namespace

#define HOOK extern "C" __attribute__((visibility("hidden"))) void
#define SIZED(bytes)                                                                                  \
    HOOK __tsan_read##bytes(void* at) { hook(at, bytes, emu::Kind::kRead); }                          \
    HOOK __tsan_write##bytes(void* at) { hook(at, bytes, emu::Kind::kWrite); }                        \
    HOOK __tsan_unaligned_read##bytes(void* at) { hook(at, bytes, emu::Kind::kRead); }                \
    HOOK __tsan_unaligned_write##bytes(void* at) { hook(at, bytes, emu::Kind::kWrite); }

SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
HOOK __tsan_read_range(void* at, size_t bytes) { hook(at, bytes, emu::Kind::kRead); }
HOOK __tsan_write_range(void* at, size_t bytes) { hook(at, bytes, emu::Kind::kWrite); }
HOOK __tsan_vptr_read(void**) {}
HOOK __tsan_vptr_update(void**, void*) {}
HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
