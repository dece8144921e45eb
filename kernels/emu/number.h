// bfloat16 and IEEE half on the host, rounded to nearest even as the device rounds. The tests compare every
// conversion with an independent implementation.
#pragma once
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

namespace emu {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline float widen(bf16 value) { return float_of(uint32_t(value.bits) << 16); }

inline float widen(f16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
    const uint32_t exponent = (value.bits >> 10) & 31;
    const uint32_t mantissa = value.bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

inline bf16 narrow_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

inline f16 narrow_f16(float value) {
    const uint32_t bits = bits_of(value);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return f16{0x7fff};
    // From 65520 on, the nearest half is infinity.
    if (magnitude >= 0x477ff000u) return f16{uint16_t(sign | 0x7c00)};
    if (magnitude < 0x38800000u) {
        // Subnormal: the addition rounds to a multiple of 2^-24, to nearest even.
        const float shifted = float_of(magnitude) + 0.5f;
        return f16{uint16_t(sign | (bits_of(shifted) - 0x3f000000u))};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
    return f16{uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace emu
