// The residual stream between layers: take a row, add what the experts gave, normalise.

// row n of `base` (row index[n] if there is an index: an embedding's, or a sequence's last token's), plus update [N, D],
// plus the experts' outputs parts [splits, P, D], float32 or bfloat16, at the places of the token's A pairs; written to stream (if
// there is one), and normalised to normed (if there is one). A block a token; D a multiple of 4.
KERNEL void __launch_bounds__(1024, 1) residual_norm(const u16* base, const i64* index, const u16* update,
                                                  const void* parts, int is_wide, const int* pair_position,
                                                  const u16* norm, u16* stream, u16* normed, int D, int A, int splits,
                                                  int num_pairs, float epsilon) {
  DYNAMIC_SHARED(shared);
  float* const row = (float*)shared;
  float* const scratch = row + D;
  int* const positions = (int*)scratch + 32;
  const int n = blockIdx.x;
  let_next_start();
  wait_for_previous();
  if (parts && (int)threadIdx.x < A) positions[threadIdx.x] = load_fresh_int(pair_position + n * A + threadIdx.x);
  __syncthreads();
  const u16* const from = base + (index ? load_fresh_i64(index + n) : (i64)n) * D;
  float squares = 0;
  for (int i = threadIdx.x * 4; i < D; i += blockDim.x * 4) {
    const uint2 old = load_fresh_u64(from + i);
    float x[4] = {low_bf16(old.x), high_bf16(old.x), low_bf16(old.y), high_bf16(old.y)};
    if (update) {
      const uint2 more = load_fresh_u64(update + (i64)n * D + i);
      x[0] += low_bf16(more.x), x[1] += high_bf16(more.x), x[2] += low_bf16(more.y), x[3] += high_bf16(more.y);
    }
    if (parts) {
      float sum[4] = {0, 0, 0, 0};
      for (int first = 0; first < A * splits; first += 4) {  // four at once, so that their latencies overlap
        uint4 part[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (first + j < A * splits) {
            const int a = (first + j) / splits, split = (first + j) % splits;
            const i64 at = ((i64)split * num_pairs + positions[a]) * D + i;
            if (is_wide) {
              part[j] = load_fresh((const float*)parts + at);
            } else {
              const uint2 pair = load_fresh_u64((const u16*)parts + at);
              part[j] = uint4{pair.x << 16, pair.x & 0xffff0000u, pair.y << 16, pair.y & 0xffff0000u};
            }
          }
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (first + j < A * splits) {
            sum[0] += __uint_as_float(part[j].x), sum[1] += __uint_as_float(part[j].y);
            sum[2] += __uint_as_float(part[j].z), sum[3] += __uint_as_float(part[j].w);
          }
      }
      x[0] += sum[0], x[1] += sum[1], x[2] += sum[2], x[3] += sum[3];
    }
    const u32 first = pack_bf16(x[0], x[1]), second = pack_bf16(x[2], x[3]);
    if (stream) {
      *(uint2*)(stream + (i64)n * D + i) = uint2{first, second};
    }
    row[i] = low_bf16(first), row[i + 1] = high_bf16(first);
    row[i + 2] = low_bf16(second), row[i + 3] = high_bf16(second);
    squares += row[i] * row[i] + row[i + 1] * row[i + 1] + row[i + 2] * row[i + 2] + row[i + 3] * row[i + 3];
  }
  if (!normed) return;
  const float scale = rsqrtf(block_sum(squares, scratch) / D + epsilon);
  for (int i = threadIdx.x * 4; i < D; i += blockDim.x * 4) {
    const u32 first = *(const u32*)(norm + i), second = *(const u32*)(norm + i + 2);
    *(uint2*)(normed + (i64)n * D + i) =
        uint2{pack_bf16(row[i] * scale * low_bf16(first), row[i + 1] * scale * high_bf16(first)),
              pack_bf16(row[i + 2] * scale * low_bf16(second), row[i + 3] * scale * high_bf16(second))};
  }
}

// The same for many tokens, without an index and with parts in bfloat16 [P, D] alone: 8 columns a thread, all of a thread's
// loads on their way at once. D a multiple of 8, at most 8 times the threads.
KERNEL void __launch_bounds__(384, 3) residual_norm_many(const u16* base, const u16* update, const u16* parts,
                                                         const int* pair_position, const u16* norm, u16* stream,
                                                         u16* normed, int D, int A, float epsilon) {
  DYNAMIC_SHARED(shared);
  const i64 n = blockIdx.x;
  const int i = threadIdx.x * 8;
  const bool has_columns = i < D;
  let_next_start();
  wait_for_previous();
  float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  auto add = [&](const uint4& v) {
    x[0] += low_bf16(v.x), x[1] += high_bf16(v.x), x[2] += low_bf16(v.y), x[3] += high_bf16(v.y);
    x[4] += low_bf16(v.z), x[5] += high_bf16(v.z), x[6] += low_bf16(v.w), x[7] += high_bf16(v.w);
  };
  uint4 sum = {0, 0, 0, 0};
  if (has_columns) {
    const uint4 old = load_fresh(base + n * D + i);
    uint4 more = {0, 0, 0, 0};
    if (update) more = load_fresh(update + n * D + i);
    for (int first = 0; parts && first < A; first += 4) {
      uint4 part[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (first + j < A) part[j] = load_fresh(parts + (i64)load_fresh_int(pair_position + n * A + first + j) * D + i);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (first + j < A) add(part[j]);
    }
    add(old);
    if (update) add(more);
    sum.x = pack_bf16(x[0], x[1]), sum.y = pack_bf16(x[2], x[3]), sum.z = pack_bf16(x[4], x[5]), sum.w = pack_bf16(x[6], x[7]);
    if (stream) *(uint4*)(stream + n * D + i) = sum;
  }
  if (!normed) return;
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = 0;
  add(sum);  // as rounded
  float squares = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) squares += x[j] * x[j];
  const float scale = rsqrtf(block_sum(squares, (float*)shared) / D + epsilon);
  if (!has_columns) return;
  const uint4 gain = *(const uint4*)(norm + i);
  *(uint4*)(normed + n * D + i) = uint4{pack_bf16(x[0] * scale * low_bf16(gain.x), x[1] * scale * high_bf16(gain.x)),
                                        pack_bf16(x[2] * scale * low_bf16(gain.y), x[3] * scale * high_bf16(gain.y)),
                                        pack_bf16(x[4] * scale * low_bf16(gain.z), x[5] * scale * high_bf16(gain.z)),
                                        pack_bf16(x[6] * scale * low_bf16(gain.w), x[7] * scale * high_bf16(gain.w))};
}

// After a whole product by q, k and v, qkv [T, (H + 2 KV) C]: rope for q and k, q in place, k and v to their slots.
// Grid (T), any number of threads; C even.
KERNEL void rope_and_store(u16* qkv, const float* cosines, const float* sines, const i64* positions,
                           const i64* slot_mapping, u16* keys, u16* values, int H, int KV, int C) {
  const int n = blockIdx.x, half = C / 2;
  let_next_start();
  wait_for_previous();
  const i64 position = load_fresh_i64(positions + n), slot = load_fresh_i64(slot_mapping + n);
  u16* const row = qkv + (i64)n * (H + 2 * KV) * C;
  for (int i = threadIdx.x; i < (H + 2 * KV) * half / 2; i += blockDim.x) {
    const int head = i / (half / 2), dim = i % (half / 2) * 2;
    u32 first = load_fresh_u32(row + head * C + dim), second = load_fresh_u32(row + head * C + dim + half);
    if (head < H + KV) {
      const float2 cosine = *(const float2*)(cosines + position * C + half + dim);
      const float2 sine = *(const float2*)(sines + position * C + half + dim);
      const float a0 = low_bf16(first), a1 = high_bf16(first), b0 = low_bf16(second), b1 = high_bf16(second);
      first = pack_bf16(a0 * cosine.x - b0 * sine.x, a1 * cosine.y - b1 * sine.y);
      second = pack_bf16(b0 * cosine.x + a0 * sine.x, b1 * cosine.y + a1 * sine.y);
    }
    u16* to = row + head * C;
    if (head >= H) to = (head < H + KV ? keys : values) + (slot * KV + (head - H) % KV) * C;
    *(u32*)(to + dim) = first;
    *(u32*)(to + dim + half) = second;
  }
}
