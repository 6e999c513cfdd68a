// A step through whole layers: each thread of the team runs the same function and meets the others at barriers.
//
// The residual stream and everything between the products is float32. A step of up to kFewTokens tokens, or any step of
// an exact model, runs the products for few tokens; others run those for many. Within either way a token's results do
// not depend on the rest of the step.
#include <cmath>
#include <cstring>

#include "dispatch.h"
#include "kernels.h"
#include "matmul.h"
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

// ---- Few tokens --------------------------------------------------------------------------------------------------

// sink(first, last, token, count, part): part[t * kMaxChunk + r - first] are the products of rows first to last with
// `count` tokens from `token`. A barrier must follow, as it must behind all functions whose name begins with multiply
// or attend.
template <class Sink>
void multiply_few(const Run& run, Team& team, int thread, const OssiaMatrix& matrix, int num_tokens, Sink&& sink) {
    const Rows rows = rows_of(matrix, 0);
    const size_t bytes = run.k.pack_bytes(matrix.kind, matrix.cols);
    const int chunk = chunk_of_rows(matrix.rows, matrix.cols, matrix.kind, run.team_size);
    float* part = scratch<float>(run, thread, run.offset_part);
    team.chunks(matrix.rows, chunk, [&](int64_t begin, int64_t end) {
        for (int t = 0; t < num_tokens; t += kFewTokens) {  // an exact model may have many tokens here
            const int count = num_tokens - t < kFewTokens ? num_tokens - t : kFewTokens;
            const void* packed[kFewTokens];
            for (int i = 0; i < count; ++i) packed[i] = run.packed + (size_t)(t + i) * bytes;
            run.k.multiply(rows, (int)begin, (int)end, packed, count, part, kMaxChunk);
            sink((int)begin, (int)end, t, count, part);
        }
    });
}

void add_bias(const OssiaMatrix& matrix, int expert, int first, int last, float* values) {
    if (matrix.bias == nullptr) return;
    const float* bias = matrix.bias + (size_t)expert * matrix.rows;
    for (int r = first; r < last; ++r) values[r - first] += bias[r];
}

// Gate and up products of a few rows [2n], alternating, with bias -> n activations.
void activate(const Run& run, const float* products, const float* bias, int n, float* out) {
    float gate[kMaxChunk / 2], up[kMaxChunk / 2];
    for (int i = 0; i < n; ++i) {
        gate[i] = products[2 * i] + bias[2 * i];
        up[i] = products[2 * i + 1] + bias[2 * i + 1];
    }
    run.k.swiglu(gate, up, n, run.model.alpha, run.model.limit, out);
}

void experts_few(const Run& run, Team& team, int thread, const OssiaLayer& layer) {
    const Grouping& groups = run.groups;
    const size_t in_bytes = run.k.pack_bytes(layer.gate_up.kind, run.D);
    const size_t out_bytes = run.k.pack_bytes(layer.down.kind, run.F);
    float* part = scratch<float>(run, thread, run.offset_part);
    const int chunk = chunk_of_rows(layer.gate_up.rows, run.D, layer.gate_up.kind, run.team_size);
    const int chunks = ceil_div(layer.gate_up.rows, chunk);
    team.chunks((int64_t)groups.num_active * chunks, 1, [&](int64_t item, int64_t) {
        const int expert = groups.active[item / chunks];
        const int begin = (int)(item % chunks) * chunk;
        const int end = begin + chunk < layer.gate_up.rows ? begin + chunk : layer.gate_up.rows;
        const Rows rows = rows_of(layer.gate_up, expert);
        const float* bias = layer.gate_up.bias + (size_t)expert * layer.gate_up.rows + begin;
        for (int p = groups.starts[expert]; p < groups.starts[expert + 1]; p += kFewTokens) {
            const int left = groups.starts[expert + 1] - p, count = left < kFewTokens ? left : kFewTokens;
            const void* packed[kFewTokens];
            for (int i = 0; i < count; ++i) packed[i] = run.packed + (size_t)groups.tokens[p + i] * in_bytes;
            run.k.multiply(rows, begin, end, packed, count, part, kMaxChunk);
            for (int i = 0; i < count; ++i)
                activate(run, part + (size_t)i * kMaxChunk, bias, (end - begin) / 2,
                         run.hidden + (size_t)(p + i) * run.F + begin / 2);
        }
    });
    const int num_pairs = run.T * run.A;
    auto pack_pair = [&](int p) {
        run.k.pack(layer.down.kind, run.hidden + (size_t)p * run.F, run.F, run.packed + (size_t)p * out_bytes);
    };
    if (num_pairs * run.F <= kSmallWork) {
        team.barrier([&] {
            for (int p = 0; p < num_pairs; ++p) pack_pair(p);
        });
    } else {
        team.barrier_each(num_pairs, pack_pair);
    }
    const int down_chunk = chunk_of_rows(layer.down.rows, run.F, layer.down.kind, run.team_size);
    team.chunks(layer.down.rows, down_chunk, [&](int64_t begin, int64_t end) {
        for (int i = 0; i < groups.num_active; ++i) {
            const int expert = groups.active[i];
            const Rows rows = rows_of(layer.down, expert);
            for (int p = groups.starts[expert]; p < groups.starts[expert + 1]; p += kFewTokens) {
                const int left = groups.starts[expert + 1] - p, count = left < kFewTokens ? left : kFewTokens;
                const void* packed[kFewTokens];
                for (int j = 0; j < count; ++j) packed[j] = run.packed + (size_t)(p + j) * out_bytes;
                run.k.multiply(rows, (int)begin, (int)end, packed, count, part, kMaxChunk);
                for (int j = 0; j < count; ++j) {
                    float* values = part + (size_t)j * kMaxChunk;
                    add_bias(layer.down, expert, (int)begin, (int)end, values);
                    run.k.add_scaled(run.x + (size_t)groups.tokens[p + j] * run.D + begin, values,
                                     groups.weights[p + j], (int)(end - begin));
                }
            }
        }
    });
}

// ---- Many tokens -------------------------------------------------------------------------------------------------

// sink(first, num_rows, token, count, c): c[r * kSumsStride + t] are the products of rows from `first` and tokens from
// `token`. Blocks of tokens are outermost, so that their tiles stay in the cache while all rows pass.
template <class Sink>
void multiply_many(const Run& run, Team& team, int thread, const OssiaMatrix& matrix, int num_tokens, Sink&& sink) {
    const Rows rows = rows_of(matrix, 0);
    const size_t bytes = run.k.tile_bytes(matrix.kind, matrix.cols);
    const int tiles = ceil_div(num_tokens, kTokenTile), blocks = ceil_div(tiles, kTilesAtOnce);
    const int groups = ceil_div(matrix.rows, kRowGroup);
    float* c = scratch<float>(run, thread, run.offset_sums);
    uint8_t* stage = scratch<uint8_t>(run, thread, run.offset_stage);
    team.chunks((int64_t)blocks * groups, 1, [&](int64_t item, int64_t) {
        const int tile = (int)(item / groups) * kTilesAtOnce, first = (int)(item % groups) * kRowGroup;
        const int num_tiles = tiles - tile < kTilesAtOnce ? tiles - tile : kTilesAtOnce;
        const int num_rows = matrix.rows - first < kRowGroup ? matrix.rows - first : kRowGroup;
        run.k.multiply_tiles(rows, first, num_rows, run.packed + (size_t)tile * bytes, num_tiles, stage, c,
                             kSumsStride);
        const int token = tile * kTokenTile;
        const int count = num_tokens - token < kSumsStride ? num_tokens - token : kSumsStride;
        sink(first, num_rows, token, count, c);
    });
}

// Tiles of consecutive tokens; row(t) gives a token's values.
template <class Row>
void pack_tiles(const Run& run, Team& team, int kind, int cols, int num_tokens, Row&& row) {
    const size_t bytes = run.k.tile_bytes(kind, cols);
    team.loop(ceil_div(num_tokens, kTokenTile), 1, [&](int64_t tile, int64_t) {
        const int first = (int)tile * kTokenTile;
        const int count = num_tokens - first < kTokenTile ? num_tokens - first : kTokenTile;
        const float* rows[kTokenTile];
        for (int i = 0; i < count; ++i) rows[i] = row(i, first + i);
        run.k.pack_tile(kind, rows, count, cols, run.packed + (size_t)tile * bytes);
    });
}

// The same for the pairs of each expert, every expert beginning a tile.
template <class Row>
void pack_expert_tiles(const Run& run, Team& team, int kind, int cols, Row&& row) {
    const Grouping& groups = run.groups;
    const size_t bytes = run.k.tile_bytes(kind, cols);
    team.loop(groups.num_tiles, 1, [&](int64_t tile, int64_t) {
        const int expert = groups.tile_expert[tile];
        const int first = groups.starts[expert] + ((int)tile - groups.tile_starts[expert]) * kTokenTile;
        const int left = groups.starts[expert + 1] - first, count = left < kTokenTile ? left : kTokenTile;
        const float* rows[kTokenTile];
        for (int i = 0; i < count; ++i) rows[i] = row(first + i);
        run.k.pack_tile(kind, rows, count, cols, run.packed + (size_t)tile * bytes);
    });
}

// sink(expert, first, num_rows, pair, count, c), as multiply_many.
template <class Sink>
void multiply_experts(const Run& run, Team& team, int thread, const OssiaMatrix& matrix, Sink&& sink) {
    const Grouping& groups = run.groups;
    const size_t bytes = run.k.tile_bytes(matrix.kind, matrix.cols);
    const int row_groups = ceil_div(matrix.rows, kRowGroup);
    float* c = scratch<float>(run, thread, run.offset_sums);
    uint8_t* stage = scratch<uint8_t>(run, thread, run.offset_stage);
    team.chunks((int64_t)groups.num_active * row_groups, 1, [&](int64_t item, int64_t) {
        const int expert = groups.active[item / row_groups], first = (int)(item % row_groups) * kRowGroup;
        const int num_rows = matrix.rows - first < kRowGroup ? matrix.rows - first : kRowGroup;
        const Rows rows = rows_of(matrix, expert);
        const int end = groups.tile_starts[expert + 1];
        for (int tile = groups.tile_starts[expert]; tile < end; tile += kTilesAtOnce) {
            const int num_tiles = end - tile < kTilesAtOnce ? end - tile : kTilesAtOnce;
            run.k.multiply_tiles(rows, first, num_rows, run.packed + (size_t)tile * bytes, num_tiles, stage, c,
                                 kSumsStride);
            const int pair = groups.starts[expert] + (tile - groups.tile_starts[expert]) * kTokenTile;
            const int left = groups.starts[expert + 1] - pair;
            sink(expert, first, num_rows, pair, left < kSumsStride ? left : kSumsStride, c);
        }
    });
}

void experts_many(const Run& run, Team& team, int thread, const OssiaLayer& layer, const float* normed) {
    const Grouping& groups = run.groups;
    pack_expert_tiles(run, team, layer.gate_up.kind, run.D,
                      [&](int pair) { return normed + (size_t)groups.tokens[pair] * run.D; });
    multiply_experts(
        run, team, thread, layer.gate_up, [&](int expert, int first, int num_rows, int pair, int count, float* c) {
            const float* bias = layer.gate_up.bias + (size_t)expert * layer.gate_up.rows + first;
            for (int r = 0; r < num_rows; r += 2) {
                float *gate = c + (size_t)r * kSumsStride, *up = gate + kSumsStride;
                for (int t = 0; t < count; ++t) gate[t] += bias[r];
                for (int t = 0; t < count; ++t) up[t] += bias[r + 1];
                run.k.swiglu(gate, up, count, run.model.alpha, run.model.limit, gate);
            }
            for (int t = 0; t < count; ++t) {
                float* out = run.hidden + (size_t)(pair + t) * run.F + first / 2;
                for (int r = 0; r < num_rows / 2; ++r) out[r] = c[(size_t)2 * r * kSumsStride + t];
            }
        });
    team.barrier();
    pack_expert_tiles(run, team, layer.down.kind, run.F,
                      [&](int pair) { return run.hidden + (size_t)pair * run.F; });
    multiply_experts(run, team, thread, layer.down,
                     [&](int expert, int first, int num_rows, int pair, int count, float* c) {
                         const float* bias =
                             layer.down.bias ? layer.down.bias + (size_t)expert * run.D + first : nullptr;
                         for (int t = 0; t < count; ++t) {
                             float* out = run.outputs + (size_t)(pair + t) * run.D + first;
                             for (int r = 0; r < num_rows; ++r)
                                 out[r] = c[(size_t)r * kSumsStride + t] + (bias ? bias[r] : 0.0f);
                         }
                     });
    team.barrier();
    team.chunks(run.T, 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int a = 0; a < run.A; ++a) {
                const int pair = groups.pair_of[t * run.A + a];
                run.k.add_scaled(run.x + t * run.D, run.outputs + (size_t)pair * run.D, groups.weights[pair], run.D);
            }
    });
}

// ---- Pieces of a layer -------------------------------------------------------------------------------------------

// The A largest logits, equal ones by their number, and the softmax over them.
void choose(const float* logits, int E, int A, int32_t* chosen, float* shares) {
    for (int a = 0; a < A; ++a) {
        int best = -1;
        for (int e = 0; e < E; ++e) {
            bool is_taken = false;
            for (int i = 0; i < a; ++i) is_taken = is_taken || chosen[i] == e;
            if (!is_taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        chosen[a] = best;
    }
    float total = 0;
    for (int a = 0; a < A; ++a) {
        shares[a] = std::exp(logits[chosen[a]] - logits[chosen[0]]);
        total += shares[a];
    }
    for (int a = 0; a < A; ++a) shares[a] /= total;
}

// Counting sort of the pairs by expert; within an expert tokens ascend.
void group_pairs(Run& run) {
    Grouping& g = run.groups;
    const int E = run.E, pairs = run.T * run.A;
    std::memset(g.starts, 0, (E + 1) * sizeof(int32_t));
    for (int i = 0; i < pairs; ++i) ++g.starts[run.chosen[i] + 1];
    g.num_active = 0;
    g.num_tiles = 0;
    for (int e = 0; e < E; ++e) {
        const int count = g.starts[e + 1];
        g.tile_starts[e] = g.num_tiles;
        if (count > 0) g.active[g.num_active++] = e;
        for (int tile = 0; tile < ceil_div(count, kTokenTile); ++tile) g.tile_expert[g.num_tiles++] = e;
        g.starts[e + 1] += g.starts[e];
    }
    g.tile_starts[E] = g.num_tiles;
    int32_t* next = g.pair_of;  // borrowed: filled below
    for (int t = 0; t < run.T; ++t) {
        int32_t order[64];
        for (int a = 0; a < run.A; ++a) {  // a token's experts, ascending
            int place = a;
            while (place > 0 && run.chosen[t * run.A + order[place - 1]] > run.chosen[t * run.A + a]) {
                order[place] = order[place - 1];
                --place;
            }
            order[place] = a;
        }
        for (int a = 0; a < run.A; ++a) next[t * run.A + a] = order[a];
    }
    // starts[e] walks forward as pairs are placed, and is set back afterwards.
    for (int t = 0; t < run.T; ++t)
        for (int a = 0; a < run.A; ++a) {
            const int slot = next[t * run.A + a];
            const int expert = run.chosen[t * run.A + slot];
            const int pair = g.starts[expert]++;
            g.tokens[pair] = t;
            g.weights[pair] = run.shares[t * run.A + slot];
            next[t * run.A + a] = pair;
        }
    for (int e = E; e > 0; --e) g.starts[e] = g.starts[e - 1];
    g.starts[0] = 0;
}

void write_cache(const Run& run, const OssiaLayer& layer, int index, int t) {
    const int64_t slot = run.step.slot_mapping[layer.group][t];
    const size_t width = (size_t)run.K * run.C, start = (size_t)slot * width;
    const float* k = run.qkv + (size_t)t * (run.H + 2 * run.K) * run.C + (size_t)run.H * run.C;
    const float* v = k + width;
    if (run.step.cache_kind == OSSIA_BF16) {
        run.k.narrow(k, (int)width, (uint16_t*)run.step.keys[index] + start);
        run.k.narrow(v, (int)width, (uint16_t*)run.step.values[index] + start);
    } else {
        std::memcpy((float*)run.step.keys[index] + start, k, width * sizeof(float));
        std::memcpy((float*)run.step.values[index] + start, v, width * sizeof(float));
    }
}

void rope_and_write(const Run& run, const OssiaLayer& layer, int index, int t) {
    const int64_t position = run.step.positions[t];
    run.k.rope(run.qkv + (size_t)t * (run.H + 2 * run.K) * run.C, run.H + run.K, run.C,
               run.model.rope_cos + position * run.C, run.model.rope_sin + position * run.C);
    write_cache(run, layer, index, t);
}

// One item: a block of queries of one sequence, one KV head. q is [T, *, C] with `q_stride` floats a token.
void attend(const Run& run, int thread, int item, const float* q, size_t q_stride, const float* sinks, int window,
            int group, int index, float* out) {
    const int32_t* block = run.attention_items + 3 * (item / run.K);
    const int kv_head = item % run.K, M = run.H / run.K, C = run.C, num_rows = block[2] * M;
    float* scratch_area = scratch<float>(run, thread, run.offset_attention);
    float* queries = scratch_area;
    float* results = queries + (size_t)num_rows * C;
    float* row_sinks = results + (size_t)num_rows * C;
    int64_t* positions = scratch<int64_t>(run, thread, run.offset_rows);
    for (int i = 0; i < block[2]; ++i) {
        const int t = block[1] + i;
        std::memcpy(queries + (size_t)i * M * C, q + t * q_stride + (size_t)kv_head * M * C,
                    (size_t)M * C * sizeof(float));
        for (int m = 0; m < M; ++m) {
            positions[i * M + m] = run.step.positions[t];
            row_sinks[i * M + m] = sinks[kv_head * M + m];
        }
    }
    AttentionTask task;
    task.q = queries;
    task.num_rows = num_rows;
    task.row_positions = positions;
    task.row_sinks = row_sinks;
    task.window = window;
    task.block_table = run.step.block_table[group] + (size_t)block[0] * run.step.num_blocks[group];
    task.keys = run.step.keys[index];
    task.values = run.step.values[index];
    task.cache_kind = run.step.cache_kind;
    task.page_size = run.step.page_size;
    task.kv_heads = run.K;
    task.kv_head = kv_head;
    task.head_dim = C;
    task.out = results;
    task.scratch = row_sinks + num_rows;
    run.k.attention(task);
    for (int i = 0; i < block[2]; ++i)
        std::memcpy(out + ((size_t)(block[1] + i) * run.H + (size_t)kv_head * M) * C, results + (size_t)i * M * C,
                    (size_t)M * C * sizeof(float));
}

void attend_all(const Run& run, Team& team, int thread, const float* q, size_t q_stride, const float* sinks,
                int window, int group, int index, float* out) {
    team.chunks((int64_t)run.num_attention_items * run.K, 1, [&](int64_t item, int64_t) {
        attend(run, thread, (int)item, q, q_stride, sinks, window, group, index, out);
    });
}

// The norm of a token, its router, and what the experts' products need of it.
void route_token(const Run& run, const OssiaLayer& layer, int index, int t, float* normed, uint8_t* packed_router) {
    run.k.rms_norm(run.x + (size_t)t * run.D, layer.mlp_norm, run.D, run.model.eps, normed);
    run.k.pack(layer.router.kind, normed, run.D, packed_router);
    const void* packed[1] = {packed_router};
    float* logits = run.router + (size_t)t * run.E;
    run.k.multiply(rows_of(layer.router, 0), 0, run.E, packed, 1, logits, run.E);
    add_bias(layer.router, 0, 0, run.E, logits);
    choose(logits, run.E, run.A, run.chosen + (size_t)t * run.A, run.shares + (size_t)t * run.A);
    if (run.step.chosen != nullptr)
        std::memcpy(run.step.chosen + ((size_t)(index - run.step.first_layer) * run.T + t) * run.A,
                    run.chosen + (size_t)t * run.A, run.A * sizeof(int32_t));
}

// ---- A layer -----------------------------------------------------------------------------------------------------

// Both begin with a barrier: what came before wrote the stream without one.

void layer_few(Run& run, Team& team, int thread, const OssiaLayer& layer, int index) {
    const int T = run.T, D = run.D;
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    float* norm = scratch<float>(run, thread, run.offset_norm);
    team.barrier_each(T, [&](int t) {
        run.k.rms_norm(run.x + (size_t)t * D, layer.attn_norm, D, run.model.eps, norm);
        run.k.pack(layer.qkv.kind, norm, D, run.packed + t * run.k.pack_bytes(layer.qkv.kind, D));
    });
    multiply_few(run, team, thread, layer.qkv, T, [&](int begin, int end, int t, int count, float* part) {
        for (int i = 0; i < count; ++i) {
            float* out = run.qkv + (size_t)(t + i) * width + begin;
            std::memcpy(out, part + (size_t)i * kMaxChunk, (end - begin) * sizeof(float));
            add_bias(layer.qkv, 0, begin, end, out);
        }
    });
    team.barrier_each(T, [&](int t) { rope_and_write(run, layer, index, t); });
    attend_all(run, team, thread, run.qkv, width, layer.sinks, layer.window, layer.group, index, run.attended);
    team.barrier_each(T, [&](int t) {
        run.k.pack(layer.out.kind, run.attended + (size_t)t * layer.out.cols, layer.out.cols,
                   run.packed + t * run.k.pack_bytes(layer.out.kind, layer.out.cols));
    });
    multiply_few(run, team, thread, layer.out, T, [&](int begin, int end, int t, int count, float* part) {
        for (int i = 0; i < count; ++i) {
            float* values = part + (size_t)i * kMaxChunk;
            add_bias(layer.out, 0, begin, end, values);
            run.k.add_scaled(run.x + (size_t)(t + i) * D + begin, values, 1.0f, end - begin);
        }
    });
    uint8_t* packed_router = reinterpret_cast<uint8_t*>(norm + D + 64);
    auto route = [&](int t) {
        route_token(run, layer, index, t, norm, packed_router);
        run.k.pack(layer.gate_up.kind, norm, D, run.packed + t * run.k.pack_bytes(layer.gate_up.kind, D));
    };
    if (T == 1) {
        team.barrier([&] {
            route(0);
            group_pairs(run);
        });
    } else {
        team.barrier();
        team.chunks(T, 1, [&](int64_t t, int64_t) { route((int)t); });
        team.barrier([&] { group_pairs(run); });
    }
    experts_few(run, team, thread, layer);
}

void layer_many(Run& run, Team& team, int thread, const OssiaLayer& layer, int index) {
    const int T = run.T, D = run.D;
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    float* norm = scratch<float>(run, thread, run.offset_norm);
    team.barrier();
    pack_tiles(run, team, layer.qkv.kind, D, T, [&](int i, int t) {
        run.k.rms_norm(run.x + (size_t)t * D, layer.attn_norm, D, run.model.eps, norm + (size_t)i * D);
        return norm + (size_t)i * D;
    });
    multiply_many(run, team, thread, layer.qkv, T, [&](int first, int num_rows, int token, int count, float* c) {
        for (int t = 0; t < count; ++t) {
            float* out = run.qkv + (size_t)(token + t) * width + first;
            for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
            add_bias(layer.qkv, 0, first, first + num_rows, out);
        }
    });
    team.barrier_each(T, [&](int t) { rope_and_write(run, layer, index, t); });
    attend_all(run, team, thread, run.qkv, width, layer.sinks, layer.window, layer.group, index, run.attended);
    team.barrier();
    pack_tiles(run, team, layer.out.kind, layer.out.cols, T,
               [&](int, int t) { return run.attended + (size_t)t * layer.out.cols; });
    multiply_many(run, team, thread, layer.out, T, [&](int first, int num_rows, int token, int count, float* c) {
        const float* bias = layer.out.bias;
        for (int t = 0; t < count; ++t) {
            float* out = run.x + (size_t)(token + t) * D + first;
            for (int r = 0; r < num_rows; ++r) out[r] += c[(size_t)r * kSumsStride + t] + (bias ? bias[first + r] : 0);
        }
    });
    team.barrier();
    float* normed = run.attended;  // free by now; planned large enough
    uint8_t* packed_router = reinterpret_cast<uint8_t*>(norm);
    team.chunks(T, 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            route_token(run, layer, index, (int)t, normed + (size_t)t * D, packed_router);
    });
    team.barrier([&] { group_pairs(run); });
    experts_many(run, team, thread, layer, normed);
}

// ---- Before and behind the layers --------------------------------------------------------------------------------

void embed(const Run& run, int t) {
    const OssiaMatrix& matrix = run.model.embed;
    float* out = run.x + (size_t)t * run.D;
    const size_t start = (size_t)run.step.ids[t] * run.D;
    if (matrix.kind == OSSIA_BF16)
        run.k.widen((const uint16_t*)matrix.data + start, run.D, out);
    else
        std::memcpy(out, (const float*)matrix.data + start, run.D * sizeof(float));
}

void finish(Run& run, Team& team, int thread) {
    const int num_out = run.step.num_out, D = run.D;
    float* rows = run.step.hidden != nullptr ? run.step.hidden : run.final_rows;
    const OssiaMatrix& head = run.model.lm_head;
    const bool is_few = num_out <= kFewTokens || run.model.exact;
    team.barrier_each(num_out, [&](int i) {
        float* row = rows + (size_t)i * D;
        run.k.rms_norm(run.x + (size_t)run.step.out_rows[i] * D, run.model.final_norm, D, run.model.eps, row);
        if (run.step.logits != nullptr && is_few)
            run.k.pack(head.kind, row, D, run.packed + i * run.k.pack_bytes(head.kind, D));
    });
    if (run.step.logits == nullptr) return;
    float* logits = run.step.logits;
    if (is_few) {
        multiply_few(run, team, thread, head, num_out, [&](int begin, int end, int t, int count, float* part) {
            for (int i = 0; i < count; ++i)
                std::memcpy(logits + (size_t)(t + i) * run.V + begin, part + (size_t)i * kMaxChunk,
                            (end - begin) * sizeof(float));
        });
        return;  // the end of the run is the last barrier
    }
    pack_tiles(run, team, head.kind, D, num_out, [&](int, int t) { return rows + (size_t)t * D; });
    multiply_many(run, team, thread, head, num_out, [&](int first, int num_rows, int token, int count, float* c) {
        for (int t = 0; t < count; ++t) {
            float* out = logits + (size_t)(token + t) * run.V + first;
            for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
        }
    });
}

void run_thread(Team& team, int thread, void* argument) {
    Run& run = *static_cast<Run*>(argument);
    run.k.thread_begin();
    if (run.step.ids != nullptr)
        team.chunks(run.T, 8, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) embed(run, (int)t);
        });
    for (int index = run.step.first_layer; index < run.step.last_layer; ++index) {
        const OssiaLayer& layer = run.model.layers[index];
        if (run.is_few)
            layer_few(run, team, thread, layer, index);
        else
            layer_many(run, team, thread, layer, index);
    }
    if (run.step.num_out > 0) finish(run, team, thread);
    run.k.thread_end();
}

// ---- Memory ------------------------------------------------------------------------------------------------------

size_t largest(size_t a, size_t b) { return a > b ? a : b; }

struct Needs {
    size_t packed = 0, stage = 0;

    void product(const Run& run, const OssiaMatrix& matrix, size_t few_tokens, size_t many_tiles, bool is_few) {
        if (is_few) {
            packed = largest(packed, few_tokens * run.k.pack_bytes(matrix.kind, matrix.cols));
        } else {
            packed = largest(packed, many_tiles * run.k.tile_bytes(matrix.kind, matrix.cols));
            stage = largest(stage, run.k.stage_bytes(matrix.kind, matrix.cols));
        }
    }
};

void plan_threads(Run& run, Workspace& space, size_t stage, size_t& at) {
    const int M = run.H / run.K;
    run.queries_at_once = kAttentionRows / M > 0 ? kAttentionRows / M : 1;
    const size_t rows = (size_t)run.queries_at_once * M;
    Workspace sizes;
    sizes.begin();
    run.offset_part = sizes.plan((size_t)kFewTokens * kMaxChunk * sizeof(float));
    run.offset_stage = sizes.plan(stage + 64);
    run.offset_sums = sizes.plan((size_t)kRowGroup * kSumsStride * sizeof(float));
    run.offset_attention =
        sizes.plan((2 * rows * run.C + rows + run.k.attention_scratch((int)rows, run.C)) * sizeof(float));
    run.offset_rows = sizes.plan(rows * sizeof(int64_t));
    size_t router = 0;
    for (int i = run.step.first_layer; i < run.step.last_layer; ++i)
        router = largest(router, run.k.pack_bytes(run.model.layers[i].router.kind, run.D));
    const size_t norm_rows = run.is_few ? 1 : kTokenTile;
    run.offset_norm = sizes.plan((norm_rows * run.D + 64) * sizeof(float) + router);
    run.thread_bytes = sizes.plan(0);
    at = space.plan(run.thread_bytes * run.team_size);
}

void list_attention_items(Run& run) {
    run.num_attention_items = 0;
    for (int n = 0; n < run.step.num_sequences; ++n)
        for (int t = run.step.cu_seqlens[n]; t < run.step.cu_seqlens[n + 1]; t += run.queries_at_once) {
            const int left = run.step.cu_seqlens[n + 1] - t;
            int32_t* item = run.attention_items + 3 * run.num_attention_items++;
            item[0] = n;
            item[1] = t;
            item[2] = left < run.queries_at_once ? left : run.queries_at_once;
        }
}

bool prepare(Run& run, Workspace& space) {
    const size_t T = run.T, A = run.A, E = run.E, pairs = T * A;
    const size_t tiles = (T + kTokenTile - 1) / kTokenTile, expert_tiles = pairs / kTokenTile + E + 1;
    Needs needs;
    for (int i = run.step.first_layer; i < run.step.last_layer; ++i) {
        const OssiaLayer& layer = run.model.layers[i];
        needs.product(run, layer.qkv, T, tiles, run.is_few);
        needs.product(run, layer.out, T, tiles, run.is_few);
        needs.product(run, layer.gate_up, T, expert_tiles, run.is_few);
        needs.product(run, layer.down, pairs, expert_tiles, run.is_few);
    }
    const size_t num_out = run.step.num_out;
    if (run.step.logits != nullptr)
        needs.product(run, run.model.lm_head, num_out, (num_out + kTokenTile - 1) / kTokenTile,
                      num_out <= kFewTokens || run.model.exact);
    space.begin();
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    const size_t x = space.plan(run.step.x == nullptr ? T * run.D * sizeof(float) : 0);
    const size_t qkv = space.plan(T * width * sizeof(float));
    const size_t attended = space.plan(T * largest((size_t)run.H * run.C, run.D) * sizeof(float));
    const size_t hidden = space.plan(pairs * run.F * sizeof(float));
    const size_t outputs = space.plan(run.is_few ? 0 : pairs * run.D * sizeof(float));
    const size_t packed = space.plan(needs.packed + 64);
    const size_t router = space.plan(T * E * sizeof(float));
    const size_t chosen = space.plan(pairs * sizeof(int32_t)), shares = space.plan(pairs * sizeof(float));
    const size_t starts = space.plan((E + 1) * sizeof(int32_t)), tile_starts = space.plan((E + 1) * sizeof(int32_t));
    const size_t tokens = space.plan(pairs * sizeof(int32_t)), weights = space.plan(pairs * sizeof(float));
    const size_t tile_expert = space.plan(expert_tiles * sizeof(int32_t));
    const size_t active = space.plan(E * sizeof(int32_t)), pair_of = space.plan(pairs * sizeof(int32_t));
    const size_t items = space.plan((T + run.step.num_sequences) * 3 * sizeof(int32_t));
    const size_t final_rows = space.plan(run.step.hidden == nullptr ? num_out * run.D * sizeof(float) : 0);
    size_t threads = 0;
    plan_threads(run, space, needs.stage, threads);
    if (!space.commit()) return false;
    run.x = run.step.x != nullptr ? run.step.x : space.at<float>(x);
    run.qkv = space.at<float>(qkv);
    run.attended = space.at<float>(attended);
    run.hidden = space.at<float>(hidden);
    run.outputs = space.at<float>(outputs);
    run.packed = space.at<uint8_t>(packed);
    run.router = space.at<float>(router);
    run.chosen = space.at<int32_t>(chosen);
    run.shares = space.at<float>(shares);
    run.groups = {space.at<int32_t>(starts),      space.at<int32_t>(tile_starts), space.at<int32_t>(tokens),
                  space.at<float>(weights),       space.at<int32_t>(tile_expert), space.at<int32_t>(active),
                  space.at<int32_t>(pair_of),     0,                              0};
    run.attention_items = space.at<int32_t>(items);
    run.final_rows = space.at<float>(final_rows);
    run.threads = space.at<uint8_t>(threads);
    list_attention_items(run);
    return true;
}

int check(const OssiaModel& m, const OssiaStep& s) {
    if (s.num_tokens < 0 || s.num_sequences < 0 || s.first_layer < 0 || s.last_layer > m.num_layers ||
        m.active > 64 || m.active > m.experts || s.page_size <= 0 || (s.ids == nullptr && s.x == nullptr))
        return OSSIA_BAD_ARGUMENT;
    if (s.ids != nullptr)
        for (int t = 0; t < s.num_tokens; ++t)
            if (s.ids[t] < 0 || s.ids[t] >= m.vocab) return OSSIA_BAD_TOKEN;
    int64_t blocks = INT64_MAX;
    for (int i = s.first_layer; i < s.last_layer; ++i)
        if (s.num_blocks[m.layers[i].group] < blocks) blocks = s.num_blocks[m.layers[i].group];
    for (int t = 0; s.first_layer < s.last_layer && t < s.num_tokens; ++t)
        if (s.positions[t] < 0 || s.positions[t] >= m.num_positions || s.positions[t] / s.page_size >= blocks)
            return OSSIA_BAD_POSITION;
    for (int i = 0; i < s.num_out; ++i)
        if (s.out_rows[i] < 0 || s.out_rows[i] >= s.num_tokens) return OSSIA_BAD_ARGUMENT;
    return OSSIA_OK;
}

Run make_run(const OssiaModel& m, const OssiaStep& s) {
    Run run{m, s, current_kernels()};
    run.is_few = s.num_tokens <= kFewTokens || m.exact != 0;
    run.T = s.num_tokens;
    run.D = m.dim, run.H = m.heads, run.K = m.kv_heads, run.C = m.head_dim;
    run.E = m.experts, run.A = m.active, run.F = m.hidden, run.V = m.vocab;
    run.team_size = num_threads();
    return run;
}

// The memory of steps, one step at a time.
Workspace step_space;

struct AttentionCall {
    Run* run;
    const float *q, *sinks;
    int window, group;
    float* out;
};

struct MatmulCall {
    Run* run;
    const OssiaMatrix* matrix;
    const float* x;
    float* out;
};

void attention_thread(Team& team, int thread, void* argument) {
    const AttentionCall& call = *static_cast<AttentionCall*>(argument);
    attend_all(*call.run, team, thread, call.q, (size_t)call.run->H * call.run->C, call.sinks, call.window, call.group,
               0, call.out);
}

void matmul_thread(Team& team, int thread, void* argument) {
    const MatmulCall& call = *static_cast<MatmulCall*>(argument);
    Run& run = *call.run;
    const OssiaMatrix& matrix = *call.matrix;
    run.k.thread_begin();
    if (run.is_few) {
        const size_t bytes = run.k.pack_bytes(matrix.kind, matrix.cols);
        team.barrier_each(run.T, [&](int t) {
            run.k.pack(matrix.kind, call.x + (size_t)t * matrix.cols, matrix.cols, run.packed + t * bytes);
        });
        multiply_few(run, team, thread, matrix, run.T, [&](int begin, int end, int t, int count, float* part) {
            for (int i = 0; i < count; ++i) {
                add_bias(matrix, 0, begin, end, part + (size_t)i * kMaxChunk);
                std::memcpy(call.out + (size_t)(t + i) * matrix.rows + begin, part + (size_t)i * kMaxChunk,
                            (end - begin) * sizeof(float));
            }
        });
    } else {
        pack_tiles(run, team, matrix.kind, matrix.cols, run.T,
                   [&](int, int t) { return call.x + (size_t)t * matrix.cols; });
        multiply_many(run, team, thread, matrix, run.T, [&](int first, int num_rows, int token, int count, float* c) {
            for (int t = 0; t < count; ++t) {
                float* out = call.out + (size_t)(token + t) * matrix.rows + first;
                for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
                add_bias(matrix, 0, first, first + num_rows, out);
            }
        });
    }
    run.k.thread_end();
}

}  // namespace
}  // namespace ossia

using namespace ossia;

int32_t ossia_forward(const OssiaModel* model, const OssiaStep* step) {
    if (const int status = check(*model, *step)) return status;
    if (step->num_tokens == 0) return OSSIA_OK;
    StepLock lock;
    Run run = make_run(*model, *step);
    if (!prepare(run, step_space)) return OSSIA_NO_MEMORY;
    run_team(run_thread, &run);
    return OSSIA_OK;
}

int32_t ossia_attention(const OssiaModel* model, const OssiaStep* step, const float* q, const float* sinks,
                        int32_t window, int32_t group, float* out) {
    OssiaStep alone = *step;
    alone.first_layer = alone.last_layer = alone.num_out = 0;
    StepLock lock;
    Run run = make_run(*model, alone);
    if (!prepare(run, step_space)) return OSSIA_NO_MEMORY;
    AttentionCall call{&run, q, sinks, window, group, out};
    run_team(attention_thread, &call);
    return OSSIA_OK;
}

int32_t ossia_matmul(const OssiaMatrix* matrix, const float* x, int32_t num_tokens, int32_t few_tokens, float* out) {
    if (num_tokens <= 0) return num_tokens == 0 ? OSSIA_OK : OSSIA_BAD_ARGUMENT;
    OssiaModel model{};
    model.heads = model.kv_heads = model.head_dim = model.dim = model.active = model.experts = 1;
    model.exact = few_tokens;
    OssiaStep step{};
    step.num_tokens = num_tokens;
    StepLock lock;
    Run run = make_run(model, step);
    run.is_few = few_tokens != 0;
    Needs needs;
    needs.product(run, *matrix, num_tokens, ceil_div(num_tokens, kTokenTile), run.is_few);
    step_space.begin();
    const size_t packed = step_space.plan(needs.packed + 64);
    size_t threads = 0;
    plan_threads(run, step_space, needs.stage, threads);
    if (!step_space.commit()) return OSSIA_NO_MEMORY;
    run.packed = step_space.at<uint8_t>(packed);
    run.threads = step_space.at<uint8_t>(threads);
    MatmulCall call{&run, matrix, x, out};
    run_team(matmul_thread, &call);
    return OSSIA_OK;
}
