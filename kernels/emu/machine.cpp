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

const Entry* Entry::named(const char* name) {
    const Entry* entry = entries;
    while (entry != nullptr && strcmp(entry->name, name) != 0) entry = entry->next;
    return entry;
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
    entry = Entry::named(kernel);
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
    catch_signals();
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

}  // namespace emu
