// The C interface of the CPU kernels: plain structures, buffers by pointer, no dependency but the C++ runtime.
//
// Shapes: T tokens, N sequences, D model, H heads, K KV heads, C head dim, E experts, A active experts, F expert
// hidden, V vocabulary, P pages, S page size, B blocks a sequence. src/ossia/kernels/native.py mirrors every structure;
// ossia_abi_sizes() lets it check that both agree.
#pragma once
#include <cstdint>

#define OSSIA_API __attribute__((visibility("default")))

extern "C" {

// How the values of a matrix are stored, row after row.
enum OssiaKind {
    OSSIA_F32 = 0,
    OSSIA_BF16 = 1,
    OSSIA_MXFP4 = 2,  // data uint8 [rows, cols / 2], scales uint8 [rows, cols / 32]: the layout of the checkpoints
    OSSIA_Q8 = 3,     // data int8 [rows, cols], scales bf16 [rows, cols / 32]
    OSSIA_FP8 = 4,    // float8_e4m3fn; only of a cache
    OSSIA_BF12 = 5,   // bfloat16 in 12 bits without loss: data uint8 [rows, cols * 3 / 2], scales one record a row; bf12.h
};

// A matrix [rows, cols], or as many of them as there are experts, one behind the other. bias is float32 [rows] (for
// experts [E, rows]) or null.
struct OssiaMatrix {
    const void* data;
    const void* scales;
    const float* bias;
    int32_t kind;
    int32_t rows;
    int32_t cols;
    int32_t padding;
};

struct OssiaLayer {
    const float* attn_norm;  // [D]
    const float* mlp_norm;   // [D]
    const float* sinks;      // [H]
    OssiaMatrix qkv;         // [(H + 2K)C, D]
    OssiaMatrix out;         // [D, HC]
    OssiaMatrix router;      // [E, D]
    OssiaMatrix gate_up;     // E x [2F, D], gate and up rows alternating
    OssiaMatrix down;        // E x [D, F]
    int32_t window;          // 0: full attention
    int32_t group;           // which block table and slot mapping of a step: 0 full, 1 sliding
};

struct OssiaModel {
    int32_t dim, heads, kv_heads, head_dim, experts, active, hidden, vocab, num_layers;
    int32_t exact;  // 1: every row is computed by the kernels for few tokens, whatever T
    float eps, alpha, limit;
    int32_t padding;
    OssiaMatrix embed, lm_head;  // [V, D]; embed is F32 or BF16
    const float* final_norm;     // [D]
    const float* rope_cos;       // [num_positions, C]
    const float* rope_sin;       // likewise, its first half negated
    int64_t num_positions;
    const OssiaLayer* layers;
};

struct OssiaStep {
    int32_t num_tokens, num_sequences;
    const int64_t* ids;           // [T], or null: x holds the stream
    const int64_t* positions;     // [T]
    const int32_t* cu_seqlens;    // [N + 1]: queries of sequence n are tokens cu[n] : cu[n + 1]
    const int32_t* block_table[2];  // [N, B] of each group
    const int64_t* slot_mapping[2];  // [T] of each group: page * S + offset
    int32_t num_blocks[2];
    int32_t page_size;
    int32_t cache_kind;           // F32, BF16 or FP8
    void* const* keys;            // of each layer: [P, S, K, C]
    void* const* values;
    float* x;                     // [T, D], in place, or null
    int32_t first_layer, last_layer;  // half open
    const int32_t* out_rows;      // [num_out] tokens whose final norm and logits are wanted
    int32_t num_out;
    int32_t padding;
    float* hidden;                // [num_out, D] after the final norm, or null
    float* logits;                // [num_out, V], or null
    int32_t* chosen;              // [layers, T, A] experts of each token, or null
};

// What went wrong; 0 is success.
enum OssiaStatus {
    OSSIA_OK = 0,
    OSSIA_BAD_ARGUMENT = 1,
    OSSIA_NO_MEMORY = 2,
    OSSIA_BAD_TOKEN = 3,     // an id outside the vocabulary
    OSSIA_BAD_POSITION = 4,  // a position outside the rope tables or beyond the block table
};

OSSIA_API const char* ossia_source_hash();
// Sizes of OssiaMatrix, OssiaLayer, OssiaModel, OssiaStep.
OSSIA_API void ossia_abi_sizes(int32_t* sizes);

// The instruction set levels that were compiled in, by number from 0, and which of them this CPU can run.
OSSIA_API int32_t ossia_num_levels();
OSSIA_API const char* ossia_level_name(int32_t level);
OSSIA_API int32_t ossia_level_is_supported(int32_t level);
OSSIA_API int32_t ossia_level();
OSSIA_API int32_t ossia_set_level(int32_t level);

// Threads of the pool, at first as many as the process may run on. Returns how many there are now.
OSSIA_API int32_t ossia_num_threads();
OSSIA_API int32_t ossia_set_num_threads(int32_t count);

// Layers first_layer to last_layer of a step, with the embedding before and norm and lm_head behind where asked for.
OSSIA_API int32_t ossia_forward(const OssiaModel* model, const OssiaStep* step);

// Which kernels multiply: those for many tokens, for few, or for many with finer activations.
enum OssiaWay { OSSIA_MANY = 0, OSSIA_FEW = 1, OSSIA_FINE = 2 };

// x [T, cols] times a matrix: out [T, rows] with bias.
OSSIA_API int32_t ossia_matmul(const OssiaMatrix* matrix, const float* x, int32_t num_tokens, int32_t way,
                               float* out);
OSSIA_API void ossia_rms_norm(const float* x, const float* weight, int32_t num_tokens, int32_t dim, float eps,
                              float* out);
// q [T, H, C] and pages -> out [T, H, C]; the step gives tokens, sequences, tables and pages (of layer 0).
OSSIA_API int32_t ossia_attention(const OssiaModel* model, const OssiaStep* step, const float* q, const float* sinks,
                                  int32_t window, int32_t group, float* out);
// BF16 or F32 [rows, cols] -> Q8: data int8 [rows, cols], scales bf16 [rows, cols / 32].
OSSIA_API int32_t ossia_quantize_q8(const void* source, int32_t kind, int64_t rows, int32_t cols, int8_t* data,
                                    uint16_t* scales);
// BF16 [rows, cols], cols a multiple of 64 -> BF12 in two steps. The first fills in 16 bytes a row of `records` and returns
// how many weights are not in the common form, or -1; then records needs 8 bytes more for each, behind all rows.
OSSIA_API int64_t ossia_bf12_count(const uint16_t* source, int64_t rows, int32_t cols, uint8_t* records);
OSSIA_API int32_t ossia_bf12_pack(const uint16_t* source, int64_t rows, int32_t cols, uint8_t* records, uint8_t* data);
// Bytes a second at which all threads together read num_bytes of memory, the best of `rounds`.
OSSIA_API double ossia_read_bandwidth(const void* memory, int64_t num_bytes, int32_t rounds);
}
