// What a warp's lanes do together: each leaves what it brings and waits; the last of the mask does the work for all.
#include "machine.h"

namespace emu {

const char* name_of(Op op) {
    static const char* const kNames[] = {"__syncwarp",      "__shfl_sync",   "__shfl_xor_sync",  "__shfl_down_sync",
                                         "__shfl_up_sync",  "__ballot_sync", "__match_any_sync", "mma.sync",
                                         "ldmatrix"};
    return kNames[int(op)];
}

namespace {

Thread* lane_of(unsigned warp, unsigned lane) {
    const unsigned linear = warp * 32 + lane;
    return linear < machine->thread_count ? machine->threads[linear].get() : nullptr;
}

/// Whether the caller is the last of its mask; otherwise it returns when the last has done the work.
bool last_to_arrive() {
    Machine& own = *machine;
    Thread& thread = *own.current;
    const Pending& mine = thread.pending;
    if ((mine.mask >> thread.lane() & 1) == 0) {
        own.fail("calls %s on line %d with a mask without its own lane", name_of(mine.op), mine.line);
    }
    bool all = true;
    for (unsigned lane = 0; lane < 32; lane++) {
        if ((mine.mask >> lane & 1) == 0 || lane == thread.lane()) continue;
        const Thread* other = lane_of(thread.warp(), lane);
        if (other == nullptr || other->status == Status::kDone) {
            own.fail("waits at %s on line %d for lane %u, which has ended", name_of(mine.op), mine.line, lane);
        }
        if (other->status != Status::kWarp) {
            all = false;
        } else if (other->pending.op != mine.op || other->pending.mask != mine.mask) {
            own.fail("is at %s on line %d with mask %08x while lane %u is at %s on line %d with mask %08x", name_of(mine.op),
                     mine.line, mine.mask, lane, name_of(other->pending.op), other->pending.line, other->pending.mask);
        }
    }
    if (all) return true;
    thread.status = Status::kWarp;
    thread.fiber.suspend();
    return false;
}

void wake(uint32_t mask) {
    const unsigned warp = machine->current->warp();
    for (unsigned lane = 0; lane < 32; lane++) {
        if (mask >> lane & 1) lane_of(warp, lane)->status = Status::kReady;
    }
}

uint32_t result_of(const Pending& own, unsigned lane, unsigned warp) {
    unsigned source = lane;
    switch (own.op) {
        case Op::kBallot:
        case Op::kMatchAny: {
            uint32_t bits = 0;
            for (unsigned other = 0; other < 32; other++) {
                if ((own.mask >> other & 1) == 0) continue;
                const uint32_t value = lane_of(warp, other)->pending.value;
                if (own.op == Op::kBallot ? value != 0 : value == own.value) bits |= 1u << other;
            }
            return bits;
        }
        case Op::kShfl: source = unsigned(own.argument) % 32; break;
        case Op::kShflXor: source = lane ^ unsigned(own.argument); break;
        case Op::kShflDown: source = lane + unsigned(own.argument) < 32 ? lane + unsigned(own.argument) : lane; break;
        case Op::kShflUp: source = lane >= unsigned(own.argument) ? lane - unsigned(own.argument) : lane; break;
        default: return 0;
    }
    if (source > 31 || (own.mask >> source & 1) == 0) {
        machine->fail("%s on line %d reads lane %u, which is not in its mask", name_of(own.op), own.line, source);
    }
    return lane_of(warp, source)->pending.value;
}

float element(uint32_t pair, int half, bool bfloat) {
    const uint16_t bits = uint16_t(half == 0 ? pair : pair >> 16);
    return bfloat ? widen(bf16{bits}) : widen(f16{bits});
}

void multiply(unsigned warp, bool bfloat) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const Pending& own = lane_of(warp, lane)->pending;
        const unsigned g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            a[g][2 * t + half] = element(own.a[0], half, bfloat);
            a[g + 8][2 * t + half] = element(own.a[1], half, bfloat);
            a[g][2 * t + 8 + half] = element(own.a[2], half, bfloat);
            a[g + 8][2 * t + 8 + half] = element(own.a[3], half, bfloat);
            b[2 * t + half][g] = element(own.b[0], half, bfloat);
            b[2 * t + 8 + half][g] = element(own.b[1], half, bfloat);
        }
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        float* c = lane_of(warp, lane)->pending.c;
        const unsigned g = lane / 4, t = lane % 4;
        for (int at = 0; at < 4; at++) {
            const unsigned row = g + (at < 2 ? 0 : 8), column = 2 * t + at % 2;
            float sum = 0.0f;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            c[at] += sum;
        }
    }
}

void gather(unsigned warp, int matrices, bool transposed) {
    for (unsigned lane = 0; lane < 32; lane++) {
        const Pending& own = lane_of(warp, lane)->pending;
        for (int matrix = 0; matrix < matrices; matrix++) {
            uint32_t pair = 0;
            for (unsigned half = 0; half < 2; half++) {
                const unsigned row = transposed ? lane % 4 * 2 + half : lane / 4;
                const unsigned column = transposed ? lane / 4 : lane % 4 * 2 + half;
                uint16_t bits;
                memcpy(&bits, static_cast<const char*>(lane_of(warp, unsigned(matrix) * 8 + row)->pending.row) + column * 2, 2);
                pair |= uint32_t(bits) << (16 * half);
            }
            own.out[matrix] = pair;
        }
    }
}

}  // namespace

uint32_t warp_u32(Op op, uint32_t mask, uint32_t value, int argument, int line) {
    Thread& thread = *machine->current;
    thread.pending = Pending{op, mask, line, value, argument, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (!last_to_arrive()) return thread.pending.result;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (mask >> lane & 1) {
            Pending& pending = lane_of(thread.warp(), lane)->pending;
            pending.result = result_of(pending, lane, thread.warp());
        }
    }
    if (op == Op::kSyncWarp) machine->clock.generation[thread.warp()]++;
    wake(mask);
    return thread.pending.result;
}

void mma(bool bfloat, const uint32_t* a, const uint32_t* b, float* c, int line) {
    Thread& thread = *machine->current;
    thread.pending = Pending{Op::kMma, 0xffffffffu, line, 0, 0, 0, a, b, c, nullptr, nullptr};
    if (!last_to_arrive()) return;
    multiply(thread.warp(), bfloat);
    wake(0xffffffffu);
}

void ldmatrix(uint32_t* out, int matrices, bool transposed, const void* row, int line) {
    Thread& thread = *machine->current;
    if (thread.lane() < unsigned(matrices) * 8) {
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0) machine->fail("ldmatrix on line %d from an address not aligned to 16", line);
        // The lane that names a row stands for its readers.
        access(row, 16, Kind::kRead);
    }
    thread.pending = Pending{Op::kLdmatrix, 0xffffffffu, line, 0, 0, 0, nullptr, nullptr, nullptr, out, row};
    if (!last_to_arrive()) return;
    gather(thread.warp(), matrices, transposed);
    wake(0xffffffffu);
}

}  // namespace emu
