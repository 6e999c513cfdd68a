// A whole decode step of one sequence, all layers, as one grid that never leaves the chip.
//
// One block a multiprocessor, 12 warps each. A layer has six phases, and all blocks wait for each other after each:
//
//   1 qkv      stream += experts' sums; norm; units of (16 rows, fifth of the columns) -> sums
//   2 attend   q, k and v of the sums, rope, the cache; blocks of (KV head, share of the keys) -> attended
//   3 out      units of (16 rows, eighth of the columns) -> sums
//   4 route    stream += sums; norm; a block an expert -> logits
//   5 gate_up  the best experts; units of (expert, 16 rows) -> hidden
//   6 down     units of (16 rows, expert, half of the columns) -> sums
//
// Every block keeps the residual stream, float32, in shared memory; all copies are the same to the bit.
//
// Units are dealt out in equal stretches, a unit a warp. The parts of one row tile are neighbours, so a block adds up its
// own in shared memory, and a row tile has sums of at most two blocks: those of the block with its first part, and of the
// next block, which are zeros where there is none.
//
// Weights come through a ring of each warp, as in experts.cu, that runs ahead across phases: while a block waits for the
// others, its next weights are on their way. Only gate_up must first know the experts.

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

#define WARPS 12
#define THREADS (WARPS * 32)
#define STAGES 7
#define STAGE_BYTES 2048
#define DEPTH 3        // packed tiles a stage
#define QKV_PARTS 5
#define OUT_PARTS 8
#define DOWN_PARTS 2   // of each expert
#define MAX_UNITS 128  // of a block in a phase
#define MAX_ACTIVE 32

struct LayerWeights {
  const u16 *attn_norm, *qkv, *qkv_bias, *out, *out_bias, *sinks, *mlp_norm, *router, *router_bias;
  const u8* gate_up;
  const u16* gate_up_bias;
  const u8* down;
  const u16* down_bias;
  u16 *keys, *values;
  i64 window;  // 0 for none
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
  int num_layers, D, F, H, KV, C, E, A, full_columns, sliding_columns, page_size;
  float epsilon, alpha, limit;
};

enum Phase { QKV, OUT, GATE_UP, DOWN, NUM_STREAMED };

struct Stretch {
  int begin, end;
};

DEVICE Stretch stretch_of(int num_units) {
  Stretch s;
  s.begin = (int)((i64)num_units * blockIdx.x / gridDim.x);
  s.end = (int)((i64)num_units * (blockIdx.x + 1) / gridDim.x);
  return s;
}

// What a unit is: rows of a matrix, and a stretch of its columns in stages.
struct Unit {
  int tile, expert_slot, part, first, last;  // first and last in blocks of 32 columns, or in packed tiles
};

struct Shape {
  int units, columns;
};

DEVICE Shape shape_of(const StepArgs& s, int phase) {
  Shape shape;
  if (phase == QKV) shape.units = (s.H + 2 * s.KV) * s.C / 16 * QKV_PARTS, shape.columns = s.D;
  else if (phase == OUT) shape.units = s.D / 16 * OUT_PARTS, shape.columns = s.H * s.C;
  else if (phase == GATE_UP) shape.units = s.A * (s.F / 8), shape.columns = s.D;
  else shape.units = s.D / 16 * s.A * DOWN_PARTS, shape.columns = s.F;
  return shape;
}

DEVICE Unit unit_of(const StepArgs& s, int phase, int unit) {
  Unit u;
  u.expert_slot = 0;
  if (phase == QKV || phase == OUT) {
    const int parts = phase == QKV ? QKV_PARTS : OUT_PARTS, blocks = (phase == QKV ? s.D : s.H * s.C) / 32;
    u.tile = unit / parts;
    u.part = unit % parts;
    u.first = blocks * u.part / parts;
    u.last = blocks * (u.part + 1) / parts;
  } else if (phase == GATE_UP) {
    u.tile = unit % (s.F / 8);
    u.expert_slot = unit / (s.F / 8);
    u.part = 0;
    u.first = 0;
    u.last = ceil_div(s.D, 64);
  } else {
    const int chunks = ceil_div(s.F, 64), rest = unit % (s.A * DOWN_PARTS);
    u.tile = unit / (s.A * DOWN_PARTS);
    u.expert_slot = rest / DOWN_PARTS;
    u.part = rest % DOWN_PARTS;
    u.first = chunks * u.part / DOWN_PARTS;
    u.last = chunks * (u.part + 1) / DOWN_PARTS;
  }
  return u;
}

// A warp's stream of weights: what is fetched next, and how far fetching is ahead of use.
struct Feed {
  char* ring;
  int layer, phase, unit, end, at, last;  // at and last as in Unit
  const u8 *first_row, *second_row;       // or the packed tile in first_row
  int fill, drain, ahead;
  int routed;  // layers whose experts are known
};

struct Shared {
  float* stream;   // [D]
  char* vector;    // bfloat16 [max(D, H C)], input of qkv and out; also queries of phase 2
  char* tokens;    // [A] rows for the packed products
  float* sums;     // [MAX_UNITS][16]
  float* scratch;  // [32]
  int* experts;    // [MAX_ACTIVE]
  float* weights;  // [MAX_ACTIVE]
  int* flag;
  char* rings;
};

DEVICE int token_bytes(int columns) { return ceil_div(columns, 64) * 128 + 64; }

DEVICE Shared lay_out(const StepArgs& s, char* at) {
  Shared m;
  m.rings = at;
  at += WARPS * STAGES * STAGE_BYTES;
  m.tokens = at;  // phase 2 keeps its partial results here
  at += max_int(s.A * token_bytes(max_int(s.D, s.F)), WARPS * (16 + 8 * s.C) * 4);
  m.vector = at;
  at += max_int(s.D, s.H * s.C) * 2;
  m.stream = (float*)at;
  at += s.D * 4;
  m.sums = (float*)at;
  at += MAX_UNITS * 64;
  m.scratch = (float*)at;
  at += 128;
  m.experts = (int*)at;
  m.weights = (float*)at + MAX_ACTIVE;
  m.flag = (int*)at + 2 * MAX_ACTIVE;
  return m;
}

// Point the feed at its unit; past the stretch, at the next phase. A phase whose experts are unknown is not entered.
DEVICE void enter_unit(Feed& f, const StepArgs& s, const int* experts) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
  Unit u;
  for (;; f.unit += WARPS) {
    while (f.unit >= f.end) {
      if (++f.phase == NUM_STREAMED) f.phase = 0, ++f.layer;
      if (f.layer == s.num_layers) return;
      const Stretch stretch = stretch_of(shape_of(s, f.phase).units);
      f.unit = stretch.begin + warp;
      f.end = stretch.end;
    }
    u = unit_of(s, f.phase, f.unit);
    if (u.first < u.last) break;  // a narrow matrix has parts without columns
  }
  f.at = u.first;
  f.last = u.last;
  const LayerWeights& w = s.layers[f.layer];
  const int columns = shape_of(s, f.phase).columns;
  if (f.phase <= OUT) {
    const u16* const matrix = f.phase == QKV ? w.qkv : w.out;
    f.first_row = (const u8*)(matrix + (i64)(u.tile * 16 + g) * columns);
    f.second_row = f.first_row + (i64)16 * columns;
  } else if (f.routed > f.layer) {
    const int row_tiles = f.phase == GATE_UP ? s.F / 8 : s.D / 16;
    const u8* const packed = f.phase == GATE_UP ? w.gate_up : w.down;
    f.first_row = packed + ((i64)experts[u.expert_slot] * row_tiles + u.tile) * ceil_div(columns, 64) * TILE_BYTES;
  }
}

// Fetch one stage, if there is room and it is known what.
DEVICE bool fetch(Feed& f, const StepArgs& s, const int* experts) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (f.ahead == STAGES || f.layer == s.num_layers || (f.phase >= GATE_UP && f.routed <= f.layer)) return false;
  char* const stage = f.ring + f.fill * STAGE_BYTES;
  if (f.phase <= OUT) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (f.at + i < f.last) {
        copy_async16(stage + (2 * i) * 512 + lane * 16, f.first_row + (f.at + i) * 64 + t * 16);
        copy_async16(stage + (2 * i + 1) * 512 + lane * 16, f.second_row + (f.at + i) * 64 + t * 16);
      }
    f.at += 2;
  } else {
#pragma unroll
    for (int i = 0; i < DEPTH; ++i)
      if (f.at + i < f.last) {
        const u8* const tile = f.first_row + (f.at + i) * TILE_BYTES;
        copy_async16(stage + i * SLOT_BYTES + lane * 16, tile + lane * 16);
        copy_async4(stage + i * SLOT_BYTES + 512 + lane * 4, tile + 512 + g * 4);
      }
    f.at += DEPTH;
  }
  copy_commit();
  f.fill = f.fill + 1 == STAGES ? 0 : f.fill + 1;
  ++f.ahead;
  if (f.at >= f.last) {
    f.unit += WARPS;
    enter_unit(f, s, experts);
  }
  return true;
}

DEVICE void fetch_all(Feed& f, const StepArgs& s, const int* experts) {
  while (fetch(f, s, experts)) {
  }
}

// Wait until the oldest stage that was fetched is there.
DEVICE const char* await_stage(const Feed& f) {
  switch (f.ahead) {
    case 1: copy_wait<0>(); break;
    case 2: copy_wait<1>(); break;
    case 3: copy_wait<2>(); break;
    case 4: copy_wait<3>(); break;
    case 5: copy_wait<4>(); break;
    case 6: copy_wait<5>(); break;
    default: copy_wait<STAGES - 1>(); break;
  }
  return f.ring + f.drain * STAGE_BYTES;
}

DEVICE void release_stage(Feed& f, const StepArgs& s, const int* experts) {
  f.drain = f.drain + 1 == STAGES ? 0 : f.drain + 1;
  --f.ahead;
  fetch(f, s, experts);
}

// The sums of one unit of a dense product: rows g and g + 8 of its tile, in the lanes with t = 0.
DEVICE void multiply_dense(Feed& f, const StepArgs& s, const int* experts, const Unit& u, const char* vector,
                           float* total) {
  const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll 1
  for (int at = u.first; at < u.last; at += 2) {
    const char* const stage = await_stage(f);
    uint4 rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = *(const uint4*)(stage + i * 512 + lane * 16);
    release_stage(f, s, experts);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (at + i < u.last) {
        const uint4 b = *(const uint4*)(vector + (at + i) * 64 + t * 16);
        mma(total, rows[2 * i].x, rows[2 * i + 1].x, rows[2 * i].y, rows[2 * i + 1].y, b.x, b.y);
        mma(total, rows[2 * i].z, rows[2 * i + 1].z, rows[2 * i].w, rows[2 * i + 1].w, b.z, b.w);
      }
  }
}

DEVICE void multiply_packed(Feed& f, const StepArgs& s, const int* experts, const Unit& u, const char* token,
                            float (*total)[4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int at = u.first; at < u.last; at += DEPTH) {
    const char* const stage = await_stage(f);
    uint4 codes[DEPTH];
    u32 scales[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {
      codes[i] = *(const uint4*)(stage + i * SLOT_BYTES + lane * 16);
      scales[i] = *(const u32*)(stage + i * SLOT_BYTES + 512 + lane * 4);
    }
    release_stage(f, s, experts);
#pragma unroll
    for (int i = 0; i < DEPTH; ++i)
      if (at + i < u.last) multiply_chunk<1>(codes[i], scales[i], token + (at + i) * 128, 0, 1, total);
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

// Add up the block's units of each row tile and write them to sums [2][rows].
DEVICE void write_sums(const Shared& m, const Stretch& stretch, int parts, float* sums, int num_rows) {
  __syncthreads();
  const int first_tile = stretch.begin / parts, last_tile = (stretch.end - 1) / parts;
  for (int i = threadIdx.x; i < (last_tile - first_tile + 1) * 16; i += THREADS) {
    const int tile = first_tile + i / 16, row = i % 16;
    const int begin = max_int(tile * parts, stretch.begin), end = min_int((tile + 1) * parts, stretch.end);
    float sum = 0;
    for (int unit = begin; unit < end; ++unit) sum += m.sums[(unit - stretch.begin) * 16 + row];
    const bool has_first = tile * parts >= stretch.begin, has_last = (tile + 1) * parts <= stretch.end;
    sums[(has_first ? 0 : num_rows) + tile * 16 + row] = sum;
    if (has_first && has_last) sums[num_rows + tile * 16 + row] = 0;
  }
}

// Four columns a thread and piece; PIECES pieces are loaded at once, so that their latencies overlap.
#define PIECES 2
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

// Phases 1 and 3.
DEVICE void run_dense(Feed& f, const StepArgs& s, const Shared& m, int phase, float* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const Shape shape = shape_of(s, phase);
  const Stretch stretch = stretch_of(shape.units);
  const int parts = phase == QKV ? QKV_PARTS : OUT_PARTS;
  for (int unit = stretch.begin + warp; unit < stretch.end; unit += WARPS) {
    float total[4] = {0, 0, 0, 0};
    multiply_dense(f, s, m.experts, unit_of(s, phase, unit), m.vector, total);
    if (t == 0) {
      m.sums[(unit - stretch.begin) * 16 + g] = total[0];
      m.sums[(unit - stretch.begin) * 16 + g + 8] = total[2];
    }
  }
  write_sums(m, stretch, parts, sums, shape.units / parts * 16);
}

// Phase 2, for KV head kv: q turned to vector; with is_writer also k and v to their slot.
DEVICE void make_query(const StepArgs& s, const Shared& m, const LayerWeights& w, i64 position, i64 slot, int kv,
                       bool is_writer) {
  const int half = s.C / 2, group = s.H / s.KV, rows = (s.H + 2 * s.KV) * s.C;
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
  __threadfence();
  __syncthreads();
}

template <int C>
DEVICE void run_attention_phase(const StepArgs& s, const Shared& m, const LayerWeights& w, int context, i64 position,
                                i64 slot) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, group = s.H / s.KV, window = (int)w.window;
  const int splits = max_int(1, gridDim.x / s.KV);
  const Pages pages = {w.keys, w.values, window ? s.sliding_table : s.full_table, s.context_len,
                       window ? s.sliding_columns : s.full_columns, s.page_size};
  const Shares shares = share_out(context, window, splits, WARPS);
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
    attend_share<C, WARPS>(query, pages, shares, split, 0, kv, s.KV, (float*)m.tokens);
    __syncthreads();
    join_shares<C, WARPS>((const float*)m.tokens, w.sinks + kv * group, group, split, shares.used,
                          s.attended + kv * group * C, s.shares + (i64)kv * splits * (16 + 8 * C), s.arrived + kv,
                          m.flag);
    __syncthreads();
  }
}

// Phase 4: the logits of this block's experts; `ahead` is this thread's first piece of the first one's row.
DEVICE void run_router(const StepArgs& s, const Shared& m, const LayerWeights& w, const uint4& ahead, float bias) {
  for (int expert = blockIdx.x; expert < s.E; expert += gridDim.x) {
    float logit = 0;
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
    if (expert != (int)blockIdx.x) bias = load_bf16(w.router_bias + expert);
    if (threadIdx.x == 0) s.logits[expert] = logit + bias;
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

DEVICE void run_gate_up(Feed& f, const StepArgs& s, const Shared& m, const LayerWeights& w) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const Stretch stretch = stretch_of(shape_of(s, GATE_UP).units);
  for (int unit = stretch.begin + warp; unit < stretch.end; unit += WARPS) {
    const Unit u = unit_of(s, GATE_UP, unit);
    const u32 biases = *(const u32*)(w.gate_up_bias + (i64)m.experts[u.expert_slot] * 2 * s.F + 16 * u.tile + 2 * g);
    float total[1][4] = {{0, 0, 0, 0}};
    multiply_packed(f, s, m.experts, u, m.tokens, total);
    if (t == 0) {
      const float gate = fminf(total[0][0] * 16384.0f + low_bf16(biases), s.limit);
      const float up = fminf(fmaxf(total[0][2] * 16384.0f + high_bf16(biases), -s.limit), s.limit);
      const float swish = gate / (1.0f + exp2_fast(-LOG2_E * s.alpha * gate));
      s.hidden[u.expert_slot * ceil_div(s.F, 64) * 64 + place_column(8 * u.tile + g)] = scaled_bf16(swish * (up + 1.0f));
    }
  }
}

DEVICE void run_down(Feed& f, const StepArgs& s, const Shared& m, const LayerWeights& w) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const Stretch stretch = stretch_of(shape_of(s, DOWN).units);
  for (int unit = stretch.begin + warp; unit < stretch.end; unit += WARPS) {
    const Unit u = unit_of(s, DOWN, unit);
    const u32 biases = *(const u32*)(w.down_bias + (i64)m.experts[u.expert_slot] * s.D + 16 * u.tile + 2 * g);
    float total[1][4] = {{0, 0, 0, 0}};
    multiply_packed(f, s, m.experts, u, m.tokens + u.expert_slot * token_bytes(s.F), total);
    if (t == 0) {
      const float share = m.weights[u.expert_slot], first = u.part == 0 ? low_bf16(biases) : 0.0f;
      const float second = u.part == 0 ? high_bf16(biases) : 0.0f;
      m.sums[(unit - stretch.begin) * 16 + 2 * g] = (total[0][0] * 16384.0f + first) * share;
      m.sums[(unit - stretch.begin) * 16 + 2 * g + 1] = (total[0][2] * 16384.0f + second) * share;
    }
  }
  write_sums(m, stretch, s.A * DOWN_PARTS, s.down_sums, s.D);
}

template <int C>
DEVICE void run_step(const StepArgs& s) {
  DYNAMIC_SHARED(shared);
  const Shared m = lay_out(s, shared);
  const int warp = threadIdx.x / 32;
  u32 generation = 0;
  Feed f;
  f.ring = m.rings + warp * STAGES * STAGE_BYTES;
  f.fill = f.drain = f.ahead = f.routed = f.layer = 0;
  f.phase = -1;
  f.unit = f.end = 0;
  enter_unit(f, s, m.experts);
  fetch_all(f, s, m.experts);
  Ahead ahead;
  load_ahead(&ahead, s, nullptr, s.layers[0].attn_norm);
  let_next_start();
  wait_for_previous();
  const int context = load_fresh_int(s.context_len);
  const i64 position = load_fresh_i64(s.position);
  const i64 full_slot = load_fresh_i64(s.full_slot), sliding_slot = load_fresh_i64(s.sliding_slot);
  const u16* const row = s.embedding + load_fresh_i64(s.token_id) * s.D;
  for (int i = threadIdx.x; i < s.D; i += THREADS) m.stream[i] = load_bf16(row + i);
  __syncthreads();

  for (int layer = 0; layer < s.num_layers; ++layer) {
    const LayerWeights& w = s.layers[layer];
    MARK(0);
    add_and_norm(s, m, layer ? s.down_sums : nullptr, ahead, false);
    MARK(1);
    run_dense(f, s, m, QKV, s.qkv_sums);
    MARK(2);
    arrive(s.barrier);
    if (layer + 1 < s.num_layers && (int)blockIdx.x == (layer + 9) % (int)gridDim.x)
      prefetch_small(s, s.layers[layer + 1]);
    await_all(s.barrier, &generation);

    MARK(3);
    run_attention_phase<C>(s, m, w, context, position, w.window ? sliding_slot : full_slot);
    MARK(4);
    arrive(s.barrier);
    load_ahead(&ahead, s, w.out_bias, w.mlp_norm);
    await_all(s.barrier, &generation);

    MARK(5);
    for (int i = threadIdx.x; i < s.H * s.C / 8; i += THREADS)
      *(uint4*)(m.vector + i * 16) = load_fresh(s.attended + i * 8);
    __syncthreads();
    run_dense(f, s, m, OUT, s.row_sums);
    MARK(6);
    arrive(s.barrier);
    uint4 router_row = {0, 0, 0, 0};
    float router_bias = 0;
    if ((int)blockIdx.x < s.E) {
      if ((int)threadIdx.x * 8 < s.D)
        router_row = *(const uint4*)(w.router + (i64)blockIdx.x * s.D + threadIdx.x * 8);
      router_bias = load_bf16(w.router_bias + blockIdx.x);
    }
    await_all(s.barrier, &generation);

    MARK(7);
    add_and_norm(s, m, s.row_sums, ahead, true);
    run_router(s, m, w, router_row, router_bias);
    MARK(8);
    arrive(s.barrier);
    await_all(s.barrier, &generation);

    MARK(9);
    if (warp == 0) choose(s.logits, s.E, s.A, m.experts, m.weights);
    __syncthreads();
    f.routed = layer + 1;
    if (f.layer == layer && f.phase >= GATE_UP) enter_unit(f, s, m.experts);
    fetch_all(f, s, m.experts);
    MARK(10);
    run_gate_up(f, s, m, w);
    MARK(11);
    arrive(s.barrier);
    await_all(s.barrier, &generation);

    MARK(12);
    stage_hidden(s, m);
    MARK(13);
    run_down(f, s, m, w);
    MARK(14);
    arrive(s.barrier);
    load_ahead(&ahead, s, nullptr, layer + 1 < s.num_layers ? s.layers[layer + 1].attn_norm : s.final_norm);
    await_all(s.barrier, &generation);
    MARK(15);
  }
  if (blockIdx.x == 0) {
    add_and_norm(s, m, s.down_sums, ahead, false);
    for (int i = threadIdx.x; i < s.D; i += THREADS) s.normed[i] = ((const u16*)m.vector)[i];
  }
  if (threadIdx.x == 0 && atomicAdd((int*)s.barrier + 1, 1) == (int)gridDim.x - 1) {
    s.barrier[0] = 0;
    s.barrier[1] = 0;
  }
}

#define STEP_KERNEL(C)                                                         \
  KERNEL void __launch_bounds__(THREADS, 1) decode_step_##C(StepArgs args) {   \
    run_step<C>(args);                                                         \
  }
STEP_KERNEL(32)
STEP_KERNEL(64)
STEP_KERNEL(128)
