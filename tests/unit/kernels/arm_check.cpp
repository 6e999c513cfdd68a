// Run on ARM, or under qemu: products of every kind of matrix at each level against sums in double precision.
//
// Weights are made in their stored form and decoded here again, apart from the kernels. Prints a line a case and returns
// how many are wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "ossia_native.h"

namespace {

std::mt19937 generator(7);

float draw() { return std::normal_distribution<float>(0.0f, 1.0f)(generator); }

float widen(uint16_t bits) {
    const uint32_t whole = (uint32_t)bits << 16;
    float value;
    std::memcpy(&value, &whole, 4);
    return value;
}

uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (uint16_t)(bits >> 16);
}

struct Stored {
    std::vector<uint8_t> data, scales;
    std::vector<double> values;  // [rows, cols]
};

Stored make(int kind, int rows, int cols) {
    static const double kCodes[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
    Stored made;
    made.values.resize((size_t)rows * cols);
    if (kind == OSSIA_MXFP4) {
        made.data.resize((size_t)rows * cols / 2);
        made.scales.resize((size_t)rows * cols / 32);
        for (auto& byte : made.data) byte = (uint8_t)generator();
        for (auto& scale : made.scales) scale = (uint8_t)(120 + generator() % 8);
        for (size_t i = 0; i < made.values.size(); ++i)
            made.values[i] = kCodes[made.data[i / 2] >> (i % 2 * 4) & 15] * std::exp2((double)made.scales[i / 32] - 127);
        return made;
    }
    std::vector<float> wide(made.values.size());
    std::vector<uint16_t> half(wide.size());
    for (size_t i = 0; i < wide.size(); ++i) {
        half[i] = narrow(draw());
        wide[i] = widen(half[i]);
        made.values[i] = wide[i];
    }
    const auto* bytes = kind == OSSIA_F32 ? (const uint8_t*)wide.data() : (const uint8_t*)half.data();
    if (kind == OSSIA_Q8) {
        made.data.resize(wide.size());
        made.scales.resize(wide.size() / 32 * 2);
        ossia_quantize_q8(half.data(), OSSIA_BF16, rows, cols, (int8_t*)made.data.data(), (uint16_t*)made.scales.data());
        for (size_t i = 0; i < wide.size(); ++i)
            made.values[i] = (double)(int8_t)made.data[i] * widen(((const uint16_t*)made.scales.data())[i / 32]);
    } else if (kind == OSSIA_BF12) {
        made.scales.resize((size_t)rows * 16);
        const int64_t others = ossia_bf12_count(half.data(), rows, cols, made.scales.data());
        made.scales.resize(made.scales.size() + (size_t)others * 8);
        made.data.resize(wide.size() / 2 * 3);
        ossia_bf12_pack(half.data(), rows, cols, made.scales.data(), made.data.data());
    } else {
        made.data.assign(bytes, bytes + wide.size() * (kind == OSSIA_F32 ? 4 : 2));
    }
    return made;
}

double error_of(int kind, int way, int rows, int cols, int num_tokens) {
    const Stored stored = make(kind, rows, cols);
    std::vector<float> x((size_t)num_tokens * cols), bias(rows), out((size_t)num_tokens * rows);
    for (auto& value : x) value = draw();
    for (auto& value : bias) value = draw();
    const OssiaMatrix matrix{stored.data.data(), stored.scales.data(), bias.data(), kind, rows, cols, 0};
    if (ossia_matmul(&matrix, x.data(), num_tokens, way, out.data()) != OSSIA_OK) return INFINITY;
    double off = 0, size = 0;
    for (int t = 0; t < num_tokens; ++t)
        for (int r = 0; r < rows; ++r) {
            double sum = bias[r];
            for (int c = 0; c < cols; ++c) sum += stored.values[(size_t)r * cols + c] * x[(size_t)t * cols + c];
            const double difference = out[(size_t)t * rows + r] - sum;
            off += difference * difference;
            size += sum * sum;
        }
    return std::sqrt(off / size);
}

}  // namespace

int main() {
    static const char* kNames[] = {"float32", "bfloat16", "mxfp4", "q8", "fp8", "bf12"};
    int wrong = 0;
    ossia_set_num_threads(1);
    for (int level = 0; level < ossia_num_levels(); ++level) {
        if (ossia_set_level(level) != 0) continue;
        for (const int kind : {OSSIA_F32, OSSIA_BF16, OSSIA_MXFP4, OSSIA_Q8, OSSIA_BF12})
            for (int way = 0; way < 3; ++way)
                for (const int tokens : {1, 3, 8, 17}) {
                    const double error = error_of(kind, way, 37, kind == OSSIA_BF12 ? 192 : 160, tokens);
                    const bool is_right = error < 5e-5;
                    wrong += !is_right;
                    std::printf("%s %s way %d tokens %d: %.2g%s\n", ossia_level_name(level), kNames[kind], way, tokens,
                                error, is_right ? "" : " WRONG");
                }
    }
    return wrong;
}
