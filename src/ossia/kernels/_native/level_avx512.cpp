// The level avx512: AVX-512 F, BW, DQ, VL, VBMI and VNNI (Intel from Ice Lake, AMD from Zen 4).
#if defined(__x86_64__)
#define OSSIA_FAR_ROWS
#include "avx512.h"

namespace ossia {
const Kernels kernels_avx512 = {
    "avx512", 48, 12,     pack_bytes,      pack,
    multiply,     f32_tile_bytes,  f32_pack_tile,
    f32_stage_bytes, f32_multiply_tiles<widen_mxfp4>, do_nothing,
    do_nothing,   rms_norm,        rope,
    swiglu,       attention_scratch, attention,
    add_scaled,   widen,           narrow,
    read_memory,
};
}  // namespace ossia
#endif
