// Keys and values into the cache, and attention over it, a block of queries and a KV head at a time.
#pragma once
#include "fp8.h"
#include "run.h"

namespace ossia {
namespace {

void write_cache(const Run& run, const OssiaLayer& layer, int index, int t) {
    const int64_t slot = run.step.slot_mapping[layer.group][t];
    const size_t width = (size_t)run.K * run.C, start = (size_t)slot * width;
    const float* k = run.qkv + (size_t)t * (run.H + 2 * run.K) * run.C + (size_t)run.H * run.C;
    const float* v = k + width;
    if (run.step.cache_kind == OSSIA_BF16) {
        run.k.narrow(k, (int)width, (uint16_t*)run.step.keys[index] + start);
        run.k.narrow(v, (int)width, (uint16_t*)run.step.values[index] + start);
    } else if (run.step.cache_kind == OSSIA_FP8) {
        for (size_t i = 0; i < width; ++i) {
            ((uint8_t*)run.step.keys[index])[start + i] = round_fp8(k[i]);
            ((uint8_t*)run.step.values[index])[start + i] = round_fp8(v[i]);
        }
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

}  // namespace
}  // namespace ossia
