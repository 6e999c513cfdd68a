// The level amx: AVX-512 for few tokens, AMX tiles of bfloat16 for many (Intel from Sapphire Rapids).
//
// A product for many tokens is made as y^T = w x^T. The first operand's tiles are 16 rows of the matrix by 32 columns,
// the second's 16 pairs of columns by 16 tokens. Weights are laid out as tiles once for a group of 32 rows (MXFP4 is
// decoded on the way, exactly: bfloat16 holds every value times every scale) and used for all tokens; sums are float32.
// Activations are rounded to bfloat16. Matrices in float32 stay with the float32 product.
#if defined(__x86_64__)
#include "avx512.h"

namespace ossia {
namespace {

constexpr int kTileColumns = 32;             // columns of a tile of weights
constexpr size_t kTileBytes = 16 * 64;

inline bool is_tiled(int kind) { return kind != OSSIA_F32; }

size_t amx_tile_bytes(int kind, int cols) {
    return is_tiled(kind) ? (size_t)kTokenTile * round_up(cols, 64) * 2 : f32_tile_bytes(kind, cols);
}

size_t amx_stage_bytes(int kind, int cols) {
    return is_tiled(kind) ? (size_t)kRowGroup * round_up(cols, 64) * 2 : f32_stage_bytes(kind, cols);
}

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// 64 columns of a token, in the order in which tiles hold them: as they come, or for MXFP4 the even ones and the odd.
inline void order_columns(int kind, const float* x, int left, uint16_t* out) {
    float padded[64];
    if (left < 64) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, left * sizeof(float));
        x = padded;
    }
    __m512 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_loadu_ps(x + 16 * i);
    if (kind == OSSIA_MXFP4) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        const __m512 a = _mm512_permutex2var_ps(v[0], even, v[1]), b = _mm512_permutex2var_ps(v[2], even, v[3]);
        const __m512 c = _mm512_permutex2var_ps(v[0], odd, v[1]), d = _mm512_permutex2var_ps(v[2], odd, v[3]);
        v[0] = a, v[1] = b, v[2] = c, v[3] = d;
    }
    for (int i = 0; i < 4; ++i) _mm256_storeu_si256((__m256i*)(out + 16 * i), to_bf16(v[i]));
}

// [pairs of columns][16 tokens][2]: rows of 16 tokens become tiles by transposing pairs.
void amx_pack_tile(int kind, const float* const* x, int num_tokens, int cols, void* tile) {
    if (!is_tiled(kind)) {
        f32_pack_tile(kind, x, num_tokens, cols, tile);
        return;
    }
    uint16_t lines[kTokenTile][64] __attribute__((aligned(64)));
    memset(lines, 0, sizeof lines);
    float* out = (float*)tile;
    for (int c = 0; c < cols; c += 64, out += 32 * kTokenTile) {
        for (int t = 0; t < num_tokens; ++t)
            order_columns(kind, x[t] + c, cols - c < 64 ? cols - c : 64, lines[t]);
        for (int half = 0; half < 2; ++half) {
            vf square[16];
            for (int t = 0; t < 16; ++t) square[t] = load((const float*)(lines[t] + 32 * half));
            transpose(square);
            for (int k = 0; k < 16; ++k) store(out + (half * 16 + k) * kTokenTile, square[k]);
        }
    }
}

// Values of codes as bfloat16, times a power of two by adding to the exponent; zeros stay. Two blocks at a time: lanes
// 0 to 15 use the first block's table, lanes 16 to 31 the second's.
struct Mxfp4Decoder {
    __m512i base, block_bit, nibble;

    Mxfp4Decoder() {
        alignas(64) uint16_t values[32];
        for (int i = 0; i < 32; ++i) values[i] = (uint16_t)(to_bits(kMxfp4Values[i & 15]) >> 16);
        base = _mm512_load_si512(values);
        block_bit = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
        nibble = _mm512_set1_epi16(15);
    }

    static uint32_t to_bits(float x) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        return bits;
    }

    void decode(const uint8_t* data, uint8_t scale0, uint8_t scale1, bool is_half, __m512i& even, __m512i& odd) const {
        const __m512i shift = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_set1_epi16((short)((scale0 - 127) * 128))),
            _mm256_set1_epi16((short)((scale1 - 127) * 128)), 1);
        const __mmask32 nonzero = 0xfefefefe;
        const __m512i table = _mm512_mask_add_epi16(base, nonzero, base, shift);
        const __m256i bytes = is_half ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)data))
                                      : _mm256_loadu_si256((const __m256i*)data);
        const __m512i codes = _mm512_cvtepu8_epi16(bytes);
        // (codes & 15) | block_bit, in one instruction each
        const __m512i low = _mm512_ternarylogic_epi32(codes, nibble, block_bit, 0xea);
        const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), nibble, block_bit, 0xea);
        even = _mm512_permutexvar_epi16(low, table);
        odd = _mm512_permutexvar_epi16(high, table);
    }
};

// A row whose scales leave the exponent's range: by multiplication. The order is that of `decode`.
void stage_mxfp4_plain(const uint8_t* data, const uint8_t* scales, int blocks, uint8_t* out) {
    for (int b = 0; b < blocks; ++b) {
        float wide[32];
        uint16_t half[32];
        widen_mxfp4_plain(data + 16 * (size_t)b, scales + b, 1, wide);
        for (int i = 0; i < 32; ++i) half[i] = round_bf16(wide[i]);
        uint8_t* tile = out + (size_t)(b / 2) * 2 * kTileBytes + 32 * (b % 2);
        memcpy(tile, half, 32);
        memcpy(tile + kTileBytes, half + 16, 32);
    }
}

bool has_plain_scales(const uint8_t* scales, int blocks) {
    for (int b = 0; b < blocks; ++b)
        if (scales[b] < 2 || scales[b] > 252) return true;
    return false;
}

// One row into its line of the tiles: line r of tile k is at out + k * kTileBytes, 64 bytes.
void stage_row(const Rows& rows, int row, const Mxfp4Decoder& decoder, uint8_t* out) {
    const uint8_t* data = rows.data + (size_t)row * rows.row_bytes;
    const uint8_t* scales = rows.scales + (size_t)row * rows.scale_bytes;
    const int blocks = rows.cols / kBlock;
    const int padded = round_up(rows.cols, 64);
    if (rows.kind == OSSIA_MXFP4) {
        if (has_plain_scales(scales, blocks)) {
            if (blocks % 2)
                for (int half = 0; half < 2; ++half)
                    memset(out + (size_t)(blocks / 2 * 2 + half) * kTileBytes, 0, 64);
            stage_mxfp4_plain(data, scales, blocks, out);
            return;
        }
        for (int b = 0; b < blocks; b += 2, out += 2 * kTileBytes) {
            const bool is_half = b + 1 == blocks;
            __m512i even, odd;
            decoder.decode(data + 16 * (size_t)b, scales[b], is_half ? 127 : scales[b + 1], is_half, even, odd);
            _mm512_store_si512(out, even);
            _mm512_store_si512(out + kTileBytes, odd);
        }
    } else if (rows.kind == OSSIA_Q8) {
        for (int b = 0; b < blocks; ++b, out += kTileBytes) {
            uint16_t half;
            memcpy(&half, scales + 2 * (size_t)b, 2);
            const __m512 scale = _mm512_set1_ps(widen_bf16(half));
            for (int i = 0; i < 2; ++i) {
                const __m128i bytes = _mm_loadu_si128((const __m128i*)(data + kBlock * (size_t)b + 16 * i));
                const __m512 wide = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
                _mm256_store_si256((__m256i*)(out + 32 * i), to_bf16(wide));
            }
        }
        if (blocks % 2) memset(out, 0, 64);
    } else {
        for (int c = 0; c < padded; c += kTileColumns, out += kTileBytes) {
            const int left = rows.cols - c;
            const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0 : (1u << left) - 1;
            _mm512_store_si512(out, _mm512_maskz_loadu_epi16(mask, data + 2 * (size_t)c));
        }
    }
}

// Tiles 0 to 3 are sums (two row groups by two token tiles), 4 and 5 weights, 6 and 7 activations.
template <int Tokens>
void tile_product(const uint8_t* weights, size_t second, const uint8_t* x, size_t next_tile, int steps, float* c,
                  size_t ld) {
    _tile_zero(0);
    _tile_zero(1);
    if (Tokens == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int k = 0; k < steps; ++k) {
        _tile_loadd(4, weights + k * kTileBytes, 64);
        _tile_loadd(5, weights + second + k * kTileBytes, 64);
        _tile_loadd(6, x + k * kTileBytes, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (Tokens == 2) {
            _tile_loadd(7, x + next_tile + k * kTileBytes, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    const size_t stride = ld * sizeof(float);
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16 * ld, stride);
    if (Tokens == 2) {
        _tile_stored(2, c + 16, stride);
        _tile_stored(3, c + 16 * ld + 16, stride);
    }
}

// c must have room for 32 rows, whatever num_rows.
void amx_multiply_tiles(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, void* stage,
                        float* c, size_t ld) {
    if (!is_tiled(rows.kind)) {
        f32_multiply_tiles<widen_mxfp4>(rows, first, num_rows, tiles, num_tiles, stage, c, ld);
        return;
    }
    const int steps = round_up(rows.cols, 64) / kTileColumns;
    const size_t half = (size_t)steps * kTileBytes;
    const Mxfp4Decoder decoder;
    for (int r = 0; r < kRowGroup; ++r) {
        uint8_t* out = (uint8_t*)stage + r / 16 * half + r % 16 * 64;
        if (r < num_rows)
            stage_row(rows, first + r, decoder, out);
        else
            for (int k = 0; k < steps; ++k) memset(out + k * kTileBytes, 0, 64);
    }
    const size_t next_tile = amx_tile_bytes(rows.kind, rows.cols);
    const uint8_t* x = (const uint8_t*)tiles;
    int tile = 0;
    for (; tile + 2 <= num_tiles; tile += 2)
        tile_product<2>((const uint8_t*)stage, half, x + tile * next_tile, next_tile, steps, c + tile * 16, ld);
    if (tile < num_tiles)
        tile_product<1>((const uint8_t*)stage, half, x + tile * next_tile, 0, steps, c + tile * 16, ld);
}

void amx_begin() {
    struct Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64)));
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.columns[tile] = 64;
        config.rows[tile] = 16;
    }
    // gcc 12 does not know that the instruction reads all of the structure, and would drop the stores above.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

void amx_end() { _tile_release(); }

}  // namespace

const Kernels kernels_amx = {
    "amx",        pack_bytes,      pack,
    multiply,     amx_tile_bytes,  amx_pack_tile,
    amx_stage_bytes, amx_multiply_tiles, amx_begin,
    amx_end,      rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
