// Many tokens an expert: the same packed weights, decoded in registers, times up to 128 tokens by wgmma.
//
// A block takes 64 rows of a matrix for each of its GROUPS of 4 warps, 16 a warp: a warp's packed tiles are its
// operand's fragments as they lie. Tokens go through a ring in shared memory, 64 columns a stage, in the layout of the
// 128-byte swizzle: 16-byte piece c of token r lies at piece c ^ (r % 8) of its row. While the tensor cores work on one
// stage, the next one's weights are decoded; scales are multiplied in as they are decoded, less 2^32.
//
// A tile holds up to 128 tokens of one expert, or up to 64 where a block has one group. The block multiplies by 32, 64, 96
// or 128 of them, as few as will do.

#include "experts_core.cuh"
#include "group_product.cuh"

struct Weights {
  uint4 codes;
  u32 scales;
};

DEVICE Weights load_weights(const u8* tile) {
  const int lane = threadIdx.x % 32;
  Weights w;
  w.codes = *(const uint4*)(tile + lane * 16);
  w.scales = *(const u32*)(tile + 512 + lane / 4 * 4);
  return w;
}

// One tile's 16 fragments, true values times 2^-32: 2^(scale - 127 - 32 + 126) has exponent bits scale + 94.
DEVICE void decode_scaled(const Weights& w, u32* a) {
  const u32 offset = 94u * 128u * 0x10001u;
  const u32 scale[4] = {permute_bytes(w.scales, 0, 0x4040) * 128u + offset, permute_bytes(w.scales, 0, 0x4141) * 128u + offset,
                        permute_bytes(w.scales, 0, 0x4242) * 128u + offset, permute_bytes(w.scales, 0, 0x4343) * 128u + offset};
  decode_e2m1(w.codes.x, w.codes.y, a);
  decode_e2m1(w.codes.z, w.codes.w, a + 8);
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i] = multiply_bf16(a[i], scale[i % 2 * 2 + i / 8]);
}

// What a block works on.
struct Work {
  const u16* x;
  const u8* weights;
  const u16* bias;
  const int* sorted_pair;
  const float* pair_weight;  // for `down`
  u16* out;
  int K, M, num_active, expert, begin, count;
  float alpha, limit;
};

// The sums of the warp's 16 rows and N tokens go to memory. `shares`: each token's weight, for `down`.
template <bool IS_GATE_UP, int N>
DEVICE void store_sums(const Work& work, const float* c, const float* shares, int m) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float unscale = 4294967296.0f;
  const u32 biases = *(const u32*)(work.bias + (i64)work.expert * work.M + 16 * m + 2 * g);
  const float bias_first = low_bf16(biases), bias_second = high_bf16(biases);
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const float* const s = c + 4 * n;
    if (IS_GATE_UP) {
      float h[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float gate = fminf(s[i] * unscale + bias_first, work.limit);
        const float up = fminf(fmaxf(s[2 + i] * unscale + bias_second, -work.limit), work.limit);
        h[i] = divide_fast(gate, 1.0f + exp2_fast(-1.44269504f * work.alpha * gate)) * (up + 1.0f);
      }
      const u32 turned = transpose_8x8(pack_bf16(h[0], h[1]));  // token g, features 2 t and 2 t + 1
      u16* const row = work.out + (i64)(work.begin + 8 * n + g) * (work.M / 2);
      if (8 * n + g < work.count) *(u32*)(row + 8 * m + 2 * t) = turned;
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 8 * n + 2 * t + i;
        const float share = shares[token];
        u16* const row = work.out + (i64)(work.begin + token) * work.M;
        const u32 pair = pack_bf16((s[i] * unscale + bias_first) * share, (s[2 + i] * unscale + bias_second) * share);
        if (token < work.count) *(u32*)(row + 16 * m + 2 * g) = pair;
      }
    }
  }
}

// STAGES of the ring, at least 3; AHEAD: tiles of weights on their way, 2 or 4.
template <int GROUPS, bool IS_GATE_UP, int N, int STAGES, int AHEAD>
DEVICE void run_tile(const Work& work) {
  DYNAMIC_SHARED(shared);
  constexpr int PASS = GROUPS * 16, COPIES = (N + PASS - 1) / PASS, STAGE_BYTES = N * 128;
  const int chunks = ceil_div(work.K, 64), last_row = work.M / 16 - 1;
  const int m = blockIdx.x * (GROUPS * 4) + threadIdx.x / 32;  // the warp's row tile
  // The group's. Known to be the same in all of a warp, so that addresses and branches take the uniform registers.
  const bool has_rows = (int)(blockIdx.x * GROUPS + (GROUPS > 1 ? same_in_warp(threadIdx.x / 128) : 0)) * 4 <= last_row;
  const u8* next = work.weights + ((i64)work.expert * (last_row + 1) + min_int(m, last_row)) * chunks * TILE_BYTES;
  Weights ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i)
    if (i < chunks) ahead[i] = load_weights(next + i * TILE_BYTES);

  // Piece `piece` of every PASSth token from `row` on; tokens past the count keep what lies there, which nothing reads.
  const int row = threadIdx.x / 8, piece = threadIdx.x % 8;
  const bool ends_early = work.K % 64 && piece >= 4;  // its last piece lies past the columns
  const u16* source[COPIES];
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    const int position = work.begin + min_int(row + PASS * i, work.count - 1);
    const int from = IS_GATE_UP ? load_fresh_int(work.sorted_pair + position) / work.num_active : position;
    source[i] = work.x + (i64)from * work.K + piece * 8;
  }
  const u32 ring = shared_address(shared);
  const u32 target = ring + row * 128 + (piece ^ row % 8) * 16;  // PASS is a multiple of 8
  auto fetch = [&](int chunk, int offset, int stage) {  // `stage` in bytes
    if (chunk < chunks) {
      const bool is_there = !(ends_early && chunk == chunks - 1);
#pragma unroll
      for (int i = 0; i < COPIES; ++i)
        if (row + PASS * i < work.count)
          copy_async16_or_zeros(target + stage + PASS * i * 128, source[i] + offset, is_there);
    }
    copy_commit();
  };
#pragma unroll
  for (int chunk = 0; chunk < STAGES - 2; ++chunk) fetch(chunk, chunk * 64, chunk * STAGE_BYTES);
  float* const shares = (float*)(shared + STAGES * STAGE_BYTES);
  if (!IS_GATE_UP && threadIdx.x < N) {
    const int position = work.begin + min_int(threadIdx.x, work.count - 1);
    shares[threadIdx.x] = load_fresh_float(work.pair_weight + load_fresh_int(work.sorted_pair + position));
  }

  float c[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) c[i] = 0;
  u32 a[2][16];
  int stage = 0, to_fill = (STAGES - 2) * STAGE_BYTES;
  auto step = [&](int chunk, u32* mine, Weights* held, int place) {
    if (has_rows) decode_scaled(*held, mine);  // its registers are free: the products of two stages before are done
    if (chunk + AHEAD < chunks) *held = load_weights(next + (place + AHEAD) * TILE_BYTES);
    copy_wait<STAGES - 3>();
    show_shared();
    __syncthreads();  // the stage is there for all, and the products of two stages before are done in all groups
    fetch(chunk + STAGES - 2, (place + STAGES - 2) * 64, to_fill);
    if (has_rows) {  // without this branch ptxas would let the products wait for each other
      group_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply_group<N>(c, mine + 4 * k, ring + stage, k);
      group_commit();
      group_wait<1>();
    }
    stage = stage == (STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
    to_fill = to_fill == (STAGES - 1) * STAGE_BYTES ? 0 : to_fill + STAGE_BYTES;
  };
  for (int chunk = 0; chunk < chunks; chunk += AHEAD) {
    step(chunk, a[0], ahead, 0);
    if (chunk + 1 < chunks) {
      step(chunk + 1, a[1], ahead + 1, 1);
      if (AHEAD > 2 && chunk + 2 < chunks) {
        step(chunk + 2, a[0], ahead + 2, 2);
        if (chunk + 3 < chunks) step(chunk + 3, a[1], ahead + 3, 3);
      }
    }
    next += AHEAD * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < COPIES; ++i) source[i] += AHEAD * 64;
  }
  group_wait<0>();
  copy_wait<0>();
  if (m <= last_row) store_sums<IS_GATE_UP, N>(work, c, shares, m);
}

template <int GROUPS, int MOST, bool IS_GATE_UP>
DEVICE void run_many(Work& work, const int* tile_expert, const int* tile_begin, const int* tile_count,
                     const int* num_tiles) {
  let_next_start();
  wait_for_previous();
  const int tile = blockIdx.y;
  if (tile >= load_fresh_int(num_tiles)) return;
  work.expert = load_fresh_int(tile_expert + tile);
  work.begin = load_fresh_int(tile_begin + tile);
  work.count = load_fresh_int(tile_count + tile);
  if (MOST == 64) {
    if (work.count <= 32) run_tile<GROUPS, IS_GATE_UP, 32, 8, 4>(work);
    else run_tile<GROUPS, IS_GATE_UP, 64, 6, 4>(work);
  } else if (work.count <= 32) run_tile<GROUPS, IS_GATE_UP, 32, 8, 4>(work);
  else if (work.count <= 64) run_tile<GROUPS, IS_GATE_UP, 64, 8, 4>(work);
  else if (work.count <= 96) run_tile<GROUPS, IS_GATE_UP, 96, 4, 2>(work);
  else run_tile<GROUPS, IS_GATE_UP, 128, 4, 2>(work);
}

// gate_up: x bfloat16 [T, K] -> hidden bfloat16 [P, M / 2], sorted. down: hidden bfloat16 [P, K], sorted -> bfloat16
// [P, M], sorted, times the pair's weight. Grid (ceil(M / (64 GROUPS)), tiles at most).
//
// Blocks on one multiprocessor hide each other's beginnings, ends and barriers; blocks of more groups read the tokens less often.
#define MANY_KERNELS(GROUPS, MOST)                                                                                    \
  KERNEL void __launch_bounds__(GROUPS * 128, 4 / GROUPS) gate_up_many_##GROUPS(                                      \
      const u16* x, const u8* weights, const u16* bias, const int* tile_expert, const int* tile_begin,                \
      const int* tile_count, const int* num_tiles, const int* sorted_pair, u16* hidden, int K, int M, int num_active, \
      float alpha, float limit) {                                                                                     \
    Work work = {x, weights, bias, sorted_pair, nullptr, hidden, K, M, num_active, 0, 0, 0, alpha, limit};            \
    run_many<GROUPS, MOST, true>(work, tile_expert, tile_begin, tile_count, num_tiles);                               \
  }                                                                                                                   \
  KERNEL void __launch_bounds__(GROUPS * 128, 4 / GROUPS) down_many_##GROUPS(                                         \
      const u16* hidden, const u8* weights, const u16* bias, const int* tile_expert, const int* tile_begin,           \
      const int* tile_count, const int* num_tiles, const int* sorted_pair, const float* pair_weight, u16* out, int K, \
      int M, int num_active) {                                                                                        \
    Work work = {hidden, weights, bias, sorted_pair, pair_weight, out, K, M, num_active, 0, 0, 0, 0, 0};              \
    run_many<GROUPS, MOST, false>(work, tile_expert, tile_begin, tile_count, num_tiles);                              \
  }
MANY_KERNELS(1, 64)
MANY_KERNELS(2, 128)
