// The experts of a layer, grouped by expert, for few tokens and for many.
#pragma once
#include "products.h"

namespace ossia {
namespace {

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

}  // namespace
}  // namespace ossia
