// RMSNorm and router: which experts see a token, with what weight, and the list of tiles for the experts' kernels.
//
// A block takes one token and 8 experts, one a warp; the last block of a token picks the experts, and the last of all
// sorts the pairs of token and expert by expert. The counters are zeros before and after.

#define ROUTER_WARPS 8
#define TOKEN_PIECES 3    // 8-byte pieces of the token that a thread loads at once: 3,072 columns
#define ROUTER_PIECES 12  // 16-byte pieces of a weight row that a lane loads ahead: 3,072 columns

struct RouteOut {
  float* logits;       // [N, E]
  int* pair_expert;    // [N * A]
  float* pair_weight;  // [N * A]
  int* tile_expert;
  int* tile_begin;
  int* tile_count;
  int* num_tiles;
  int* sorted_pair;    // [N * A]
  int* pair_position;  // [N * A], where a pair stands in the sorted order
  int* arrived;        // [N + 1]
};

#include "router_core.cuh"

// The whole block: sort P pairs by expert, and cut each expert's into tiles of up to `tile_size`.
DEVICE void sort_pairs(const RouteOut& out, int P, int E, int tile_size, int* counts, int* begins) {
  for (int e = threadIdx.x; e < E; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int p = threadIdx.x; p < P; p += blockDim.x) atomicAdd(counts + load_fresh_int(out.pair_expert + p), 1);
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += blockDim.x) {
    int begin = 0, tile = 0;
    for (int before = 0; before < e; ++before) {
      begin += counts[before];
      tile += ceil_div(counts[before], tile_size);
    }
    begins[e] = begin;
    for (int done = 0; done < counts[e]; done += tile_size, ++tile) {
      out.tile_expert[tile] = e;
      out.tile_begin[tile] = begin + done;
      out.tile_count[tile] = min_int(tile_size, counts[e] - done);
    }
    if (e == E - 1) *out.num_tiles = tile;
  }
  __syncthreads();
  for (int p = threadIdx.x; p < P; p += blockDim.x) {
    const int position = atomicAdd(begins + load_fresh_int(out.pair_expert + p), 1);
    out.sorted_pair[position] = p;
    out.pair_position[p] = position;
  }
}

// stream [N, D] -> normed [N, D up to a multiple of 64], scaled and in the order of place_column, or if not `is_placed`
// plain [N, D]; and the routing. With `update` [N, D] the stream is their sum, written to `sum`, a buffer
// of its own because other blocks still read the stream.
// Grid (ceil(E / 8), N); shared memory for the token, 4 D bytes, and 2 E + 64 ints.
KERNEL void __launch_bounds__(256) router(const u16* stream, const u16* update, u16* sum, const u16* norm,
                                          u16* normed, const u16* weight, const u16* bias, RouteOut out, int D, int E, int A,
                                          int tile_size, float epsilon, int is_placed) {
  DYNAMIC_SHARED(shared);
  float* const token = (float*)shared;
  float* const scratch = token + D;
  int* const flag = (int*)scratch + 32;
  int* const counts = flag + 32;
  const int n = blockIdx.y, N = gridDim.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int expert = blockIdx.x * ROUTER_WARPS + warp;
  const u16* const row = weight + (i64)min_int(expert, E - 1) * D;
  uint4 ahead[ROUTER_PIECES];
#pragma unroll
  for (int i = 0; i < ROUTER_PIECES; ++i)
    if ((i * 32 + lane) * 8 < D) ahead[i] = *(const uint4*)(row + (i * 32 + lane) * 8);
  let_next_start();
  wait_for_previous();

  float squares = 0;
  for (int base = threadIdx.x * 4; base < D; base += 256 * 4 * TOKEN_PIECES) {
    uint2 pairs[TOKEN_PIECES], more[TOKEN_PIECES];
#pragma unroll
    for (int j = 0; j < TOKEN_PIECES; ++j) {  // at once, so that their latencies overlap
      const int i = base + j * 256 * 4;
      if (i < D) pairs[j] = load_fresh_u64(stream + (i64)n * D + i);
      if (i < D && update) more[j] = load_fresh_u64(update + (i64)n * D + i);
    }
#pragma unroll
    for (int j = 0; j < TOKEN_PIECES; ++j) {
      const int i = base + j * 256 * 4;
      if (i >= D) break;
      if (update) {
        pairs[j].x = pack_bf16(low_bf16(pairs[j].x) + low_bf16(more[j].x), high_bf16(pairs[j].x) + high_bf16(more[j].x));
        pairs[j].y = pack_bf16(low_bf16(pairs[j].y) + low_bf16(more[j].y), high_bf16(pairs[j].y) + high_bf16(more[j].y));
        if (blockIdx.x == 0) *(uint2*)(sum + (i64)n * D + i) = pairs[j];
      }
      const float4 x = {low_bf16(pairs[j].x), high_bf16(pairs[j].x), low_bf16(pairs[j].y), high_bf16(pairs[j].y)};
      *(float4*)(token + i) = x;
      squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / D + epsilon);
  for (int i = threadIdx.x * 2; i < D; i += blockDim.x * 2) {
    const u32 gains = *(const u32*)(norm + i);
    const u32 pair = pack_bf16(token[i] * scale * low_bf16(gains), token[i + 1] * scale * high_bf16(gains));
    token[i] = low_bf16(pair);
    token[i + 1] = high_bf16(pair);
    if (blockIdx.x == 0 && is_placed) *(u32*)(normed + (i64)n * ceil_div(D, 64) * 64 + place_column(i)) = scale_up(pair);
    if (blockIdx.x == 0 && !is_placed) *(u32*)(normed + (i64)n * D + i) = pair;
  }
  if (blockIdx.x == 0 && is_placed && D % 64 && threadIdx.x < 16) {  // the columns that fill up the last 64
    *(u32*)(normed + (i64)n * ceil_div(D, 64) * 64 + D + threadIdx.x * 2) = 0;
  }
  __syncthreads();
  float logit = 0;
  auto add_piece = [&](const uint4& w, int at) {
    const float4 one = *(const float4*)(token + at), two = *(const float4*)(token + at + 4);
    logit += low_bf16(w.x) * one.x + high_bf16(w.x) * one.y + low_bf16(w.y) * one.z + high_bf16(w.y) * one.w;
    logit += low_bf16(w.z) * two.x + high_bf16(w.z) * two.y + low_bf16(w.w) * two.z + high_bf16(w.w) * two.w;
  };
#pragma unroll
  for (int i = 0; i < ROUTER_PIECES; ++i)
    if ((i * 32 + lane) * 8 < D) add_piece(ahead[i], (i * 32 + lane) * 8);
  for (int at = (ROUTER_PIECES * 32 + lane) * 8; at < D; at += 256) add_piece(*(const uint4*)(row + at), at);
  for (int mask = 16; mask; mask >>= 1) logit += shuffle_xor(logit, mask);
  if (lane == 0 && expert < E) out.logits[n * E + expert] = logit + load_bf16(bias + expert);

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(out.arrived + n, 1) == (int)gridDim.x - 1;
    if (*flag) out.arrived[n] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!*flag) return;
  if (warp == 0) choose(out.logits + n * E, nullptr, E, A, out.pair_expert + n * A, out.pair_weight + n * A);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = N == 1 || atomicAdd(out.arrived + N, 1) == N - 1;
    if (*flag) out.arrived[N] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!*flag) return;
  if (N == 1) {  // a tile a choice
    if ((int)threadIdx.x < A) {
      const int a = threadIdx.x;
      out.tile_expert[a] = load_fresh_int(out.pair_expert + a);
      out.tile_begin[a] = out.sorted_pair[a] = out.pair_position[a] = a;
      out.tile_count[a] = 1;
      if (a == 0) *out.num_tiles = A;
    }
    return;
  }
  sort_pairs(out, N * A, E, tile_size, counts, counts + E);
}

// For many tokens, logits float32 [N, E] having been made elsewhere: choose, and count each expert's pairs.
// `counts` [E] are zeros before; `ranks` [N * A] is where a pair stands among its expert's; the last block writes the
// tiles and `begins` [E]. A block 8 tokens; shared memory for 2 E + 1 ints.
KERNEL void __launch_bounds__(256) choose_many(const float* logits, const u16* bias, RouteOut out, int* counts,
                                               int* begins, int* ranks, int N, int E, int A, int tile_size) {
  DYNAMIC_SHARED(shared);
  int* const local = (int*)shared;
  int* const base = local + E;
  int* const flag = base + E;
  const int lane = threadIdx.x % 32, n = blockIdx.x * ROUTER_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  for (int e = threadIdx.x; e < E; e += blockDim.x) local[e] = 0;
  __syncthreads();
  int expert = 0, rank = 0;
  const bool has_pair = n < N && lane < A;
  if (n < N) choose(logits + (i64)n * E, bias, E, A, out.pair_expert + n * A, out.pair_weight + n * A);
  if (has_pair) {
    expert = out.pair_expert[n * A + lane];  // this lane wrote it
    rank = atomicAdd(local + expert, 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += blockDim.x) base[e] = local[e] ? atomicAdd(counts + e, local[e]) : 0;
  __syncthreads();
  if (has_pair) ranks[n * A + lane] = base[expert] + rank;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *flag = atomicAdd(out.arrived, 1) == (int)gridDim.x - 1;
    if (*flag) out.arrived[0] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!*flag) return;
  for (int e = threadIdx.x; e < E; e += blockDim.x) local[e] = load_fresh_int(counts + e);
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += blockDim.x) {
    int begin = 0, tile = 0;
    for (int before = 0; before < e; ++before) {
      begin += local[before];
      tile += ceil_div(local[before], tile_size);
    }
    begins[e] = begin;
    for (int done = 0; done < local[e]; done += tile_size, ++tile) {
      out.tile_expert[tile] = e;
      out.tile_begin[tile] = begin + done;
      out.tile_count[tile] = min_int(tile_size, local[e] - done);
    }
    if (e == E - 1) *out.num_tiles = tile;
  }
}

KERNEL void place_pairs(RouteOut out, const int* begins, const int* ranks, int P) {
  let_next_start();
  wait_for_previous();
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= P) return;
  const int position = load_fresh_int(begins + load_fresh_int(out.pair_expert + p)) + load_fresh_int(ranks + p);
  out.sorted_pair[position] = p;
  out.pair_position[p] = position;
}
