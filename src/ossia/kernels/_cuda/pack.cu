// MXFP4 from the checkpoints' order to the order in which the tensor cores take it.
//
// A tile is 16 rows by 64 columns: 512 bytes of codes, 16 a lane, and 32 bytes of scales; 544 together. Row g of a tile
// is source row 16 i + 2 g and row g + 8 the one after: gate and up of one feature in `gate_up`, neighbours in `down`.
// A lane's four words are its fragments of four products m16n8k16, those of two products in two words (see decode_e2m1).
// Columns past the end are zeros.

// Where bit `bit` (mantissa, exponent, exponent, sign) of the codes of pair `pair` of a lane's two words lies: in which of
// the words times 32, plus the place, counted from the low bit of the code's half; past 15 it is in the other half.
DEVICE int place_of(int pair, int bit) {
  const u8 places[4][4] = {{6, 7, 8, 15}, {0, 1, 2, 9}, {12, 13, 14, 16 + 5}, {4, 32 + 3, 32 + 4, 32 + 11}};
  const u8 last[4] = {10, 11, 32 + 10, 16 + 3};
  return pair == 7 ? last[bit] : places[pair % 4][bit] + (pair > 3 ? 32 : 0);
}

// What word `word` of the two holds of a pair, the codes of which are a byte: low and high, as of the pair's halves.
DEVICE u32 place_codes(u32 byte, int pair, int word) {
  u32 value = 0;
  for (int bit = 0; bit < 4; ++bit) {
    const int place = place_of(pair, bit);
    if (place / 32 != word) continue;
    value |= (byte >> bit & 1u) << place % 32 | (byte >> (4 + bit) & 1u) << (place + 16) % 32;
  }
  return value;
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
      const int block = 2 * chunk + word % 4 / 2;
      if (block < N) {
        const u8* const first = codes + ((i64)(2 * g) * N + block) * 16 + t;
        for (int pair = 0; pair < 8; ++pair)  // of two products, a row and the next, bytes t and 4 + t of the product
          value |= place_codes(first[pair % 2 * N * 16 + pair / 2 * 4], pair, word % 2);
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
