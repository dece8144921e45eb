#include "machine.h"

#include <cstdio>
#include <cstdlib>

namespace emu {

thread_local Machine* machine = nullptr;

namespace {

const Entry* entries = nullptr;

constexpr size_t kStaticLimit = 48 * 1024;
// What a block may have on the smaller of the two architectures (sm_80).
constexpr size_t kSharedLimit = 163 * 1024;

#ifdef EMU_CHECKED
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

void thread_main() {
    Machine& own = *machine;
    own.entry->call(own.entry->function, own.arguments);
    for (const auto& group : own.current->groups) {
        if (!group.empty()) own.fail("ends with asynchronous copies in flight");
    }
    if (!own.current->uncommitted.empty()) own.fail("ends with asynchronous copies that it has not committed");
    own.current->status = Status::kDone;
    for (;;) own.current->fiber.suspend();
}

}  // namespace

void Entry::enroll(Entry* entry) {
    entry->next = entries;
    entries = entry;
}

Region::Region(std::string name, size_t bytes, Use use) : name(std::move(name)), use(use), bytes(bytes) {
    const size_t all = bytes + 3 * kRedZone;
    owner.reset(new unsigned char[all]);
    memset(owner.get(), kFill, all);
    // Aligned as the device's allocator aligns.
    const uintptr_t start = (reinterpret_cast<uintptr_t>(owner.get()) + 2 * kRedZone - 1) / kRedZone * kRedZone;
    base = reinterpret_cast<unsigned char*>(start);
    if (kChecked) shadow.resize(bytes, use == Use::kRead || use == Use::kReadWrite);
}

bool Region::trampled(long* offset) const {
    for (size_t at = 1; at <= kRedZone; at++) {
        if (base[-long(at)] != kFill) return *offset = -long(at), true;
        if (base[bytes + at - 1] != kFill) return *offset = long(bytes + at - 1), true;
    }
    return false;
}

Region* Machine::find(const void* address) {
    for (auto* all : {&shared, &buffers}) {
        for (auto& region : *all) {
            if (region->holds(address)) return region.get();
        }
    }
    return nullptr;
}

std::string Machine::thread_name(unsigned linear) const {
    char text[64];
    snprintf(text, sizeof text, "(%u, %u, %u)", linear % block[0], linear / block[0] % block[1],
             linear / block[0] / block[1]);
    return text;
}

std::string Machine::place(const void* address) const {
    const unsigned char* at = static_cast<const unsigned char*>(address);
    const Region* best = nullptr;
    long nearest = 1L << 40;
    for (auto* all : {&shared, &buffers}) {
        for (const auto& region : *all) {
            const long before = region->base - at, past = at - (region->base + region->bytes);
            const long distance = before > 0 ? before : past >= 0 ? past + 1 : 0;
            if (distance < nearest) nearest = distance, best = region.get();
        }
    }
    char text[256];
    if (best == nullptr || nearest > 1L << 24) {
        snprintf(text, sizeof text, "%p, far from every buffer", address);
    } else {
        snprintf(text, sizeof text, "`%s`[byte %ld of %zu]", best->name.c_str(), long(at - best->base), best->bytes);
    }
    return text;
}

void Machine::note(const std::string& what) {
    if (failed) return;
    failed = true;
    error = what;
}

void Machine::fail(const char* format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    char where[256];
    snprintf(where, sizeof where, "%s: block (%u, %u, %u), thread %s: ", entry->name, at[0], at[1], at[2],
             thread_name(current->linear).c_str());
    note(std::string(where) + text);
    for (;;) current->fiber.suspend();
}

bool Machine::check(const char* kernel, size_t dynamic_bytes, const unsigned* sizes, int count) {
    entry = entries;
    while (entry != nullptr && strcmp(entry->name, kernel) != 0) entry = entry->next;
    char text[256];
    if (entry == nullptr) {
        snprintf(text, sizeof text, "there is no kernel %s", kernel);
        return note(text), false;
    }
    if (entry->arguments != count) {
        snprintf(text, sizeof text, "%s takes %d arguments and is given %d", kernel, entry->arguments, count);
        return note(text), false;
    }
    for (int at = 0; at < count; at++) {
        if (entry->sizes[at] != sizes[at]) {
            snprintf(text, sizeof text, "%s: argument %d has %u bytes and is given %u", kernel, at, entry->sizes[at], sizes[at]);
            return note(text), false;
        }
    }
    thread_count = block[0] * block[1] * block[2];
    if (thread_count == 0 || thread_count > entry->max_threads || thread_count % 32 != 0) {
        snprintf(text, sizeof text, "%s: %u threads are no multiple of 32 up to %u", kernel, thread_count, entry->max_threads);
        return note(text), false;
    }
    if (dynamic_bytes > kSharedLimit) {
        snprintf(text, sizeof text, "%s: %zu bytes of shared memory are more than a block may have", kernel, dynamic_bytes);
        return note(text), false;
    }
    // A grid of no blocks is an error of the driver too.
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) {
        snprintf(text, sizeof text, "%s: no grid of %u x %u x %u blocks", kernel, grid[0], grid[1], grid[2]);
        return note(text), false;
    }
    return true;
}

bool Machine::launch(const char* kernel, size_t dynamic_bytes, void** arguments, const unsigned* sizes, int count) {
    failed = false;
    error.clear();
    if (!check(kernel, dynamic_bytes, sizes, count)) return false;
    this->arguments = arguments;
    while (threads.size() < thread_count) threads.emplace_back(new Thread());
    shared.clear();
    declarations.clear();
    if (dynamic_bytes > 0) {
        shared.emplace_back(new Region("dynamic shared memory", dynamic_bytes, Use::kShared));
        declarations.push_back(nullptr);
    }
    clock.first_serial = clock.serial + 1;
    machine = this;
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned index = 0; index < blocks && !failed; index++) {
        const unsigned linear = reversed ? blocks - 1 - index : index;
        at[0] = linear % grid[0], at[1] = linear / grid[0] % grid[1], at[2] = linear / grid[0] / grid[1];
        run_block();
    }
    machine = nullptr;
    long offset = 0;
    for (auto* all : {&shared, &buffers}) {
        for (const auto& region : *all) {
            if (!failed && region->trampled(&offset)) {
                note(std::string(kernel) + ": wrote outside of its memory, to " + place(region->base + offset));
            }
        }
    }
    shared.clear();
    return !failed;
}

void Machine::run_block() {
    clock.serial++;
    clock.epoch = 0;
    clock.generation.assign((thread_count + 31) / 32, 0);
    for (auto& region : shared) {
        memset(region->base, Region::kFill, region->bytes);
        region->shadow.forget();
    }
    for (unsigned linear = 0; linear < thread_count; linear++) {
        Thread& thread = *threads[linear];
        thread.linear = linear;
        thread.at[0] = linear % block[0], thread.at[1] = linear / block[0] % block[1];
        thread.at[2] = linear / block[0] / block[1];
        thread.status = Status::kReady;
        thread.uncommitted.clear();
        thread.groups.clear();
        thread.fiber.prepare(thread_main);
    }
    for (;;) {
        bool progress = false, alive = false;
        for (unsigned index = 0; index < thread_count; index++) {
            Thread& thread = *threads[reversed ? thread_count - 1 - index : index];
            if (thread.status == Status::kReady) {
                progress = true;
                current = &thread;
                thread.fiber.resume();
                current = nullptr;
                if (failed) return;
            }
            alive |= thread.status != Status::kDone;
        }
        if (!alive) return;
        if (!progress && !release_barrier()) return;
    }
}

bool Machine::release_barrier() {
    const Thread* first = nullptr;
    for (unsigned linear = 0; linear < thread_count; linear++) {
        const Thread& thread = *threads[linear];
        if (thread.status != Status::kBarrier) return say_deadlock(), false;
        if (first == nullptr) first = &thread;
        if (thread.barrier_line != first->barrier_line || strcmp(thread.barrier_file, first->barrier_file) != 0) {
            return say_deadlock(), false;
        }
    }
    clock.epoch++;
    for (unsigned linear = 0; linear < thread_count; linear++) threads[linear]->status = Status::kReady;
    return true;
}

void Machine::say_deadlock() {
    std::string what = std::string(entry->name) + ": the threads of a block wait for one another:";
    int said = 0;
    std::string before;
    for (unsigned linear = 0; linear < thread_count && said < 4; linear++) {
        const Thread& thread = *threads[linear];
        char text[128];
        switch (thread.status) {
            case Status::kBarrier: snprintf(text, sizeof text, " waits at the barrier of line %d", thread.barrier_line); break;
            case Status::kWarp:
                snprintf(text, sizeof text, " waits at %s of line %d", name_of(thread.pending.op), thread.pending.line);
                break;
            default: snprintf(text, sizeof text, " has ended");
        }
        if (before == text) continue;
        before = text;
        what += (said++ == 0 ? " thread " : "; thread ") + thread_name(linear) + text;
    }
    note(what);
}

unsigned thread_at(int axis) { return machine->current->at[axis]; }
unsigned block_at(int axis) { return machine->at[axis]; }
unsigned block_extent(int axis) { return machine->block[axis]; }
unsigned grid_extent(int axis) { return machine->grid[axis]; }

void* static_shared(const void* declaration, const char* name, size_t bytes) {
    Machine& own = *machine;
    size_t total = bytes;
    for (size_t at = 0; at < own.shared.size(); at++) {
        if (own.declarations[at] == declaration) return own.shared[at]->base;
        if (own.declarations[at] != nullptr) total += own.shared[at]->bytes;
    }
    if (total > kStaticLimit) own.fail("%zu bytes of static shared memory are more than %zu", total, kStaticLimit);
    own.shared.emplace_back(new Region(name, bytes, Use::kShared));
    own.declarations.push_back(declaration);
    return own.shared.back()->base;
}

void* dynamic_shared() {
    Machine& own = *machine;
    if (own.shared.empty() || own.declarations[0] != nullptr) own.fail("the launch gave no dynamic shared memory");
    return own.shared[0]->base;
}

void sync_threads(const char* file, int line) {
    Thread& own = *machine->current;
    own.barrier_file = file;
    own.barrier_line = line;
    own.status = Status::kBarrier;
    own.fiber.suspend();
}

void access(const void* address, size_t bytes, Kind kind) {
    Machine& own = *machine;
    static const char* const kVerb[] = {"reads", "writes", "updates"};
    const char* verb = kVerb[int(kind)];
    Region* region = own.find(address);
    const size_t offset = region == nullptr ? 0 : size_t(static_cast<const unsigned char*>(address) - region->base);
    if (region == nullptr || offset + bytes > region->bytes) {
        own.fail("%s %zu bytes out of bounds at %s", verb, bytes, own.place(address).c_str());
    }
    if (kind != Kind::kRead && region->use == Use::kRead) {
        own.fail("%s %s, which the launch only reads", verb, own.place(address).c_str());
    }
    if (!kChecked) return;
    const Thread& thread = *own.current;
    const Moment now{own.clock.serial, own.clock.epoch, own.clock.generation[thread.warp()], uint16_t(thread.warp()),
                     uint8_t(thread.lane())};
    const Conflict conflict = region->shadow.record(offset, bytes, kind, now, own.clock);
    if (conflict.what == nullptr) return;
    const std::string other = conflict.other_block ? "another block"
                                                   : "thread " + own.thread_name(conflict.warp * 32u + conflict.lane);
    const bool names = conflict.what[0] == 'i' || conflict.what[0] == 'w';
    own.fail("%s %zu bytes at %s %s%s%s", verb, bytes, own.place(address).c_str(), conflict.what, names ? " of " : "",
             names ? other.c_str() : "");
}

namespace {
void aligned(const void* address, const char* what) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
        machine->fail("%s at %s, which is not aligned to 16 bytes", what, machine->place(address).c_str());
    }
}
}  // namespace

void load16(void* out, const void* from) {
    aligned(from, "reads 16 bytes");
    access(from, 16, Kind::kRead);
    memcpy(out, from, 16);
}

void store16(void* to, const void* value) {
    aligned(to, "writes 16 bytes");
    access(to, 16, Kind::kWrite);
    memcpy(to, value, 16);
}

void cp_async16(void* to, const void* from, int bytes) {
    Machine& own = *machine;
    aligned(to, "copies to 16 bytes");
    if (bytes != 0 && bytes != 16) own.fail("copies %d bytes of 16 asynchronously", bytes);
    Copy copy{static_cast<unsigned char*>(to), {}};
    // The hardware may write from now on: the target conflicts with readers that are not done.
    access(to, 16, Kind::kWrite);
    Region* region = own.find(to);
    if (region->use != Use::kShared) own.fail("copies asynchronously to %s, which is not shared", own.place(to).c_str());
    if (kChecked) region->shadow.fly(size_t(copy.to - region->base), 16, true);
    if (bytes == 16) {
        aligned(from, "copies from 16 bytes");
        access(from, 16, Kind::kRead);
        memcpy(copy.data, from, 16);
    }
    own.current->uncommitted.push_back(copy);
}

void cp_async_commit() {
    Thread& thread = *machine->current;
    thread.groups.push_back(std::move(thread.uncommitted));
    thread.uncommitted.clear();
}

void cp_async_wait(int left) {
    Thread& thread = *machine->current;
    while (thread.groups.size() > size_t(left)) {
        for (const Copy& copy : thread.groups.front()) {
            if (kChecked) {
                Region* region = machine->find(copy.to);
                region->shadow.fly(size_t(copy.to - region->base), 16, false);
            }
            // Written now, as far as others are concerned: they need a barrier after the wait.
            access(copy.to, 16, Kind::kWrite);
            memcpy(copy.to, copy.data, 16);
        }
        thread.groups.erase(thread.groups.begin());
    }
}

uint32_t atomic_u32(Rmw op, uint32_t* at, uint32_t value, uint32_t compare) {
    access(at, 4, Kind::kAtomic);
    const uint32_t before = *at;
    switch (op) {
        case Rmw::kAdd: *at = before + value; break;
        case Rmw::kMax: *at = before > value ? before : value; break;
        case Rmw::kExchange: *at = value; break;
        case Rmw::kCompareExchange: *at = before == compare ? value : before; break;
    }
    return before;
}

uint64_t atomic_add_u64(uint64_t* at, uint64_t value) {
    access(at, 8, Kind::kAtomic);
    const uint64_t before = *at;
    *at = before + value;
    return before;
}

float atomic_add_f32(float* at, float value) {
    access(at, 4, Kind::kAtomic);
    const float before = *at;
    *at = before + value;
    return before;
}

}  // namespace emu

// ---- what the host calls ----

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
