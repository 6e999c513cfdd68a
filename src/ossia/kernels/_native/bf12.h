// Bfloat16 in 12 bits, without loss (OSSIA_BF12): 8 bits of sign and significand, 4 of the exponent.
//
// Nearly all weights of a row have one of fifteen exponents, that of the largest and the fourteen below. A code from 0 to
// 14 says which; 15 stands for zero. Weights that have another exponent are zero there and in the row's list of others.
//
// A group of 64 weights is 96 bytes: 64 of signs and significands, then sixteen 16-bit words of codes. Weights are in four
// vectors of sixteen, the even ones and the odd ones of each 32, so that sums are made as those of bfloat16 rows are with
// vectors of sixteen. Bits 4k to 4k + 3 of word i are the code of lane i of vector k.
#pragma once
#include "vectors.h"

namespace ossia {
namespace {

// Where weight i of a group lies.
inline int bf12_place(int i) { return i / 32 * 32 + i % 2 * 16 + i % 32 / 2; }

// A group as multiples of the row's scale, in its own order.
inline void expand_bf12(const uint8_t* group, float* out) {
    for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 16; i += W) {
            vb bytes;
            vh words;
            memcpy(&bytes, group + 16 * k + i, sizeof bytes);
            memcpy(&words, group + kBf12Group + 2 * i, sizeof words);
            const vu code = __builtin_convertvector(words, vu) >> (uint32_t)(4 * k) & 15u;
            const vu byte = __builtin_convertvector(bytes, vu);
            const vu exponent = (vu)(code != 15u) & ((code + (uint32_t)(127 - kBf12Zero + 1)) << 23);
            store(out + 16 * k + i, (vf)(exponent | (byte & 0x80u) << 24 | (byte & 0x7fu) << 16));
        }
}

inline float bf12_scale(const Bf12Row& row) { return ldexpf(1.0f, row.exponent - 127); }

inline Bf12Row bf12_row(const Rows& rows, int r) {
    Bf12Row row;
    memcpy(&row, rows.scales + r * rows.scale_bytes, sizeof row);
    return row;
}

// What the weights of a row that are not in its groups add to a product.
inline float multiply_others(const Rows& rows, int r, const float* x) {
    const Bf12Row row = bf12_row(rows, r);
    const uint8_t* at = rows.scales + r * rows.scale_bytes + row.offset;
    float sum = 0;
    for (int i = 0; i < row.num_others; ++i, at += sizeof(Bf12Other)) {
        Bf12Other other;
        memcpy(&other, at, sizeof other);
        sum += other.value * x[other.column / kBf12Group * kBf12Group + bf12_place(other.column % kBf12Group)];
    }
    return sum;
}

// out [T, R] from the sums over a row's groups.
template <int R, int T>
inline void finish_bf12(const Rows& rows, const void* const* packed, vf (&sums)[R][T], float* out) {
    UNROLL for (int r = 0; r < R; ++r) {
        const Bf12Row row = bf12_row(rows, r);
        const float scale = bf12_scale(row);
        UNROLL for (int t = 0; t < T; ++t) {
            out[t * R + r] = sum_lanes(sums[r][t]) * scale;
            if (row.num_others > 0) out[t * R + r] += multiply_others(rows, r, (const float*)packed[t]);
        }
    }
}

struct Bf12Format {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        vf sums[R][T] = {};
        for (int g = 0; g < rows.cols / kBf12Group; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                float wide[kBf12Group];
                expand_bf12(rows.data + r * rows.row_bytes + (size_t)g * kBf12Bytes, wide);
                UNROLL for (int t = 0; t < T; ++t) {
                    const float* x = (const float*)packed[t] + (size_t)g * kBf12Group;
                    for (int i = 0; i < kBf12Group; i += W) sums[r][t] += load(wide + i) * load(x + i);
                }
            }
        finish_bf12<R, T>(rows, packed, sums, out);
    }
};

void pack_bf12(const float* x, int cols, float* packed) {
    for (int c = 0; c < cols; ++c) packed[c / kBf12Group * kBf12Group + bf12_place(c % kBf12Group)] = x[c];
}

// A row as floats, in the order of its columns.
void widen_bf12(const Rows& rows, int r, float* out) {
    const uint8_t* data = rows.data + (size_t)r * rows.row_bytes;
    const Bf12Row row = bf12_row(rows, r);
    const float scale = bf12_scale(row);
    for (int g = 0; g < rows.cols / kBf12Group; ++g, out += kBf12Group) {
        float wide[kBf12Group];
        expand_bf12(data + (size_t)g * kBf12Bytes, wide);
        for (int half = 0; half < kBf12Group; half += 32)
            for (int i = 0; i < 16; ++i) {
                out[half + 2 * i] = wide[half + i] * scale;
                out[half + 2 * i + 1] = wide[half + 16 + i] * scale;
            }
    }
    out -= rows.cols;
    const uint8_t* at = rows.scales + r * rows.scale_bytes + row.offset;
    for (int i = 0; i < row.num_others; ++i, at += sizeof(Bf12Other)) {
        Bf12Other other;
        memcpy(&other, at, sizeof other);
        out[other.column] = other.value;
    }
}

}  // namespace
}  // namespace ossia
