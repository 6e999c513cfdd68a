// The level generic: plain C++ in vectors of four floats, for any CPU that the compiler knows.
#define OSSIA_LANES 4
#define OSSIA_GROUP 1
#include "portable.h"

namespace ossia {
namespace {

constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct Mxfp4Format {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int blocks = rows.cols / kBlock;
        UNROLL for (int r = 0; r < R; ++r) {
            const uint8_t* data = rows.data + r * rows.row_bytes;
            const uint8_t* scales = rows.scales + r * rows.scale_bytes;
            float sums[T] = {};
            for (int b = 0; b < blocks; ++b)
                UNROLL for (int t = 0; t < T; ++t) {
                    const Mxfp4Group& x = ((const Mxfp4Group*)packed[t])[b];
                    int whole = 0;
                    for (int i = 0; i < 16; ++i) {
                        const uint8_t byte = data[16 * (size_t)b + i];
                        whole += kDoubled[byte & 15] * (256 * x.hi_even[i] + x.lo_even[i]);
                        whole += kDoubled[byte >> 4] * (256 * x.hi_odd[i] + x.lo_odd[i]);
                    }
                    sums[t] += (float)whole * (mxfp4_scale(scales[b]) * x.scale[0]);
                }
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sums[t];
        }
    }
};

struct Q8Format {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int blocks = rows.cols / kBlock;
        UNROLL for (int r = 0; r < R; ++r) {
            const int8_t* data = (const int8_t*)rows.data + r * rows.row_bytes;
            const uint8_t* scales = rows.scales + r * rows.scale_bytes;
            float sums[T] = {};
            for (int b = 0; b < blocks; ++b) {
                uint16_t half;
                memcpy(&half, scales + 2 * (size_t)b, 2);
                UNROLL for (int t = 0; t < T; ++t) {
                    const Q8Group& x = ((const Q8Group*)packed[t])[b];
                    int whole = 0;
                    for (int i = 0; i < kBlock; ++i)
                        whole += data[kBlock * (size_t)b + i] * (256 * x.hi[i] + x.lo[i]);
                    sums[t] += (float)whole * (widen_bf16(half) * x.scale[0]);
                }
            }
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sums[t];
        }
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

const Kernels kernels_generic = {
    "generic", 48, 12,     pack_bytes,      pack,
    multiply,     f32_tile_bytes,  f32_pack_tile,
    f32_stage_bytes, f32_multiply_tiles<widen_mxfp4_plain>, do_nothing,
    do_nothing,   rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
