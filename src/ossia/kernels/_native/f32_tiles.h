// Products for many tokens, in float32.
//
// A tile holds up to 16 tokens, [cols][16], so that the lanes of a vector are tokens and no sum crosses lanes. Matrix
// rows are widened once into `stage`, then used for all tiles. MXFP4 comes as the even columns of a block and then the
// odd ones; tiles for it are packed likewise.
#pragma once
#include "bf12.h"
#include "dense_rows.h"

namespace ossia {
namespace {

constexpr float kMxfp4Values[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

inline float mxfp4_scale(uint8_t scale) {
    if (scale == 255) return NAN;
    const uint32_t bits = scale == 0 ? 0x00400000u : (uint32_t)scale << 23;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void widen_mxfp4_plain(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    for (int b = 0; b < blocks; ++b) {
        const float scale = mxfp4_scale(scales[b]);
        for (int i = 0; i < 16; ++i) {
            out[32 * b + i] = kMxfp4Values[data[16 * b + i] & 15] * scale;
            out[32 * b + 16 + i] = kMxfp4Values[data[16 * b + i] >> 4] * scale;
        }
    }
}

void widen_q8(const uint8_t* data, const uint8_t* scales, int blocks, float* out) {
    for (int b = 0; b < blocks; ++b) {
        uint16_t bits;
        memcpy(&bits, scales + 2 * b, 2);
        const float scale = widen_bf16(bits);
        for (int i = 0; i < kBlock; ++i) out[kBlock * b + i] = (float)(int8_t)data[kBlock * b + i] * scale;
    }
}

size_t f32_tile_bytes(int, int cols, bool) { return (size_t)kTokenTile * cols * sizeof(float); }
size_t f32_stage_bytes(int, int cols) { return (size_t)kRowGroup * cols * sizeof(float); }

void f32_pack_tile(int kind, const float* const* x, int num_tokens, int cols, bool, void* tile) {
    float* out = (float*)tile;
    if (num_tokens < kTokenTile) memset(out, 0, f32_tile_bytes(kind, cols, false));
    for (int t = 0; t < num_tokens; ++t) {
        if (kind == OSSIA_MXFP4)
            for (int b = 0; b < cols; b += kBlock)
                for (int i = 0; i < 16; ++i) {
                    out[(size_t)(b + i) * kTokenTile + t] = x[t][b + 2 * i];
                    out[(size_t)(b + 16 + i) * kTokenTile + t] = x[t][b + 2 * i + 1];
                }
        else
            for (int i = 0; i < cols; ++i) out[(size_t)i * kTokenTile + t] = x[t][i];
    }
}

using WidenMxfp4 = void (*)(const uint8_t* data, const uint8_t* scales, int blocks, float* out);

// R rows of the widened matrix times N tiles: c[r * ld + t].
template <int R, int N>
void f32_multiply_rows(const float* wide, int cols, const float* tiles, float* c, size_t ld) {
    constexpr int V = kTokenTile / W;
    const size_t tile = (size_t)kTokenTile * cols;
    vf sums[R][N * V] = {};
    for (int k = 0; k < cols; ++k) {
        vf x[N * V];
        UNROLL for (int n = 0; n < N; ++n)
            UNROLL for (int v = 0; v < V; ++v) x[n * V + v] = load(tiles + n * tile + (size_t)k * kTokenTile + v * W);
        UNROLL for (int r = 0; r < R; ++r) {
            const float w = wide[(size_t)r * cols + k];
            UNROLL for (int v = 0; v < N * V; ++v) sums[r][v] += x[v] * w;
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < N * V; ++v) store(c + r * ld + v * W, sums[r][v]);
}

template <int N>
void f32_multiply_row_group(const float* wide, int num_rows, int cols, const float* tiles, float* c, size_t ld) {
    constexpr int R = W >= 16 ? 12 / N : W >= 8 ? 6 / N : 2 / N > 0 ? 2 / N : 1;
    int r = 0;
    for (; r + R <= num_rows; r += R) f32_multiply_rows<R, N>(wide + (size_t)r * cols, cols, tiles, c + r * ld, ld);
    for (; r < num_rows; ++r) f32_multiply_rows<1, N>(wide + (size_t)r * cols, cols, tiles, c + r * ld, ld);
}

template <WidenMxfp4 widen_mxfp4>
void f32_multiply_tiles(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, bool,
                        void* stage, float* c, size_t ld) {
    const int cols = rows.cols;
    float* wide = (float*)stage;
    for (int r = 0; r < num_rows; ++r) {
        const uint8_t* data = rows.data + (size_t)(first + r) * rows.row_bytes;
        const uint8_t* scales = rows.scales + (size_t)(first + r) * rows.scale_bytes;
        float* out = wide + (size_t)r * cols;
        switch (rows.kind) {
            case OSSIA_MXFP4: widen_mxfp4(data, scales, cols / kBlock, out); break;
            case OSSIA_Q8: widen_q8(data, scales, cols / kBlock, out); break;
            case OSSIA_BF16: widen((const uint16_t*)data, cols, out); break;
            case OSSIA_BF12: widen_bf12(rows, first + r, out); break;
            default: memcpy(out, data, rows.row_bytes);
        }
    }
    const float* x = (const float*)tiles;
    int tile = 0;
    for (; tile + 2 <= num_tiles; tile += 2)
        f32_multiply_row_group<2>(wide, num_rows, cols, x + (size_t)tile * kTokenTile * cols, c + tile * kTokenTile, ld);
    if (tile < num_tiles)
        f32_multiply_row_group<1>(wide, num_rows, cols, x + (size_t)tile * kTokenTile * cols, c + tile * kTokenTile, ld);
}

void do_nothing() {}

}  // namespace
}  // namespace ossia
