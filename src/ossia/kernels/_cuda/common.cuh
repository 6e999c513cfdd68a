// Shared device code: 16-byte loads, asynchronous copies, one tensor-core product, MXFP4 decoding.
//
// No headers are included, so that the runtime compiler needs no include folder. Everything that is not plain C++ is
// behind a function here; tests/unit/kernels/triton/emulator.h gives the same functions for a CPU.
//
// Letters: g = lane / 4 and t = lane % 4, as in PTX's tables of matrix fragments.

#ifndef OSSIA_EMULATE
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;
typedef long long i64;

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

#define KERNEL extern "C" __global__
#define DEVICE static __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) char name[]

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A weight is read once: leave L1 to what is read again.
DEVICE uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// Data of the kernel before: past L1, which may hold an older value.
DEVICE uint4 load_fresh(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
DEVICE u32 largest_of_warp(u32 x) { return __reduce_max_sync(0xffffffffu, x); }
DEVICE u32 smallest_of_warp(u32 x) { return __reduce_min_sync(0xffffffffu, x); }
DEVICE u32 load_fresh_u32(const void* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEVICE uint2 load_fresh_u64(const void* p) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
DEVICE i64 load_fresh_i64(const void* p) {
  i64 v;
  asm volatile("ld.global.cg.s64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
// A counter that all blocks of a running grid wait at.
DEVICE u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEVICE void add_release(u32* p) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory"); }
DEVICE void copy_async16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void copy_async4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// c [16, 8] += a [16, 16] b [16, 8], bfloat16 in, float32 out.
DEVICE void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Programmatic dependent launch: the next kernel may start; and wait until the one before has finished and its writes
// can be seen. Every kernel waits before it writes anything, so finishing is transitive.
DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Two floats to a pair of bfloat16, `low` in the low half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// A pair of bfloat16 times 2^112, exact below 2^15: undoes most of decode_e2m1's 2^-126 without leaving float32's range.
DEVICE u32 scale_up(u32 pair) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(pair), "r"(0x77807780u));
  return r;
}
DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
// What is the same in all lanes, so that the compiler knows it: it can then use the registers that a warp has once.
DEVICE u32 same_in_warp(u32 x) { return __shfl_sync(0xffffffffu, x, 0); }
DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
#endif

DEVICE int load_fresh_int(const int* p) { return (int)load_fresh_u32(p); }
DEVICE float load_fresh_float(const float* p) { return __uint_as_float(load_fresh_u32(p)); }
DEVICE float low_bf16(u32 x) { return __uint_as_float(x << 16); }
DEVICE float high_bf16(u32 x) { return __uint_as_float(x & 0xffff0000u); }
DEVICE float load_bf16(const u16* p) { return __uint_as_float((u32)*p << 16); }
DEVICE u16 to_bf16(float x) { return (u16)pack_bf16(x, 0.0f); }
DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE int min_int(int a, int b) { return a < b ? a : b; }
DEVICE int max_int(int a, int b) { return a > b ? a : b; }

// Where the experts' products want column `column` of a token: within a block of 32 the four pairs of a lane lie together
// (lane t of four takes pairs t, 4 + t, 8 + t, 12 + t). Their values are scaled up, see scale_up.
DEVICE int place_column(int column) {
  const int pair = column % 32 / 2;
  return column / 32 * 32 + (pair % 4 * 4 + pair / 4) * 2 + column % 2;
}
DEVICE u16 scaled_bf16(float x) { return to_bf16(x * 5192296858534827628530496329220096.0f); }  // 2^112

DEVICE u32 rotate_right(u32 x, int count) { return x >> count | x << (32 - count); }

// Sixteen E2M1 codes, of two products, to eight pairs of bfloat16 that are 2^-126 times the values (a code's exponent and
// mantissa become the lowest bits of bfloat16's exponent and the highest of its mantissa; 0.5 becomes a subnormal).
// pack.cu lays the two words out so that every pair needs at most one shift or turn, and one mask: three pairs lie in
// each word, and what these leave of both words makes up the other two.
DEVICE void decode_e2m1(u32 first, u32 second, u32* pair) {
  const u32 kept = 0x81C081C0u;
  const u32 rest = (first & 0x0C180C18u) | ((second << 2) & ~0x0C180C18u);  // a selection, one operation
  pair[0] = first & kept;
  pair[1] = (first << 6) & kept;
  pair[2] = rotate_right(first, 6) & kept;
  pair[3] = (rest << 2) & kept;
  pair[4] = second & kept;
  pair[5] = (second << 6) & kept;
  pair[6] = rotate_right(second, 6) & kept;
  pair[7] = rotate_right(rest, 4) & kept;
}

// Sum over the threads of a block; `scratch` has a float for each warp. All threads get the sum.
DEVICE float block_sum(float x, float* scratch) {
  for (int mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
#pragma unroll 4
  for (int warp = 0; warp < (int)blockDim.x / 32; ++warp) total += scratch[warp];
  __syncthreads();
  return total;
}
