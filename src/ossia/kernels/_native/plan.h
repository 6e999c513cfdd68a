// What a step needs of memory, and whether its arguments can be taken.
#pragma once
#include "attend.h"
#include "products.h"

namespace ossia {
namespace {

size_t largest(size_t a, size_t b) { return a > b ? a : b; }

struct Needs {
    size_t packed = 0, stage = 0;

    void product(const Run& run, const OssiaMatrix& matrix, size_t few_tokens, size_t many_tiles, bool is_few,
                 bool is_fine) {
        if (is_few) {
            packed = largest(packed, few_tokens * run.k.pack_bytes(matrix.kind, matrix.cols));
        } else {
            packed = largest(packed, many_tiles * run.k.tile_bytes(matrix.kind, matrix.cols, is_fine));
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
        needs.product(run, layer.qkv, T, tiles, run.is_few, run.is_fine);
        needs.product(run, layer.out, T, tiles, run.is_few, run.is_fine);
        needs.product(run, layer.gate_up, T, expert_tiles, run.has_few_experts, run.is_fine);
        needs.product(run, layer.down, pairs, expert_tiles, run.has_few_experts, run.is_fine);
    }
    const size_t num_out = run.step.num_out;
    if (run.step.logits != nullptr)
        needs.product(run, run.model.lm_head, num_out, (num_out + kTokenTile - 1) / kTokenTile,
                      num_out <= run.k.few_tokens || run.model.exact, num_out <= kFineTokens);
    space.begin();
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    const size_t x = space.plan(run.step.x == nullptr ? T * run.D * sizeof(float) : 0);
    const size_t qkv = space.plan(T * width * sizeof(float));
    const size_t attended = space.plan(T * largest((size_t)run.H * run.C, run.D) * sizeof(float));
    const size_t hidden = space.plan(pairs * run.F * sizeof(float));
    const size_t outputs = space.plan(run.has_few_experts ? 0 : pairs * run.D * sizeof(float));
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

// Whether a step is too short for threads to pay: each phase of it would last no longer than they take to meet, and
// where something else runs on the machine they would wait for each other most of the time.
bool is_short(const Run& run) {
    constexpr size_t kShort = (size_t)24 << 20;  // bytes of weights times tokens: one to two milliseconds of one core
    size_t bytes = 0;
    const auto add = [&](const OssiaMatrix& matrix, size_t times) {
        const size_t row = row_bytes_of(matrix.kind, matrix.cols) + scale_bytes_of(matrix.kind, matrix.cols);
        bytes += times * matrix.rows * row;
    };
    for (int i = run.step.first_layer; i < run.step.last_layer; ++i) {
        const OssiaLayer& layer = run.model.layers[i];
        add(layer.qkv, run.T);
        add(layer.out, run.T);
        add(layer.gate_up, (size_t)run.T * run.A);
        add(layer.down, (size_t)run.T * run.A);
    }
    if (run.step.logits != nullptr) add(run.model.lm_head, run.step.num_out);
    for (int t = 0; t < run.T && bytes < kShort; ++t)  // keys and values, in float32 at most
        bytes += (size_t)run.step.positions[t] * run.K * run.C * 8 * (run.step.last_layer - run.step.first_layer);
    return bytes < kShort;
}

int check(const OssiaModel& m, const OssiaStep& s) {
    if (s.num_tokens < 0 || s.num_sequences < 0 || s.first_layer < 0 || s.last_layer > m.num_layers ||
        m.active > 64 || m.active > m.experts || s.page_size <= 0 ||
        (s.num_tokens > 0 && s.ids == nullptr && s.x == nullptr))
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

}  // namespace
}  // namespace ossia
