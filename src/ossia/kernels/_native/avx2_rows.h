// AVX2: MXFP4 and Q8 products for few tokens, by products of 16-bit integers, of which pairs are added up in 32 bits.
//
// Activations keep their 16 bits in one number and weights are widened to 16, so nothing is put together again and no
// offset is taken off; for several tokens that is two thirds of the multiplications that bytes would take.
#pragma once
#include <immintrin.h>

#include "portable.h"

namespace ossia {
namespace {

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

// Two blocks. A weight's code is looked up as a byte, then moved to the upper half of 16 bits: even bytes by a shift, odd
// ones by a mask. So a vector of weights has every fourth column of its block.
struct WideMxfp4Group {
    int16_t x[4][16];  // columns 4i, 4i + 2 (low nibbles), 4i + 1, 4i + 3 (high nibbles)
    float scale[8];    // of the block, by 512: weights are doubled, and in the upper half
};

struct WideQ8Group {
    int16_t x[32];
    float scale;
};

void pack_wide_mxfp4(const float* x, int cols, WideMxfp4Group* packed) {
    constexpr int kColumn[4] = {0, 2, 1, 3};
    const int blocks = cols / kBlock;
    for (int g = 0; 2 * g < blocks; ++g) {
        WideMxfp4Group& group = packed[g];
        memset(&group, 0, sizeof group);
        for (int b = 0; b < 2 && 2 * g + b < blocks; ++b) {
            const Quantized q = quantize_block(x + (size_t)(2 * g + b) * kBlock);
            for (int v = 0; v < 4; ++v)
                for (int i = 0; i < 8; ++i) group.x[v][8 * b + i] = (int16_t)q.whole(4 * i + kColumn[v]);
            for (int lane = 0; lane < 4; ++lane) group.scale[4 * b + lane] = q.scale / 512;
        }
    }
}

void pack_wide_q8(const float* x, int cols, WideQ8Group* packed) {
    for (int b = 0; b < cols / kBlock; ++b) {
        const Quantized q = quantize_block(x + (size_t)b * kBlock);
        for (int i = 0; i < kBlock; ++i) packed[b].x[i] = (int16_t)q.whole(i);
        packed[b].scale = q.scale;
    }
}

size_t pack_wide_bytes(int kind, int cols) {
    const int blocks = round_up(cols, kBlock) / kBlock;
    if (kind == OSSIA_MXFP4) return (size_t)(blocks + 1) / 2 * sizeof(WideMxfp4Group);
    if (kind == OSSIA_Q8) return (size_t)blocks * sizeof(WideQ8Group);
    return pack_bytes(kind, cols);
}

void pack_wide(int kind, const float* x, int cols, void* packed) {
    switch (kind) {
        case OSSIA_MXFP4: pack_wide_mxfp4(x, cols, (WideMxfp4Group*)packed); break;
        case OSSIA_Q8: pack_wide_q8(x, cols, (WideQ8Group*)packed); break;
        default: pack(kind, x, cols, packed);
    }
}

struct Mxfp4Format {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));  // twice the values
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i upper = _mm256_set1_epi16((int16_t)0xff00);
    const __m256i spread = _mm256_set_epi32((int)0x01808080, (int)0x01808080, (int)0x01808080, (int)0x01808080,
                                            (int)0x00808080, (int)0x00808080, (int)0x00808080, (int)0x00808080);

    // `scales` in the two low bytes. Sums of eight products of at most 12 * 256 and 127 * 256 fit 32 bits, and are
    // multiples of 256, so that they are exact as floats.
    template <int T>
    void group(__m256i codes, int scales, int g, const void* const* packed, __m256* sums) const {
        const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
        const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
        const __m256i w0 = _mm256_slli_epi16(low, 8), w1 = _mm256_and_si256(low, upper);
        const __m256i w2 = _mm256_slli_epi16(high, 8), w3 = _mm256_and_si256(high, upper);
        const __m256 scale =
            _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_shuffle_epi8(_mm256_set1_epi32(scales), spread), 1));
        UNROLL for (int t = 0; t < T; ++t) {
            const WideMxfp4Group& x = ((const WideMxfp4Group*)packed[t])[g];
            const __m256i whole =
                _mm256_add_epi32(_mm256_add_epi32(_mm256_madd_epi16(w0, load_bytes(x.x[0])),
                                                  _mm256_madd_epi16(w1, load_bytes(x.x[1]))),
                                 _mm256_add_epi32(_mm256_madd_epi16(w2, load_bytes(x.x[2])),
                                                  _mm256_madd_epi16(w3, load_bytes(x.x[3]))));
            // The two scales are not multiplied with each other: that could be too small for a float.
            sums[t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_loadu_ps(x.scale)), scale,
                                      sums[t]);
        }
    }

    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const Mxfp4Format format;
        const int blocks = rows.cols / kBlock, whole = blocks / 2;
        __m256 sums[R][T];
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) sums[r][t] = _mm256_setzero_ps();
        for (int g = 0; g < whole; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)g * 32;
                uint16_t scales;
                memcpy(&scales, rows.scales + r * rows.scale_bytes + (size_t)g * 2, 2);
                if (g % 2 == 0) prefetch_weights(p, rows.row_bytes, R);
                format.group<T>(load_bytes(p), scales, g, packed, sums[r]);
            }
        if (blocks % 2)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)whole * 32;
                const __m256i codes = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)p));
                format.group<T>(codes, rows.scales[r * rows.scale_bytes + (size_t)whole * 2], whole, packed, sums[r]);
            }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes((vf)sums[r][t]);
    }
};

// Sums of four products of at most 127 and 127 * 256 are exact as floats.
struct Q8Format {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int blocks = rows.cols / kBlock;
        __m256 sums[R][T];
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) sums[r][t] = _mm256_setzero_ps();
        for (int b = 0; b < blocks; ++b)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)b * kBlock;
                uint16_t half;
                memcpy(&half, rows.scales + r * rows.scale_bytes + (size_t)b * 2, 2);
                if (b % 2 == 0) prefetch_weights(p, rows.row_bytes, R);
                const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
                const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)));
                const float scale = widen_bf16(half);
                UNROLL for (int t = 0; t < T; ++t) {
                    const WideQ8Group& x = ((const WideQ8Group*)packed[t])[b];
                    const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(w0, load_bytes(x.x)),
                                                           _mm256_madd_epi16(w1, load_bytes(x.x + 16)));
                    sums[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(scale * x.scale), sums[r][t]);
                }
            }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes((vf)sums[r][t]);
    }
};

}  // namespace
}  // namespace ossia
