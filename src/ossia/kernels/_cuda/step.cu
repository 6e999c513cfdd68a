// A whole decode step of one sequence, all layers, as one grid that never leaves the chip.
//
// One block a multiprocessor, 12 warps each. A layer has six phases, and all blocks wait for each other after each:
//
//   1 qkv      stream += experts' sums; norm; q, k and v -> sums
//   2 attend   rope, the cache; blocks of (KV head, share of the keys) -> attended
//   3 out      -> sums
//   4 route    stream += sums; norm; a block an expert -> logits
//   5 gate_up  the best experts -> hidden
//   6 down     all experts' columns of a row tile in a row -> sums
//
// Every block keeps the residual stream, float32, in shared memory; all copies are the same to the bit.
//
// A phase's weights are a line of stages (2 blocks of 32 columns, or 3 packed tiles), row tile after row tile. Every block
// takes an equal stretch of the line, every warp an equal part of that; what the warps have of one row tile is added up in
// shared memory. A block's stretch is at least a row tile long, so that a row tile has sums of at most two blocks: of the
// one with its first stage, and of the next, which are zeros where there is none. (gate_up's stretches are whole row tiles.)
//
// Weights come through a ring of each warp that runs ahead across phases: while a block waits for the others, its next
// weights are on their way. Only gate_up must first know the experts.

#include "attention_core.cuh"

#include "experts_core.cuh"

#include "router_core.cuh"

// Times within the step, for tuning: MARKS is a pointer to i64 [layers, blocks, 16].
#ifdef OSSIA_MARKS
#define MARK(i)                                                                                              \
  if (threadIdx.x == 0) ((i64*)OSSIA_MARKS)[((i64)layer * gridDim.x + blockIdx.x) * 16 + (i)] = clock64()
#else
#define MARK(i)
#endif

#ifndef STEP_WARPS
#define STEP_WARPS 12
#define STEP_STAGES 7
#endif
#define THREADS (STEP_WARPS * 32)
#define ATTEND_WARPS STEP_WARPS
#define STAGE_BYTES 2048
#define DEPTH 3      // packed tiles a stage
#define MAX_TILES 8  // row tiles that one warp may touch in a phase
#define MAX_ACTIVE 32

enum Phase { QKV, OUT, GATE_UP, DOWN, NUM_STREAMED };

struct LayerWeights {
  const u8* streamed[NUM_STREAMED];  // the phases' matrices
  const u16 *attn_norm, *qkv_bias, *out_bias, *sinks, *mlp_norm, *router, *router_bias, *gate_up_bias, *down_bias;
  u16 *keys, *values;
  i64 window;  // 0 for none
};

// A phase's line of stages. A unit is what lies in one row of a matrix: a row tile, or a row tile of one expert.
struct Line {
  int units, unit_stages, pieces;  // pieces: blocks of 32 columns or packed tiles of a unit
  int tile_units;                  // units that add up to a row tile's sums: of all experts in down, else 1
  int row_tiles;                   // of one matrix
};

struct StepArgs {
  const LayerWeights* layers;
  const u16 *embedding, *final_norm;
  const i64 *token_id, *position, *full_slot, *sliding_slot;
  const int *context_len, *full_table, *sliding_table;
  const float *cosines, *sines;
  float* qkv_sums;   // [2][(H + 2 KV) C]
  float* row_sums;   // [2][D], of phase 3
  float* down_sums;  // [2][D]
  u16* attended;     // [H C]
  float* logits;     // [E]
  u16* hidden;       // [A, F]
  float* shares;     // of attention, [KV, splits, 16 + 8 C]
  int* arrived;      // [KV], zeros before and after
  u32* barrier;      // [2], zeros before and after
  u16* normed;       // [D], the result
  Line lines[NUM_STREAMED];
  int num_layers, D, F, H, KV, C, E, A, full_columns, sliding_columns, page_size;
  float epsilon, alpha, limit;
};

struct Stretch {
  int begin, end;
};

DEVICE Stretch part_of(Stretch whole, int index, int count) {
  Stretch s;
  s.begin = whole.begin + (u32)(whole.end - whole.begin) * (u32)index / (u32)count;
  s.end = whole.begin + (u32)(whole.end - whole.begin) * (u32)(index + 1) / (u32)count;
  return s;
}

DEVICE Stretch block_stretch(const Line& l, int phase) {
  const int grain = phase == GATE_UP ? l.unit_stages : 1;
  Stretch whole = {0, phase == GATE_UP ? l.units : l.units * l.unit_stages};
  whole = part_of(whole, blockIdx.x, gridDim.x);
  whole.begin *= grain;
  whole.end *= grain;
  return whole;
}

struct Shared {
  float* stream;         // [D]
  char* vector;          // bfloat16 [max(D, H C)], input of qkv and out; queries in phase 2
  char* tokens;          // [A] rows for the packed products; phase 2 keeps its partial results here
  float* sums;           // [STEP_WARPS][MAX_TILES][16]
  int* sum_tiles;        // [STEP_WARPS][2], each warp's first row tile and how many
  float* scratch;        // [32]
  int* experts;          // [MAX_ACTIVE]
  float* weights;        // [MAX_ACTIVE]
  int* flag;
  Stretch* stretches;    // [NUM_STREAMED], the block's
  LayerWeights* layers;  // [2], this layer's and the next one's, by parity
  char* rings;
};

DEVICE int token_bytes(int columns) { return ceil_div(columns, 64) * 128 + 64; }

DEVICE Shared lay_out(const StepArgs& s, char* at) {
  Shared m;
  m.rings = at;
  at += STEP_WARPS * STEP_STAGES * STAGE_BYTES;
  m.tokens = at;
  at += max_int(s.A * token_bytes(max_int(s.D, s.F)), ATTEND_WARPS * (16 + 8 * s.C) * 4);
  m.vector = at;
  at += max_int(s.D, s.H * s.C) * 2;
  m.stream = (float*)at;
  at += s.D * 4;
  m.sums = (float*)at;
  at += STEP_WARPS * MAX_TILES * 64;
  m.layers = (LayerWeights*)at;
  at += 2 * sizeof(LayerWeights);
  m.sum_tiles = (int*)at;
  at += STEP_WARPS * 8;
  m.stretches = (Stretch*)at;
  at += NUM_STREAMED * 8;
  m.scratch = (float*)at;
  at += 128;
  m.experts = (int*)at;
  m.weights = (float*)at + MAX_ACTIVE;
  m.flag = (int*)at + 2 * MAX_ACTIVE;
  return m;
}

// A warp's stream of weights: what is fetched next, and how far fetching is ahead of use.
//
// A stage is up to four copies of 16 bytes a lane, from `from`, + first_step, + second_step and + both.
struct Feed {
  char* ring;
  const u8* from;
  int first_step, second_step;
  int layer, phase, at, end, pieces;  // stages of the line; pieces left of the unit
  int fill, drain, ahead;
  int routed;  // layers whose experts are known
};

// Point the feed at its next stage; past the warp's part, at the next phase. Experts must be known to be pointed at.
DEVICE void enter_unit(Feed& f, const StepArgs& s, const Shared& m) {
  const int lane = threadIdx.x % 32;
  while (f.at >= f.end) {
    if (++f.phase == NUM_STREAMED) f.phase = 0, ++f.layer;
    if (f.layer == s.num_layers) return;
    const Stretch mine = part_of(m.stretches[f.phase], threadIdx.x / 32, STEP_WARPS);
    f.at = mine.begin;
    f.end = mine.end;
  }
  const bool is_packed = f.phase >= GATE_UP;
  if (is_packed && f.routed <= f.layer) return;
  const Line& l = s.lines[f.phase];
  const int unit = (u32)f.at / (u32)l.unit_stages, stage = f.at - unit * l.unit_stages;
  int row = unit * 16 + lane / 4;
  if (is_packed) {
    const u32 divisor = f.phase == GATE_UP ? l.row_tiles : s.A;
    const int quotient = (u32)unit / divisor, rest = unit - quotient * divisor;
    row = m.experts[f.phase == GATE_UP ? quotient : rest] * l.row_tiles + (f.phase == GATE_UP ? rest : quotient);
  }
  const int piece_bytes = is_packed ? TILE_BYTES : 64, stage_pieces = is_packed ? DEPTH : 2;
  f.pieces = l.pieces - stage_pieces * stage;
  f.first_step = is_packed ? 512 : 8 * 64 * l.pieces;
  f.second_step = is_packed ? 1024 : 64;
  f.from = m.layers[f.layer & 1].streamed[f.phase] + (i64)row * (l.pieces * piece_bytes) +
           stage * stage_pieces * piece_bytes + (is_packed ? lane : lane % 4) * 16;
}

// Fetch one stage, if there is room and it is known what.
DEVICE bool fetch(Feed& f, const StepArgs& s, const Shared& m) {
  if (f.ahead == STEP_STAGES || f.layer == s.num_layers || (f.phase >= GATE_UP && f.routed <= f.layer)) return false;
  const int lane = threadIdx.x % 32;
  char* const to = f.ring + f.fill * STAGE_BYTES + lane * 16;
  const bool is_packed = f.phase >= GATE_UP;
  const int copies = is_packed ? (min_int(f.pieces, DEPTH) * TILE_BYTES - lane * 16 + 511) / 512 : f.pieces > 1 ? 4 : 2;
  copy_async16(to, f.from);
  if (copies > 1) copy_async16(to + 512, f.from + f.first_step);
  if (copies > 2) copy_async16(to + 1024, f.from + f.second_step);
  if (copies > 3) copy_async16(to + 1536, f.from + f.first_step + f.second_step);
  copy_commit();
  f.from += is_packed ? DEPTH * TILE_BYTES : 128;
  f.pieces -= is_packed ? DEPTH : 2;
  f.fill = f.fill + 1 == STEP_STAGES ? 0 : f.fill + 1;
  ++f.ahead;
  if (++f.at >= f.end || f.pieces <= 0) enter_unit(f, s, m);
  return true;
}

// Wait until the oldest stage that was fetched is there, for all lanes.
DEVICE const char* await_stage(const Feed& f) {
  switch (f.ahead) {
    case 1: copy_wait<0>(); break;
    case 2: copy_wait<1>(); break;
    case 3: copy_wait<2>(); break;
    case 4: copy_wait<3>(); break;
    case 5: copy_wait<4>(); break;
    case 6: copy_wait<5>(); break;
    case 7: copy_wait<6>(); break;
    case 8: copy_wait<7>(); break;
    case 9: copy_wait<8>(); break;
    case 10: copy_wait<9>(); break;
    default: copy_wait<10>(); break;
  }
  __syncwarp();
  return f.ring + f.drain * STAGE_BYTES;
}

// This warp's part of a phase's line: its sums of each row tile, to shared memory. There is one copy of this code for
// all phases, because the whole step must fit the instruction cache.
DEVICE void run_line(Feed& f, const StepArgs& s, const Shared& m, int phase) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const bool is_packed = phase >= GATE_UP;
  const Line& l = s.lines[phase];
  const Stretch mine = part_of(m.stretches[phase], warp, STEP_WARPS);
  const int first_unit = (u32)mine.begin / (u32)l.unit_stages, first_tile = (u32)first_unit / (u32)l.tile_units;
  float* const sums = m.sums + warp * MAX_TILES * 16;
  int unit = first_unit, stage = mine.begin - unit * l.unit_stages, slot = first_unit - first_tile * l.tile_units;
  int tile = 0, count = 0;
#pragma unroll 1
  while (fetch(f, s, m)) {
  }
  float total[1][4] = {{0, 0, 0, 0}};
#pragma unroll 1
  for (int at = mine.begin; at < mine.end; ++at) {
    const char* const from = await_stage(f) + lane * 16;
    const int stride = is_packed ? TILE_BYTES : 512;
    uint4 words[4];
#pragma unroll
    for (int i = 0; i < 3; ++i) words[i] = *(const uint4*)(from + i * stride);
    u32 scales[DEPTH];
    if (is_packed) {
#pragma unroll
      for (int i = 0; i < DEPTH; ++i) scales[i] = *(const u32*)(from - lane * 16 + i * TILE_BYTES + 512 + g * 4);
    } else {
      words[3] = *(const uint4*)(from + 3 * 512);
    }
    __syncwarp();
    f.drain = f.drain + 1 == STEP_STAGES ? 0 : f.drain + 1;
    --f.ahead;
    fetch(f, s, m);
    if (is_packed) {
      const char* const token = m.tokens + slot * token_bytes(s.F) + stage * DEPTH * 128;
      if ((stage + 1) * DEPTH <= l.pieces) {  // without branches between the tiles, so that their work can overlap
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) multiply_chunk<1>(words[i], scales[i], token + i * 128, 0, 1, total);
      } else {
#pragma unroll
        for (int i = 0; i < DEPTH - 1; ++i)
          if (stage * DEPTH + i < l.pieces) multiply_chunk<1>(words[i], scales[i], token + i * 128, 0, 1, total);
      }
    } else {
      const char* const vector = m.vector + stage * 128 + t * 16;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (stage * 2 + i < l.pieces) {
          const uint4 b = *(const uint4*)(vector + i * 64);
          mma(total[0], words[2 * i].x, words[2 * i + 1].x, words[2 * i].y, words[2 * i + 1].y, b.x, b.y);
          mma(total[0], words[2 * i].z, words[2 * i + 1].z, words[2 * i].w, words[2 * i + 1].w, b.z, b.w);
        }
    }
    if (++stage < l.unit_stages && at + 1 < mine.end) continue;
    if (t == 0) {  // the unit's, or the warp's, last stage
      float share = 1.0f;
      if (is_packed) share = phase == DOWN ? m.weights[slot] * 16384.0f : 16384.0f;  // 2^14 = 2^(126 - 112)
      float* const one = sums + tile * 16 + (is_packed ? 2 * g : g);
      float* const two = sums + tile * 16 + (is_packed ? 2 * g + 1 : g + 8);
      *one = (tile >= count ? 0.0f : *one) + total[0][0] * share;
      *two = (tile >= count ? 0.0f : *two) + total[0][2] * share;
    }
    count = tile + 1;
    stage = 0;
    if (++slot == l.tile_units) slot = 0, ++tile;
    total[0][0] = total[0][1] = total[0][2] = total[0][3] = 0;
  }
  if (lane == 0) {
    m.sum_tiles[2 * warp] = first_tile;
    m.sum_tiles[2 * warp + 1] = count;
  }
}

// Row `row` of row tile `tile`, over the block's warps in their order.
DEVICE float add_warps(const Shared& m, int tile, int row) {
  float sum = 0;
#pragma unroll 4
  for (int warp = 0; warp < STEP_WARPS; ++warp) {
    const int i = tile - m.sum_tiles[2 * warp];
    if (i >= 0 && i < m.sum_tiles[2 * warp + 1]) sum += m.sums[(warp * MAX_TILES + i) * 16 + row];
  }
  return sum;
}

// The block's sums of each row tile to sums [2][rows]; `bias` is what this thread's row gets besides.
DEVICE void write_sums(const StepArgs& s, const Shared& m, int phase, float* sums, float bias) {
  const Line& l = s.lines[phase];
  const Stretch mine = m.stretches[phase];
  const int tile_stages = l.unit_stages * l.tile_units, num_rows = l.row_tiles * 16;
  const int first_tile = (u32)mine.begin / (u32)tile_stages, last_tile = (u32)(mine.end - 1) / (u32)tile_stages;
#pragma unroll 1
  for (int i = threadIdx.x; i < (last_tile - first_tile + 1) * 16; i += THREADS) {
    const int tile = first_tile + i / 16;
    const bool has_first = tile * tile_stages >= mine.begin, has_last = (tile + 1) * tile_stages <= mine.end;
    const float sum = add_warps(m, tile, i % 16) + (has_first ? bias : 0.0f);
    sums[(has_first ? 0 : num_rows) + tile * 16 + i % 16] = sum;
    if (has_first && has_last) sums[num_rows + tile * 16 + i % 16] = 0;
  }
}

// All blocks: what was written before can be read after. Split in two, so that work can lie between.
DEVICE void arrive(u32* barrier) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    add_release(barrier);
  }
}
DEVICE void await_all(u32* barrier, u32* generation) {
  *generation += gridDim.x;
  if (threadIdx.x == 0) {
    while (load_acquire(barrier) < *generation) {
    }
    __threadfence();
  }
  __syncthreads();
}

// Four columns a thread and piece; PIECES pieces are loaded at once, so that their latencies overlap.
#define PIECES ((3072 + THREADS * 4 - 1) / (THREADS * 4))
#define COLUMNS (PIECES * THREADS * 4)

struct Ahead {
  uint2 norm[PIECES], bias[PIECES];
};

// What add_and_norm needs of the weights, loaded before the block waits for the others.
DEVICE void load_ahead(Ahead* ahead, const StepArgs& s, const u16* bias, const u16* norm) {
#pragma unroll
  for (int j = 0; j < PIECES; ++j) {
    const int i = (j * THREADS + threadIdx.x) * 4;
    ahead->bias[j].x = ahead->bias[j].y = ahead->norm[j].x = ahead->norm[j].y = 0;
    if (i < s.D) ahead->norm[j] = *(const uint2*)(norm + i);
    if (i < s.D && bias) ahead->bias[j] = *(const uint2*)(bias + i);
  }
}

// stream += the two blocks' sums (if any) + bias; then its norm, bfloat16, to vector, and if `is_placed` to tokens.
DEVICE void add_and_norm(const StepArgs& s, const Shared& m, const float* sums, const Ahead& ahead, bool is_placed) {
  uint4 first[PIECES], second[PIECES];
  if (sums) {
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const int i = (j * THREADS + threadIdx.x) * 4;
      if (i < s.D) first[j] = load_fresh(sums + i);
      if (i < s.D) second[j] = load_fresh(sums + s.D + i);
    }
  }
  float squares = 0;
#pragma unroll
  for (int j = 0; j < PIECES; ++j) {
    const int i = (j * THREADS + threadIdx.x) * 4;
    if (i >= s.D) continue;
    float4 x = *(const float4*)(m.stream + i);
    if (sums) {
      x.x += __uint_as_float(first[j].x) + __uint_as_float(second[j].x) + low_bf16(ahead.bias[j].x);
      x.y += __uint_as_float(first[j].y) + __uint_as_float(second[j].y) + high_bf16(ahead.bias[j].x);
      x.z += __uint_as_float(first[j].z) + __uint_as_float(second[j].z) + low_bf16(ahead.bias[j].y);
      x.w += __uint_as_float(first[j].w) + __uint_as_float(second[j].w) + high_bf16(ahead.bias[j].y);
      *(float4*)(m.stream + i) = x;
    }
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  const float scale = rsqrtf(block_sum(squares, m.scratch) / s.D + s.epsilon);
#pragma unroll
  for (int j = 0; j < PIECES; ++j) {
    const int i = (j * THREADS + threadIdx.x) * 4;
    if (i >= s.D) continue;
    const float4 x = *(const float4*)(m.stream + i);
    const uint2 gain = ahead.norm[j];
    uint2 pair;
    pair.x = pack_bf16(x.x * scale * low_bf16(gain.x), x.y * scale * high_bf16(gain.x));
    pair.y = pack_bf16(x.z * scale * low_bf16(gain.y), x.w * scale * high_bf16(gain.y));
    *(uint2*)(m.vector + i * 2) = pair;
    if (is_placed) {
      *(u32*)(m.tokens + place_column(i) * 2) = scale_up(pair.x);
      *(u32*)(m.tokens + place_column(i + 2) * 2) = scale_up(pair.y);
    }
  }
  if (is_placed && s.D % 64 && threadIdx.x < 16) *(u32*)(m.tokens + (s.D + threadIdx.x * 2) * 2) = 0;
  __syncthreads();
}

// The experts' hidden rows, [A] of whole tiles' width.
DEVICE void stage_hidden(const StepArgs& s, const Shared& m) {
  const int pieces = ceil_div(s.F, 64) * 8, total = s.A * pieces, stride = token_bytes(s.F);
#pragma unroll 1
  for (int base = threadIdx.x; base < total; base += THREADS * 4) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (base + j * THREADS < total) v[j] = load_fresh(s.hidden + (base + j * THREADS) * 8);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = base + j * THREADS;
      if (i < total) *(uint4*)(m.tokens + i / pieces * stride + i % pieces * 16) = v[j];
    }
  }
  __syncthreads();
}

// Phase 2, for KV head kv: q turned to vector; with is_writer also k and v to their slot.
DEVICE void make_query(const StepArgs& s, const Shared& m, const LayerWeights& w, i64 position, i64 slot, int kv,
                       bool is_writer) {
  const int half = s.C / 2, group = s.H / s.KV, rows = (s.H + 2 * s.KV) * s.C;
#pragma unroll 1
  for (int i = threadIdx.x; i < (group + 2) * half; i += THREADS) {
    const int which = i / half, dim = i % half;
    const int head = which < group ? kv * group + which : s.H + (which - group) * s.KV + kv;
    const int first = head * s.C + dim, second = first + half;
    float one = load_fresh_float(s.qkv_sums + first) + load_fresh_float(s.qkv_sums + rows + first);
    float two = load_fresh_float(s.qkv_sums + second) + load_fresh_float(s.qkv_sums + rows + second);
    one += load_bf16(w.qkv_bias + first);
    two += load_bf16(w.qkv_bias + second);
    if (which <= group) {
      const float cosine = s.cosines[position * s.C + half + dim], sine = s.sines[position * s.C + half + dim];
      const float turned = one * cosine - two * sine;
      two = two * cosine + one * sine;
      one = turned;
    }
    u16* to = (u16*)m.vector + which * s.C;
    if (which >= group) {
      if (!is_writer) continue;
      to = (which == group ? w.keys : w.values) + (slot * s.KV + kv) * s.C;
    }
    to[dim] = to_bf16(one);
    to[dim + half] = to_bf16(two);
  }
  __syncthreads();  // the block itself reads what it wrote to the cache
}

// Before the block waits for q: the page and, into the L2, the keys and values that a warp will read first.
template <int C>
DEVICE void prefetch_pages(const StepArgs& s, const LayerWeights& w, int context) {
  const int window = (int)w.window, splits = max_int(1, gridDim.x / s.KV), warp = threadIdx.x / 32;
  const Shares shares = share_out(context, window, splits, ATTEND_WARPS);
  const int kv = blockIdx.x % s.KV, split = blockIdx.x / s.KV;
  if (split >= shares.used || warp >= ATTEND_WARPS) return;
  const int run = shares.first_run + (int)((i64)shares.runs * split / shares.used) + warp;
  if (run >= shares.first_run + shares.runs) return;
  const int* const table = window ? s.sliding_table : s.full_table;
  const int page = load_fresh_int(table + run * 16 / s.page_size), key = threadIdx.x % 16;
  const u16* const from = threadIdx.x % 32 < 16 ? w.keys : w.values;
  prefetch(from + (((i64)page * s.page_size + run * 16 % s.page_size + key) * s.KV + kv) * C);
}

template <int C>
DEVICE void run_attention_phase(const StepArgs& s, const Shared& m, const LayerWeights& w, int context, i64 position,
                                i64 slot) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, group = s.H / s.KV, window = (int)w.window;
  const int splits = max_int(1, gridDim.x / s.KV);
  const Pages pages = {w.keys, w.values, window ? s.sliding_table : s.full_table, s.context_len,
                       window ? s.sliding_columns : s.full_columns, s.page_size};
  const Shares shares = share_out(context, window, splits, ATTEND_WARPS);
#pragma unroll 1
  for (int task = blockIdx.x; task < s.KV * shares.used; task += gridDim.x) {
    const int kv = task % s.KV, split = task / s.KV;
    make_query(s, m, w, position, slot, kv, split == shares.used - 1);
    u32 query[C / 32][4];
    const char* const head_query = m.vector + min_int(g, group - 1) * C * 2;
#pragma unroll
    for (int block = 0; block < C / 32; ++block) {
      const uint4 v = *(const uint4*)(head_query + block * 64 + t * 16);
      query[block][0] = v.x, query[block][1] = v.y, query[block][2] = v.z, query[block][3] = v.w;
    }
    attend_share<C, ATTEND_WARPS>(query, pages, shares, split, 0, kv, s.KV, (float*)m.tokens);
    __syncthreads();
    join_shares<C, ATTEND_WARPS>((const float*)m.tokens, w.sinks + kv * group, group, split, shares.used,
                          s.attended + kv * group * C, s.shares + (i64)kv * splits * (16 + 8 * C), s.arrived + kv,
                          m.flag);
    __syncthreads();
  }
}

// Phase 4: the logits of this block's experts; `ahead` is this thread's first piece of the first one's row.
DEVICE void run_router(const StepArgs& s, const Shared& m, const LayerWeights& w, const uint4& ahead) {
#pragma unroll 1
  for (int expert = blockIdx.x; expert < s.E; expert += gridDim.x) {
    float logit = 0;
#pragma unroll 1
    for (int at = threadIdx.x * 8; at < s.D; at += THREADS * 8) {
      const bool is_ahead = expert == (int)blockIdx.x && at == (int)threadIdx.x * 8;
      const uint4 a = is_ahead ? ahead : *(const uint4*)(w.router + (i64)expert * s.D + at);
      const uint4 b = *(const uint4*)(m.vector + at * 2);
      logit += low_bf16(a.x) * low_bf16(b.x) + high_bf16(a.x) * high_bf16(b.x);
      logit += low_bf16(a.y) * low_bf16(b.y) + high_bf16(a.y) * high_bf16(b.y);
      logit += low_bf16(a.z) * low_bf16(b.z) + high_bf16(a.z) * high_bf16(b.z);
      logit += low_bf16(a.w) * low_bf16(b.w) + high_bf16(a.w) * high_bf16(b.w);
    }
    logit = block_sum(logit, m.scratch);
    if (threadIdx.x == 0) s.logits[expert] = logit + load_bf16(w.router_bias + expert);
  }
}

// Ask the L2 for a later layer's small vectors, which each step's weights push out; a block does it for all.
DEVICE void prefetch_small(const StepArgs& s, const LayerWeights& w) {
  const int line = threadIdx.x * 64;  // bfloat16 values in 128 bytes
  if (line < s.D) {
    prefetch(w.attn_norm + line);
    prefetch(w.mlp_norm + line);
    prefetch(w.out_bias + line);
  }
  if (line < (s.H + 2 * s.KV) * s.C) prefetch(w.qkv_bias + line);
  if (threadIdx.x == 0) prefetch(w.sinks);
}

// What this thread adds of gate_up's or down's biases, loaded before the products.
DEVICE void load_biases(const StepArgs& s, const Shared& m, const LayerWeights& w, int phase, u32* pair, float* sum) {
  *pair = 0;
  *sum = 0;
  const Line& l = s.lines[phase];
  const Stretch mine = m.stretches[phase];
  if (phase == GATE_UP) {
    const int unit = (u32)mine.begin / (u32)l.unit_stages + threadIdx.x / 8, slot = (u32)unit / (u32)l.row_tiles;
    const int feature = (unit - slot * l.row_tiles) * 8 + threadIdx.x % 8;
    if (unit * l.unit_stages < mine.end) *pair = *(const u32*)(w.gate_up_bias + (i64)m.experts[slot] * 2 * s.F + 2 * feature);
  } else {
    const int row = (u32)mine.begin / (u32)(l.unit_stages * s.A) * 16 + threadIdx.x;
    if (threadIdx.x < 64 && row < s.D)  // a block has a few row tiles; the first 4 are more than it has alone
      for (int a = 0; a < s.A; ++a) *sum += m.weights[a] * load_bf16(w.down_bias + (i64)m.experts[a] * s.D + row);
  }
}

DEVICE void finish_gate_up(const StepArgs& s, const Shared& m, u32 biases) {
  const Line& l = s.lines[GATE_UP];
  const Stretch mine = m.stretches[GATE_UP];
  const int unit = (u32)mine.begin / (u32)l.unit_stages + threadIdx.x / 8;
  if (unit * l.unit_stages >= mine.end) return;
  const int slot = (u32)unit / (u32)l.row_tiles, feature = (unit - slot * l.row_tiles) * 8 + threadIdx.x % 8;
  const int row = threadIdx.x % 8 * 2;
  const float gate = fminf(add_warps(m, unit, row) + low_bf16(biases), s.limit);
  const float up = fminf(fmaxf(add_warps(m, unit, row + 1) + high_bf16(biases), -s.limit), s.limit);
  const float swish = gate / (1.0f + exp2_fast(-LOG2_E * s.alpha * gate));
  s.hidden[slot * ceil_div(s.F, 64) * 64 + place_column(feature)] = scaled_bf16(swish * (up + 1.0f));
}

// One layer's addresses to shared memory, where the layer two before was.
DEVICE void copy_layer(const StepArgs& s, const Shared& m, int layer) {
  const int words = sizeof(LayerWeights) / 8;
  if (layer < s.num_layers && (int)threadIdx.x < words)
    ((u64*)(m.layers + (layer & 1)))[threadIdx.x] = ((const u64*)(s.layers + layer))[threadIdx.x];
}

template <int C>
DEVICE void run_step(const StepArgs& s) {
  DYNAMIC_SHARED(shared);
  const Shared m = lay_out(s, shared);
  const int warp = threadIdx.x / 32;
  u32 generation = 0;
  if (threadIdx.x < NUM_STREAMED) m.stretches[threadIdx.x] = block_stretch(s.lines[threadIdx.x], threadIdx.x);
  copy_layer(s, m, 0);
  copy_layer(s, m, 1);
  __syncthreads();
  Feed f;
  f.ring = m.rings + warp * STEP_STAGES * STAGE_BYTES;
  f.fill = f.drain = f.ahead = f.routed = f.layer = 0;
  f.phase = -1;
  f.at = f.end = 0;
  enter_unit(f, s, m);
  Ahead ahead;
  load_ahead(&ahead, s, nullptr, m.layers[0].attn_norm);
  let_next_start();
  wait_for_previous();
  const int context = load_fresh_int(s.context_len);
  const i64 position = load_fresh_i64(s.position);
  const i64 full_slot = load_fresh_i64(s.full_slot), sliding_slot = load_fresh_i64(s.sliding_slot);
  const u16* const row = s.embedding + load_fresh_i64(s.token_id) * s.D;
#pragma unroll 1
  for (int i = threadIdx.x; i < s.D; i += THREADS) m.stream[i] = load_bf16(row + i);
  __syncthreads();

  for (int layer = 0;; ++layer) {
    const LayerWeights& w = m.layers[layer & 1];
#pragma unroll 1
    for (int phase = QKV; phase < NUM_STREAMED; ++phase) {
      MARK(phase * 4);
      u32 bias_pair = 0;
      float bias_sum = 0;
      uint4 router_row = {0, 0, 0, 0};
      if (phase == OUT) {
        run_attention_phase<C>(s, m, w, context, position, w.window ? sliding_slot : full_slot);
        arrive(s.barrier);
        load_ahead(&ahead, s, w.out_bias, w.mlp_norm);
        await_all(s.barrier, &generation);
#pragma unroll 1
        for (int i = threadIdx.x; i < s.H * s.C / 8; i += THREADS)
          *(uint4*)(m.vector + i * 16) = load_fresh(s.attended + i * 8);
        __syncthreads();
      } else if (phase == DOWN) {
        stage_hidden(s, m);
      } else {
        if (phase == GATE_UP && (int)blockIdx.x < s.E && (int)threadIdx.x * 8 < s.D)
          router_row = *(const uint4*)(w.router + (i64)blockIdx.x * s.D + threadIdx.x * 8);
        const float* const sums = phase == GATE_UP ? s.row_sums : layer ? s.down_sums : nullptr;
        add_and_norm(s, m, sums, ahead, phase == GATE_UP);
        if (layer == s.num_layers) {
          if (blockIdx.x == 0)
#pragma unroll 1
            for (int i = threadIdx.x; i < s.D; i += THREADS) s.normed[i] = ((const u16*)m.vector)[i];
          if (threadIdx.x == 0 && atomicAdd((int*)s.barrier + 1, 1) == (int)gridDim.x - 1) {
            s.barrier[0] = 0;
            s.barrier[1] = 0;
          }
          copy_wait<0>();
          return;
        }
      }
      if (phase == GATE_UP) {
        run_router(s, m, w, router_row);
        arrive(s.barrier);
        await_all(s.barrier, &generation);
        if (warp == 0) choose(s.logits, nullptr, s.E, s.A, m.experts, m.weights);
        __syncthreads();
        f.routed = layer + 1;
        if (f.layer == layer && f.phase >= GATE_UP) enter_unit(f, s, m);
      }
      if (phase >= GATE_UP) load_biases(s, m, w, phase, &bias_pair, &bias_sum);
      MARK(phase * 4 + 1);
      run_line(f, s, m, phase);
      __syncthreads();
      if (phase == GATE_UP) finish_gate_up(s, m, bias_pair);
      else write_sums(s, m, phase, phase == QKV ? s.qkv_sums : phase == OUT ? s.row_sums : s.down_sums, bias_sum);
      MARK(phase * 4 + 2);
      arrive(s.barrier);
      if (phase == QKV) {
        if (layer + 1 < s.num_layers && (int)blockIdx.x == (layer + 9) % (int)gridDim.x)
          prefetch_small(s, m.layers[(layer + 1) & 1]);
        prefetch_pages<C>(s, w, context);
      } else if (phase == DOWN) {
        load_ahead(&ahead, s, nullptr, layer + 1 < s.num_layers ? m.layers[(layer + 1) & 1].attn_norm : s.final_norm);
      }
      await_all(s.barrier, &generation);
      MARK(phase * 4 + 3);
    }
    copy_layer(s, m, layer + 2);  // its parity's last reader is past a barrier, its first one before the next
  }
}

#define STEP_KERNEL(C)                                                         \
  KERNEL void __launch_bounds__(THREADS, 1) decode_step_##C(StepArgs args) {   \
    run_step<C>(args);                                                         \
  }
STEP_KERNEL(32)
STEP_KERNEL(64)
STEP_KERNEL(128)
