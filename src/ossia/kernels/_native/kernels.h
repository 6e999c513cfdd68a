// What one instruction set level provides: a table of functions, filled in by one translation unit a level.
//
// Translation units of a level are compiled with that level's flags. They may use C headers only: an inline function of
// the C++ library compiled there could be the copy that the linker keeps for everyone.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "ossia_native.h"

namespace ossia {

constexpr int kRowGroup = 32;   // output rows that a prefill product makes at a time
constexpr int kTokenTile = 16;  // tokens that are packed together for a prefill product
constexpr int kFewTokens = 8;   // tokens that the products for few take at once
constexpr int kFineTokens = 64; // up to so many, those for many keep 16 bits of the activations' significands
constexpr int kBlock = 32;      // values that share a scale, in MXFP4 and Q8
constexpr int kKeyBlock = 64;   // keys that attention takes at a time, from positions that are multiples of it

// Of OSSIA_BF12, see bf12.h.
constexpr int kBf12Group = 64;     // weights
constexpr size_t kBf12Bytes = 96;  // of a group
constexpr int kBf12Zero = 15;      // the code that stands for zero; smaller ones are exponents

struct Bf12Row {
    int32_t exponent;    // of code 14, biased
    int32_t num_others;  // weights of the row that are not in its groups
    int64_t offset;      // bytes from here to them
};

struct Bf12Other {
    int32_t column;
    float value;
};

// Where the rows of one matrix (of one expert) lie.
struct Rows {
    const uint8_t* data;
    const uint8_t* scales;
    int kind;
    int cols;
    size_t row_bytes;
    size_t scale_bytes;  // a row
};

inline size_t row_bytes_of(int kind, int cols) {
    switch (kind) {
        case OSSIA_F32: return 4 * (size_t)cols;
        case OSSIA_BF16: return 2 * (size_t)cols;
        case OSSIA_MXFP4: return (size_t)cols / 2;
        case OSSIA_BF12: return (size_t)cols / kBf12Group * kBf12Bytes;
        default: return (size_t)cols;
    }
}

inline size_t scale_bytes_of(int kind, int cols) {
    switch (kind) {
        case OSSIA_MXFP4: return (size_t)cols / kBlock;
        case OSSIA_Q8: return 2 * ((size_t)cols / kBlock);
        case OSSIA_BF12: return sizeof(Bf12Row);
        default: return 0;
    }
}

inline Rows rows_of(const OssiaMatrix& matrix, int expert) {
    Rows rows;
    rows.kind = matrix.kind;
    rows.cols = matrix.cols;
    rows.row_bytes = row_bytes_of(matrix.kind, matrix.cols);
    rows.scale_bytes = scale_bytes_of(matrix.kind, matrix.cols);
    rows.data = (const uint8_t*)matrix.data + (size_t)expert * matrix.rows * rows.row_bytes;
    rows.scales = (const uint8_t*)matrix.scales + (size_t)expert * matrix.rows * rows.scale_bytes;
    return rows;
}

// One block of queries of one sequence and one KV head.
struct AttentionTask {
    const float* q;        // [num_rows, C]: for each query the M heads of the KV head
    int num_rows;
    const int64_t* row_positions;  // [num_rows]
    const float* row_sinks;        // [num_rows]
    int window;                    // 0: full
    const int32_t* block_table;    // of the sequence
    const void* keys;              // [P, S, K, C]
    const void* values;
    int cache_kind;
    int page_size, kv_heads, kv_head, head_dim;
    float* out;      // [num_rows, C]
    float* scratch;  // attention_scratch(num_rows, C) floats
};

struct Kernels {
    const char* name;
    int few_tokens;  // up to so many tokens a step runs the products for few
    int few_pairs;   // and in larger steps those of experts too, while an expert has no more tokens than this on average

    // Products for few tokens: pack each token's row once, then multiply ranges of matrix rows with it.
    size_t (*pack_bytes)(int kind, int cols);
    void (*pack)(int kind, const float* x, int cols, void* packed);
    // out[t * ld + r - first] for rows first <= r < last.
    void (*multiply)(const Rows& rows, int first, int last, const void* const* packed, int num_tokens, float* out,
                     size_t ld);

    // Products for many tokens: tiles of up to 16 tokens are packed, then row groups are multiplied with all tiles.
    // is_fine: activations that are rounded keep what the rounding took in a second tile.
    size_t (*tile_bytes)(int kind, int cols, bool is_fine);
    void (*pack_tile)(int kind, const float* const* x, int num_tokens, int cols, bool is_fine, void* tile);
    size_t (*stage_bytes)(int kind, int cols);
    // c[r * ld + t] for num_rows <= 32 rows from `first` and tokens of num_tiles tiles; c has room for 32 rows, and for
    // twice the tiles where is_fine.
    void (*multiply_tiles)(const Rows& rows, int first, int num_rows, const void* tiles, int num_tiles, bool is_fine,
                           void* stage, float* c, size_t ld);
    void (*thread_begin)();  // called on each thread before multiply_tiles is used
    void (*thread_end)();

    void (*rms_norm)(const float* x, const float* weight, int dim, float eps, float* out);
    // x [num_heads, C] in place by one position's rows of the tables.
    void (*rope)(float* x, int num_heads, int head_dim, const float* cos, const float* sin);
    // gate and up [n] -> out [n].
    void (*swiglu)(const float* gate, const float* up, int n, float alpha, float limit, float* out);
    size_t (*attention_scratch)(int num_rows, int head_dim);
    void (*attention)(const AttentionTask& task);
    void (*add_scaled)(float* out, const float* x, float scale, int n);  // out += scale * x
    void (*widen)(const uint16_t* bf16, int n, float* out);
    void (*narrow)(const float* x, int n, uint16_t* bf16);
    double (*read)(const void* memory, size_t num_bytes);
};

#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_amx;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif
extern const Kernels kernels_generic;

}  // namespace ossia
