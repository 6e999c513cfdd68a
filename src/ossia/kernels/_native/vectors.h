// The kernels that need no intrinsics, in the compiler's vector types: OSSIA_LANES floats a vector. portable.h takes in
// all of them, once in each level's translation unit; everything is static. Here: vectors and what goes value by value.
//
// Sums over a row's columns are always made in the same order, whatever the number of tokens or rows at work: results
// of a token do not depend on what else is in the step.
#pragma once
#include <math.h>
#include <string.h>

#include "fp8.h"
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
typedef uint8_t vb __attribute__((vector_size(OSSIA_LANES)));

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

// Lanes and those half the width behind them, until one is left.
inline float sum_lanes(vf v) {
#if OSSIA_LANES == 16
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
    v += __builtin_shufflevector(v, v, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);
#elif OSSIA_LANES == 8
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 2, 3, 2, 3, 2, 3);
    v += __builtin_shufflevector(v, v, 1, 1, 1, 1, 1, 1, 1, 1);
#else
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
    v += __builtin_shufflevector(v, v, 1, 1, 1, 1);
#endif
    return v[0];
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

// As widen_fp8, a vector at a time.
void widen_cache(const uint8_t* in, int n, float* out) {
    int i = 0;
    for (; i + W <= n; i += W) {
        vb bytes;
        memcpy(&bytes, in + i, sizeof bytes);
        const vu code = __builtin_convertvector(bytes, vu);
        const vu magnitude = code & 0x7fu;
        const vu small = (vu)(__builtin_convertvector((vi)magnitude, vf) * 0x1p-9f);
        const vu is_small = (vu)(magnitude < 8u), is_nan = (vu)(magnitude == 0x7fu);
        vu bits = (is_small & small) | (~is_small & ((magnitude << 20) + (120u << 23)));
        bits = (is_nan & 0x7fc00000u) | (~is_nan & bits);
        store(out + i, (vf)(bits | (code & 0x80u) << 24));
    }
    for (; i < n; ++i) out[i] = widen_fp8(in[i]);
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

}  // namespace
}  // namespace ossia
