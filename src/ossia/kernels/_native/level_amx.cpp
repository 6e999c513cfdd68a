// The level amx: AVX-512 for few tokens, AMX tiles of bfloat16 for many (Intel from Sapphire Rapids).
//
// A product for many tokens is made as y^T = w x^T. The first operand's tiles are 16 rows of the matrix by 32 columns,
// the second's 16 pairs of columns by 16 tokens. Weights are laid out as tiles once for a group of 32 rows (MXFP4 is
// decoded on the way, exactly: bfloat16 holds every value times every scale) and used for all tokens; sums are float32.
// Activations are rounded to bfloat16; fine products add a second product, with what that took. Matrices in float32
// stay with the float32 product.
#if defined(__x86_64__)
#include "avx512.h"

namespace ossia {
namespace {

constexpr int kTileColumns = 32;  // columns of a tile of weights
constexpr int kStepsAtOnce = 6;   // tiles of columns staged at a time: 12 KiB for 32 rows
constexpr size_t kTileBytes = 16 * 64;

inline bool is_tiled(int kind) { return kind != OSSIA_F32 && kind != OSSIA_BF12; }

size_t amx_tile_bytes(int kind, int cols, bool is_fine) {
    if (!is_tiled(kind)) return f32_tile_bytes(kind, cols, is_fine);
    return (size_t)kTokenTile * round_up(cols, 64) * 2 * (is_fine ? 2 : 1);
}

size_t amx_stage_bytes(int kind, int cols) {
    return is_tiled(kind) ? 2 * kStepsAtOnce * kTileBytes : f32_stage_bytes(kind, cols);
}

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512 from_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// 64 columns of a token, in the order in which tiles hold them: as they come, or for MXFP4 the even ones and the odd.
// is_rest: what rounding to bfloat16 takes from them instead.
inline void order_columns(int kind, const float* x, int left, bool is_rest, uint16_t* out) {
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
    for (int i = 0; i < 4; ++i) {
        if (is_rest) v[i] = _mm512_sub_ps(v[i], from_bf16(to_bf16(v[i])));
        _mm256_storeu_si256((__m256i*)(out + 16 * i), to_bf16(v[i]));
    }
}

// [pairs of columns][16 tokens][2]: rows of 16 tokens become tiles by transposing pairs.
void pack_part(int kind, const float* const* x, int num_tokens, int cols, bool is_rest, void* tile) {
    uint16_t lines[kTokenTile][64] __attribute__((aligned(64)));
    memset(lines, 0, sizeof lines);
    float* out = (float*)tile;
    for (int c = 0; c < cols; c += 64, out += 32 * kTokenTile) {
        for (int t = 0; t < num_tokens; ++t)
            order_columns(kind, x[t] + c, cols - c < 64 ? cols - c : 64, is_rest, lines[t]);
        for (int half = 0; half < 2; ++half) {
            vf square[16];
            for (int t = 0; t < 16; ++t) square[t] = load((const float*)(lines[t] + 32 * half));
            transpose(square);
            for (int k = 0; k < 16; ++k) store(out + (half * 16 + k) * kTokenTile, square[k]);
        }
    }
}

void amx_pack_tile(int kind, const float* const* x, int num_tokens, int cols, bool is_fine, void* tile) {
    if (!is_tiled(kind)) {
        f32_pack_tile(kind, x, num_tokens, cols, is_fine, tile);
        return;
    }
    pack_part(kind, x, num_tokens, cols, false, tile);
    if (is_fine) pack_part(kind, x, num_tokens, cols, true, (uint8_t*)tile + amx_tile_bytes(kind, cols, false));
}

// Values of codes as bfloat16, times a power of two by adding to the exponent; zeros stay. Two blocks at a time: lanes
// 0 to 15 use the first block's table, lanes 16 to 31 the second's.
struct Mxfp4Decoder {
    __m512i base, block_bit, nibble, spread;

    Mxfp4Decoder() {
        alignas(64) uint16_t values[32];
        for (int i = 0; i < 32; ++i) {
            uint32_t bits;
            memcpy(&bits, &kMxfp4Values[i & 15], 4);
            values[i] = (uint16_t)(bits >> 16);
        }
        base = _mm512_load_si512(values);
        block_bit = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
        nibble = _mm512_set1_epi16(15);
        spread = _mm512_inserti64x4(_mm512_set1_epi16(0x0100), _mm256_set1_epi16(0x0302), 1);
    }

    // shifts: what to add to the exponents of the two blocks, in place.
    void decode(__m256i bytes, const uint16_t* shifts, __m512i& even, __m512i& odd) const {
        const __m512i pair = _mm512_broadcastd_epi32(_mm_loadu_si32(shifts));
        const __mmask32 nonzero = 0xfefefefe;
        const __m512i table = _mm512_mask_add_epi16(base, nonzero, base, _mm512_shuffle_epi8(pair, spread));
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

// Exponents of up to 32 blocks as steps of bfloat16; false if one of them leaves the range where adding is exact.
bool make_shifts(const uint8_t* scales, int count, uint16_t* shifts) {
    const __mmask32 mask = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, scales));
    const __m512i centred = _mm512_sub_epi16(wide, _mm512_set1_epi16(127));
    _mm512_storeu_si512(shifts, _mm512_slli_epi16(centred, 7));
    return _mm512_mask_cmpgt_epi16_mask(mask, _mm512_abs_epi16(centred), _mm512_set1_epi16(125)) == 0;
}

void stage_mxfp4(const uint8_t* data, const uint8_t* scales, int blocks, const Mxfp4Decoder& decoder, uint8_t* out) {
    uint16_t shifts[32];
    if (!make_shifts(scales, blocks, shifts)) {
        if (blocks % 2)
            for (int half = 0; half < 2; ++half) memset(out + (size_t)(blocks - 1 + half) * kTileBytes, 0, 64);
        stage_mxfp4_plain(data, scales, blocks, out);
        return;
    }
    __m512i even, odd;
    for (int b = 0; b < blocks; b += 2, data += 32, out += 2 * kTileBytes) {
        if (b + 1 == blocks) {  // codes of the other half are zero, and so are their values
            shifts[b + 1] = 0;
            decoder.decode(_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)data)), shifts + b, even, odd);
        } else {
            decoder.decode(_mm256_loadu_si256((const __m256i*)data), shifts + b, even, odd);
        }
        _mm512_store_si512(out, even);
        _mm512_store_si512(out + kTileBytes, odd);
    }
}

// Tiles [step, step + count) of a row, into its line of each: line r of tile k is at out + k * kTileBytes, 64 bytes.
void stage_row(const Rows& rows, int row, int step, int count, const Mxfp4Decoder& decoder, uint8_t* out) {
    const int first = step * kTileColumns;  // columns
    const int columns = rows.cols - first < count * kTileColumns ? rows.cols - first : count * kTileColumns;
    const uint8_t* data = rows.data + (size_t)row * rows.row_bytes + row_bytes_of(rows.kind, first);
    const uint8_t* scales = rows.scales + (size_t)row * rows.scale_bytes + scale_bytes_of(rows.kind, first);
    const int blocks = columns / kBlock;
    if (rows.kind == OSSIA_MXFP4) {
        stage_mxfp4(data, scales, blocks, decoder, out);
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
        for (int c = 0; c < count * kTileColumns; c += kTileColumns, out += kTileBytes) {
            const int left = columns - c;
            const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0 : (1u << left) - 1;
            _mm512_store_si512(out, _mm512_maskz_loadu_epi16(mask, data + 2 * (size_t)c));
        }
    }
}

// Where 32 rows of weights lie: tiles of the upper and the lower 16, bytes from one tile to the next and from line to
// line.
struct Weights {
    const uint8_t *upper, *lower;
    size_t step, line;
};

// Asks for the next 32 rows' bytes of the same columns, a few lines at each step of a product: all at once they would
// hold up the loads that are needed now.
struct Prefetch {
    const uint8_t* line;
    size_t row_bytes, width;  // of a row, and of its part
    int rows, lines_a_step;
    size_t at = 0;

    void step() {
        for (int i = 0; i < lines_a_step && rows > 0; ++i) {
            _mm_prefetch((const char*)(line + at), _MM_HINT_T1);
            at += 64;
            if (at >= width) {
                at = 0;
                line += row_bytes;
                --rows;
            }
        }
    }
};

Prefetch prefetch_next(const Rows& rows, int first, int step, int count, int num_tiles) {
    Prefetch next;
    const int column = step * kTileColumns;
    next.line = rows.data + (size_t)(first + kRowGroup) * rows.row_bytes + row_bytes_of(rows.kind, column);
    next.row_bytes = rows.row_bytes;
    next.width = row_bytes_of(rows.kind, count * kTileColumns);
    next.rows = kRowGroup;
    const int lines = kRowGroup * (int)((next.width + 63) / 64), products = (num_tiles + 1) / 2 * count;
    next.lines_a_step = (lines + products - 1) / products;
    return next;
}

// Tiles 0 to 3 are sums (two row groups by one or two token tiles), 4 and 5 weights, 6 and 7 activations.
template <int Tokens>
void tile_product(const Weights& weights, const uint8_t* x, size_t next_tile, int steps, bool is_first, float* c,
                  size_t ld, Prefetch& prefetch) {
    const size_t stride = ld * sizeof(float);
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        if (Tokens == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, c, stride);
        _tile_loadd(1, c + 16 * ld, stride);
        if (Tokens == 2) {
            _tile_loadd(2, c + 16, stride);
            _tile_loadd(3, c + 16 * ld + 16, stride);
        }
    }
    for (int k = 0; k < steps; ++k) {
        _tile_loadd(4, weights.upper + k * weights.step, weights.line);
        _tile_loadd(6, x + k * kTileBytes, 64);
        _tile_loadd(5, weights.lower + k * weights.step, weights.line);
        _tile_dpbf16ps(0, 4, 6);
        prefetch.step();
        _tile_dpbf16ps(1, 5, 6);
        if (Tokens == 2) {
            _tile_loadd(7, x + next_tile + k * kTileBytes, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16 * ld, stride);
    if (Tokens == 2) {
        _tile_stored(2, c + 16, stride);
        _tile_stored(3, c + 16 * ld + 16, stride);
    }
}

// Columns come in blocks whose weights stay in the first-level cache.
// Whole groups of bfloat16 rows are used where they lie; others are staged.
void tiled_product(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, void* stage, float* c,
                   size_t ld) {
    const int steps = round_up(rows.cols, 64) / kTileColumns;
    const size_t next_tile = amx_tile_bytes(rows.kind, rows.cols, false);
    const Mxfp4Decoder decoder;
    const bool is_direct = rows.kind == OSSIA_BF16 && rows.cols % 64 == 0 && num_rows == kRowGroup;
    for (int step = 0; step < steps; step += kStepsAtOnce) {
        const int count = steps - step < kStepsAtOnce ? steps - step : kStepsAtOnce;
        Weights weights = {(const uint8_t*)stage, (const uint8_t*)stage + kStepsAtOnce * kTileBytes, kTileBytes, 64};
        if (is_direct) {
            const uint8_t* data = rows.data + (size_t)first * rows.row_bytes + (size_t)step * 64;
            weights = {data, data + 16 * rows.row_bytes, 64, rows.row_bytes};
        } else {
            for (int r = 0; r < kRowGroup; ++r) {
                uint8_t* out = (uint8_t*)stage + (size_t)(r / 16) * kStepsAtOnce * kTileBytes + r % 16 * 64;
                if (r < num_rows)
                    stage_row(rows, first + r, step, count, decoder, out);
                else
                    for (int k = 0; k < count; ++k) memset(out + k * kTileBytes, 0, 64);
            }
        }
        const uint8_t* x = (const uint8_t*)tiles + (size_t)step * kTileBytes;
        Prefetch prefetch = prefetch_next(rows, first, step, count, num_tiles);
        int tile = 0;
        for (; tile + 2 <= num_tiles; tile += 2)
            tile_product<2>(weights, x + tile * next_tile, next_tile, count, step == 0, c + tile * 16, ld, prefetch);
        if (tile < num_tiles)
            tile_product<1>(weights, x + tile * next_tile, 0, count, step == 0, c + tile * 16, ld, prefetch);
    }
}

void amx_multiply_tiles(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, bool is_fine,
                        void* stage, float* c, size_t ld) {
    if (!is_tiled(rows.kind)) {
        f32_multiply_tiles<widen_mxfp4>(rows, first, num_rows, tiles, num_tiles, is_fine, stage, c, ld);
        return;
    }
    tiled_product(rows, first, num_rows, tiles, is_fine ? 2 * num_tiles : num_tiles, stage, c, ld);
    if (is_fine)  // each tile is followed by that of its rests
        for (int r = 0; r < num_rows; ++r)
            for (int tile = 0; tile < num_tiles; ++tile) {
                const float* both = c + r * ld + tile * 2 * kTokenTile;
                _mm512_storeu_ps(c + r * ld + tile * kTokenTile,
                                 _mm512_add_ps(_mm512_loadu_ps(both), _mm512_loadu_ps(both + kTokenTile)));
            }
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
    "amx", 8, 0,  pack_bytes,      pack,
    multiply,     amx_tile_bytes,  amx_pack_tile,
    amx_stage_bytes, amx_multiply_tiles, amx_begin,
    amx_end,      rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
