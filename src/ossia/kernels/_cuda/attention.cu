// Attention of one query a sequence over its pages, with grouped heads, a window and sinks: decoding.
//
// A block takes one sequence, one KV head (all of its up to 8 query heads) and a share of the keys; its warps take pages'
// runs of 16 keys in turns. Scores are [heads, keys] = q k^T and outputs [dims, heads] = v^T p^T, so that scores turn
// into the second product's operand without leaving their lanes; v's pairs along keys are put together by byte
// permutation. The last block of a sequence and head to finish joins all shares, in a fixed order.
//
// Dimension of the head that a lane holds: in scores 8 t to 8 t + 7 of each 32 (any order will do, if q has the same), in
// outputs VW g to VW g + VW - 1 with VW = C / 8.

#define ATTENTION_WARPS 8
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
#pragma unroll 8
  for (int i = 0; i < count; ++i) largest = fmaxf(largest, load_fresh_float(parts + (i64)i * stride + head));
  if (sink != -INFINITY) sum = exp2_fast(sink - largest);
#pragma unroll 8
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

template <int C>
DEVICE void run_attention(const u16* q, int q_stride, Pages pages, const u16* sinks, u16* out, float* scratch, int* arrived, int H,
                          int KV, int window) {
  DYNAMIC_SHARED(shared);
  const int n = blockIdx.z, kv = blockIdx.y, split = blockIdx.x, splits = gridDim.x, group = H / KV;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int stride = 16 + 8 * C;
  let_next_start();
  wait_for_previous();
  const int context = load_fresh_int(pages.context_lens + n);
  const int first_key = window > 0 ? max_int(0, context - window) : 0;
  const int first_run = first_key / 16, runs = ceil_div(context, 16) - first_run;
  // At least a run for each warp of a share; how many shares there are is known to all blocks of the sequence.
  const int used = max_int(1, min_int(splits, runs / ATTENTION_WARPS));
  if (split >= used) return;
  const int begin = first_run + (int)((i64)runs * split / used), end = first_run + (int)((i64)runs * (split + 1) / used);

  u32 query[C / 32][4];
  const u16* const head_query = q + (i64)n * q_stride + (kv * group + min_int(g, group - 1)) * C;
#pragma unroll
  for (int block = 0; block < C / 32; ++block) load_words<4>(query[block], head_query + block * 32 + t * 8);
  const float scale = rsqrtf((float)C) * LOG2_E;

  Partial<C> state;
  state.largest = -INFINITY;
  state.sum = 0;
#pragma unroll
  for (int m = 0; m < C / 16; ++m) state.out[m][0] = state.out[m][1] = state.out[m][2] = state.out[m][3] = 0;
  const int* const table = pages.block_table + (i64)n * pages.columns;
  int next_page = begin + warp < end ? load_fresh_int(table + (begin + warp) * 16 / pages.page_size) : 0;
  for (int run = begin + warp; run < end; run += ATTENTION_WARPS) {
    const int start = run * 16, page = next_page, next = run + ATTENTION_WARPS;
    if (next < end) next_page = load_fresh_int(table + next * 16 / pages.page_size);
    const i64 at = (((i64)page * pages.page_size + start % pages.page_size) * KV + kv) * C;
    attend_run<C>(&state, query, pages.keys + at, pages.values + at, KV * C, start, first_key, context, scale);
  }
  state.sum += shuffle_xor(state.sum, 1);
  state.sum += shuffle_xor(state.sum, 2);

  float* const mine = (float*)shared + warp * stride;
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
  __syncthreads();

  // Join the warps; alone in its sequence a block writes the result, else its share, and the last one joins the shares.
  const int sequence = n * KV + kv;
  float* const shares = scratch + (i64)sequence * splits * stride;
  const float* const warps = (const float*)shared;
  for (int index = threadIdx.x; index < group * C; index += ATTENTION_WARPS * 32) {
    const int head = index / C;
    float largest = -INFINITY, sum = 0, value = 0;
    for (int w = 0; w < ATTENTION_WARPS; ++w) largest = fmaxf(largest, warps[w * stride + head]);
    const float sink = load_bf16(sinks + kv * group + head) * LOG2_E;
    if (used == 1) {
      largest = fmaxf(largest, sink);
      sum = exp2_fast(sink - largest);
    }
    for (int w = 0; w < ATTENTION_WARPS; ++w) {
      const float share = exp2_fast(warps[w * stride + head] - largest);
      sum += share * warps[w * stride + 8 + head];
      value += share * warps[w * stride + 16 + index];
    }
    if (used == 1) {
      out[((i64)n * H + kv * group) * C + index] = to_bf16(value / sum);
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
  int* const is_last = (int*)shared;
  if (threadIdx.x == 0) {
    const int before = atomicAdd(arrived + sequence, 1);
    *is_last = before == used - 1;
    if (*is_last) arrived[sequence] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!*is_last) return;
  for (int index = threadIdx.x; index < group * C; index += ATTENTION_WARPS * 32) {
    const int head = index / C;
    const float sink = load_bf16(sinks + kv * group + head) * LOG2_E;
    out[((i64)n * H + kv * group) * C + index] = to_bf16(join(shares, used, stride, head, index, sink));
  }
}

// q [N rows q_stride apart, H, C], out [N, H, C]; grid (shares, KV, N); scratch float32 [N * KV, shares, 16 + 8 C]; arrived int32 [N * KV], zeros
// before and after.
#define ATTENTION_KERNEL(C)                                                                                            \
  KERNEL void __launch_bounds__(ATTENTION_WARPS * 32) decode_attention_##C(                                            \
      const u16* q, int q_stride, Pages pages, const u16* sinks, u16* out, float* scratch, int* arrived, int H,       \
      int KV, int window) {                                                                                            \
    run_attention<C>(q, q_stride, pages, sinks, out, scratch, arrived, H, KV, window);                                           \
  }
ATTENTION_KERNEL(32)
ATTENTION_KERNEL(64)
ATTENTION_KERNEL(128)
