// Products for many tokens, in float32.
//
// A tile holds up to 16 tokens as padded rows. Matrix rows are widened once into `stage`, then used for all tiles.
// MXFP4 comes as the even columns of a block and then the odd ones; tiles for it are packed likewise.
#pragma once
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

size_t f32_tile_bytes(int, int cols, bool) { return (size_t)kTokenTile * round_up(cols, 2 * W) * sizeof(float); }
size_t f32_stage_bytes(int, int cols) { return (size_t)kRowGroup * round_up(cols, 2 * W) * sizeof(float); }

void f32_pack_tile(int kind, const float* const* x, int num_tokens, int cols, bool, void* tile) {
    const int padded = round_up(cols, 2 * W);
    for (int t = 0; t < kTokenTile; ++t) {
        float* row = (float*)tile + (size_t)t * padded;
        if (t >= num_tokens) {
            memset(row, 0, padded * sizeof(float));
            continue;
        }
        memset(row + cols, 0, (padded - cols) * sizeof(float));
        if (kind == OSSIA_MXFP4)
            for (int b = 0; b < cols; b += kBlock)
                for (int i = 0; i < 16; ++i) {
                    row[b + i] = x[t][b + 2 * i];
                    row[b + 16 + i] = x[t][b + 2 * i + 1];
                }
        else
            memcpy(row, x[t], cols * sizeof(float));
    }
}

using WidenMxfp4 = void (*)(const uint8_t* data, const uint8_t* scales, int blocks, float* out);

template <WidenMxfp4 widen_mxfp4>
void f32_multiply_tiles(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, bool,
                        void* stage, float* c, size_t ld) {
    const int padded = round_up(rows.cols, 2 * W);
    float* wide = (float*)stage;
    for (int r = 0; r < num_rows; ++r) {
        const uint8_t* data = rows.data + (size_t)(first + r) * rows.row_bytes;
        const uint8_t* scales = rows.scales + (size_t)(first + r) * rows.scale_bytes;
        float* out = wide + (size_t)r * padded;
        switch (rows.kind) {
            case OSSIA_MXFP4: widen_mxfp4(data, scales, rows.cols / kBlock, out); break;
            case OSSIA_Q8: widen_q8(data, scales, rows.cols / kBlock, out); break;
            case OSSIA_BF16: widen((const uint16_t*)data, rows.cols, out); break;
            default: memcpy(out, data, rows.row_bytes);
        }
        memset(out + rows.cols, 0, (padded - rows.cols) * sizeof(float));
    }
    // The widened rows are a float32 matrix; its product gives [t][r], which is turned into [r][t].
    Rows staged = {(const uint8_t*)wide, nullptr, OSSIA_F32, padded, padded * sizeof(float), 0};
    const void* tokens[kTokenTile];
    float part[kTokenTile * kRowGroup];
    for (int tile = 0; tile < num_tiles; ++tile) {
        for (int t = 0; t < kTokenTile; ++t)
            tokens[t] = (const float*)tiles + (size_t)(tile * kTokenTile + t) * padded;
        for (int t = 0; t < kTokenTile; t += 4)
            multiply_rows<DenseFormat<Float32>>(staged, 0, num_rows, tokens + t, 4, part + t * kRowGroup, kRowGroup);
        for (int r = 0; r < num_rows; ++r)
            for (int t = 0; t < kTokenTile; ++t) c[r * ld + tile * kTokenTile + t] = part[t * kRowGroup + r];
    }
}

void do_nothing() {}

}  // namespace
}  // namespace ossia
