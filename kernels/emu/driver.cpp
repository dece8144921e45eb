// A stand-in for the CUDA driver, with the emulator for a GPU: what kernels/src/cuda calls, and nothing else.
//
// It is as strict as a driver may be. Nothing that is queued runs before something waits for it, so that memory which is
// changed too early is seen; a copy's host memory must be pinned; a thread must have entered the context; what a capture
// may not contain fails; a dynamic shared size must have been allowed; and what is not given back ends the process.
// blas.cpp queues its products here.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "driver.h"
#include "machine.h"

#define DRIVER(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

namespace {

// As cuda.h numbers them.
enum : int {
    kSuccess = 0,
    kInvalidValue = 1,
    kInvalidContext = 201,
    kInvalidImage = 200,
    kInvalidHandle = 400,
    kNotFound = 500,
    kLaunchFailed = 719,
    kCaptureUnsupported = 900,
};
constexpr int kMaxDynamicShared = 8;
constexpr int kSharedUnasked = 48 * 1024, kSharedMost = 163 * 1024;
constexpr int kModules = 64;
// The lower, the sooner.
constexpr int kLeastPriority = 0, kGreatestPriority = -5;

using Work = std::function<int()>;

struct Stream {
    int priority = 0;
    std::deque<Work> queue;
    bool capturing = false;
    std::vector<Work> captured;
    bool broken = false;
};
struct Event {
    Stream* stream = nullptr;  // while its last record has not been reached
    int records = 0;
};
struct Graph {
    std::vector<Work> work;
};
struct Function {
    const emu::Entry* entry;
    int shared = kSharedUnasked;
    bool loaded = false;
};
struct Module {
    int number;
    std::map<std::string, Function> functions;
};

std::recursive_mutex lock;
emu::Machine* gpu = nullptr;
int retained = 0;
int context;  // its address is the handle
thread_local void* entered = nullptr;
int failure = kSuccess;  // stays, as a GPU's does
std::string said;
std::map<const unsigned char*, size_t> pinned;
std::set<void*> handles;  // of all that must be given back
std::set<Stream*> streams;
int modules = 0;

struct Held {
    std::lock_guard<std::recursive_mutex> guard{lock};
};

#define ENTERED()                                             \
    Held held;                                                \
    if (entered != &context || retained == 0) return kInvalidContext; \
    if (failure != kSuccess) return failure

bool any_capture() {
    for (Stream* stream : streams) {
        if (stream->capturing) return true;
    }
    return false;
}

int drain(Stream* stream) {
    while (!stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        const int status = work();
        if (status != kSuccess) return failure = status;
    }
    return kSuccess;
}

int enqueue(Stream* stream, Work work, bool capturable) {
    if (!stream->capturing) return stream->queue.push_back(std::move(work)), kSuccess;
    if (!capturable) return stream->broken = true, kCaptureUnsupported;
    return stream->captured.push_back(std::move(work)), kSuccess;
}

bool is_pinned(const void* from, size_t bytes) {
    const auto* at = static_cast<const unsigned char*>(from);
    auto after = pinned.upper_bound(at);
    if (after == pinned.begin()) return false;
    --after;
    return at + bytes <= after->first + after->second;
}

bool is_device(unsigned long long at, size_t bytes) {
    emu::Region* region = gpu->find(reinterpret_cast<void*>(at));
    return region != nullptr && at + bytes <= reinterpret_cast<unsigned long long>(region->base) + region->bytes;
}

template <class T>
T* make(T** out) {
    *out = new T();
    handles.insert(*out);
    return *out;
}

template <class T>
int drop(T* handle) {
    if (handles.erase(handle) == 0) return kInvalidHandle;
    delete handle;
    return kSuccess;
}

}  // namespace

namespace driver {

bool entered() {
    Held held;
    return ::entered == &context && retained > 0 && failure == kSuccess;
}
bool holds(const void* at, size_t bytes) {
    Held held;
    return is_device(reinterpret_cast<unsigned long long>(at), bytes);
}
bool queue(void* stream, std::function<bool()> work) {
    Held held;
    auto* to = static_cast<Stream*>(stream);
    if (!entered() || streams.count(to) == 0) return false;
    return enqueue(to, [work] { return work() ? kSuccess : kLaunchFailed; }, true) == kSuccess;
}
bool fail(const std::string& what) { return said = what, false; }
void keep(void* handle) {
    Held held;
    handles.insert(handle);
}
bool keeps(const void* handle) {
    Held held;
    return handles.count(const_cast<void*>(handle)) != 0;
}
bool forget(void* handle) {
    Held held;
    return handles.erase(handle) != 0;
}

}  // namespace driver

DRIVER(cuDriverGetVersion, int* version) { return *version = 13000, kSuccess; }
DRIVER(cuInit, unsigned) { return kSuccess; }
DRIVER(cuDeviceGetCount, int* count) { return *count = 1, kSuccess; }
DRIVER(cuDeviceGet, int* device, int ordinal) { return ordinal == 0 ? (*device = 0, kSuccess) : 101; }
DRIVER(cuDeviceGetAttribute, int* value, int which, int) {
    return which == 75 ? (*value = 8, kSuccess) : which == 76 ? (*value = 0, kSuccess) : kInvalidValue;
}
DRIVER(cuDeviceTotalMem_v2, size_t* bytes, int) { return *bytes = size_t(1) << 30, kSuccess; }
DRIVER(cuDeviceGetName, char* name, int length, int) { return snprintf(name, size_t(length), "Emulated"), kSuccess; }
DRIVER(cuGetErrorName, int error, const char** text) {
    static thread_local char name[32];
    snprintf(name, sizeof name, "error %d", error);
    return *text = name, kSuccess;
}
DRIVER(cuGetErrorString, int error, const char** text) {
    return *text = error == kLaunchFailed ? said.c_str() : "as cuda.h says", kSuccess;
}

DRIVER(cuDevicePrimaryCtxRetain, void** out, int) {
    Held held;
    if (retained++ == 0) {
        gpu = new emu::Machine();
        failure = kSuccess;
    }
    return *out = &context, kSuccess;
}
DRIVER(cuDevicePrimaryCtxRelease_v2, int) {
    Held held;
    if (retained == 0) return kInvalidContext;
    if (--retained > 0) return kSuccess;
    const size_t left = handles.size() + pinned.size() + gpu->buffers.size();
    if (left > 0) {
        fprintf(stderr, "the driver's stand-in: %zu handles, %zu pinned and %zu device buffers were not given back\n",
                handles.size(), pinned.size(), gpu->buffers.size());
        abort();
    }
    delete gpu;
    gpu = nullptr;
    return kSuccess;
}
DRIVER(cuCtxSetCurrent, void* handle) {
    if (handle != &context || retained == 0) return kInvalidContext;
    return entered = handle, kSuccess;
}

DRIVER(cuCtxGetStreamPriorityRange, int* least, int* greatest) {
    ENTERED();
    return *least = kLeastPriority, *greatest = kGreatestPriority, kSuccess;
}
DRIVER(cuStreamCreateWithPriority, Stream** out, unsigned flags, int priority) {
    ENTERED();
    // A driver would take the nearest that it has.
    if (flags != 1 || priority > kLeastPriority || priority < kGreatestPriority) return kInvalidValue;
    make(out)->priority = priority;
    return streams.insert(*out), kSuccess;
}
DRIVER(cuStreamGetPriority, Stream* stream, int* priority) {
    ENTERED();
    return *priority = stream->priority, kSuccess;
}
DRIVER(cuStreamSynchronize, Stream* stream) {
    ENTERED();
    if (stream->capturing) return stream->broken = true, kCaptureUnsupported;
    return drain(stream);
}
DRIVER(cuStreamDestroy_v2, Stream* stream) {
    Held held;
    streams.erase(stream);
    return drop(stream);
}

DRIVER(cuEventCreate, Event** out, unsigned) {
    ENTERED();
    return make(out), kSuccess;
}
DRIVER(cuEventRecord, Event* event, Stream* stream) {
    ENTERED();
    event->stream = stream;
    const auto reached = [event, number = ++event->records] {
        if (event->records == number) event->stream = nullptr;
        return kSuccess;
    };
    return enqueue(stream, reached, false);
}
DRIVER(cuEventSynchronize, Event* event) {
    ENTERED();
    while (event->stream != nullptr && !event->stream->queue.empty()) {
        Work work = std::move(event->stream->queue.front());
        event->stream->queue.pop_front();
        const int status = work();
        if (status != kSuccess) return failure = status;
    }
    return kSuccess;
}
DRIVER(cuEventElapsedTime_v2, float* milliseconds, Event* start, Event* end) {
    ENTERED();
    if (start->stream != nullptr || end->stream != nullptr) return 600;
    return *milliseconds = 100.0f, kSuccess;
}
DRIVER(cuEventDestroy_v2, Event* event) {
    Held held;
    return drop(event);
}

DRIVER(cuMemAlloc_v2, unsigned long long* out, size_t bytes) {
    ENTERED();
    if (bytes == 0) return kInvalidValue;
    if (bytes > size_t(1) << 30) return 2;
    gpu->buffers.emplace_back(new emu::Region("device memory", bytes, emu::Use::kReadWrite));
    return *out = reinterpret_cast<unsigned long long>(gpu->buffers.back()->base), kSuccess;
}
DRIVER(cuMemFree_v2, unsigned long long at) {
    Held held;
    for (auto& region : gpu->buffers) {
        if (reinterpret_cast<unsigned long long>(region->base) != at) continue;
        std::swap(region, gpu->buffers.back());
        gpu->buffers.pop_back();
        return kSuccess;
    }
    return kInvalidValue;
}
DRIVER(cuMemGetInfo_v2, size_t* free, size_t* total) {
    ENTERED();
    return *total = size_t(1) << 30, *free = *total / 2, kSuccess;
}
DRIVER(cuMemHostAlloc, void** out, size_t bytes, unsigned) {
    ENTERED();
    *out = malloc(bytes);
    memset(*out, 0xff, bytes);
    pinned[static_cast<unsigned char*>(*out)] = bytes;
    return kSuccess;
}
DRIVER(cuMemFreeHost, void* at) {
    Held held;
    if (pinned.erase(static_cast<unsigned char*>(at)) == 0) return kInvalidValue;
    free(at);
    return kSuccess;
}

DRIVER(cuMemcpyHtoDAsync_v2, unsigned long long to, const void* from, size_t bytes, Stream* stream) {
    ENTERED();
    if (!is_pinned(from, bytes) || !is_device(to, bytes)) return kInvalidValue;
    return enqueue(stream, [=] { return memcpy(reinterpret_cast<void*>(to), from, bytes), kSuccess; }, false);
}
DRIVER(cuMemcpyDtoHAsync_v2, void* to, unsigned long long from, size_t bytes, Stream* stream) {
    ENTERED();
    if (!is_pinned(to, bytes) || !is_device(from, bytes)) return kInvalidValue;
    return enqueue(stream, [=] { return memcpy(to, reinterpret_cast<void*>(from), bytes), kSuccess; }, false);
}
DRIVER(cuMemcpyDtoDAsync_v2, unsigned long long to, unsigned long long from, size_t bytes, Stream* stream) {
    ENTERED();
    if (!is_device(to, bytes) || !is_device(from, bytes)) return kInvalidValue;
    return enqueue(
        stream, [=] { return memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), kSuccess; },
        false);
}

DRIVER(cuModuleLoadData, Module** out, const void* image) {
    ENTERED();
    // A fatbin's first word.
    if (reinterpret_cast<uintptr_t>(image) % 8 != 0 || *static_cast<const uint32_t*>(image) != 0xba55ed50u) {
        return kInvalidImage;
    }
    make(out)->number = modules++ % kModules;
    return kSuccess;
}
DRIVER(cuModuleGetFunction, Function** out, Module* module, const char* name) {
    ENTERED();
    const emu::Entry* entry = emu::Entry::named(name);
    // Which module has it is not known here; that the first one has not must do.
    if (entry == nullptr || module->number % 2 == 0) return kNotFound;
    Function& function = module->functions[name];
    function.entry = entry;
    return *out = &function, kSuccess;
}
DRIVER(cuModuleUnload, Module* module) {
    Held held;
    return drop(module);
}
DRIVER(cuFuncLoad, Function* function) {
    ENTERED();
    if (any_capture()) return kCaptureUnsupported;
    return function->loaded = true, kSuccess;
}
DRIVER(cuFuncGetParamInfo, Function* function, size_t at, size_t* offset, size_t* size) {
    ENTERED();
    if (at >= size_t(function->entry->arguments)) return kInvalidValue;
    return *offset = 0, *size = function->entry->sizes[at], kSuccess;
}
DRIVER(cuFuncGetAttribute, int* value, int which, Function* function) {
    ENTERED();
    return which == kMaxDynamicShared ? (*value = function->shared, kSuccess) : kInvalidValue;
}
DRIVER(cuFuncSetAttribute, Function* function, int which, int value) {
    ENTERED();
    if (which != kMaxDynamicShared || value > kSharedMost) return kInvalidValue;
    return function->shared = value, kSuccess;
}

DRIVER(cuLaunchKernel, Function* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
       unsigned shared, Stream* stream, void** arguments, void** extra) {
    ENTERED();
    if (extra != nullptr || !function->loaded || int(shared) > function->shared) return kInvalidValue;
    const emu::Entry* entry = function->entry;
    // Arguments are read now; what they point to, later.
    std::vector<std::vector<unsigned char>> values;
    for (int at = 0; at < entry->arguments; at++) {
        const auto* from = static_cast<const unsigned char*>(arguments[at]);
        if (reinterpret_cast<uintptr_t>(from) % entry->sizes[at] != 0) return kInvalidValue;
        values.emplace_back(from, from + entry->sizes[at]);
    }
    return enqueue(
        stream,
        [=]() mutable {
            std::vector<void*> pointers;
            for (auto& value : values) pointers.push_back(value.data());
            const unsigned grid[3] = {x, y, z}, block[3] = {bx, by, bz};
            for (int axis = 0; axis < 3; axis++) gpu->grid[axis] = grid[axis], gpu->block[axis] = block[axis];
            if (gpu->launch(entry->name, shared, pointers.data(), entry->sizes, entry->arguments)) return int(kSuccess);
            said = gpu->error;
            return int(kLaunchFailed);
        },
        true);
}

DRIVER(cuStreamBeginCapture_v2, Stream* stream, int mode) {
    ENTERED();
    if (stream->capturing || mode != 1) return kInvalidValue;
    stream->captured.clear();
    stream->broken = false;
    return stream->capturing = true, kSuccess;
}
DRIVER(cuStreamEndCapture, Stream* stream, Graph** out) {
    ENTERED();
    if (!stream->capturing) return kInvalidValue;
    stream->capturing = false;
    if (stream->broken) return 901;
    make(out)->work = stream->captured;
    return kSuccess;
}
DRIVER(cuGraphInstantiateWithFlags, Graph** out, Graph* graph, unsigned long long flags) {
    ENTERED();
    if (flags != 0) return kInvalidValue;
    make(out)->work = graph->work;
    return kSuccess;
}
DRIVER(cuGraphDestroy, Graph* graph) {
    Held held;
    return drop(graph);
}
DRIVER(cuGraphExecDestroy, Graph* graph) {
    Held held;
    return drop(graph);
}
DRIVER(cuGraphLaunch, Graph* graph, Stream* stream) {
    ENTERED();
    for (const Work& work : graph->work) {
        const int status = enqueue(stream, work, false);
        if (status != kSuccess) return status;
    }
    return kSuccess;
}
