// Products of a team: rows of x, packed once, times a matrix, whose rows are handed out in chunks.
//
// Two ways. Few tokens: each is packed as a row, and each chunk of matrix rows is multiplied with all of them. Many:
// tokens are packed in tiles of 16, and groups of 32 matrix rows are multiplied with blocks of tiles.
#pragma once
#include "run.h"

namespace ossia {
namespace {

constexpr int kTilesAtOnce = 12;  // 192 tokens: of 2,880 columns in bfloat16, half a core's second-level cache

constexpr int kSumsStride = kTilesAtOnce * kTokenTile;

inline int chunk_of_rows(int rows, int cols, int kind, int team_size) {
    // Half a megabyte of weights: what is asked for ahead at the end of a chunk is mostly another thread's, and lost. But
    // sixteen chunks a thread where there are rows enough, so that threads end together.
    const size_t bytes = row_bytes_of(kind, cols);
    int chunk = (int)((size_t)524288 / (bytes > 0 ? bytes : 1)) / 8 * 8;
    const int share = (rows / (16 * team_size) + 7) / 8 * 8;
    if (chunk > share) chunk = share;
    if (chunk > 256) chunk = 256;
    return chunk < 8 ? 8 : chunk;
}



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



// sink(first, num_rows, token, count, c): c[r * kSumsStride + t] are the products of rows from `first` and tokens from
// `token`. Blocks of tokens are outermost, so that their tiles stay in the cache while all rows pass.
template <class Sink>
void multiply_many(const Run& run, Team& team, int thread, const OssiaMatrix& matrix, int num_tokens, bool is_fine,
                   Sink&& sink) {
    const Rows rows = rows_of(matrix, 0);
    const size_t bytes = run.k.tile_bytes(matrix.kind, matrix.cols, is_fine);
    const int at_once = is_fine ? kTilesAtOnce / 2 : kTilesAtOnce;
    const int tiles = ceil_div(num_tokens, kTokenTile), blocks = ceil_div(tiles, at_once);
    const int groups = ceil_div(matrix.rows, kRowGroup);
    float* c = scratch<float>(run, thread, run.offset_sums);
    uint8_t* stage = scratch<uint8_t>(run, thread, run.offset_stage);
    team.chunks((int64_t)blocks * groups, 1, [&](int64_t item, int64_t) {
        const int tile = (int)(item / groups) * at_once, first = (int)(item % groups) * kRowGroup;
        const int num_tiles = tiles - tile < at_once ? tiles - tile : at_once;
        const int num_rows = matrix.rows - first < kRowGroup ? matrix.rows - first : kRowGroup;
        run.k.multiply_tiles(rows, first, num_rows, run.packed + (size_t)tile * bytes, num_tiles, is_fine,
                             stage, c, kSumsStride);
        const int token = tile * kTokenTile;
        const int count = num_tokens - token < at_once * kTokenTile ? num_tokens - token : at_once * kTokenTile;
        sink(first, num_rows, token, count, c);
    });
}

// Tiles of consecutive tokens; row(t) gives a token's values.
template <class Row>
void pack_tiles(const Run& run, Team& team, int kind, int cols, int num_tokens, bool is_fine, Row&& row) {
    const size_t bytes = run.k.tile_bytes(kind, cols, is_fine);
    team.loop(ceil_div(num_tokens, kTokenTile), 1, [&](int64_t tile, int64_t) {
        const int first = (int)tile * kTokenTile;
        const int count = num_tokens - first < kTokenTile ? num_tokens - first : kTokenTile;
        const float* rows[kTokenTile];
        for (int i = 0; i < count; ++i) rows[i] = row(i, first + i);
        run.k.pack_tile(kind, rows, count, cols, is_fine, run.packed + (size_t)tile * bytes);
    });
}

// The same for the pairs of each expert, every expert beginning a tile.
template <class Row>
void pack_expert_tiles(const Run& run, Team& team, int kind, int cols, Row&& row) {
    const Grouping& groups = run.groups;
    const size_t bytes = run.k.tile_bytes(kind, cols, run.is_fine);
    team.loop(groups.num_tiles, 1, [&](int64_t tile, int64_t) {
        const int expert = groups.tile_expert[tile];
        const int first = groups.starts[expert] + ((int)tile - groups.tile_starts[expert]) * kTokenTile;
        const int left = groups.starts[expert + 1] - first, count = left < kTokenTile ? left : kTokenTile;
        const float* rows[kTokenTile];
        for (int i = 0; i < count; ++i) rows[i] = row(first + i);
        run.k.pack_tile(kind, rows, count, cols, run.is_fine, run.packed + (size_t)tile * bytes);
    });
}

// sink(expert, first, num_rows, pair, count, c), as multiply_many.
template <class Sink>
void multiply_experts(const Run& run, Team& team, int thread, const OssiaMatrix& matrix, Sink&& sink) {
    const Grouping& groups = run.groups;
    const size_t bytes = run.k.tile_bytes(matrix.kind, matrix.cols, run.is_fine);
    const int row_groups = ceil_div(matrix.rows, kRowGroup), at_once = run.is_fine ? kTilesAtOnce / 2 : kTilesAtOnce;
    float* c = scratch<float>(run, thread, run.offset_sums);
    uint8_t* stage = scratch<uint8_t>(run, thread, run.offset_stage);
    team.chunks((int64_t)groups.num_active * row_groups, 1, [&](int64_t item, int64_t) {
        const int expert = groups.active[item / row_groups], first = (int)(item % row_groups) * kRowGroup;
        const int num_rows = matrix.rows - first < kRowGroup ? matrix.rows - first : kRowGroup;
        const Rows rows = rows_of(matrix, expert);
        const int end = groups.tile_starts[expert + 1];
        for (int tile = groups.tile_starts[expert]; tile < end; tile += at_once) {
            const int num_tiles = end - tile < at_once ? end - tile : at_once;
            run.k.multiply_tiles(rows, first, num_rows, run.packed + (size_t)tile * bytes, num_tiles, run.is_fine,
                                 stage, c, kSumsStride);
            const int pair = groups.starts[expert] + (tile - groups.tile_starts[expert]) * kTokenTile;
            const int left = groups.starts[expert + 1] - pair;
            sink(expert, first, num_rows, pair, left < at_once * kTokenTile ? left : at_once * kTokenTile, c);
        }
    });
}

}  // namespace
}  // namespace ossia
