// The level avx2: AVX2 and FMA (Intel from Haswell, AMD from Zen).
#if defined(__x86_64__)
#include <immintrin.h>

#define OSSIA_FAR_ROWS
#define OSSIA_LANES 8
#define OSSIA_GROUP 2
#include "portable.h"

namespace ossia {
namespace {

// Sums of four neighbouring products, unsigned times signed. Pairs are added in 16 bits, which holds them: weights are
// at most 24 here, and at most 127 where they come as sizes of signed ones.
inline __m256i dot4(__m256i weights, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1));
}

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

struct Mxfp4Format {
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i spread = _mm256_set_epi32((int)0x01808080, (int)0x01808080, (int)0x01808080, (int)0x01808080,
                                            (int)0x00808080, (int)0x00808080, (int)0x00808080, (int)0x00808080);

    // Two blocks; `scales` in the two low bytes.
    template <int T>
    void group(__m256i codes, int scales, int g, const void* const* packed, __m256* sums) const {
        const __m256i even = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
        const __m256i odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
        const __m256 scale =
            _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_shuffle_epi8(_mm256_set1_epi32(scales), spread), 1));
        UNROLL for (int t = 0; t < T; ++t) {
            const Mxfp4Group& x = ((const Mxfp4Group*)packed[t])[g];
            // Sums of four products of at most 24 and 128 fit 16 bits.
            const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(x.hi_even)),
                                                  _mm256_maddubs_epi16(odd, load_bytes(x.hi_odd)));
            const __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(x.lo_even)),
                                                 _mm256_maddubs_epi16(odd, load_bytes(x.lo_odd)));
            const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)),
                                                  _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
            const __m256i whole = _mm256_add_epi32(both, load_bytes(x.correction));
            sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(scale, _mm256_loadu_ps(x.scale)),
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

struct Q8Format {  // sizes of the weights times activations with the weights' signs: no correction is needed
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const uint8_t* row = rows.data;
        const uint8_t* scale_row = rows.scales;
        const int blocks = rows.cols / kBlock;
        __m256 sums[R][T];
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) sums[r][t] = _mm256_setzero_ps();
        for (int b = 0; b < blocks; ++b)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = row + r * rows.row_bytes + (size_t)b * 32;
                uint16_t half;
                memcpy(&half, scale_row + r * rows.scale_bytes + (size_t)b * 2, 2);
                if (b % 2 == 0) prefetch_weights(p, rows.row_bytes, R);
                const __m256i weights = load_bytes(p), sizes = _mm256_abs_epi8(weights);
                const __m256 scale = _mm256_set1_ps(widen_bf16(half));
                UNROLL for (int t = 0; t < T; ++t) {
                    const Q8Group& x = ((const Q8Group*)packed[t])[b];
                    const __m256i high = dot4(sizes, _mm256_sign_epi8(load_bytes(x.hi), weights));
                    // lo may be -128, whose negative wraps: two products of 64 and 64 do not.
                    const __m256i low_bytes = load_bytes(x.lo);
                    const __m256i low16 = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights)),
                                                            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(low_bytes)));
                    const __m256i high16 =
                        _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(weights, 1)),
                                          _mm256_cvtepi8_epi16(_mm256_extracti128_si256(low_bytes, 1)));
                    const __m256i whole =
                        _mm256_add_epi32(_mm256_slli_epi32(high, 8), _mm256_add_epi32(low16, high16));
                    sums[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole),
                                                 _mm256_mul_ps(scale, _mm256_loadu_ps(x.scale)), sums[r][t]);
                }
            }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes((vf)sums[r][t]);
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

// Eight magnitudes are one permutation; the sign bit of the code is shifted to the top.
void widen_mxfp4(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    const __m256 magnitudes = _mm256_loadu_ps(kMxfp4Values);
    const __m256i sign = _mm256_set1_epi32((int)0x80000000u);
    for (int b = 0; b < blocks; ++b) {
        const __m256 scale = _mm256_set1_ps(mxfp4_scale(scales[b]));
        for (int half = 0; half < 2; ++half) {
            const __m256i codes =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(data + 16 * (size_t)b + 8 * half)));
            for (int odd = 0; odd < 2; ++odd) {
                const __m256i code = odd ? _mm256_srli_epi32(codes, 4) : codes;
                const __m256i signs = _mm256_and_si256(_mm256_slli_epi32(code, 28), sign);
                const __m256 size = _mm256_permutevar8x32_ps(magnitudes, code);
                _mm256_storeu_ps(out + 32 * (size_t)b + 16 * odd + 8 * half,
                                 _mm256_mul_ps(_mm256_xor_ps(size, _mm256_castsi256_ps(signs)), scale));
            }
        }
    }
}

}  // namespace

const Kernels kernels_avx2 = {
    "avx2", 48,     pack_bytes,      pack,
    multiply,     f32_tile_bytes,  f32_pack_tile,
    f32_stage_bytes, f32_multiply_tiles<widen_mxfp4>, do_nothing,
    do_nothing,   rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
