// float8_e4m3fn, for the cache: a sign, 4 bits of exponent (bias 7), 3 of the significand; no infinities, 0x7f is NaN.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ossia {
namespace {

// To the nearest, ties to even; beyond the largest, 448, to that. A NaN stays one.
inline uint8_t round_fp8(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7f;
    if (bits >= 0x43e00000u) return sign | 0x7e;
    if (bits < 0x3c800000u) {  // below 2^-6: whole steps of 2^-9, which adding 2^14 rounds to
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 16384.0f;
        memcpy(&bits, &magnitude, 4);
        return sign | (uint8_t)(bits - 0x46800000u);
    }
    bits += 0x7ffffu + (bits >> 20 & 1u);
    return sign | (uint8_t)((bits >> 20) - (120u << 3));
}

inline float widen_fp8(uint8_t x) {
    const uint32_t magnitude = x & 0x7fu;
    const uint32_t sign = (uint32_t)(x & 0x80u) << 24;
    const float small = (float)magnitude * 0x1p-9f;
    uint32_t bits;
    memcpy(&bits, &small, 4);
    if (magnitude >= 8) bits = (magnitude << 20) + (120u << 23);
    if (magnitude == 0x7f) bits = 0x7fc00000u;
    bits |= sign;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

}  // namespace
}  // namespace ossia
