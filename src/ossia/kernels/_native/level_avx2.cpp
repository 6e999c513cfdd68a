// The level avx2: AVX2 and FMA (Intel from Haswell, AMD from Zen).
#if defined(__x86_64__)
#define OSSIA_FAR_ROWS
#define OSSIA_LANES 8
#define OSSIA_GROUP 2
#include "avx2_rows.h"

namespace ossia {
namespace {

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
    "avx2", 48, 12,  pack_wide_bytes, pack_wide,
    multiply,     f32_tile_bytes,  f32_pack_tile,
    f32_stage_bytes, f32_multiply_tiles<widen_mxfp4>, do_nothing,
    do_nothing,   rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
