// The kernels that need no intrinsics, in the compiler's vector types: OSSIA_LANES floats a vector. Included once by
// each level's translation unit, everything static.
//
// Sums over a row's columns are always made in the same order, whatever the number of tokens or rows at work: results
// of a token do not depend on what else is in the step.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels.h"

// Loops over the rows and tokens of one step must be unrolled, or their sums live in memory and not in registers.
#define UNROLL _Pragma("GCC unroll 8")

namespace ossia {
namespace {

constexpr int W = OSSIA_LANES;
typedef float vf __attribute__((vector_size(4 * OSSIA_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * OSSIA_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * OSSIA_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * OSSIA_LANES)));

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

inline vf load(const float* p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
inline vf splat(float x) { return vf{} + x; }
inline vf load_bf16(const uint16_t* p) {
    vh v;
    memcpy(&v, p, sizeof v);
    return (vf)(__builtin_convertvector(v, vu) << 16);
}

inline float sum_lanes(vf v) {
    float lanes[W];
    memcpy(lanes, &v, sizeof v);
    for (int width = W / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// To the nearest even, as torch rounds; a NaN stays one.
inline uint16_t round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline float widen_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void widen(const uint16_t* in, int n, float* out) {
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, load_bf16(in + i));
    for (; i < n; ++i) out[i] = widen_bf16(in[i]);
}

void narrow(const float* in, int n, uint16_t* out) {
    int i = 0;
    for (; i + W <= n; i += W) {
        vu bits = (vu)load(in + i);
        vu rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        vu is_nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
        vu value = (is_nan & (bits >> 16 | 0x40u)) | (~is_nan & rounded);
        vh half = __builtin_convertvector(value, vh);
        memcpy(out + i, &half, sizeof half);
    }
    for (; i < n; ++i) out[i] = round_bf16(in[i]);
}

// e^x to about 1 unit in the last place between -87 and 88; 0 below.
inline vf exp_lanes(vf x) {
    const vf low = splat(-87.0f), high = splat(88.0f);
    vf bounded = x < low ? low : x;
    bounded = bounded > high ? high : bounded;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vf n = (bounded * 1.44269504f + magic) - magic;
    vf r = bounded - n * 0.693145751953125f;
    r = r - n * 1.42860677e-6f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
    vf result = p * (vf)exponent;
    return x < low ? vf{} : result;
}

void rms_norm(const float* x, const float* weight, int dim, float eps, float* out) {
    vf sums[4] = {};
    int i = 0;
    for (; i + 4 * W <= dim; i += 4 * W)
        for (int u = 0; u < 4; ++u) {
            vf v = load(x + i + u * W);
            sums[u] += v * v;
        }
    float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < dim; ++i) total += x[i] * x[i];
    const float scale = 1.0f / sqrtf(total / (float)dim + eps);
    for (i = 0; i + W <= dim; i += W) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < dim; ++i) out[i] = x[i] * scale * weight[i];
}

void rope(float* x, int num_heads, int head_dim, const float* cos, const float* sin) {
    const int half = head_dim / 2;
    for (int head = 0; head < num_heads; ++head, x += head_dim)
        for (int i = 0; i < half; ++i) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cos[i] + b * sin[i];  // sin's first half is negated
            x[i + half] = b * cos[i + half] + a * sin[i + half];
        }
}

inline vf swiglu_lanes(vf gate, vf up, float alpha, float limit) {
    const vf top = splat(limit), bottom = splat(-limit);
    gate = gate > top ? top : gate;
    up = up > top ? top : up;
    up = up < bottom ? bottom : up;
    const vf swish = gate / (1.0f + exp_lanes(gate * -alpha));
    return swish * (up + 1.0f);
}

void swiglu(const float* gate, const float* up, int n, float alpha, float limit, float* out) {
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, swiglu_lanes(load(gate + i), load(up + i), alpha, limit));
    if (i < n) {
        float last[3][W] = {};
        memcpy(last[0], gate + i, (n - i) * sizeof(float));
        memcpy(last[1], up + i, (n - i) * sizeof(float));
        store(last[2], swiglu_lanes(load(last[0]), load(last[1]), alpha, limit));
        memcpy(out + i, last[2], (n - i) * sizeof(float));
    }
}

void add_scaled(float* out, const float* x, float scale, int n) {
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, load(out + i) + load(x + i) * scale);
    for (; i < n; ++i) out[i] = fmaf(x[i], scale, out[i]);
}

double read_memory(const void* memory, size_t num_bytes) {
    const float* p = (const float*)memory;
    const size_t n = num_bytes / sizeof(float);
    vu sums[4] = {};
    for (size_t i = 0; i + 4 * W <= n; i += 4 * W)
        for (int u = 0; u < 4; ++u) sums[u] ^= (vu)load(p + i + u * W);
    vu all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    double total = 0;
    for (int i = 0; i < W; ++i) total += all[i];
    return total;
}

// ---- Products for few tokens -------------------------------------------------------------------------------------

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

// ---- Activations of the integer products -------------------------------------------------------------------------
//
// A block of 32 activations becomes 16-bit integers a = 256 hi + lo and a float scale; the error is at most 2^-16 of
// the block's largest. Weights are small integers, so a block's sum is exact, and only scaling and adding up round.
// Unsigned-times-signed instructions want weights w + kOffset; `correction` takes kOffset * a off again.

constexpr float kLargest = 127 * 256;

struct Quantized {
    int8_t hi[kBlock], lo[kBlock];
    float scale;
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
                const int pair = 256 * (q.hi[2 * i] + q.hi[2 * i + 1]) + q.lo[2 * i] + q.lo[2 * i + 1];
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
            for (int i = 0; i < 32; ++i) group.correction[8 * b + i / 4] -= kQ8Offset * (256 * q.hi[i] + q.lo[i]);
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
        default: pack_dense<Float32>(x, cols, (float*)packed);
    }
}

// ---- Products for many tokens, in float32 ------------------------------------------------------------------------
//
// A tile holds up to 16 tokens as padded rows. Matrix rows are widened once into `stage`, then used for all tiles.
// MXFP4 comes as the even columns of a block and then the odd ones; tiles for it are packed likewise.

constexpr float kMxfp4Values[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

inline float mxfp4_scale(uint8_t scale) {
    if (scale == 255) return NAN;
    const uint32_t bits = scale == 0 ? 0x00400000u : (uint32_t)scale << 23;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void widen_mxfp4_plain(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    for (int b = 0; b < blocks; ++b) {
        const float scale = mxfp4_scale(scales[b]);
        for (int i = 0; i < 16; ++i) {
            out[32 * b + i] = kMxfp4Values[data[16 * b + i] & 15] * scale;
            out[32 * b + 16 + i] = kMxfp4Values[data[16 * b + i] >> 4] * scale;
        }
    }
}

void widen_q8(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    for (int b = 0; b < blocks; ++b) {
        uint16_t bits;
        memcpy(&bits, scales + 2 * b, 2);
        const float scale = widen_bf16(bits);
        for (int i = 0; i < kBlock; ++i) out[kBlock * b + i] = (float)(int8_t)data[kBlock * b + i] * scale;
    }
}

size_t f32_tile_bytes(int, int cols) { return (size_t)kTokenTile * round_up(cols, 2 * W) * sizeof(float); }
size_t f32_stage_bytes(int, int cols) { return (size_t)kRowGroup * round_up(cols, 2 * W) * sizeof(float); }

void f32_pack_tile(int kind, const float* const* x, int num_tokens, int cols, void* tile) {
    const int padded = round_up(cols, 2 * W);
    for (int t = 0; t < kTokenTile; ++t) {
        float* row = (float*)tile + (size_t)t * padded;
        if (t >= num_tokens) {
            memset(row, 0, padded * sizeof(float));
            continue;
        }
        memset(row + cols, 0, (padded - cols) * sizeof(float));
        if (kind == OSSIA_MXFP4)
            for (int b = 0; b < cols; b += kBlock)
                for (int i = 0; i < 16; ++i) {
                    row[b + i] = x[t][b + 2 * i];
                    row[b + 16 + i] = x[t][b + 2 * i + 1];
                }
        else
            memcpy(row, x[t], cols * sizeof(float));
    }
}

using WidenMxfp4 = void (*)(const uint8_t* data, const uint8_t* scales, int blocks, float* out);

template <WidenMxfp4 widen_mxfp4>
void f32_multiply_tiles(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, void* stage,
                        float* c, size_t ld) {
    const int padded = round_up(rows.cols, 2 * W);
    float* wide = (float*)stage;
    for (int r = 0; r < num_rows; ++r) {
        const uint8_t* data = rows.data + (size_t)(first + r) * rows.row_bytes;
        const uint8_t* scales = rows.scales + (size_t)(first + r) * rows.scale_bytes;
        float* out = wide + (size_t)r * padded;
        switch (rows.kind) {
            case OSSIA_MXFP4: widen_mxfp4(data, scales, rows.cols / kBlock, out); break;
            case OSSIA_Q8: widen_q8(data, scales, rows.cols / kBlock, out); break;
            case OSSIA_BF16: widen((const uint16_t*)data, rows.cols, out); break;
            default: memcpy(out, data, rows.row_bytes);
        }
        memset(out + rows.cols, 0, (padded - rows.cols) * sizeof(float));
    }
    // The widened rows are a float32 matrix; its product gives [t][r], which is turned into [r][t].
    Rows staged = {(const uint8_t*)wide, nullptr, OSSIA_F32, padded, padded * sizeof(float), 0};
    const void* tokens[kTokenTile];
    float part[kTokenTile * kRowGroup];
    for (int tile = 0; tile < num_tiles; ++tile) {
        for (int t = 0; t < kTokenTile; ++t)
            tokens[t] = (const float*)tiles + (size_t)(tile * kTokenTile + t) * padded;
        for (int t = 0; t < kTokenTile; t += 4)
            multiply_rows<DenseFormat<Float32>>(staged, 0, num_rows, tokens + t, 4, part + t * kRowGroup, kRowGroup);
        for (int r = 0; r < num_rows; ++r)
            for (int t = 0; t < kTokenTile; ++t) c[r * ld + tile * kTokenTile + t] = part[t * kRowGroup + r];
    }
}

void do_nothing() {}

// ---- Attention ---------------------------------------------------------------------------------------------------

// a and b's lanes in turns: of their first halves, or of their second ones.
#if OSSIA_LANES == 16
inline vf zip_low(vf a, vf b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline vf zip_high(vf a, vf b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif OSSIA_LANES == 8
inline vf zip_low(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline vf zip_high(vf a, vf b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline vf zip_low(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline vf zip_high(vf a, vf b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// W rows of W floats, turned: log2(W) rounds of zipping row i with row i + W / 2.
inline void transpose(vf* rows) {
    for (int round = W; round > 1; round /= 2) {
        vf next[W];
        for (int i = 0; i < W / 2; ++i) {
            next[2 * i] = zip_low(rows[i], rows[i + W / 2]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + W / 2]);
        }
        for (int i = 0; i < W; ++i) rows[i] = next[i];
    }
}

// c [R, N] += a [R, depth] * b [depth, N], for N = V * W columns.
template <int R, int V>
inline void outer_product(const float* a, size_t lda, int depth, const float* b, size_t ldb, float* c, size_t ldc) {
    vf sums[R][V];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) sums[r][v] = load(c + r * ldc + v * W);
    for (int k = 0; k < depth; ++k) {
        vf line[V];
        UNROLL for (int v = 0; v < V; ++v) line[v] = load(b + k * ldb + v * W);
        UNROLL for (int r = 0; r < R; ++r) {
            const float factor = a[r * lda + k];
            UNROLL for (int v = 0; v < V; ++v) sums[r][v] += factor * line[v];
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) store(c + r * ldc + v * W, sums[r][v]);
}

// The same for any number of rows, and of columns that is a multiple of W.
void add_product(const float* a, size_t lda, int num_rows, int depth, const float* b, size_t ldb, int num_cols,
                 float* c, size_t ldc) {
    constexpr int V = W >= 16 ? 4 : 2;
    int n = 0;
    for (; n + V * W <= num_cols; n += V * W) {
        int r = 0;
        for (; r + 4 <= num_rows; r += 4)
            outer_product<4, V>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
        for (; r < num_rows; ++r) outer_product<1, V>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
    }
    for (; n < num_cols; n += W) {
        int r = 0;
        for (; r + 4 <= num_rows; r += 4)
            outer_product<4, 1>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
        for (; r < num_rows; ++r) outer_product<1, 1>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
    }
}

size_t attention_scratch(int num_rows, int head_dim) {
    const size_t wide = round_up(head_dim, W);
    // keys turned, values, one row before it is stored; scores, sums and scaled queries; the two running numbers
    return kKeyBlock * (2 * wide) + W * wide + num_rows * (kKeyBlock + 2 * wide + 2);
}

// Values of head `kv_head` of the token at a position, widened; zeros behind C up to a multiple of W.
inline void load_token(const void* pages, int64_t position, const AttentionTask& task, float* out) {
    const int64_t page = task.block_table[position / task.page_size];
    const int64_t slot = page * task.page_size + position % task.page_size;
    const int C = task.head_dim;
    const size_t start = ((size_t)slot * task.kv_heads + task.kv_head) * C;
    if (task.cache_kind == OSSIA_BF16)
        widen((const uint16_t*)pages + start, C, out);
    else
        memcpy(out, (const float*)pages + start, C * sizeof(float));
    for (int i = C; i < round_up(C, W); ++i) out[i] = 0;
}

// Keys and values of positions [from, to) within the block that begins at `base`; what lies outside becomes zero,
// because pages may hold anything there.
void load_block(const AttentionTask& task, int64_t base, int64_t from, int64_t to, float* keys, float* values,
                float* lines) {
    const int wide = round_up(task.head_dim, W);
    for (int j = 0; j < kKeyBlock; j += W) {
        for (int i = 0; i < W; ++i) {
            const int64_t position = base + j + i;
            float* value = values + (size_t)(j + i) * wide;
            if (position >= from && position < to) {
                load_token(task.keys, position, task, lines + i * wide);
                load_token(task.values, position, task, value);
            } else {
                memset(lines + i * wide, 0, wide * sizeof(float));
                memset(value, 0, wide * sizeof(float));
            }
        }
        for (int c = 0; c < wide; c += W) {
            vf square[W];
            for (int i = 0; i < W; ++i) square[i] = load(lines + i * wide + c);
            transpose(square);
            for (int i = 0; i < W; ++i) store(keys + (size_t)(c + i) * kKeyBlock + j, square[i]);
        }
    }
}

// One row's scores become weights; the running largest and sum and the row's values so far are brought up to date.
void add_scores(float* scores, int64_t base, int64_t position, int window, float& largest, float& sum, float* out,
                int wide) {
    const int64_t first = window > 0 && position - window + 1 > base ? position - window + 1 - base : 0;
    const int64_t end = position + 1 - base < kKeyBlock ? position + 1 - base : kKeyBlock;
    for (int64_t j = 0; j < first && j < kKeyBlock; ++j) scores[j] = -INFINITY;
    for (int64_t j = end > 0 ? end : 0; j < kKeyBlock; ++j) scores[j] = -INFINITY;
    vf top = load(scores);
    for (int j = W; j < kKeyBlock; j += W) {
        const vf next = load(scores + j);
        top = next > top ? next : top;
    }
    float new_largest = largest;
    for (int i = 0; i < W; ++i) new_largest = top[i] > new_largest ? top[i] : new_largest;
    vf total = {};
    for (int j = 0; j < kKeyBlock; j += W) {
        const vf weight = exp_lanes(load(scores + j) - new_largest);
        store(scores + j, weight);
        total += weight;
    }
    const float kept = new_largest == largest ? 1.0f : exp_lanes(splat(largest - new_largest))[0];
    sum = sum * kept + sum_lanes(total);
    largest = new_largest;
    if (kept != 1.0f)
        for (int c = 0; c < wide; c += W) store(out + c, load(out + c) * kept);
}

void attention(const AttentionTask& task) {
    const int R = task.num_rows, C = task.head_dim, wide = round_up(C, W);
    float* keys = task.scratch;
    float* values = keys + (size_t)kKeyBlock * wide;
    float* lines = values + (size_t)kKeyBlock * wide;
    float* scores = lines + (size_t)W * wide;
    float* sums = scores + (size_t)R * kKeyBlock;
    float* queries = sums + (size_t)R * wide;
    float* largest = queries + (size_t)R * wide;
    float* denominators = largest + R;
    const float scale = 1.0f / sqrtf((float)C);
    int64_t from = INT64_MAX, to = 0;
    UNROLL for (int r = 0; r < R; ++r) {
        const int64_t position = task.row_positions[r];
        const int64_t first = task.window > 0 && position >= task.window ? position - task.window + 1 : 0;
        from = first < from ? first : from;
        to = position + 1 > to ? position + 1 : to;
        for (int c = 0; c < C; ++c) queries[(size_t)r * wide + c] = task.q[(size_t)r * C + c] * scale;
        largest[r] = task.row_sinks[r];  // the sink is a key that has no value
        denominators[r] = 1.0f;
    }
    memset(sums, 0, (size_t)R * wide * sizeof(float));
    for (int64_t base = from / kKeyBlock * kKeyBlock; base < to; base += kKeyBlock) {
        load_block(task, base, from, to, keys, values, lines);
        memset(scores, 0, (size_t)R * kKeyBlock * sizeof(float));
        add_product(queries, wide, R, C, keys, kKeyBlock, kKeyBlock, scores, kKeyBlock);
        UNROLL for (int r = 0; r < R; ++r)
            add_scores(scores + (size_t)r * kKeyBlock, base, task.row_positions[r], task.window, largest[r],
                       denominators[r], sums + (size_t)r * wide, wide);
        add_product(scores, kKeyBlock, R, kKeyBlock, values, wide, wide, sums, wide);
    }
    UNROLL for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) task.out[(size_t)r * C + c] = sums[(size_t)r * wide + c] / denominators[r];
}

}  // namespace
}  // namespace ossia
