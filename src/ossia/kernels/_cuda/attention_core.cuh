// One warp's attention over runs of 16 keys, and the joining of partial results.

#define LOG2_E 1.44269504f

template <int WORDS>
DEVICE void load_words(u32* to, const u16* from) {
#pragma unroll
  for (int i = 0; i < WORDS / 4; ++i) {
    const uint4 v = load_fresh(from + 8 * i);
    to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
  }
  if (WORDS == 2) {
    to[0] = load_fresh_u32(from);
    to[1] = load_fresh_u32(from + 2);
  }
}

// What one warp has seen: the softmax's state of head g, and outputs [C / 16][4] of heads 2 t and 2 t + 1.
template <int C>
struct Partial {
  float largest, sum;
  float out[C / 16][4];
};

template <int C>
DEVICE void attend_run(Partial<C>* state, const u32 (*query)[4], const u16* keys, const u16* values, int row_stride,
                       int start, int first_key, int context, float scale) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  constexpr int VW = C / 8;
  u32 k[2][C / 32][4], v[4][VW / 2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int block = 0; block < C / 32; ++block)
      load_words<4>(k[half][block], keys + (i64)(8 * half + g) * row_stride + block * 32 + t * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    load_words<VW / 2>(v[i], values + (i64)(2 * t + i % 2 + i / 2 * 8) * row_stride + g * VW);
  if (start + 16 > context) {  // a slot that nothing was written to may hold a NaN, which a weight of 0 does not hide
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int word = 0; word < VW / 2; ++word)
        if (start + 2 * t + i % 2 + i / 2 * 8 >= context) v[i][word] = 0;
  }

  float scores[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    scores[half][0] = scores[half][1] = scores[half][2] = scores[half][3] = 0;
#pragma unroll
    for (int block = 0; block < C / 32; ++block) {
      const u32* const q = query[block];
      mma(scores[half], q[0], 0, q[1], 0, k[half][block][0], k[half][block][1]);
      mma(scores[half], q[2], 0, q[3], 0, k[half][block][2], k[half][block][3]);
    }
  }
  float largest = state->largest;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = start + 8 * half + 2 * t + i;
      const bool is_seen = key >= first_key && key < context;
      scores[half][i] = is_seen ? scores[half][i] * scale : -INFINITY;
      largest = fmaxf(largest, scores[half][i]);
    }
  largest = fmaxf(largest, shuffle_xor(largest, 1));
  largest = fmaxf(largest, shuffle_xor(largest, 2));
  const float safe = largest == -INFINITY ? 0.0f : largest;
  const float kept = exp2_fast(state->largest - safe);
  float sum = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scores[half][i] = exp2_fast(scores[half][i] - safe);
      sum += scores[half][i];
    }
  state->largest = largest;
  state->sum = state->sum * kept + sum;  // of this lane's keys; joined at the end
  const float kept_one = shuffle(kept, 8 * t), kept_two = shuffle(kept, 8 * t + 4);
  const u32 p_first = pack_bf16(scores[0][0], scores[0][1]), p_second = pack_bf16(scores[1][0], scores[1][1]);
#pragma unroll
  for (int m = 0; m < C / 16; ++m) {
    float* const out = state->out[m];
    out[0] *= kept_one, out[1] *= kept_two, out[2] *= kept_one, out[3] *= kept_two;
    mma(out, permute_bytes(v[0][m], v[1][m], 0x5410), permute_bytes(v[0][m], v[1][m], 0x7632),
        permute_bytes(v[2][m], v[3][m], 0x5410), permute_bytes(v[2][m], v[3][m], 0x7632), p_first, p_second);
  }
}

// Join `count` partial results of 8 heads. Each is [8] largest, [8] sums, [8][C] outputs, 16 + 8 C floats.
// Thread i of the block gets output i of [8 * C], already divided; `sink` is the head's, in units of log2, or -inf.
DEVICE float join(const float* parts, int count, int stride, int head, int index, float sink) {
  float largest = sink, sum = 0, out = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) largest = fmaxf(largest, load_fresh_float(parts + (i64)i * stride + head));
  if (sink != -INFINITY) sum = exp2_fast(sink - largest);
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const float* const part = parts + (i64)i * stride;
    const float share = exp2_fast(load_fresh_float(part + head) - largest);
    sum += share * load_fresh_float(part + 8 + head);
    out += share * load_fresh_float(part + 16 + index);
  }
  return out / sum;
}

struct Pages {
  const u16* keys;  // [P, S, KV, C]
  const u16* values;
  const int* block_table;   // [N, columns]
  const int* context_lens;  // [N]
  int columns, page_size;
};

// How one sequence's keys are shared out: runs of 16 from `first_run` on, at least one for each warp of a share, so that
// all blocks of the sequence agree.
struct Shares {
  int context, first_key, first_run, runs, used;
};

DEVICE Shares share_out(int context, int window, int splits, int num_warps) {
  Shares s;
  s.context = context;
  s.first_key = window > 0 ? max_int(0, context - window) : 0;
  s.first_run = s.first_key / 16;
  s.runs = ceil_div(context, 16) - s.first_run;
  s.used = max_int(1, min_int(splits, s.runs / num_warps));
  return s;
}

// The block's share of the keys of KV head kv of sequence n; each warp leaves its partial result in partials.
template <int C, int WARPS>
DEVICE void attend_share(const u32 (*query)[4], const Pages& pages, const Shares& shares, int split, int n, int kv,
                         int KV, float* partials) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  if (warp >= WARPS) return;
  const int begin = shares.first_run + (int)((i64)shares.runs * split / shares.used);
  const int end = shares.first_run + (int)((i64)shares.runs * (split + 1) / shares.used);
  const float scale = rsqrtf((float)C) * LOG2_E;
  Partial<C> state;
  state.largest = -INFINITY;
  state.sum = 0;
#pragma unroll
  for (int m = 0; m < C / 16; ++m) state.out[m][0] = state.out[m][1] = state.out[m][2] = state.out[m][3] = 0;
  const int* const table = pages.block_table + (i64)n * pages.columns;
  int next_page = begin + warp < end ? load_fresh_int(table + (begin + warp) * 16 / pages.page_size) : 0;
#pragma unroll 1
  for (int run = begin + warp; run < end; run += WARPS) {
    const int start = run * 16, page = next_page, next = run + WARPS;
    if (next < end) next_page = load_fresh_int(table + next * 16 / pages.page_size);
    const i64 at = (((i64)page * pages.page_size + start % pages.page_size) * KV + kv) * C;
    attend_run<C>(&state, query, pages.keys + at, pages.values + at, KV * C, start, shares.first_key, shares.context,
                  scale);
  }
  state.sum += shuffle_xor(state.sum, 1);
  state.sum += shuffle_xor(state.sum, 2);
  float* const mine = partials + warp * (16 + 8 * C);
  if (t == 0) {
    mine[g] = state.largest;
    mine[8 + g] = state.sum;
  }
#pragma unroll
  for (int m = 0; m < C / 16; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = 2 * t + i % 2, dim = g * (C / 8) + 2 * m + i / 2;
      mine[16 + head * C + dim] = state.out[m][i];
    }
}

// Join the warps. A block alone writes `group` heads to out; one of several writes its share, and the last to finish
// joins the shares, in their order. `flag` is an int of shared memory, `arrived` the sequence and head's counter.
template <int C, int WARPS>
DEVICE void join_shares(const float* partials, const u16* sinks, int group, int split, int used, u16* out,
                        float* shares, int* arrived, int* flag) {
  const int stride = 16 + 8 * C;
#pragma unroll 1
  for (int index = threadIdx.x; index < group * C; index += blockDim.x) {
    const int head = index / C;
    float largest = -INFINITY, sum = 0, value = 0;
#pragma unroll 4
    for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, partials[w * stride + head]);
    if (used == 1) {
      const float sink = load_bf16(sinks + head) * LOG2_E;
      largest = fmaxf(largest, sink);
      sum = exp2_fast(sink - largest);
    }
#pragma unroll 4
    for (int w = 0; w < WARPS; ++w) {
      const float share = exp2_fast(partials[w * stride + head] - largest);
      sum += share * partials[w * stride + 8 + head];
      value += share * partials[w * stride + 16 + index];
    }
    if (used == 1) {
      out[index] = to_bf16(value / sum);
    } else {
      float* const share = shares + (i64)split * stride;
      share[16 + index] = value;
      if (index % C == 0) {
        share[head] = largest;
        share[8 + head] = sum;
      }
    }
  }
  if (used == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(arrived, 1) == used - 1;
    if (*flag) *arrived = 0;
    __threadfence();
  }
  __syncthreads();
  if (!*flag) return;
#pragma unroll 1
  for (int index = threadIdx.x; index < group * C; index += blockDim.x) {
    const int head = index / C;
    out[index] = to_bf16(join(shares, used, stride, head, index, load_bf16(sinks + head) * LOG2_E));
  }
}
