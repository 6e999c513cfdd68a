// The level neon: 64-bit ARM. The integer products use the dot-product instructions where the compiler may.
#if defined(__aarch64__)
#include <arm_neon.h>

#define OSSIA_LANES 4
#define OSSIA_GROUP 1
#include "portable.h"

namespace ossia {
namespace {

// sum + the products of four neighbouring bytes each.
inline int32x4_t dot4(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

inline float32x4_t scaled(float32x4_t sum, int32x4_t high, int32x4_t low, float scale) {
    return vfmaq_n_f32(sum, vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high, 8), low)), scale);
}

struct Mxfp4Format {  // twice the values are signed bytes: no offset, and so no correction
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const int8x16_t table = vld1q_s8(doubled);
        const int blocks = rows.cols / kBlock;
        float32x4_t sums[R][T] = {};
        for (int b = 0; b < blocks; ++b)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + 16 * (size_t)b;
                const float scale = mxfp4_scale(rows.scales[r * rows.scale_bytes + b]);
                const uint8x16_t codes = vld1q_u8(p);
                const int8x16_t even = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
                const int8x16_t odd = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
                UNROLL for (int t = 0; t < T; ++t) {
                    const Mxfp4Group& x = ((const Mxfp4Group*)packed[t])[b];
                    int32x4_t high = dot4(vdupq_n_s32(0), even, vld1q_s8(x.hi_even));
                    int32x4_t low = dot4(vdupq_n_s32(0), even, vld1q_s8(x.lo_even));
                    high = dot4(high, odd, vld1q_s8(x.hi_odd));
                    low = dot4(low, odd, vld1q_s8(x.lo_odd));
                    sums[r][t] = scaled(sums[r][t], high, low, scale * x.scale[0]);
                }
            }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * R + r] = vaddvq_f32(sums[r][t]);
    }
};

struct Q8Format {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int blocks = rows.cols / kBlock;
        float32x4_t sums[R][T] = {};
        for (int b = 0; b < blocks; ++b)
            UNROLL for (int r = 0; r < R; ++r) {
                const int8_t* p = (const int8_t*)rows.data + r * rows.row_bytes + 32 * (size_t)b;
                uint16_t half;
                memcpy(&half, rows.scales + r * rows.scale_bytes + 2 * (size_t)b, 2);
                const int8x16_t left = vld1q_s8(p), right = vld1q_s8(p + 16);
                UNROLL for (int t = 0; t < T; ++t) {
                    const Q8Group& x = ((const Q8Group*)packed[t])[b];
                    int32x4_t high = dot4(vdupq_n_s32(0), left, vld1q_s8(x.hi));
                    int32x4_t low = dot4(vdupq_n_s32(0), left, vld1q_s8(x.lo));
                    high = dot4(high, right, vld1q_s8(x.hi + 16));
                    low = dot4(low, right, vld1q_s8(x.lo + 16));
                    sums[r][t] = scaled(sums[r][t], high, low, widen_bf16(half) * x.scale[0]);
                }
            }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * R + r] = vaddvq_f32(sums[r][t]);
    }
};

void multiply(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
              size_t ld) {
    switch (rows.kind) {
        case OSSIA_MXFP4: multiply_rows<Mxfp4Format>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_Q8: multiply_rows<Q8Format>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_BF16: multiply_rows<DenseFormat<Bfloat16>>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_BF12: multiply_rows<Bf12Format>(rows, first, last, packed, num_tokens, out, ld); break;
        default: multiply_rows<DenseFormat<Float32>>(rows, first, last, packed, num_tokens, out, ld);
    }
}

}  // namespace

const Kernels kernels_neon = {
    "neon", 48, 12,     pack_bytes,      pack,
    multiply,     f32_tile_bytes,  f32_pack_tile,
    f32_stage_bytes, f32_multiply_tiles<widen_mxfp4_plain>, do_nothing,
    do_nothing,   rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
