// What this CPU can run, the level in use, and the small functions of the interface.
#include "dispatch.h"

#include <cmath>
#include <chrono>
#include <cstring>
#include <mutex>

#include "pool.h"

#if defined(__x86_64__) && !defined(OSSIA_ONLY_GENERIC)
#define OSSIA_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#ifndef OSSIA_SOURCE_HASH
#define OSSIA_SOURCE_HASH "unknown"
#endif

namespace ossia {
namespace {

#if defined(OSSIA_X86)
struct Features {
    bool avx2 = false, avx512 = false, amx = false;
};

uint64_t enabled_state() {
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

// Linux grants the tile registers on request only, to the process and the threads that it makes.
bool request_tiles() {
#if defined(__linux__)
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

Features find_features() {
    Features found;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return found;  // OSXSAVE
    const bool has_fma = c >> 12 & 1;
    const uint64_t state = enabled_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = (state & 6) == 6 && (b >> 5 & 1) && has_fma;
    const bool foundation = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
    found.avx512 = found.avx2 && (state & 0xe6) == 0xe6 && foundation && (c >> 11 & 1) && (c >> 1 & 1);  // VNNI, VBMI
    const bool has_tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);  // AMX-BF16, TILE, INT8
    uint32_t a1 = 0;
    const bool has_bf16 = __get_cpuid_count(7, 1, &a1, &b, &c, &d) && (a1 >> 5 & 1);  // AVX512_BF16
    found.amx = found.avx512 && has_tiles && has_bf16 && (state & 0x60000) == 0x60000 && request_tiles();
    return found;
}

const Features& features() {
    static const Features found = find_features();
    return found;
}
#endif

struct Level {
    const Kernels* kernels;
    bool (*is_supported)();
};

const Level kLevels[] = {
    {&kernels_generic, [] { return true; }},
#if defined(OSSIA_X86)
    {&kernels_avx2, [] { return features().avx2; }},
    {&kernels_avx512, [] { return features().avx512; }},
    {&kernels_amx, [] { return features().amx; }},
#elif defined(__aarch64__) && !defined(OSSIA_ONLY_GENERIC)
    {&kernels_neon, [] { return true; }},
#endif
};
constexpr int kNumLevels = sizeof kLevels / sizeof kLevels[0];

int best_level() {
    int best = 0;
    for (int level = 0; level < kNumLevels; ++level)
        if (kLevels[level].is_supported()) best = level;
    return best;
}

int& chosen_level() {
    static int level = best_level();
    return level;
}

std::mutex step_mutex;

}  // namespace

const Kernels& current_kernels() { return *kLevels[chosen_level()].kernels; }

StepLock::StepLock() { step_mutex.lock(); }
StepLock::~StepLock() { step_mutex.unlock(); }

}  // namespace ossia

using namespace ossia;

const char* ossia_source_hash() { return OSSIA_SOURCE_HASH; }

void ossia_abi_sizes(int32_t* sizes) {
    sizes[0] = sizeof(OssiaMatrix);
    sizes[1] = sizeof(OssiaLayer);
    sizes[2] = sizeof(OssiaModel);
    sizes[3] = sizeof(OssiaStep);
}

int32_t ossia_num_levels() { return kNumLevels; }

const char* ossia_level_name(int32_t level) {
    return level >= 0 && level < kNumLevels ? kLevels[level].kernels->name : "";
}

int32_t ossia_level_is_supported(int32_t level) {
    return level >= 0 && level < kNumLevels && kLevels[level].is_supported();
}

int32_t ossia_level() { return chosen_level(); }

int32_t ossia_set_level(int32_t level) {
    if (!ossia_level_is_supported(level)) return OSSIA_BAD_ARGUMENT;
    StepLock lock;
    chosen_level() = level;
    return OSSIA_OK;
}

int32_t ossia_num_threads() { return num_threads(); }

int32_t ossia_set_num_threads(int32_t count) {
    StepLock lock;
    return set_num_threads(count);
}

void ossia_rms_norm(const float* x, const float* weight, int32_t num_tokens, int32_t dim, float eps, float* out) {
    const Kernels& kernels = current_kernels();
    for (int t = 0; t < num_tokens; ++t) kernels.rms_norm(x + (size_t)t * dim, weight, dim, eps, out + (size_t)t * dim);
}

namespace {

struct QuantizeCall {
    const uint8_t* source;
    int kind, cols;
    int64_t rows;
    int8_t* data;
    uint16_t* scales;
};

// The scale is the largest size over 127, rounded up to bfloat16, so that no value leaves the range.
uint16_t scale_for(float largest) {
    const float scale = largest / 127.0f;
    uint32_t bits;
    std::memcpy(&bits, &scale, 4);
    return (uint16_t)((bits >> 16) + ((bits & 0xffff) != 0));
}

// Without branches in its loops, of which the compiler makes vectors.
void quantize_row(const float* x, int cols, int8_t* data, uint16_t* scales) {
    for (int b = 0; b < cols / kBlock; ++b, x += kBlock, data += kBlock) {
        int32_t bits[kBlock], largest_bits = 0;
        std::memcpy(bits, x, sizeof bits);
        for (int i = 0; i < kBlock; ++i) {  // sizes are ordered as their bits are, what is no number above all
            const int32_t size = bits[i] & 0x7fffffff;
            largest_bits = size > largest_bits ? size : largest_bits;
        }
        float largest;
        std::memcpy(&largest, &largest_bits, 4);
        scales[b] = scale_for(largest);
        const uint32_t scale_bits = (uint32_t)scales[b] << 16;
        float scale;
        std::memcpy(&scale, &scale_bits, 4);
        const bool is_sound = largest < INFINITY;
        const float inverse = is_sound && scale > 0 ? 1.0f / scale : 0.0f;
        if (!(inverse > 0) || !(inverse < INFINITY)) {
            std::memset(data, 0, kBlock);
        } else {
            float shifted[kBlock];
            for (int i = 0; i < kBlock; ++i) shifted[i] = x[i] * inverse + 12582912.0f;  // 1.5 * 2^23: rounds
            std::memcpy(bits, shifted, sizeof bits);
            for (int i = 0; i < kBlock; ++i) data[i] = (int8_t)(bits[i] - 0x4b400000);
        }
        if (!is_sound) {  // a broken weight stays seen: its scale is no number
            scales[b] = 0x7fc0;
            data[0] = 1;
        }
    }
}

void quantize_thread(Team& team, int, void* argument) {
    const QuantizeCall& call = *static_cast<QuantizeCall*>(argument);
    const size_t bytes = row_bytes_of(call.kind, call.cols);
    float* wide = new float[call.cols];
    team.loop(call.rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* row = wide;
            if (call.kind == OSSIA_BF16)
                current_kernels().widen((const uint16_t*)(call.source + r * bytes), call.cols, wide);
            else
                row = (const float*)(call.source + r * bytes);
            quantize_row(row, call.cols, call.data + r * call.cols, call.scales + r * (call.cols / kBlock));
        }
    });
    delete[] wide;
}

struct ReadCall {
    const uint8_t* memory;
    int64_t num_bytes;
    std::atomic<uint64_t> sum;
};

void read_thread(Team& team, int, void* argument) {
    ReadCall& call = *static_cast<ReadCall*>(argument);
    double sum = 0;
    team.loop(call.num_bytes, 1 << 20, [&](int64_t begin, int64_t end) {
        sum += current_kernels().read(call.memory + begin, end - begin);
    });
    call.sum += (uint64_t)sum;
}

}  // namespace

int32_t ossia_quantize_q8(const void* source, int32_t kind, int64_t rows, int32_t cols, int8_t* data,
                          uint16_t* scales) {
    if ((kind != OSSIA_BF16 && kind != OSSIA_F32) || rows < 0 || cols % kBlock != 0) return OSSIA_BAD_ARGUMENT;
    QuantizeCall call{(const uint8_t*)source, kind, cols, rows, data, scales};
    run_team(quantize_thread, &call);
    return OSSIA_OK;
}

double ossia_read_bandwidth(const void* memory, int64_t num_bytes, int32_t rounds) {
    double best = 0;
    for (int round = 0; round < rounds; ++round) {
        ReadCall call{(const uint8_t*)memory, num_bytes, {}};
        const auto start = std::chrono::steady_clock::now();
        run_team(read_thread, &call);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        const double rate = (double)num_bytes / seconds.count();
        if (rate > best) best = rate;
    }
    return best;
}
