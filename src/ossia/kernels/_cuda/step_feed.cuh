// What a decode step is told, how it shares memory out, and each warp's stream of weights. See step.cu.

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
