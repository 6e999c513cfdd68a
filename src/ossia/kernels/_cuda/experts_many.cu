// Many tokens an expert: the same packed weights, decoded in registers, times tiles of 128 tokens by wgmma.
//
// A block takes 64 rows of a matrix for each of its groups of 4 warps, 16 a warp: a warp's packed tiles are its
// operand's fragments as they lie. Tokens go through a ring in shared memory, 64 columns a stage, in the layout of the
// 128-byte swizzle: 16-byte piece c of token r lies at piece c ^ (r % 8) of its row. While the tensor cores work on one
// stage, the next one's weights are decoded; scales are multiplied in as they are decoded, less 2^32.

#include "experts_core.cuh"

#ifndef GROUPS
#define GROUPS 4
#endif
#define TILE_TOKENS 128
#define STAGES 6
#define COPIES (TILE_TOKENS * 8 / (GROUPS * 128))  // pieces that a thread copies a stage
#define STAGE_BYTES (TILE_TOKENS * 128)

#ifndef OSSIA_EMULATE
DEVICE u32 multiply_bf16(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// c [64 rows of the group, 128] += a [64, 16] b [16, 128], b being columns 16 k to 16 k + 15 of a stage.
DEVICE void multiply_group(float* c, const u32* a, const char* stage, int k) {
  const u64 address = (shared_address(stage) + k * 32) >> 4;
  const u64 b = (address & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// What threads wrote to shared memory, for the tensor cores.
DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE u32 transpose_8x8(u32 x) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
#endif

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
  const u32 words[4] = {w.codes.x, w.codes.y, w.codes.z, w.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    decode_e2m1(words[i], a + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; ++j) a[4 * i + j] = multiply_bf16(a[4 * i + j], scale[j % 2 * 2 + i / 2]);
  }
}

template <bool IS_GATE_UP>
DEVICE void run_many(const u16* x, const u8* weights, const u16* bias, const int* tile_expert, const int* tile_begin,
                     const int* tile_count, const int* num_tiles, const int* sorted_pair, const float* pair_weight,
                     void* out, int K, int M, int num_active, float alpha, float limit) {
  DYNAMIC_SHARED(shared);
  let_next_start();
  wait_for_previous();
  const int tile = blockIdx.y;
  if (tile >= load_fresh_int(num_tiles)) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int expert = load_fresh_int(tile_expert + tile), begin = load_fresh_int(tile_begin + tile);
  const int count = load_fresh_int(tile_count + tile), chunks = ceil_div(K, 64);
  const int m = blockIdx.x * (GROUPS * 4) + warp;  // the warp's row tile
  const bool has_rows = m / 4 * 4 < M / 16;        // the group's
  const u8* next = weights + ((i64)expert * (M / 16) + min_int(m, M / 16 - 1)) * chunks * TILE_BYTES;

  // Piece `piece` of every (16 GROUPS)th token from `row` on.
  const int row = threadIdx.x / 8, piece = threadIdx.x % 8;
  const u16* source[COPIES];
  char* target[COPIES];
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    const int token = row + 16 * GROUPS * i, position = begin + min_int(token, count - 1);
    const int from = IS_GATE_UP ? load_fresh_int(sorted_pair + position) / num_active : position;
    source[i] = x + (i64)from * K + piece * 8;
    target[i] = shared + token * 128 + (piece ^ token % 8) * 16;
  }
  auto fetch = [&](int chunk) {
    if (chunk < chunks) {
#pragma unroll
      for (int i = 0; i < COPIES; ++i) {
        char* const to = target[i] + chunk % STAGES * STAGE_BYTES;
        if (chunk * 64 + piece * 8 < K) copy_async16(to, source[i] + chunk * 64);
        else *(uint4*)to = uint4{0, 0, 0, 0};
      }
    }
    copy_commit();
  };
  for (int chunk = 0; chunk < STAGES - 2; ++chunk) fetch(chunk);

  float c[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) c[i] = 0;
  Weights ahead = load_weights(next);
  u32 a[2][16];
  auto step = [&](int chunk, u32* mine) {
    if (has_rows) decode_scaled(ahead, mine);  // its registers are free: the products of two stages before are done
    if (chunk + 1 < chunks) ahead = load_weights(next + (chunk + 1) * TILE_BYTES);
    copy_wait<STAGES - 3>();
    show_shared();
    __syncthreads();  // the stage is there for all, and the products of two stages before are done in all groups
    fetch(chunk + STAGES - 2);
    if (has_rows) {
      const char* const stage = shared + chunk % STAGES * STAGE_BYTES;
      group_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply_group(c, mine + 4 * k, stage, k);
      group_commit();
      group_wait<1>();
    }
  };
  for (int chunk = 0; chunk < chunks; chunk += 2) {
    step(chunk, a[0]);
    if (chunk + 1 < chunks) step(chunk + 1, a[1]);
  }
  group_wait<0>();
  copy_wait<0>();
  if (m >= M / 16) return;

  const float unscale = 4294967296.0f;
  const u32 biases = *(const u32*)(bias + (i64)expert * M + 16 * m + 2 * g);
  const float bias_first = low_bf16(biases), bias_second = high_bf16(biases);
#pragma unroll
  for (int n = 0; n < TILE_TOKENS / 8; ++n) {
    if (8 * n >= count) break;
    float* const s = c + 4 * n;
    if (IS_GATE_UP) {
      float h[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float gate = fminf(s[i] * unscale + bias_first, limit);
        const float up = fminf(fmaxf(s[2 + i] * unscale + bias_second, -limit), limit);
        h[i] = gate / (1.0f + exp2_fast(-1.44269504f * alpha * gate)) * (up + 1.0f);
      }
      const u32 turned = transpose_8x8(pack_bf16(h[0], h[1]));  // token g, features 2 t and 2 t + 1
      if (8 * n + g < count) *(u32*)((u16*)out + (i64)(begin + 8 * n + g) * (M / 2) + 8 * m + 2 * t) = turned;
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int position = begin + 8 * n + 2 * t + i;
        if (8 * n + 2 * t + i >= count) continue;
        const float share = load_fresh_float(pair_weight + load_fresh_int(sorted_pair + position));
        *(u32*)((u16*)out + (i64)position * M + 16 * m + 2 * g) =
            pack_bf16((s[i] * unscale + bias_first) * share, (s[2 + i] * unscale + bias_second) * share);
      }
    }
  }
}

// x bfloat16 [T, K] -> hidden bfloat16 [P, M / 2], sorted. Grid (ceil(M / (64 GROUPS)), tiles at most).
KERNEL void __launch_bounds__(GROUPS * 128, 4 / GROUPS) gate_up_many(const u16* x, const u8* weights, const u16* bias,
                                                            const int* tile_expert, const int* tile_begin,
                                                            const int* tile_count, const int* num_tiles,
                                                            const int* sorted_pair, u16* hidden, int K, int M,
                                                            int num_active, float alpha, float limit) {
  run_many<true>(x, weights, bias, tile_expert, tile_begin, tile_count, num_tiles, sorted_pair, nullptr, hidden, K, M,
                 num_active, alpha, limit);
}

// hidden bfloat16 [P, K], sorted -> bfloat16 [P, M], sorted, times the pair's weight.
KERNEL void __launch_bounds__(GROUPS * 128, 4 / GROUPS) down_many(const u16* hidden, const u8* weights, const u16* bias,
                                                         const int* tile_expert, const int* tile_begin,
                                                         const int* tile_count, const int* num_tiles,
                                                         const int* sorted_pair, const float* pair_weight, u16* out,
                                                         int K, int M, int num_active) {
  run_many<false>(hidden, weights, bias, tile_expert, tile_begin, tile_count, num_tiles, sorted_pair, pair_weight, out,
                  K, M, num_active, 0, 0);
}
