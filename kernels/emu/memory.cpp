// Accesses to memory: bounds and alignment always, who else touches it in the checked build.
#include "machine.h"

namespace emu {

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
