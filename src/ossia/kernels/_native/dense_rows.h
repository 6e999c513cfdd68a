// Products of float32 and bfloat16 matrices with few tokens, and the frame of such products for every format.
#pragma once
#include "vectors.h"

namespace ossia {
namespace {

// Which rows are made at once. Near: neighbours, whose successors are asked for ahead. Far (OSSIA_FAR_ROWS): rows that lie
// a part of the range apart, so that each is one of several long streams; only so a core of much bandwidth keeps enough
// loads in flight (notes/LOG.md).
#ifdef OSSIA_FAR_ROWS
constexpr bool kFarRows = true;
#else
constexpr bool kFarRows = false;
#endif
constexpr size_t kAhead = 2048;  // bytes of a stream

constexpr int kTokensAtOnce = kFarRows ? 4 : 8;  // far: for more, activations would not stay in the first-level cache

// Rows that are made at once for so many tokens: as many sums as fit the registers.
constexpr int rows_at_once(int tokens) { return tokens <= (W >= 16 ? 4 : 2) ? 4 : tokens <= 4 ? 2 : W >= 16 ? 2 : 1; }

// Ask for what comes behind p, in rows of row_bytes; of near rows, what lies rows_ahead rows further on.
inline void prefetch_weights(const uint8_t* p, size_t row_bytes, int rows_ahead) {
    if (kFarRows)
        __builtin_prefetch(p + kAhead, 0, 3);
    else
        __builtin_prefetch(p + rows_ahead * row_bytes, 0, 2);
}

// Rows first, first + apart, ... as a matrix of their own.
inline Rows every(const Rows& rows, int first, int apart) {
    Rows some = rows;
    some.data += (size_t)first * rows.row_bytes;
    some.scales += (size_t)first * rows.scale_bytes;
    some.row_bytes *= apart;
    some.scale_bytes *= apart;
    return some;
}

// The first R rows for T tokens, to out[t * ld + r * apart].
template <class Format, int R, int T>
inline void place_rows(const Rows& rows, const void* const* packed, int apart, float* out, size_t ld) {
    float made[T * R];
    Format::template rows<R, T>(rows, packed, made);
    UNROLL for (int t = 0; t < T; ++t)
        UNROLL for (int r = 0; r < R; ++r) out[t * ld + r * apart] = made[t * R + r];
}

// `count` rows (at most 4), `apart` from each other, for T tokens.
template <class Format, int T>
void step_rows(const Rows& rows, int first, int count, int apart, const void* const* packed, float* out, size_t ld) {
    constexpr int R = rows_at_once(T);
    int r = 0;
    for (; r + R <= count; r += R)
        place_rows<Format, R, T>(every(rows, first + r * apart, apart), packed, apart, out + r * apart, ld);
    for (; r < count; ++r)
        place_rows<Format, 1, T>(every(rows, first + r * apart, 1), packed, 1, out + r * apart, ld);
}

// The same for any number of tokens.
template <class Format>
void step_tokens(const Rows& rows, int first, int count, int apart, const void* const* packed, int num_tokens,
                 float* out, size_t ld) {
    for (int t = 0; t < num_tokens; t += kTokensAtOnce) {
        float* o = out + t * ld;
        const void* const* p = packed + t;
        switch (num_tokens - t < kTokensAtOnce ? num_tokens - t : kTokensAtOnce) {
            case 1: step_rows<Format, 1>(rows, first, count, apart, p, o, ld); break;
            case 2: step_rows<Format, 2>(rows, first, count, apart, p, o, ld); break;
            case 3: step_rows<Format, 3>(rows, first, count, apart, p, o, ld); break;
            case 4: step_rows<Format, 4>(rows, first, count, apart, p, o, ld); break;
            case 5: step_rows<Format, kFarRows ? 1 : 5>(rows, first, count, apart, p, o, ld); break;
            case 6: step_rows<Format, kFarRows ? 1 : 6>(rows, first, count, apart, p, o, ld); break;
            case 7: step_rows<Format, kFarRows ? 1 : 7>(rows, first, count, apart, p, o, ld); break;
            default: step_rows<Format, kTokensAtOnce>(rows, first, count, apart, p, o, ld); break;
        }
    }
}

// Multiplies rows [first, last) with all tokens. A format's `rows<R, T>` makes R rows for T tokens: out [T, R].
template <class Format>
void multiply_rows(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
                   size_t ld) {
    const int count = last - first, steps = count / 4;
    for (int i = 0; i < steps; ++i)
        step_tokens<Format>(rows, first + (kFarRows ? i : 4 * i), 4, kFarRows ? steps : 1, packed, num_tokens,
                            out + (kFarRows ? i : 4 * i), ld);
    if (count > 4 * steps)
        step_tokens<Format>(rows, first + 4 * steps, count - 4 * steps, 1, packed, num_tokens, out + 4 * steps, ld);
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
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const uint8_t* row = rows.data;
        const size_t stride = rows.row_bytes;
        const int whole = rows.cols / (2 * W);
        constexpr size_t kStep = 2 * W * Storage::kBytes;
        vf sums[R][T] = {};
        for (int g = 0; g < whole; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                vf a, b;
                prefetch_weights(row + r * stride + g * kStep, stride, R);
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
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes(sums[r][t]);
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
