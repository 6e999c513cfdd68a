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
#include "attention_core.cuh"

template <int C>
DEVICE void run_attention(const u16* q, int q_stride, Pages pages, const u16* sinks, u16* out, float* scratch,
                          int* arrived, int H, int KV, int window) {
  DYNAMIC_SHARED(shared);
  float* const partials = (float*)shared;
  int* const flag = (int*)(partials + ATTENTION_WARPS * (16 + 8 * C));
  const int n = blockIdx.z, kv = blockIdx.y, split = blockIdx.x, splits = gridDim.x, group = H / KV;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, sequence = n * KV + kv;
  let_next_start();
  wait_for_previous();
  const Shares shares = share_out(load_fresh_int(pages.context_lens + n), window, splits, ATTENTION_WARPS);
  if (split >= shares.used) return;
  u32 query[C / 32][4];
  const u16* const head_query = q + (i64)n * q_stride + (kv * group + min_int(g, group - 1)) * C;
#pragma unroll
  for (int block = 0; block < C / 32; ++block) load_words<4>(query[block], head_query + block * 32 + t * 8);
  attend_share<C, ATTENTION_WARPS>(query, pages, shares, split, n, kv, KV, partials);
  __syncthreads();
  join_shares<C, ATTENTION_WARPS>(partials, sinks + kv * group, group, split, shares.used,
                                  out + ((i64)n * H + kv * group) * C,
                                  scratch + (i64)sequence * splits * (16 + 8 * C), arrived + sequence, flag);
}

// q [N rows q_stride apart, H, C], out [N, H, C]; grid (shares, KV, N); scratch float32 [N * KV, shares, 16 + 8 C]; arrived int32 [N * KV], zeros
// before and after.
#define ATTENTION_KERNEL(C, BLOCKS)                                                                                            \
  KERNEL void __launch_bounds__(ATTENTION_WARPS * 32, BLOCKS) decode_attention_##C(                                            \
      const u16* q, int q_stride, Pages pages, const u16* sinks, u16* out, float* scratch, int* arrived, int H,       \
      int KV, int window) {                                                                                            \
    run_attention<C>(q, q_stride, pages, sinks, out, scratch, arrived, H, KV, window);                                           \
  }
ATTENTION_KERNEL(32, 2)
ATTENTION_KERNEL(64, 3)  // 20 bytes a thread spill, and a third more warps hide each other's waiting
ATTENTION_KERNEL(128, 1)
