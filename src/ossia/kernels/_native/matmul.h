// Products of a team: rows of x, packed once, times a matrix, whose rows are handed out in chunks.
//
// Two ways. `few`: tokens are packed one by one (Packed::row) and each chunk of matrix rows is multiplied with all of
// them. `many`: tokens are packed in tiles of 16 (Packed::tile), and groups of 32 matrix rows are staged and multiplied
// with blocks of tiles that fit a core's cache.
#pragma once
#include "kernels.h"
#include "pool.h"

namespace ossia {

constexpr int kTilesAtOnce = 12;  // 192 tokens: of 2,880 columns in bfloat16, half a core's second-level cache

struct ThreadScratch {
    float* part;     // [kFewTokens or more, rows of a chunk]
    uint8_t* stage;  // of a row group
    float* sums;     // [kRowGroup, kTilesAtOnce * kTokenTile]
};

// What receives the products of a row group: c[r * ld + t] of rows [first, first + num_rows), tokens from `token`.
// (For `few`, see multiply_few.)
constexpr int kSumsStride = kTilesAtOnce * kTokenTile;

inline int chunk_of_rows(int rows, int cols, int kind, int team_size) {
    // About 64 KiB of weights a chunk, but at least four chunks a thread where there are rows enough.
    const size_t bytes = row_bytes_of(kind, cols);
    int chunk = (int)((size_t)65536 / (bytes > 0 ? bytes : 1)) / 8 * 8;
    const int share = (rows / (4 * team_size) + 7) / 8 * 8;
    if (chunk > share) chunk = share;
    if (chunk > 256) chunk = 256;
    return chunk < 8 ? 8 : chunk;
}

}  // namespace ossia
