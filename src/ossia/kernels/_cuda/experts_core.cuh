// A packed tile of 16 rows by 64 columns times up to 8 NT tokens.

#define TILE_BYTES 544
#define SLOT_BYTES 640  // a tile in the ring: each lane has its own copy of its scales

template <int NT>
DEVICE void multiply_chunk(const uint4& codes, u32 scales, const char* x, int row_bytes, int count, float (*total)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  u32 a[16];
  decode_e2m1(codes.x, codes.y, a);
  decode_e2m1(codes.z, codes.w, a + 8);
  const float first[2] = {__uint_as_float((scales << 23) & 0x7f800000u), __uint_as_float((scales << 15) & 0x7f800000u)};
  const float second[2] = {__uint_as_float((scales << 7) & 0x7f800000u), __uint_as_float((scales >> 1) & 0x7f800000u)};
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    if (n > 0 && 8 * n >= count) break;
    // Columns do not mix: one without a token may read any row.
    const char* const row = x + min_int(8 * n + g, count - 1) * row_bytes + t * 16;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const uint4 b = *(const uint4*)(row + block * 64);
      float c[4] = {0, 0, 0, 0};
      const u32* const w = a + 8 * block;
      mma(c, w[0], w[1], w[2], w[3], b.x, b.y);
      mma(c, w[4], w[5], w[6], w[7], b.z, b.w);
      total[n][0] += first[block] * c[0];
      total[n][1] += first[block] * c[1];
      total[n][2] += second[block] * c[2];
      total[n][3] += second[block] * c[3];
    }
  }
}
