// Attention of one block of queries over the pages of one sequence, by blocks of keys with running softmax.
#pragma once
#include "vectors.h"

namespace ossia {
namespace {

// a and b's lanes in turns: of their first halves, or of their second ones.
#if OSSIA_LANES == 16
inline vf zip_low(vf a, vf b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline vf zip_high(vf a, vf b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif OSSIA_LANES == 8
inline vf zip_low(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline vf zip_high(vf a, vf b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline vf zip_low(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline vf zip_high(vf a, vf b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// W rows of W floats, turned: log2(W) rounds of zipping row i with row i + W / 2.
inline void transpose(vf* rows) {
    for (int round = W; round > 1; round /= 2) {
        vf next[W];
        for (int i = 0; i < W / 2; ++i) {
            next[2 * i] = zip_low(rows[i], rows[i + W / 2]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + W / 2]);
        }
        for (int i = 0; i < W; ++i) rows[i] = next[i];
    }
}

// c [R, N] += a [R, depth] * b [depth, N], for N = V * W columns.
template <int R, int V>
inline void outer_product(const float* a, size_t lda, int depth, const float* b, size_t ldb, float* c, size_t ldc) {
    vf sums[R][V];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) sums[r][v] = load(c + r * ldc + v * W);
    for (int k = 0; k < depth; ++k) {
        vf line[V];
        UNROLL for (int v = 0; v < V; ++v) line[v] = load(b + k * ldb + v * W);
        UNROLL for (int r = 0; r < R; ++r) {
            const float factor = a[r * lda + k];
            UNROLL for (int v = 0; v < V; ++v) sums[r][v] += factor * line[v];
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int v = 0; v < V; ++v) store(c + r * ldc + v * W, sums[r][v]);
}

// The same for any number of rows, and of columns that is a multiple of W.
void add_product(const float* a, size_t lda, int num_rows, int depth, const float* b, size_t ldb, int num_cols,
                 float* c, size_t ldc) {
    constexpr int V = W >= 16 ? 4 : 2;
    int n = 0;
    for (; n + V * W <= num_cols; n += V * W) {
        int r = 0;
        for (; r + 4 <= num_rows; r += 4)
            outer_product<4, V>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
        for (; r < num_rows; ++r) outer_product<1, V>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
    }
    for (; n < num_cols; n += W) {
        int r = 0;
        for (; r + 4 <= num_rows; r += 4)
            outer_product<4, 1>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
        for (; r < num_rows; ++r) outer_product<1, 1>(a + r * lda, lda, depth, b + n, ldb, c + r * ldc + n, ldc);
    }
}

size_t attention_scratch(int num_rows, int head_dim) {
    const size_t wide = round_up(head_dim, W);
    // keys turned, values, one row before it is stored; scores, sums and scaled queries; the two running numbers
    return kKeyBlock * (2 * wide) + W * wide + num_rows * (kKeyBlock + 2 * wide + 2);
}

// Values of head `kv_head` of the token at a position, widened; zeros behind C up to a multiple of W.
inline void load_token(const void* pages, int64_t position, const AttentionTask& task, float* out) {
    const int64_t page = task.block_table[position / task.page_size];
    const int64_t slot = page * task.page_size + position % task.page_size;
    const int C = task.head_dim;
    const size_t start = ((size_t)slot * task.kv_heads + task.kv_head) * C;
    if (task.cache_kind == OSSIA_BF16)
        widen((const uint16_t*)pages + start, C, out);
    else if (task.cache_kind == OSSIA_FP8)
        widen_cache((const uint8_t*)pages + start, C, out);
    else
        memcpy(out, (const float*)pages + start, C * sizeof(float));
    for (int i = C; i < round_up(C, W); ++i) out[i] = 0;
}

// Keys and values of positions [from, to) within the block that begins at `base`; what lies outside becomes zero,
// because pages may hold anything there.
void load_block(const AttentionTask& task, int64_t base, int64_t from, int64_t to, float* keys, float* values,
                float* lines) {
    const int wide = round_up(task.head_dim, W);
    for (int j = 0; j < kKeyBlock; j += W) {
        for (int i = 0; i < W; ++i) {
            const int64_t position = base + j + i;
            float* value = values + (size_t)(j + i) * wide;
            if (position >= from && position < to) {
                load_token(task.keys, position, task, lines + i * wide);
                load_token(task.values, position, task, value);
            } else {
                memset(lines + i * wide, 0, wide * sizeof(float));
                memset(value, 0, wide * sizeof(float));
            }
        }
        for (int c = 0; c < wide; c += W) {
            vf square[W];
            for (int i = 0; i < W; ++i) square[i] = load(lines + i * wide + c);
            transpose(square);
            for (int i = 0; i < W; ++i) store(keys + (size_t)(c + i) * kKeyBlock + j, square[i]);
        }
    }
}

// One row's scores become weights; the running largest and sum and the row's values so far are brought up to date.
void add_scores(float* scores, int64_t base, int64_t position, int window, float& largest, float& sum, float* out,
                int wide) {
    const int64_t first = window > 0 && position - window + 1 > base ? position - window + 1 - base : 0;
    const int64_t end = position + 1 - base < kKeyBlock ? position + 1 - base : kKeyBlock;
    for (int64_t j = 0; j < first && j < kKeyBlock; ++j) scores[j] = -INFINITY;
    for (int64_t j = end > 0 ? end : 0; j < kKeyBlock; ++j) scores[j] = -INFINITY;
    vf top = load(scores);
    for (int j = W; j < kKeyBlock; j += W) {
        const vf next = load(scores + j);
        top = next > top ? next : top;
    }
    float new_largest = largest;
    for (int i = 0; i < W; ++i) new_largest = top[i] > new_largest ? top[i] : new_largest;
    vf total = {};
    for (int j = 0; j < kKeyBlock; j += W) {
        const vf weight = exp_lanes(load(scores + j) - new_largest);
        store(scores + j, weight);
        total += weight;
    }
    const float kept = new_largest == largest ? 1.0f : exp_lanes(splat(largest - new_largest))[0];
    sum = sum * kept + sum_lanes(total);
    largest = new_largest;
    if (kept != 1.0f)
        for (int c = 0; c < wide; c += W) store(out + c, load(out + c) * kept);
}

void attention(const AttentionTask& task) {
    const int R = task.num_rows, C = task.head_dim, wide = round_up(C, W);
    float* keys = task.scratch;
    float* values = keys + (size_t)kKeyBlock * wide;
    float* lines = values + (size_t)kKeyBlock * wide;
    float* scores = lines + (size_t)W * wide;
    float* sums = scores + (size_t)R * kKeyBlock;
    float* queries = sums + (size_t)R * wide;
    float* largest = queries + (size_t)R * wide;
    float* denominators = largest + R;
    const float scale = 1.0f / sqrtf((float)C);
    int64_t from = INT64_MAX, to = 0;
    UNROLL for (int r = 0; r < R; ++r) {
        const int64_t position = task.row_positions[r];
        const int64_t first = task.window > 0 && position >= task.window ? position - task.window + 1 : 0;
        from = first < from ? first : from;
        to = position + 1 > to ? position + 1 : to;
        for (int c = 0; c < C; ++c) queries[(size_t)r * wide + c] = task.q[(size_t)r * C + c] * scale;
        largest[r] = task.row_sinks[r];  // the sink is a key that has no value
        denominators[r] = 1.0f;
    }
    memset(sums, 0, (size_t)R * wide * sizeof(float));
    for (int64_t base = from / kKeyBlock * kKeyBlock; base < to; base += kKeyBlock) {
        load_block(task, base, from, to, keys, values, lines);
        memset(scores, 0, (size_t)R * kKeyBlock * sizeof(float));
        add_product(queries, wide, R, C, keys, kKeyBlock, kKeyBlock, scores, kKeyBlock);
        UNROLL for (int r = 0; r < R; ++r)
            add_scores(scores + (size_t)r * kKeyBlock, base, task.row_positions[r], task.window, largest[r],
                       denominators[r], sums + (size_t)r * wide, wide);
        add_product(scores, kKeyBlock, R, kKeyBlock, values, wide, wide, sums, wide);
    }
    UNROLL for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) task.out[(size_t)r * C + c] = sums[(size_t)r * wide + c] / denominators[r];
}

}  // namespace
}  // namespace ossia
