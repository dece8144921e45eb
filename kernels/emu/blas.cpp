// A stand-in for cuBLASLt on the stand-in for the driver: what kernels/src/cuda/blas.rs calls, and nothing else.
//
// It is as strict as the library may be. A product is queued, and may be captured; whatever the host keeps for it may be
// gone when it runs. The algorithm must be of the heuristic for these matrices, its workspace there, and every pointer
// aligned as was said to the heuristic. It uses what it was allowed: it fills its workspace, and rounds the sums of halves
// of k to the type of the result unless that was forbidden.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "driver.h"
#include "number.h"

#define BLAS(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

namespace {

// As cublasLt.h and library_types.h number them.
enum : int { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15 };
enum : int { kF32 = 0, kF16 = 2, kBf16 = 14 };
enum : int { kCompute32F = 68, kTransposeA = 3, kTransposeB = 4 };
enum : int { kMaxWorkspace = 1, kReductions = 3, kAlignmentA = 5, kAlignmentD = 8 };
constexpr uint32_t kInPlace = 1, kOutputType = 4;
constexpr uint64_t kScratch = 4096;

/// Column-major.
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t lead;

    size_t bytes() const { return ((columns - 1) * size_t(lead) + rows) * (type == kF32 ? 4 : 2); }
    bool is_whole() const { return rows > 0 && columns > 0 && lead >= int64_t(rows); }
    bool operator==(const Layout& other) const {
        return type == other.type && rows == other.rows && columns == other.columns && lead == other.lead;
    }
};
struct Operation {
    int compute, scale;
    int32_t transposes[2] = {0, 0};  // A and B
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = 7;
    uint32_t alignment[4] = {256, 256, 256, 256};  // A, B, C, D
};
/// What the heuristic chose, and for what.
struct Algorithm {
    uint64_t m, n, k, workspace;
    int32_t type, out;
    uint32_t rounds;
    uint16_t alignment[4];
};
struct Opaque {
    uint64_t words[8];
};
static_assert(sizeof(Algorithm) <= sizeof(Opaque));
struct Found {
    Opaque algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

template <class T>
int make(T** out, T value) {
    driver::keep(*out = new T(value));
    return kSuccess;
}

template <class T>
int drop(T* object) {
    if (!driver::forget(object)) return kInvalidValue;
    delete object;
    return kSuccess;
}

template <class T>
int set(T* to, const void* value, size_t bytes) {
    return bytes == sizeof(T) ? (memcpy(to, value, bytes), kSuccess) : kInvalidValue;
}

template <class... T>
bool alive(const T*... objects) {
    return (driver::keeps(objects) && ...);
}

/// op(A) [m, k], op(B) [k, n], C = D [m, n]: the extents and types of an algorithm, or why there are none.
int fit(const Operation& operation, const Layout& a, const Layout& b, const Layout& c, const Layout& d, Algorithm* out) {
    const bool ta = operation.transposes[0] == 1, tb = operation.transposes[1] == 1;
    out->m = ta ? a.columns : a.rows, out->k = ta ? a.rows : a.columns, out->n = tb ? b.rows : b.columns;
    out->type = a.type, out->out = d.type;
    for (const Layout* of : {&a, &b, &c, &d}) {
        if (!of->is_whole()) return kInvalidValue;
    }
    if ((tb ? b.columns : b.rows) != out->k || d.rows != out->m || d.columns != out->n) return kInvalidValue;
    if (!(c == d)) return kInvalidValue;
    const bool halves = (a.type == kF16 || a.type == kBf16) && b.type == a.type && (d.type == a.type || d.type == kF32);
    return halves && operation.compute == kCompute32F && operation.scale == kF32 ? kSuccess : kNotSupported;
}

float widen(const void* from, int type, size_t at) {
    if (type == kF16) return emu::widen(static_cast<const f16*>(from)[at]);
    return emu::widen(static_cast<const bf16*>(from)[at]);
}

void narrow(void* to, int type, size_t at, float value) {
    if (type == kF32) static_cast<float*>(to)[at] = value;
    if (type == kF16) static_cast<f16*>(to)[at] = emu::narrow_f16(value);
    if (type == kBf16) static_cast<bf16*>(to)[at] = emu::narrow_bf16(value);
}

float rounded(int type, float value) {
    if (type == kF16) return emu::widen(emu::narrow_f16(value));
    return type == kBf16 ? emu::widen(emu::narrow_bf16(value)) : value;
}

/// A product on its way.
struct Run {
    Algorithm algorithm;
    bool transposes[2];
    Layout a_layout, b_layout, d_layout;
    const void *a, *b;
    void *d, *workspace;

    /// [lines, k], each line of k a row of op(A) or a column of op(B).
    std::vector<float> lines(const void* from, const Layout& layout, bool along) const {
        const uint64_t k = algorithm.k, count = along ? layout.columns : layout.rows;
        std::vector<float> all(count * k);
        for (uint64_t line = 0; line < count; line++) {
            for (uint64_t at = 0; at < k; at++) {
                const uint64_t row = along ? at : line, column = along ? line : at;
                all[line * k + at] = widen(from, layout.type, column * uint64_t(layout.lead) + row);
            }
        }
        return all;
    }

    bool operator()() const {
        if (!driver::holds(a, a_layout.bytes())) return driver::fail("cublasLtMatmul: A is not in one buffer");
        if (!driver::holds(b, b_layout.bytes())) return driver::fail("cublasLtMatmul: B is not in one buffer");
        if (!driver::holds(d, d_layout.bytes())) return driver::fail("cublasLtMatmul: D is not in one buffer");
        if (!driver::holds(workspace, algorithm.workspace)) return driver::fail("cublasLtMatmul: no such workspace");
        memset(workspace, 0xff, algorithm.workspace);
        const std::vector<float> left = lines(a, a_layout, transposes[0]), right = lines(b, b_layout, !transposes[1]);
        const uint64_t k = algorithm.k;
        for (uint64_t column = 0; column < algorithm.n; column++) {
            for (uint64_t row = 0; row < algorithm.m; row++) {
                const float *x = &left[row * k], *y = &right[column * k];
                float sums[2] = {0, 0};
                for (uint64_t at = 0; at < k; at++) sums[at >= k / 2] += x[at] * y[at];
                if (algorithm.rounds) sums[0] = rounded(d_layout.type, sums[0]);
                narrow(d, d_layout.type, column * uint64_t(d_layout.lead) + row, sums[0] + sums[1]);
            }
        }
        return true;
    }
};

}  // namespace

BLAS(cublasLtGetProperty, int which, int* value) {
    if (which < 0 || which > 2) return kInvalidValue;
    return *value = which == 0 ? 13 : 0, kSuccess;
}
BLAS(cublasLtCreate, int** handle) { return driver::entered() ? make(handle, 0) : kNotInitialized; }
BLAS(cublasLtDestroy, int* handle) { return drop(handle); }

BLAS(cublasLtMatrixLayoutCreate, Layout** out, int type, uint64_t rows, uint64_t columns, int64_t lead) {
    return make(out, Layout{type, rows, columns, lead});
}
BLAS(cublasLtMatrixLayoutDestroy, Layout* layout) { return drop(layout); }

BLAS(cublasLtMatmulDescCreate, Operation** out, int compute, int scale) { return make(out, Operation{compute, scale}); }
BLAS(cublasLtMatmulDescSetAttribute, Operation* operation, int which, const void* value, size_t bytes) {
    if (!alive(operation) || (which != kTransposeA && which != kTransposeB)) return kInvalidValue;
    return set(&operation->transposes[which - kTransposeA], value, bytes);
}
BLAS(cublasLtMatmulDescDestroy, Operation* operation) { return drop(operation); }

BLAS(cublasLtMatmulPreferenceCreate, Preference** out) { return make(out, Preference{}); }
BLAS(cublasLtMatmulPreferenceSetAttribute, Preference* preference, int which, const void* value, size_t bytes) {
    if (!alive(preference)) return kInvalidValue;
    if (which == kMaxWorkspace) return set(&preference->workspace, value, bytes);
    if (which == kReductions) return set(&preference->reductions, value, bytes);
    if (which < kAlignmentA || which > kAlignmentD) return kInvalidValue;
    return set(&preference->alignment[which - kAlignmentA], value, bytes);
}
BLAS(cublasLtMatmulPreferenceDestroy, Preference* preference) { return drop(preference); }

BLAS(cublasLtMatmulAlgoGetHeuristic, const int* handle, const Operation* operation, const Layout* a, const Layout* b,
     const Layout* c, const Layout* d, const Preference* preference, int asked, Found* results, int* count) {
    if (!alive(handle)) return kNotInitialized;
    if (!alive(operation, a, b, c, d, preference) || asked < 1) return kInvalidValue;
    *count = 0;
    Algorithm algorithm;
    memset(&algorithm, 0, sizeof algorithm);
    if (const int status = fit(*operation, *a, *b, *c, *d, &algorithm)) return status;
    if (preference->workspace < kScratch) return kNotSupported;
    algorithm.workspace = kScratch;
    algorithm.rounds = preference->reductions & (kInPlace | kOutputType);
    for (int at = 0; at < 4; at++) algorithm.alignment[at] = uint16_t(preference->alignment[at]);
    memset(results, 0, sizeof *results);
    memcpy(&results->algorithm, &algorithm, sizeof algorithm);
    results->workspace = kScratch;
    return *count = 1, kSuccess;
}

BLAS(cublasLtMatmul, const int* handle, const Operation* operation, const float* alpha, const void* a,
     const Layout* a_layout, const void* b, const Layout* b_layout, const float* beta, const void* c,
     const Layout* c_layout, void* d, const Layout* d_layout, const Opaque* chosen, void* workspace, size_t bytes,
     void* stream) {
    if (!alive(handle) || !driver::entered()) return kNotInitialized;
    if (!alive(operation, a_layout, b_layout, c_layout, d_layout) || chosen == nullptr) return kInvalidValue;
    Algorithm algorithm, own;
    memcpy(&algorithm, chosen, sizeof algorithm);
    memcpy(&own, chosen, sizeof own);
    if (const int status = fit(*operation, *a_layout, *b_layout, *c_layout, *d_layout, &own)) return status;
    if (memcmp(&own, &algorithm, sizeof own) != 0 || bytes < algorithm.workspace) return kInvalidValue;
    const void* pointers[4] = {a, b, c, d};
    for (int at = 0; at < 4; at++) {
        if (reinterpret_cast<uintptr_t>(pointers[at]) % algorithm.alignment[at] != 0) return kInvalidValue;
    }
    if (*alpha != 1.0f || *beta != 0.0f || c != d) return kNotSupported;
    const Run run{algorithm, {operation->transposes[0] == 1, operation->transposes[1] == 1},
                  *a_layout, *b_layout,  *d_layout, a, b, d, workspace};
    return driver::queue(stream, run) ? kSuccess : kExecutionFailed;
}
