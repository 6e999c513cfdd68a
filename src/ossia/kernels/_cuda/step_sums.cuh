// A phase's products: what the warps sum up, the barrier of all blocks, and the residual stream. See step.cu.

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
