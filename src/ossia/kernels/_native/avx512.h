// AVX-512 with VNNI: MXFP4 and Q8 products for few tokens, and MXFP4 rows widened. For the levels avx512 and amx.
#pragma once
#include <immintrin.h>

#define OSSIA_LANES 16
#define OSSIA_GROUP 4
#include "portable.h"

namespace ossia {
namespace {

struct Mxfp4Format {
    template <int R, int T>
    static void rows(const Rows& rows, int first, const void* const* packed, float* out, size_t ld) {
        const uint8_t* row = rows.data + (size_t)first * rows.row_bytes;
        const uint8_t* scale_row = rows.scales + (size_t)first * rows.scale_bytes;
        const int blocks = rows.cols / kBlock;
        // Twice each code's value, plus 12.
        const __m512i table = _mm512_broadcast_i32x4(
            _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        const __m512i nibble = _mm512_set1_epi8(15);
        // Byte b of four scales goes to the top byte of the four lanes of block b; a shift makes it a float's exponent.
        const __m512i spread = _mm512_set_epi32(0x03808080, 0x03808080, 0x03808080, 0x03808080, 0x02808080, 0x02808080,
                                                0x02808080, 0x02808080, 0x01808080, 0x01808080, 0x01808080, 0x01808080,
                                                0x00808080, 0x00808080, 0x00808080, 0x00808080);
        __m512 sums[R][T];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();
        for (int g = 0; g * 4 < blocks; ++g) {
            const int left = blocks - g * 4;
            for (int r = 0; r < R; ++r) {
                const uint8_t* p = row + r * rows.row_bytes + (size_t)g * 64;
                const uint8_t* s = scale_row + r * rows.scale_bytes + (size_t)g * 4;
                _mm_prefetch((const char*)(p + R * rows.row_bytes), _MM_HINT_T0);
                __m512i codes;
                uint32_t bytes = 0;
                if (left >= 4) {
                    codes = _mm512_loadu_si512(p);
                    memcpy(&bytes, s, 4);
                } else {
                    codes = _mm512_maskz_loadu_epi8(((__mmask64)1 << (16 * left)) - 1, p);
                    memcpy(&bytes, s, left);
                }
                const __m512i even = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble));
                const __m512i odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
                const __m512 scale = _mm512_castsi512_ps(
                    _mm512_srli_epi32(_mm512_shuffle_epi8(_mm512_set1_epi32((int)bytes), spread), 1));
                for (int t = 0; t < T; ++t) {
                    const Mxfp4Group& x = ((const Mxfp4Group*)packed[t])[g];
                    __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(x.hi_even));
                    __m512i low = _mm512_dpbusd_epi32(_mm512_loadu_si512(x.correction), even,
                                                      _mm512_loadu_si512(x.lo_even));
                    high = _mm512_dpbusd_epi32(high, odd, _mm512_loadu_si512(x.hi_odd));
                    low = _mm512_dpbusd_epi32(low, odd, _mm512_loadu_si512(x.lo_odd));
                    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
                    sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole),
                                                 _mm512_mul_ps(scale, _mm512_loadu_ps(x.scale)), sums[r][t]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * ld + r] = sum_lanes((vf)sums[r][t]);
    }
};

struct Q8Format {
    template <int R, int T>
    static void rows(const Rows& rows, int first, const void* const* packed, float* out, size_t ld) {
        const uint8_t* row = rows.data + (size_t)first * rows.row_bytes;
        const uint8_t* scale_row = rows.scales + (size_t)first * rows.scale_bytes;
        const int blocks = rows.cols / kBlock;
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        // The low or high bf16 of a dword, as a float's upper half.
        const __m512i spread = _mm512_set_epi32(0x03028080, 0x03028080, 0x03028080, 0x03028080, 0x03028080, 0x03028080,
                                                0x03028080, 0x03028080, 0x01008080, 0x01008080, 0x01008080, 0x01008080,
                                                0x01008080, 0x01008080, 0x01008080, 0x01008080);
        __m512 sums[R][T];
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();
        for (int g = 0; g * 2 < blocks; ++g) {
            const bool is_half = g * 2 + 1 == blocks;
            for (int r = 0; r < R; ++r) {
                const uint8_t* p = row + r * rows.row_bytes + (size_t)g * 64;
                uint32_t bytes = 0;
                memcpy(&bytes, scale_row + r * rows.scale_bytes + (size_t)g * 4, is_half ? 2 : 4);
                _mm_prefetch((const char*)(p + R * rows.row_bytes), _MM_HINT_T0);
                __m512i weights =
                    is_half ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)p)) : _mm512_loadu_si512(p);
                weights = _mm512_xor_si512(weights, flip);  // + 128
                const __m512 scale =
                    _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_set1_epi32((int)bytes), spread));
                for (int t = 0; t < T; ++t) {
                    const Q8Group& x = ((const Q8Group*)packed[t])[g];
                    const __m512i high =
                        _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(x.hi));
                    const __m512i low =
                        _mm512_dpbusd_epi32(_mm512_loadu_si512(x.correction), weights, _mm512_loadu_si512(x.lo));
                    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
                    sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole),
                                                 _mm512_mul_ps(scale, _mm512_loadu_ps(x.scale)), sums[r][t]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * ld + r] = sum_lanes((vf)sums[r][t]);
    }
};

void multiply(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
              size_t ld) {
    switch (rows.kind) {
        case OSSIA_MXFP4: multiply_rows<Mxfp4Format>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_Q8: multiply_rows<Q8Format>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_BF16: multiply_rows<DenseFormat<Bfloat16>>(rows, first, last, packed, num_tokens, out, ld); break;
        default: multiply_rows<DenseFormat<Float32>>(rows, first, last, packed, num_tokens, out, ld);
    }
}

// A block as 16 even values, then 16 odd ones: a permutation by the four low bits is the table look-up.
void widen_mxfp4(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    const __m512 table = _mm512_loadu_ps(kMxfp4Values);
    for (int b = 0; b < blocks; ++b) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(data + 16 * (size_t)b)));
        const __m512 scale = _mm512_set1_ps(mxfp4_scale(scales[b]));
        _mm512_storeu_ps(out + 32 * (size_t)b, _mm512_mul_ps(_mm512_permutexvar_ps(codes, table), scale));
        _mm512_storeu_ps(out + 32 * (size_t)b + 16,
                         _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table), scale));
    }
}

}  // namespace
}  // namespace ossia
