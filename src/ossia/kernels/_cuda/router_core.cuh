// One warp: the A best of E logits (plus bias, if there is one) by turns (of equal ones the first), softmax over them.
DEVICE void choose(const float* logits, const u16* bias, int E, int A, int* experts, float* weights) {
  const int lane = threadIdx.x % 32;
  float mine[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) mine[i] = i * 32 + lane < E ? load_fresh_float(logits + i * 32 + lane) : -INFINITY;
  if (bias) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i * 32 + lane < E) mine[i] += load_bf16(bias + i * 32 + lane);
  }
  float best_first = 0, sum = 0, weight = 0;
  for (int a = 0; a < A; ++a) {
    float best = -INFINITY;
    u32 where = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (mine[i] > best) best = mine[i], where = i * 32 + lane;
    // As an unsigned number that has the floats' order.
    const u32 bits = __float_as_uint(best), key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    const u32 top = largest_of_warp(key);
    where = smallest_of_warp(key == top ? where : 0x7fffffff);
    best = __uint_as_float(top & 0x80000000u ? top & 0x7fffffffu : ~top);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (where == i * 32 + lane) mine[i] = -INFINITY;
    if (a == 0) best_first = best;
    const float unnormalised = exp2_fast((best - best_first) * 1.44269504f);
    sum += unnormalised;
    if (lane == a) {
      weight = unnormalised;
      experts[a] = (int)where < E ? (int)where : 0;  // all logits NaN: some expert, so that nothing reads out of bounds
    }
  }
  if (lane < A) weights[lane] = weight / sum;
}
