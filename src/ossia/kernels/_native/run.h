// A step while it runs: its sizes, and where its intermediate results lie. Private to forward.cpp, as are products.h,
// routing.h, attend.h, experts.h and plan.h.
#pragma once
#include <cstring>

#include "kernels.h"
#include "pool.h"
#include "workspace.h"

namespace ossia {
namespace {

constexpr int kAttentionRows = 64;  // rows of queries and heads that attention takes together
constexpr int kMaxChunk = 256;      // matrix rows of a chunk at most
constexpr int kSmallWork = 4096;    // values to pack that are not worth a second barrier

// Pairs of token and expert, by expert: pair p is token tokens[p] with weight weights[p]; expert e has pairs
// starts[e] : starts[e + 1]; tiles likewise where they are used.
struct Grouping {
    int32_t* starts;       // [E + 1]
    int32_t* tile_starts;  // [E + 1]
    int32_t* tokens;       // [T * A]
    float* weights;        // [T * A]
    int32_t* tile_expert;  // [tiles]
    int32_t* active;       // [E] experts that have pairs
    int32_t* pair_of;      // [T, A] the pair of a token's a-th expert, experts ascending
    int num_active;
    int num_tiles;
};

struct Run {
    const OssiaModel& model;
    const OssiaStep& step;
    const Kernels& k;
    bool is_few = false;
    bool is_fine = false;
    bool has_few_experts = false;  // experts run the products for few
    int T = 0, D = 0, H = 0, K = 0, C = 0, E = 0, A = 0, F = 0, V = 0;
    int team_size = 1;

    float* x = nullptr;         // [T, D]
    float* qkv = nullptr;       // [T, (H + 2K)C]
    float* attended = nullptr;  // [T, HC]
    float* hidden = nullptr;    // [T * A, F]
    float* outputs = nullptr;   // [T * A, D], many only
    uint8_t* packed = nullptr;  // activations, packed for the product to come
    float* router = nullptr;    // [T, E]
    int32_t* chosen = nullptr;  // [T, A]
    float* shares = nullptr;    // [T, A]
    Grouping groups{};
    int32_t* attention_items = nullptr;  // [items, 3]: sequence, first token, tokens
    int num_attention_items = 0;
    int queries_at_once = 1;
    uint8_t* threads = nullptr;  // scratch of each thread
    size_t thread_bytes = 0, offset_part = 0, offset_stage = 0, offset_sums = 0, offset_attention = 0, offset_norm = 0,
           offset_rows = 0;
    float* final_rows = nullptr;  // [num_out, D]
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <class T>
T* scratch(const Run& run, int thread, size_t offset) {
    return reinterpret_cast<T*>(run.threads + (size_t)thread * run.thread_bytes + offset);
}

}  // namespace
}  // namespace ossia
