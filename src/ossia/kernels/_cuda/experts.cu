// The experts' two products for few tokens an expert: weights are the tensor cores' 16 rows, tokens their 8 columns.
//
// What there is to do is a list of tiles, each of one expert and up to 8 NT of the tokens that chose it (8; for more,
// experts_many.cu is faster), times the M / 16 row tiles of the matrix, times SPLITS parts of the columns: the units. Every
// block takes an equal stretch of them, keeps the tokens of the few experts in it in shared memory, and gives its warps a
// unit at a time. A lane copies its own 16 bytes of each weight tile through a ring in shared memory, so that nothing waits
// for another lane; a stage of the ring is DEPTH tiles.
//
// Scales apply to the float32 sums of one block of 32 columns.

#include "experts_core.cuh"

#define MAX_SEGMENTS 16
#define MAX_ROWS 128

struct Routed {
  const int* tile_expert;
  const int* tile_begin;  // in the sorted order of pairs
  const int* tile_count;
  const int* num_tiles;
  const int* sorted_pair;      // pair = token * num_active + choice
  const float* pair_weight;
};

struct Segments {
  int row[MAX_SEGMENTS];
  int count[MAX_SEGMENTS];
  int begin[MAX_SEGMENTS];
  int expert[MAX_SEGMENTS];
  int source[MAX_ROWS];   // of each row in shared memory, its row of x
  float share[MAX_ROWS];  // for `down`, its weight
};

// The warp's place in the stream of weight tiles.
struct Cursor {
  const u8* next;
  int unit, step, end;
};

template <int NT, int WARPS, int STAGES, int DEPTH, bool IS_GATE_UP>
DEVICE void run_experts(const u16* x, const u8* weights, const u16* bias, const Routed& routed, void* out, int K, int M,
                        int num_active, int splits, int max_rows, int num_pairs, float alpha, float limit) {
  DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % 32, warp = same_in_warp(threadIdx.x / 32), g = lane / 4, t = lane % 4;
  const int row_tiles = M / 16, chunks = ceil_div(K, 64), per_tile = row_tiles * splits;
  const int row_bytes = chunks * 128 + 64;  // neighbouring rows in different banks
  char* const rows = shared;
  const int steps = ceil_div(chunks, DEPTH), stage_bytes = DEPTH * SLOT_BYTES;
  char* const ring = shared + max_rows * row_bytes + warp * STAGES * stage_bytes;
  Segments* const segments = (Segments*)(shared + max_rows * row_bytes + WARPS * STAGES * stage_bytes);

  if (IS_GATE_UP) wait_for_previous();
  const int num_units = same_in_warp(load_fresh_int(routed.num_tiles)) * per_tile;
  const int last = (int)((i64)num_units * (blockIdx.x + 1) / gridDim.x);
  int first = (int)((i64)num_units * blockIdx.x / gridDim.x);
  bool has_waited = IS_GATE_UP;
  if (IS_GATE_UP) let_next_start();

  while (first < last) {
    // As many segments (stretches of one tile) as fit in shared memory.
    const int first_tile = first / per_tile;
    int num_rows = 0, num_segments = 0, end = first;
    while (end < last && num_segments < MAX_SEGMENTS) {
      const int tile = end / per_tile, count = same_in_warp(load_fresh_int(routed.tile_count + tile));
      if (num_segments > 0 && num_rows + count > max_rows) break;
      if (threadIdx.x == 0) {
        segments->row[num_segments] = num_rows;
        segments->count[num_segments] = count;
        segments->begin[num_segments] = load_fresh_int(routed.tile_begin + tile);
        segments->expert[num_segments] = load_fresh_int(routed.tile_expert + tile);
      }
      num_rows += count;
      ++num_segments;
      end = min_int(last, (tile + 1) * per_tile);
    }
    __syncthreads();

    Cursor cursor;
    auto enter = [&](int unit) {
      cursor.unit = unit;
      if (unit >= end) return;
      const int tile = unit / per_tile, m = unit % per_tile / splits, part = unit % splits;
      cursor.step = part * steps / splits;
      cursor.end = (part + 1) * steps / splits;
      const int expert = same_in_warp(segments->expert[tile - first_tile]);
      cursor.next = weights + (((i64)expert * row_tiles + m) * chunks + cursor.step * DEPTH) * TILE_BYTES;
    };
    int fill = 0;
    auto fetch = [&]() {
      if (cursor.unit < end) {
        char* const stage = ring + fill;
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
          if (DEPTH > 1 && cursor.step * DEPTH + i >= chunks) break;
          copy_async16(stage + i * SLOT_BYTES + lane * 16, cursor.next + i * TILE_BYTES + lane * 16);
          copy_async4(stage + i * SLOT_BYTES + 512 + lane * 4, cursor.next + i * TILE_BYTES + 512 + g * 4);
        }
        cursor.next += DEPTH * TILE_BYTES;
        if (++cursor.step == cursor.end) enter(cursor.unit + WARPS);
      }
      copy_commit();
      fill = fill + stage_bytes == STAGES * stage_bytes ? 0 : fill + stage_bytes;
    };
    enter(first + warp);
    for (int i = 0; i < STAGES - 1; ++i) fetch();
    if (!has_waited) {
      wait_for_previous();
      let_next_start();
      has_waited = true;
    }

    int* const source = segments->source;
    for (int row = threadIdx.x; row < num_rows; row += WARPS * 32) {
      int s = 0;
      while (s + 1 < num_segments && segments->row[s + 1] <= row) ++s;
      const int position = segments->begin[s] + row - segments->row[s];
      const int pair = load_fresh_int(routed.sorted_pair + position);
      source[row] = IS_GATE_UP ? pair / num_active : position;
      if (!IS_GATE_UP) segments->share[row] = load_fresh_float(routed.pair_weight + pair);
    }
    __syncthreads();
    const int pieces = chunks * 8;
    for (int i = threadIdx.x; i < num_rows * pieces; i += WARPS * 32) {
      const int row = i / pieces, piece = i % pieces;
      copy_async16(rows + row * row_bytes + piece * 16, x + ((i64)source[row] * pieces + piece) * 8);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();

    int drain = 0;
    for (int unit = first + warp; unit < end; unit += WARPS) {
      const int tile = unit / per_tile, m = unit % per_tile / splits, part = unit % splits;
      const int s = tile - first_tile, count = same_in_warp(segments->count[s]);
      const u32 biases = *(const u32*)(bias + (i64)segments->expert[s] * M + 16 * m + 2 * g);
      const char* const tokens = rows + segments->row[s] * row_bytes;
      float total[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n) total[n][0] = total[n][1] = total[n][2] = total[n][3] = 0;
      const int last_step = (part + 1) * steps / splits;
#pragma unroll 1
      for (int step = part * steps / splits; step < last_step; ++step) {
        copy_wait<STAGES - 2>();
        const char* const stage = ring + drain;
        uint4 codes[DEPTH];
        u32 scales[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
          codes[i] = *(const uint4*)(stage + i * SLOT_BYTES + lane * 16);
          scales[i] = *(const u32*)(stage + i * SLOT_BYTES + 512 + lane * 4);
        }
        drain = drain + stage_bytes == STAGES * stage_bytes ? 0 : drain + stage_bytes;
        fetch();
        const char* const columns = tokens + step * DEPTH * 128;
        if ((step + 1) * DEPTH <= chunks) {  // without branches between the tiles, so that their work can overlap
#pragma unroll
          for (int i = 0; i < DEPTH; ++i)
            multiply_chunk<NT>(codes[i], scales[i], columns + i * 128, row_bytes, count, total);
        } else {
#pragma unroll
          for (int i = 0; i < DEPTH - 1; ++i)
            if (step * DEPTH + i < chunks)
              multiply_chunk<NT>(codes[i], scales[i], columns + i * 128, row_bytes, count, total);
        }
      }
      const float bias_first = low_bf16(biases), bias_second = high_bf16(biases);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = 8 * n + 2 * t + i;
          if (token >= count) continue;
          const int position = segments->begin[s] + token;
          float one = total[n][i] * 16384.0f, two = total[n][2 + i] * 16384.0f;  // 2^14 = 2^(126 - 112)
          if (part == 0) {
            one += bias_first;
            two += bias_second;
          }
          if (IS_GATE_UP) {
            const float gate = fminf(one, limit), up = fminf(fmaxf(two, -limit), limit);
            const float swish = gate / (1.0f + exp2_fast(-1.44269504f * alpha * gate));
            const int feature = 8 * m + g;
            ((u16*)out)[(i64)position * ceil_div(M / 2, 64) * 64 + place_column(feature)] =
                scaled_bf16(swish * (up + 1.0f));
          } else {
            const float share = segments->share[segments->row[s] + token];
            float2 pair = {one * share, two * share};
            *(float2*)((float*)out + ((i64)part * num_pairs + position) * M + 16 * m + 2 * g) = pair;
          }
        }
      }
    }
    copy_wait<0>();
    __syncthreads();
    first = end;
  }
  if (!has_waited) {
    wait_for_previous();
    let_next_start();
  }
}

#define EXPERT_KERNELS(NT, WARPS, STAGES, DEPTH)                                                                            \
  KERNEL void __launch_bounds__(WARPS * 32, 1) gate_up_##NT(                                                           \
      const u16* x, const u8* weights, const u16* bias, Routed routed, u16* hidden, int K, int M, int num_active,      \
      int max_rows, float alpha, float limit) {                                                                        \
    run_experts<NT, WARPS, STAGES, DEPTH, true>(x, weights, bias, routed, hidden, K, M, num_active, 1, max_rows, 0, alpha,    \
                                         limit);                                                                       \
  }                                                                                                                    \
  KERNEL void __launch_bounds__(WARPS * 32, 1) down_##NT(const u16* hidden, const u8* weights, const u16* bias,        \
                                                         Routed routed, float* out, int K, int M, int num_active,      \
                                                         int splits, int max_rows, int num_pairs) {                    \
    run_experts<NT, WARPS, STAGES, DEPTH, false>(hidden, weights, bias, routed, out, K, M, num_active, splits, max_rows,      \
                                          num_pairs, 0, 0);                                                            \
  }
EXPERT_KERNELS(1, 12, 6, 3)
