// Dense layers for up to 8 tokens: weights bfloat16 in the checkpoint's order, read once.
//
// A block takes 16 rows of the matrix (the tensor cores' rows), its 8 warps the columns in turns of 32; their sums meet
// in shared memory. Each warp has a ring of STAGES turns in shared memory, which runs on into the block's next row tile, and
// fills it before the kernel waits for its input. A lane copies what it will read itself, so that a warp need not meet.
// (Loads to registers must fit the L1 cache on their way. A kernel with much shared memory before this one leaves little of it.)
//
// Within a turn of 32 columns lane t holds columns 8 t to 8 t + 7 of rows g and g + 8, in one load each. That is not the
// order of PTX's fragments, but both operands have the same one, and a sum has none.

#define LINEAR_WARPS 8
#define TURN_BYTES 1024

struct Rope {
  const float* cos;  // [positions, C]
  const float* sin;
  const i64* positions;     // [N]
  const i64* slot_mapping;  // [N]
};

// Which rows of the matrix are rows g and g + 8 of tile `tile`.
template <bool IS_QKV>
DEVICE void rows_of(int tile, int g, int C, int* first, int* second) {
  if (IS_QKV) {  // the two dimensions that rope turns together
    const int head = tile / (C / 16), part = tile % (C / 16);
    *first = head * C + part * 8 + g;
    *second = *first + C / 2;
  } else {
    *first = tile * 16 + 2 * g;
    *second = *first + 1;
  }
}

// finish(row_first, row_second, n, first, second) gets the sums of the two rows for token n.
template <bool IS_QKV, int STAGES, class Finish>
DEVICE void run_linear(const u16* x, const u16* weight, int N, int K, int M, int C, Finish finish) {
  DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % 32, warp = same_in_warp(threadIdx.x / 32), g = lane / 4, t = lane % 4;
  const int blocks = K / 32, row_bytes = K * 2 + (K % 64 == 0 ? 64 : 0), tiles = ceil_div(M, 16);
  char* const ring = shared + warp * STAGES * TURN_BYTES + lane * 16;
  char* const rows = shared + LINEAR_WARPS * STAGES * TURN_BYTES;
  float* const sums = (float*)(rows + N * row_bytes);  // [warps][16][8 + 1]

  const u16 *first, *second;
  int next_tile = blockIdx.x, next_block = warp, fill = 0;
  auto point = [&]() {
    int row_first, row_second;
    rows_of<IS_QKV>(next_tile, g, C, &row_first, &row_second);
    first = weight + (i64)min_int(row_first, M - 1) * K + next_block * 32 + t * 8;
    second = weight + (i64)min_int(row_second, M - 1) * K + next_block * 32 + t * 8;
  };
  auto fetch = [&]() {
    if (next_tile < tiles && next_block < blocks) {
      copy_async16(ring + fill, first);
      copy_async16(ring + fill + TURN_BYTES / 2, second);
      first += LINEAR_WARPS * 32;
      second += LINEAR_WARPS * 32;
      next_block += LINEAR_WARPS;
      if (next_block >= blocks) {
        next_tile += gridDim.x;
        next_block = warp;
        point();
      }
    }
    copy_commit();
    fill = fill == (STAGES - 1) * TURN_BYTES ? 0 : fill + TURN_BYTES;
  };
  point();
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) fetch();
  let_next_start();
  wait_for_previous();
  for (int i = threadIdx.x; i < N * (K / 8); i += LINEAR_WARPS * 32) {
    const int row = i / (K / 8), piece = i % (K / 8);
    copy_async16(rows + row * row_bytes + piece * 16, x + (i64)row * K + piece * 8);
  }
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  const char* const token = rows + min_int(g, N - 1) * row_bytes + t * 16;
  int drain = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float total[4] = {0, 0, 0, 0};
#pragma unroll 2
    for (int block = warp; block < blocks; block += LINEAR_WARPS) {
      copy_wait<STAGES - 2>();
      const uint4 one = *(const uint4*)(ring + drain), two = *(const uint4*)(ring + drain + TURN_BYTES / 2);
      const uint4 b = *(const uint4*)(token + block * 64);
      drain = drain == (STAGES - 1) * TURN_BYTES ? 0 : drain + TURN_BYTES;
      fetch();
      mma(total, one.x, two.x, one.y, two.y, b.x, b.y);
      mma(total, one.z, two.z, one.w, two.w, b.z, b.w);
    }
    float* const mine = sums + warp * 16 * 9;
    mine[g * 9 + 2 * t] = total[0];
    mine[g * 9 + 2 * t + 1] = total[1];
    mine[(g + 8) * 9 + 2 * t] = total[2];
    mine[(g + 8) * 9 + 2 * t + 1] = total[3];
    __syncthreads();
    if (threadIdx.x < 64) {
      const int r = threadIdx.x % 8, n = threadIdx.x / 8;
      float one = 0, two = 0;
      for (int w = 0; w < LINEAR_WARPS; ++w) {
        one += sums[w * 16 * 9 + r * 9 + n];
        two += sums[w * 16 * 9 + (r + 8) * 9 + n];
      }
      int out_first, out_second;
      rows_of<IS_QKV>(tile, r, C, &out_first, &out_second);
      if (n < N) finish(out_first, out_second, n, one, two);
    }
    __syncthreads();
  }
}

// x [N, D] times the q, k and v rows, plus bias; q and k turned by rope; q to q [N, H, C], k and v to their slots.
KERNEL void __launch_bounds__(256, 3) linear_qkv(const u16* x, const u16* weight, const u16* bias, Rope rope, u16* q,
                                                 u16* keys, u16* values, int N, int D, int H, int KV, int C) {
  run_linear<true, 3>(x, weight, N, D, (H + 2 * KV) * C, C, [&](int first, int second, int n, float one, float two) {
    const int head = first / C, dim = first % C;
    one += load_bf16(bias + first);
    two += load_bf16(bias + second);
    if (head < H + KV) {
      const i64 at = load_fresh_i64(rope.positions + n) * C + dim + C / 2;
      const float cosine = rope.cos[at], sine = rope.sin[at], turned = one * cosine - two * sine;
      two = two * cosine + one * sine;
      one = turned;
    }
    u16* out;
    if (head < H) {
      out = q + ((i64)n * H + head) * C;
    } else {
      u16* const cache = head < H + KV ? keys : values;
      out = cache + (load_fresh_i64(rope.slot_mapping + n) * KV + (head - H) % KV) * C;
    }
    out[dim] = to_bf16(one);
    out[dim + C / 2] = to_bf16(two);
  });
}

// stream [N, M] += x [N, K] weight^T + bias.
KERNEL void __launch_bounds__(256, 2) linear_residual(const u16* x, const u16* weight, const u16* bias, u16* stream,
                                                      int N, int K, int M) {
  run_linear<false, 5>(x, weight, N, K, M, 0, [&](int first, int second, int n, float one, float two) {
    if (first >= M) return;
    u32* const at = (u32*)(stream + (i64)n * M + first);
    const u32 old = load_fresh_u32(at);
    *at = pack_bf16(low_bf16(old) + one + load_bf16(bias + first), high_bf16(old) + two + load_bf16(bias + second));
  });
}

// out float32 [N, M] = x [N, K] weight^T.
KERNEL void __launch_bounds__(256, 2) linear_float(const u16* x, const u16* weight, float* out, int N, int K, int M) {
  run_linear<false, 6>(x, weight, N, K, M, 0, [&](int first, int second, int n, float one, float two) {
    if (first < M) out[(i64)n * M + first] = one;
    if (second < M) out[(i64)n * M + second] = two;
  });
}
