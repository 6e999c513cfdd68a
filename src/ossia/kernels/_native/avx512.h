// AVX-512 with VNNI and VBMI: MXFP4 and Q8 products for few tokens, and MXFP4 rows widened. For the levels avx512 and
// amx.
#pragma once
#include <immintrin.h>

#define OSSIA_LANES 16
#define OSSIA_GROUP 4
#include "portable.h"

namespace ossia {
namespace {

// sum + whole * scale * x_scale, for the integer sums of the lanes.
inline __m512 add_group(__m512 sum, __m512i whole, __m512 scale, const float* x_scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(scale, _mm512_loadu_ps(x_scale)), sum);
}

struct Mxfp4Format {
    static constexpr int kData = 64, kScales = 4, kBlocks = 4;  // of a group

    // Twice each code's value, plus 12; four times over, because a permutation of bytes looks at six bits.
    __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    // Byte b of four scales goes to the top byte of the four lanes of block b; a shift makes it a float's exponent.
    __m512i spread = _mm512_set_epi32(0x03808080, 0x03808080, 0x03808080, 0x03808080, 0x02808080, 0x02808080,
                                      0x02808080, 0x02808080, 0x01808080, 0x01808080, 0x01808080, 0x01808080,
                                      0x00808080, 0x00808080, 0x00808080, 0x00808080);

    template <int T>
    void group(__m512i codes, __m128i scales, int g, const void* const* packed, __m512* sums) const {
        const __m512i even = _mm512_permutexvar_epi8(codes, table);
        const __m512i odd = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
        const __m512 scale =
            _mm512_castsi512_ps(_mm512_srli_epi32(_mm512_shuffle_epi8(_mm512_broadcastd_epi32(scales), spread), 1));
        UNROLL for (int t = 0; t < T; ++t) {
            const Mxfp4Group& x = ((const Mxfp4Group*)packed[t])[g];
            __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(x.hi_even));
            __m512i low = _mm512_dpbusd_epi32(_mm512_loadu_si512(x.correction), even, _mm512_loadu_si512(x.lo_even));
            high = _mm512_dpbusd_epi32(high, odd, _mm512_loadu_si512(x.hi_odd));
            low = _mm512_dpbusd_epi32(low, odd, _mm512_loadu_si512(x.lo_odd));
            // low + 256 * high in one instruction: `high` fits 16 bits, being at most 8 * 24 * 127.
            const __m512i whole = _mm512_dpwssd_epi32(low, high, _mm512_set1_epi32(256));
            sums[t] = add_group(sums[t], whole, scale, x.scale);
        }
    }
};

struct Q8Format {
    static constexpr int kData = 64, kScales = 4, kBlocks = 2;

    __m512i flip = _mm512_set1_epi8((char)0x80);
    // The low or high bf16 of a dword, as a float's upper half.
    __m512i spread = _mm512_set_epi32(0x03028080, 0x03028080, 0x03028080, 0x03028080, 0x03028080, 0x03028080,
                                      0x03028080, 0x03028080, 0x01008080, 0x01008080, 0x01008080, 0x01008080,
                                      0x01008080, 0x01008080, 0x01008080, 0x01008080);

    template <int T>
    void group(__m512i bytes, __m128i scales, int g, const void* const* packed, __m512* sums) const {
        const __m512i weights = _mm512_xor_si512(bytes, flip);  // + 128
        const __m512 scale = _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_broadcastd_epi32(scales), spread));
        UNROLL for (int t = 0; t < T; ++t) {
            const Q8Group& x = ((const Q8Group*)packed[t])[g];
            const __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(x.hi));
            const __m512i low =
                _mm512_dpbusd_epi32(_mm512_loadu_si512(x.correction), weights, _mm512_loadu_si512(x.lo));
            const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
            sums[t] = add_group(sums[t], whole, scale, x.scale);
        }
    }
};

// Bf12Format by permutations: each byte to the two upper bytes of its lane, and each code to its exponent.
struct Bf12Lookup {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const __m512i first = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                 _mm512_set1_epi32(0x01010000));
        __m512i spread[4];
        UNROLL for (int k = 0; k < 4; ++k) spread[k] = _mm512_add_epi32(first, _mm512_set1_epi32(0x10100000 * k));
        const __m512i exponents = _mm512_setr_epi32(113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126,
                                                    127, 0);
        const __m512i table = _mm512_slli_epi32(exponents, 23), kept = _mm512_set1_epi32((int)0x807f0000);
        vf sums[R][T] = {};
        for (int g = 0; g < rows.cols / kBf12Group; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)g * kBf12Bytes;
                prefetch_weights(p, rows.row_bytes, R);
                prefetch_weights(p + 64, rows.row_bytes, R);
                const __m512i bytes = _mm512_loadu_si512(p);
                const __m512i codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + kBf12Group)));
                UNROLL for (int k = 0; k < 4; ++k) {
                    const __m512i exponent = _mm512_permutexvar_epi32(_mm512_srli_epi32(codes, 4 * k), table);
                    const __m512i value = _mm512_permutexvar_epi8(spread[k], bytes);
                    const vf weight = (vf)_mm512_ternarylogic_epi32(value, kept, exponent, 0xea);  // value & kept | exponent
                    UNROLL for (int t = 0; t < T; ++t)
                        sums[r][t] += weight * load((const float*)packed[t] + (size_t)g * kBf12Group + 16 * k);
                }
            }
        finish_bf12<R, T>(rows, packed, sums, out);
    }
};

// R rows for T tokens of a format in groups of blocks; of a last group that is not whole only what is there is read.
template <class Groups>
struct BlockFormat {
    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const Groups groups;
        const int blocks = rows.cols / kBlock, whole = blocks / Groups::kBlocks;
        __m512 sums[R][T];
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();
        for (int g = 0; g < whole; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)g * Groups::kData;
                prefetch_weights(p, rows.row_bytes, 2 * R);
                const uint8_t* scales = rows.scales + r * rows.scale_bytes + (size_t)g * Groups::kScales;
                __m512i bytes = _mm512_loadu_si512(p);
                asm("" : "+v"(bytes));  // or gcc loads them again for the shift, half the time across two lines
                groups.template group<T>(bytes, _mm_loadu_si32(scales), g, packed, sums[r]);
            }
        if (const int left = blocks - whole * Groups::kBlocks) {
            const __mmask64 data_mask = ((__mmask64)1 << left * (Groups::kData / Groups::kBlocks)) - 1;
            const __mmask16 scale_mask = (__mmask16)((1 << left * (Groups::kScales / Groups::kBlocks)) - 1);
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = rows.data + r * rows.row_bytes + (size_t)whole * Groups::kData;
                const uint8_t* scales = rows.scales + r * rows.scale_bytes + (size_t)whole * Groups::kScales;
                groups.template group<T>(_mm512_maskz_loadu_epi8(data_mask, p),
                                         _mm_maskz_loadu_epi8(scale_mask, scales), whole, packed, sums[r]);
            }
        }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes((vf)sums[r][t]);
    }
};

// Bfloat16 rows of whole lines that begin within a line, as in most files: each line is loaded once, and two neighbours
// make a vector. Loads across lines would take twice as long. The same sums as DenseFormat's, to the bit.
struct ShiftedBf16 {
    static bool fits(const Rows& rows) {
        const size_t shift = (uintptr_t)rows.data % 64;
        return kFarRows && shift != 0 && shift % 4 == 0 && rows.row_bytes % 64 == 0;
    }

    template <int R, int T>
    static void rows(const Rows& rows, const void* const* packed, float* out) {
        const int shift = (int)((uintptr_t)rows.data % 64) / 4, groups = rows.cols / 32;
        const uint8_t* line = rows.data - 4 * shift;
        const __m512i index = _mm512_add_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(shift));
        __m512i before[R];
        UNROLL for (int r = 0; r < R; ++r)
            before[r] = _mm512_maskz_loadu_epi32((__mmask16)(0xffff << shift), line + r * rows.row_bytes);
        vf sums[R][T] = {};
        const auto add = [&](int g, int r, __m512i next) {
            const vu pairs = (vu)_mm512_permutex2var_epi32(before[r], index, next);
            before[r] = next;
            const vf a = (vf)(pairs << 16), b = (vf)(pairs & 0xffff0000u);
            UNROLL for (int t = 0; t < T; ++t) {
                const float* x = (const float*)packed[t] + (size_t)g * 2 * W;
                sums[r][t] += a * load(x);
                sums[r][t] += b * load(x + W);
            }
        };
        for (int g = 0; g + 1 < groups; ++g)
            UNROLL for (int r = 0; r < R; ++r) {
                const uint8_t* p = line + r * rows.row_bytes + (size_t)(g + 1) * 64;
                prefetch_weights(p, rows.row_bytes, R);
                add(g, r, _mm512_load_si512(p));
            }
        UNROLL for (int r = 0; r < R; ++r)  // of the last line the row has the lower part
            add(groups - 1, r, _mm512_maskz_loadu_epi32((__mmask16)((1 << shift) - 1),
                                                        line + r * rows.row_bytes + (size_t)groups * 64));
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int t = 0; t < T; ++t) out[t * R + r] = sum_lanes(sums[r][t]);
    }
};

void multiply(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
              size_t ld) {
    switch (rows.kind) {
        case OSSIA_MXFP4:
            multiply_rows<BlockFormat<Mxfp4Format>>(rows, first, last, packed, num_tokens, out, ld);
            break;
        case OSSIA_Q8: multiply_rows<BlockFormat<Q8Format>>(rows, first, last, packed, num_tokens, out, ld); break;
        case OSSIA_BF16:
            if (ShiftedBf16::fits(rows))
                multiply_rows<ShiftedBf16>(rows, first, last, packed, num_tokens, out, ld);
            else
                multiply_rows<DenseFormat<Bfloat16>>(rows, first, last, packed, num_tokens, out, ld);
            break;
        case OSSIA_BF12: multiply_rows<Bf12Lookup>(rows, first, last, packed, num_tokens, out, ld); break;
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
