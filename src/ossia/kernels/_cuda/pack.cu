// MXFP4 from the checkpoints' order to the order in which the tensor cores take it.
//
// A tile is 16 rows by 64 columns: 512 bytes of codes, 16 a lane, and 32 bytes of scales; 544 together. Row g of a tile
// is source row 16 i + 2 g and row g + 8 the one after: gate and up of one feature in `gate_up`, neighbours in `down`.
// A lane's four words are its fragments of four products m16n8k16, each of eight codes (see decode_e2m1). Columns past
// the end are zeros.

DEVICE u32 place_codes(u32 byte, int pair) {
  u32 word = 0;
  for (int half = 0; half < 2; ++half) {
    const u32 code = half ? byte >> 4 : byte & 15u;
    u32 bits;
    if (pair == 0) bits = (code & 8u) << 12 | (code & 7u) << 6;
    else if (pair == 1) bits = (code & 8u) << 9 | (code & 7u) << 3;
    else if (pair == 2) bits = (code & 8u) << 6 | (code & 7u);
    else bits = (code & 8u) << 11 | (code & 6u) << 9 | (code & 1u) << 13;
    word |= bits << (16 * half);
  }
  return word;
}

// blocks u8 [R, N, 16] and scales u8 [R, N] -> out [R / 16, ceil(N / 2), 544]; a block a tile of 16 rows, 136 threads,
// one for each word of a tile.
KERNEL void pack_experts(const u8* blocks, const u8* scales, u8* out, int N) {
  const int chunks = ceil_div(N, 2), word = threadIdx.x;
  const i64 tile = blockIdx.x;
  const u8* const codes = blocks + tile * 16 * N * 16;
  const u8* const exponents = scales + tile * 16 * N;
  for (int chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    u32 value = 0;
    if (word < 128) {
      const int lane = word / 4, g = lane / 4, t = lane % 4;
      const int block = 2 * chunk + word % 4 / 2, byte = 8 * (word % 2) + t;
      if (block < N) {
        const u8* const first = codes + ((i64)(2 * g) * N + block) * 16 + byte;
        const u8* const second = first + (i64)N * 16;
        value = place_codes(first[0], 0) | place_codes(second[0], 1) | place_codes(first[4], 2) |
                place_codes(second[4], 3);
      }
    } else {
      const int g = word - 128;
      for (int i = 0; i < 4; ++i) {
        const int row = 2 * g + i / 2, block = 2 * chunk + i % 2;
        if (block < N) value |= (u32)exponents[row * N + block] << (8 * i);
      }
    }
    *(u32*)(out + (tile * chunks + chunk) * 544 + word * 4) = value;
  }
}
