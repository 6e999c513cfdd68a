// What each phase of a decode step does beside its products. See step.cu.

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
