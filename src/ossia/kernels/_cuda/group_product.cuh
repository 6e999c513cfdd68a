// One product of a group of 4 warps by wgmma, and what goes with it.

#ifndef OSSIA_EMULATE
DEVICE u32 multiply_bf16(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Of two positive numbers, or of any and one that is not tiny; 2 units in the last place.
DEVICE float divide_fast(float a, float b) {
  float r;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
// Columns 16 k to 16 k + 15 of a stage, by its address in shared memory, for wgmma: rows of 128 bytes in the 128-byte swizzle, 8 of them 1024 bytes on.
DEVICE u64 describe(u32 stage, int k) {
  return (u64)0x40000040u << 32 | ((stage >> 4) + 2 * k + 0x10000u);
}

#define SUMS_8(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3]), "+f"((c)[4]), "+f"((c)[5]), "+f"((c)[6]), "+f"((c)[7])
#define SUMS_16(c) SUMS_8(c), SUMS_8((c) + 8)

// c [64 rows of the group, N] += a [64, 16] b [16, N], b being columns 16 k to 16 k + 15 of a stage.
template <int N>
DEVICE void multiply_group(float* c, const u32* a, u32 stage, int k);
template <>
__device__ __forceinline__ void multiply_group<32>(float* c, const u32* a, u32 stage, int k) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
               "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
               : SUMS_16(c)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(describe(stage, k)));
}
template <>
__device__ __forceinline__ void multiply_group<64>(float* c, const u32* a, u32 stage, int k) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
               : SUMS_16(c), SUMS_16(c + 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(describe(stage, k)));
}
template <>
__device__ __forceinline__ void multiply_group<96>(float* c, const u32* a, u32 stage, int k) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
               "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
               : SUMS_16(c), SUMS_16(c + 16), SUMS_16(c + 32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(describe(stage, k)));
}
template <>
__device__ __forceinline__ void multiply_group<128>(float* c, const u32* a, u32 stage, int k) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : SUMS_16(c), SUMS_16(c + 16), SUMS_16(c + 32), SUMS_16(c + 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(describe(stage, k)));
}
DEVICE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// What threads wrote to shared memory, for the tensor cores.
DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void copy_async16_or_zeros(u32 to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
DEVICE u32 transpose_8x8(u32 x) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
#endif
