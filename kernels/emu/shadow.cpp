#include "shadow.h"

namespace emu {

void Shadow::resize(size_t bytes, bool initialised) {
    cells.assign((bytes + kGranule - 1) / kGranule, Cell());
    for (Cell& cell : cells) cell.initialised = initialised;
}

void Shadow::forget() {
    for (Cell& cell : cells) cell = Cell();
}

void Shadow::fly(size_t offset, size_t bytes, bool in_flight) {
    for (size_t at = offset / kGranule; at * kGranule < offset + bytes; at++) cells[at].in_flight = in_flight;
}

namespace {

/// Whether nothing orders `now` after a write.
bool unordered(const Moment& writer, const Moment& now, const Clock& clock) {
    if (writer.serial < clock.first_serial) return false;
    if (writer.serial != now.serial) return true;
    if (writer.epoch != now.epoch) return false;
    if (writer.warp != now.warp) return true;
    return writer.lane != now.lane && writer.generation == now.generation;
}

/// The same for reads; `lane` becomes one that conflicts.
bool unordered(const Readers& readers, const Moment& now, const Clock& clock, uint8_t* lane) {
    if (readers.serial < clock.first_serial) return false;
    *lane = uint8_t(__builtin_ctz(readers.lanes | 0x80000000u));
    if (readers.serial != now.serial) return true;
    if (readers.epoch != now.epoch) return false;
    if (readers.warp != now.warp) return true;
    const uint32_t others = readers.lanes & ~(1u << now.lane);
    if (readers.generation != now.generation || others == 0) return false;
    *lane = uint8_t(__builtin_ctz(others));
    return true;
}

void add_reader(Cell& cell, const Moment& now, const Clock& clock) {
    Readers* free = nullptr;
    for (Readers& slot : cell.readers) {
        const bool live = slot.serial >= clock.first_serial && (slot.serial != now.serial || slot.epoch == now.epoch);
        if (live && slot.serial == now.serial && slot.warp == now.warp) {
            if (slot.generation != now.generation) slot.lanes = 0;
            slot.generation = now.generation;
            slot.lanes |= 1u << now.lane;
            return;
        }
        if (!live && free == nullptr) free = &slot;
    }
    if (free != nullptr) *free = Readers{now.serial, now.epoch, now.generation, 1u << now.lane, now.warp};
}

Conflict conflict_of(const Cell& cell, Kind kind, const Moment& now, const Clock& clock) {
    const Moment& writer = cell.writer;
    const bool foreign = writer.serial != now.serial;
    if (cell.in_flight) return Conflict{"whose asynchronous copy was not waited for", writer.warp, writer.lane, foreign};
    if (kind == Kind::kRead && !cell.initialised) return Conflict{"that nobody has written", 0, 0, false};
    if (kind == Kind::kAtomic && !cell.initialised) return Conflict{"(atomically) that nobody has written", 0, 0, false};
    if (unordered(writer, now, clock) && !(kind == Kind::kAtomic && cell.atomic)) {
        return Conflict{kind == Kind::kRead ? "in a race with the write" : "in a race with another write", writer.warp,
                        writer.lane, foreign};
    }
    if (kind != Kind::kRead) {
        for (const Readers& readers : cell.readers) {
            uint8_t lane = 0;
            if (unordered(readers, now, clock, &lane)) {
                return Conflict{"in a race with a read", readers.warp, lane, readers.serial != now.serial};
            }
        }
    }
    return Conflict();
}

}  // namespace

Conflict Shadow::record(size_t offset, size_t bytes, Kind kind, const Moment& now, const Clock& clock) {
    for (size_t at = offset / kGranule; at * kGranule < offset + bytes; at++) {
        Cell& cell = cells[at];
        const Conflict conflict = conflict_of(cell, kind, now, clock);
        if (conflict.what != nullptr) return conflict;
        if (kind == Kind::kRead) {
            add_reader(cell, now, clock);
        } else {
            cell.writer = now;
            cell.initialised = true;
            cell.atomic = kind == Kind::kAtomic;
            cell.readers[0] = cell.readers[1] = Readers();
        }
    }
    return Conflict();
}

}  // namespace emu
