// Runs the CUDA sources on a CPU, for tests: a block's threads are fibres that take turns at barriers.
//
// It knows nothing of timing, caches or races; it checks indices, layouts and arithmetic. Up to 4 blocks run at once (they
// may wait for each other), more run one after another, unless OSSIA_EMULATED_BLOCKS allows them.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define OSSIA_EMULATE
typedef uint32_t u32;
typedef uint64_t u64;
typedef uint16_t u16;
typedef uint8_t u8;
typedef int64_t i64;
struct uint4 { u32 x, y, z, w; };
struct uint2 { u32 x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Dim { int x, y, z; };

namespace emulator {
struct Warp { int arrived = 0, generation = 0; u32 slots[32][8]; };
struct Block { Dim index; char* shared; int shared_bytes; int arrived = 0, generation = 0; };
struct Fibre { ucontext_t context; Dim thread; Warp* warp; Block* block; bool is_done = false; std::vector<char> stack; };
inline Fibre* current;
inline ucontext_t scheduler;
inline Dim block_size, grid_size;
inline int num_overruns;  // accesses past a block's shared memory, left undone
inline std::function<void()> body;

inline void yield() { swapcontext(&current->context, &scheduler); }
inline void wait(int& arrived, int& generation, int count) {
  const int before = generation;
  if (++arrived == count) {
    arrived = 0;
    ++generation;
    return;
  }
  while (generation == before) yield();
}
inline void warp_wait() { wait(current->warp->arrived, current->warp->generation, 32); }
inline void enter() {
  body();
  current->is_done = true;
  swapcontext(&current->context, &scheduler);
}
inline void run_blocks(std::vector<Block>& blocks, int threads, int shared_bytes) {
  std::vector<Fibre> fibres(blocks.size() * threads);
  std::vector<Warp> warps(blocks.size() * ((threads + 31) / 32));
  for (Block& block : blocks) {
    block.shared_bytes = shared_bytes;
    block.shared = (char*)aligned_alloc(1024, (shared_bytes + 2047) / 1024 * 1024);
    memset(block.shared, 0xff, shared_bytes);  // NaN until written
  }
  for (size_t i = 0; i < fibres.size(); ++i) {
    Fibre& fibre = fibres[i];
    fibre.thread = {(int)(i % threads), 0, 0};
    fibre.block = &blocks[i / threads];
    fibre.warp = &warps[i / threads * ((threads + 31) / 32) + i % threads / 32];
    fibre.stack.resize(64 * 1024);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    makecontext(&fibre.context, enter, 0);
  }
  for (size_t left = fibres.size(); left > 0;) {
    for (Fibre& fibre : fibres) {
      if (fibre.is_done) continue;
      current = &fibre;
      swapcontext(&scheduler, &fibre.context);
      if (fibre.is_done) --left;
    }
  }
  for (Block& block : blocks) free(block.shared);
}
template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
  kernel(*(std::remove_reference_t<Args>*)args[I]...);
}
// Blocks that may run at once beyond 4, for a grid that waits for itself.
inline int together_limit() {
  const char* const text = getenv("OSSIA_EMULATED_BLOCKS");
  return text ? atoi(text) : 0;
}
template <class... Args>
void launch(void (*kernel)(Args...), const int* grid, int threads, int shared_bytes, void** args) {
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {threads, 1, 1};
  body = [=] { call(kernel, args, std::index_sequence_for<Args...>()); };
  const int total = grid[0] * grid[1] * grid[2], together = total <= 4 || together_limit() >= total ? total : 1;
  for (int first = 0; first < total; first += together) {
    std::vector<Block> blocks(together);
    for (int i = 0; i < together; ++i) {
      const int at = first + i;
      blocks[i].index = {at % grid[0], at / grid[0] % grid[1], at / grid[0] / grid[1]};
    }
    run_blocks(blocks, threads, shared_bytes);
  }
}
}  // namespace emulator

extern "C" int take_overruns() { return std::exchange(emulator::num_overruns, 0); }

#define KERNEL extern "C"
#define DEVICE static inline
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) char* const name = emulator::current->block->shared
#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block->index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

DEVICE void __syncthreads() {
  emulator::Block* const block = emulator::current->block;
  emulator::wait(block->arrived, block->generation, emulator::block_size.x);
}
DEVICE void __syncwarp() { emulator::warp_wait(); }
DEVICE void __threadfence() {}
DEVICE int atomicAdd(int* p, int x) { const int old = *p; *p += x; return old; }
DEVICE float __uint_as_float(u32 x) { float r; memcpy(&r, &x, 4); return r; }
DEVICE u32 __float_as_uint(float x) { u32 r; memcpy(&r, &x, 4); return r; }
DEVICE float __int_as_float(int x) { return __uint_as_float((u32)x); }
DEVICE int __float_as_int(float x) { return (int)__float_as_uint(x); }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }

DEVICE uint4 load_stream(const void* p) { return *(const uint4*)p; }
DEVICE uint4 load_fresh(const void* p) { return *(const uint4*)p; }
DEVICE u32 load_fresh_u32(const void* p) { return *(const u32*)p; }
DEVICE uint2 load_fresh_u64(const void* p) { return *(const uint2*)p; }
DEVICE i64 load_fresh_i64(const void* p) { return *(const i64*)p; }
DEVICE u32 load_acquire(const u32* p) {
  emulator::yield();
  return *(const volatile u32*)p;
}
DEVICE void add_release(u32* p) { ++*p; }
DEVICE void copy_async16(void* to, const void* from) { memcpy(to, from, 16); }
DEVICE void copy_async4(void* to, const void* from) { memcpy(to, from, 4); }
DEVICE void copy_commit() {}
template <int PENDING>
DEVICE void copy_wait() {}
DEVICE void let_next_start() {}
DEVICE void wait_for_previous() {}
DEVICE u32 round_bf16(float x) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
DEVICE u32 scale_up(u32 pair) {
  const float factor = ldexpf(1.0f, 112);
  return pack_bf16(__uint_as_float(pair << 16) * factor, __uint_as_float(pair & 0xffff0000u) * factor);
}
DEVICE u32 multiply_bf16(u32 a, u32 b) {
  return pack_bf16(__uint_as_float(a << 16) * __uint_as_float(b << 16),
                   __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u));
}
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 both = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) r |= (u32)(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return r;
}
DEVICE float shuffle(float x, int lane) {
  emulator::Warp* const warp = emulator::current->warp;
  warp->slots[threadIdx.x % 32][0] = __float_as_uint(x);
  emulator::warp_wait();
  const float r = __uint_as_float(warp->slots[lane & 31][0]);
  emulator::warp_wait();
  return r;
}
DEVICE u32 same_in_warp(u32 x) { return x; }
DEVICE float shuffle_xor(float x, int mask) { return shuffle(x, threadIdx.x % 32 ^ mask); }
DEVICE u32 largest_of_warp(u32 x) {
  for (int mask = 16; mask; mask >>= 1) {
    const u32 other = __float_as_uint(shuffle_xor(__uint_as_float(x), mask));
    x = other > x ? other : x;
  }
  return x;
}
DEVICE u32 smallest_of_warp(u32 x) { return ~largest_of_warp(~x); }
DEVICE void prefetch(const void*) {}
DEVICE void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  emulator::Warp* const warp = emulator::current->warp;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const u32 mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(warp->slots[lane], mine, sizeof mine);
  emulator::warp_wait();
  auto half = [](u32 x, int i) { return __uint_as_float(i ? x & 0xffff0000u : x << 16); };
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const u32 a = warp->slots[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
      const u32 b = warp->slots[column * 4 + k % 8 / 2][4 + k / 8];
      sum += half(a, k % 2) * half(b, k % 2);
    }
    c[i] = sum;
  }
  emulator::warp_wait();
}

// An address in shared memory is the offset from the block's first byte.
DEVICE u32 shared_address(const void* p) { return (u32)((const char*)p - emulator::current->block->shared); }
DEVICE char* shared_place(u32 address, int size) {
  emulator::Block* const block = emulator::current->block;
  if ((int)address + size <= block->shared_bytes) return block->shared + address;
  ++emulator::num_overruns;
  return nullptr;
}
DEVICE void copy_async16_or_zeros(u32 to, const void* from, bool is_there) {
  char* const place = shared_place(to, 16);
  if (!place) return;
  if (is_there) memcpy(place, from, 16);
  else memset(place, 0, 16);
}
DEVICE float divide_fast(float a, float b) { return a / b; }

// wgmma: a warp's 16 rows of its group's 64; `stage` holds N tokens of 64 columns in the 128-byte swizzle.
template <int N>
DEVICE void multiply_group(float* c, const u32* a, u32 stage, int k) {
  emulator::Warp* const warp = emulator::current->warp;
  const char* const tokens = shared_place(stage, N * 128);
  if (!tokens) return;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  memcpy(warp->slots[lane], a, 16);
  emulator::warp_wait();
  for (int i = 0; i < N / 2; ++i) {
    const int row = g + i % 4 / 2 * 8, token = i / 4 * 8 + 2 * t + i % 2;
    float sum = c[i];
    for (int kk = 0; kk < 16; ++kk) {
      const u32 pair = warp->slots[row % 8 * 4 + kk % 8 / 2][row / 8 + 2 * (kk / 8)];
      const int column = 16 * k + kk, piece = column / 8 ^ token % 8;
      u16 b;
      memcpy(&b, tokens + token * 128 + piece * 16 + column % 8 * 2, 2);
      sum += __uint_as_float(kk % 2 ? pair & 0xffff0000u : pair << 16) * __uint_as_float((u32)b << 16);
    }
    c[i] = sum;
  }
  emulator::warp_wait();
}
DEVICE void group_begin() {}
DEVICE void group_commit() {}
template <int PENDING>
DEVICE void group_wait() {}
DEVICE void show_shared() {}
DEVICE u32 transpose_8x8(u32 x) {
  emulator::Warp* const warp = emulator::current->warp;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  warp->slots[lane][0] = x;
  emulator::warp_wait();
  u32 r = 0;
  for (int i = 0; i < 2; ++i) r |= (warp->slots[(2 * t + i) * 4 + g / 2][0] >> (16 * (g % 2)) & 0xffff) << (16 * i);
  emulator::warp_wait();
  return r;
}
