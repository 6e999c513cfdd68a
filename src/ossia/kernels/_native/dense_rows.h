// Products of float32 and bfloat16 matrices with few tokens, and the frame of such products for every format.
#pragma once
#include "vectors.h"

namespace ossia {
namespace {

// Rows that are made at once for so many tokens: as many sums as fit the registers.
constexpr int rows_at_once(int tokens) { return tokens <= (W >= 16 ? 4 : 2) ? 4 : tokens <= 4 ? 2 : W >= 16 ? 2 : 1; }
constexpr int kTokensAtOnce = 8;

// Multiplies rows [first, last) with all tokens. A format's `rows<R, T>` makes R rows for T tokens.
template <class Format, int R, int T>
void step_rows(const Rows& rows, int first, int count, const void* const* packed, float* out, size_t ld) {
    int r = 0;
    for (; r + R <= count; r += R) Format::template rows<R, T>(rows, first + r, packed, out + r, ld);
    for (; r < count; ++r) Format::template rows<1, T>(rows, first + r, packed, out + r, ld);
}

template <class Format>
void multiply_rows(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
                   size_t ld) {
    for (int r = first; r < last; r += 4) {
        const int count = last - r < 4 ? last - r : 4;
        for (int t = 0; t < num_tokens; t += kTokensAtOnce) {
            float* o = out + t * ld + (r - first);
            const void* const* p = packed + t;
            switch (num_tokens - t) {
                case 1: step_rows<Format, rows_at_once(1), 1>(rows, r, count, p, o, ld); break;
                case 2: step_rows<Format, rows_at_once(2), 2>(rows, r, count, p, o, ld); break;
                case 3: step_rows<Format, rows_at_once(3), 3>(rows, r, count, p, o, ld); break;
                case 4: step_rows<Format, rows_at_once(4), 4>(rows, r, count, p, o, ld); break;
                case 5: step_rows<Format, rows_at_once(5), 5>(rows, r, count, p, o, ld); break;
                case 6: step_rows<Format, rows_at_once(6), 6>(rows, r, count, p, o, ld); break;
                case 7: step_rows<Format, rows_at_once(7), 7>(rows, r, count, p, o, ld); break;
                default: step_rows<Format, rows_at_once(8), 8>(rows, r, count, p, o, ld); break;
            }
        }
    }
}

// Two vectors of weights from 2W neighbours; x is packed in the same order.
struct Float32 {
    static constexpr int kBytes = 4;
    static void expand(const uint8_t* p, vf& a, vf& b) {
        a = load((const float*)p);
        b = load((const float*)p + W);
    }
    static int place(int i) { return i; }
};

struct Bfloat16 {  // the even ones, then the odd ones: a shift and a mask make them float32
    static constexpr int kBytes = 2;
    static void expand(const uint8_t* p, vf& a, vf& b) {
        vu pairs;
        memcpy(&pairs, p, sizeof pairs);
        a = (vf)(pairs << 16);
        b = (vf)(pairs & 0xffff0000u);
    }
    static int place(int i) { return i % 2 * W + i / 2; }
};

template <class Storage>
struct DenseFormat {
    template <int R, int T>
    static void rows(const Rows& rows, int first, const void* const* packed, float* out, size_t ld) {
        const uint8_t* row = rows.data + (size_t)first * rows.row_bytes;
        const size_t stride = rows.row_bytes;
        const int whole = rows.cols / (2 * W);
        constexpr size_t kStep = 2 * W * Storage::kBytes;
        vf sums[R][T] = {};
        for (int g = 0; g < whole; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                vf a, b;
                __builtin_prefetch(row + (r + R) * stride + g * kStep, 0, 2);
                Storage::expand(row + r * stride + g * kStep, a, b);
                UNROLL for (int t = 0; t < T; ++t) {
                    const float* x = (const float*)packed[t] + g * 2 * W;
                    sums[r][t] += a * load(x);
                    sums[r][t] += b * load(x + W);
                }
            }
        if (const int left = rows.cols - whole * 2 * W)  // x is padded with zeros, the row is not
            UNROLL for (int r = 0; r < R; ++r) {
                uint8_t last[kStep] = {};
                memcpy(last, row + r * stride + whole * kStep, left * Storage::kBytes);
                vf a, b;
                Storage::expand(last, a, b);
                UNROLL for (int t = 0; t < T; ++t) {
                    const float* x = (const float*)packed[t] + whole * 2 * W;
                    sums[r][t] += a * load(x);
                    sums[r][t] += b * load(x + W);
                }
            }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * ld + r] = sum_lanes(sums[r][t]);
    }
};

template <class Storage>
void pack_dense(const float* x, int cols, float* packed) {
    const int padded = round_up(cols, 2 * W);
    for (int g = 0; g < padded; g += 2 * W)
        for (int i = 0; i < 2 * W; ++i) packed[g + Storage::place(i)] = g + i < cols ? x[g + i] : 0.0f;
}

}  // namespace
}  // namespace ossia
