// Activations of the integer products.
//
// A block of 32 activations becomes 16-bit integers a = 256 hi + lo and a float scale; the error is at most 2^-16 of
// the block's largest. Weights are small integers, so a block's sum is exact, and only scaling and adding up round.
// Unsigned-times-signed instructions want weights w + kOffset; `correction` takes kOffset * a off again.
#pragma once
#include "bf12.h"
#include "dense_rows.h"

namespace ossia {
namespace {

constexpr float kLargest = 127 * 256;

struct Quantized {
    int8_t hi[kBlock], lo[kBlock];
    float scale;

    int whole(int i) const { return 256 * hi[i] + lo[i]; }
};

Quantized quantize_block(const float* x) {
    Quantized q;
    float largest = 0;
    for (int i = 0; i < kBlock; ++i) {
        const float size = fabsf(x[i]);
        largest = size > largest ? size : largest;
    }
    float finite = largest;
    for (int i = 0; i < kBlock; ++i) finite = x[i] == x[i] ? finite : NAN;
    if (!(finite < INFINITY) || largest == 0) {  // a broken activation must not pass unseen
        memset(&q, 0, sizeof q);
        q.scale = largest == 0 && finite == 0 ? 0.0f : NAN;
        return q;
    }
    q.scale = largest / kLargest;
    const float inverse = kLargest / largest;
    if (!(inverse < INFINITY)) {  // too small to divide by: nothing that float32 sums would see
        memset(&q, 0, sizeof q);
        return q;
    }
    for (int i = 0; i < kBlock; ++i) {
        const float scaled = x[i] * inverse;
        const int a = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
        const int hi = (a + 128) >> 8;
        q.hi[i] = (int8_t)hi;
        q.lo[i] = (int8_t)(a - hi * 256);
    }
    return q;
}

constexpr int kMxfp4Offset = 12;  // twice the magnitudes are whole, up to 12

// OSSIA_GROUP blocks lie together, 4 lanes each. MXFP4 keeps even and odd columns apart, as its nibbles come.
constexpr int GB = OSSIA_GROUP;
struct Mxfp4Group {
    int8_t hi_even[16 * GB], lo_even[16 * GB], hi_odd[16 * GB], lo_odd[16 * GB];
    int32_t correction[4 * GB];
    float scale[4 * GB];  // half the block's scale, because weights are doubled
};

void pack_mxfp4(const float* x, int cols, Mxfp4Group* packed) {
    const int blocks = cols / kBlock;
    for (int g = 0; g * GB < blocks; ++g) {
        Mxfp4Group& group = packed[g];
        memset(&group, 0, sizeof group);
        for (int b = 0; b < GB && g * GB + b < blocks; ++b) {
            const Quantized q = quantize_block(x + (size_t)(g * GB + b) * kBlock);
            for (int i = 0; i < 16; ++i) {
                group.hi_even[16 * b + i] = q.hi[2 * i];
                group.lo_even[16 * b + i] = q.lo[2 * i];
                group.hi_odd[16 * b + i] = q.hi[2 * i + 1];
                group.lo_odd[16 * b + i] = q.lo[2 * i + 1];
                const int pair = q.whole(2 * i) + q.whole(2 * i + 1);
                group.correction[4 * b + i / 4] -= kMxfp4Offset * pair;
            }
            for (int lane = 0; lane < 4; ++lane) group.scale[4 * b + lane] = 0.5f * q.scale;
        }
    }
}

// Q8: QB = GB / 2 blocks lie together, 8 lanes each (at least one block).
constexpr int QB = GB >= 2 ? GB / 2 : 1;
constexpr int kQ8Offset = 128;
struct Q8Group {
    int8_t hi[32 * QB], lo[32 * QB];
    int32_t correction[8 * QB];
    float scale[8 * QB];
};

void pack_q8(const float* x, int cols, Q8Group* packed) {
    const int blocks = cols / kBlock;
    for (int g = 0; g * QB < blocks; ++g) {
        Q8Group& group = packed[g];
        memset(&group, 0, sizeof group);
        for (int b = 0; b < QB && g * QB + b < blocks; ++b) {
            const Quantized q = quantize_block(x + (size_t)(g * QB + b) * kBlock);
            memcpy(group.hi + 32 * b, q.hi, 32);
            memcpy(group.lo + 32 * b, q.lo, 32);
            for (int i = 0; i < 32; ++i) group.correction[8 * b + i / 4] -= kQ8Offset * q.whole(i);
            for (int lane = 0; lane < 8; ++lane) group.scale[8 * b + lane] = q.scale;
        }
    }
}

size_t pack_bytes(int kind, int cols) {
    const int blocks = round_up(cols, kBlock) / kBlock;
    if (kind == OSSIA_MXFP4) return (size_t)(blocks + GB - 1) / GB * sizeof(Mxfp4Group);
    if (kind == OSSIA_Q8) return (size_t)(blocks + QB - 1) / QB * sizeof(Q8Group);
    return (size_t)round_up(cols, 2 * W) * sizeof(float);
}

void pack(int kind, const float* x, int cols, void* packed) {
    switch (kind) {
        case OSSIA_MXFP4: pack_mxfp4(x, cols, (Mxfp4Group*)packed); break;
        case OSSIA_Q8: pack_q8(x, cols, (Q8Group*)packed); break;
        case OSSIA_BF16: pack_dense<Bfloat16>(x, cols, (float*)packed); break;
        case OSSIA_BF12: pack_bf12(x, cols, (float*)packed); break;
        default: pack_dense<Float32>(x, cols, (float*)packed);
    }
}

}  // namespace
}  // namespace ossia
