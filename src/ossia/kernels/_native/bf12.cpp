// Packs bfloat16 matrices into 12 bits without loss; see bf12.h for the layout.
#include <cstring>

#include "kernels.h"
#include "pool.h"

namespace ossia {
namespace {

struct PackCall {
    const uint16_t* source;
    int64_t rows;
    int cols;
    uint8_t* records;  // Bf12Row [rows], then the others of all rows
    uint8_t* data;
};

constexpr int exponent_of(uint16_t weight) { return weight >> 7 & 255; }

// The largest exponent of a finite number, at least 1: with it as the scale, codes are exponents relative to it.
int largest_exponent(const uint16_t* row, int cols) {
    int largest = 1;
    for (int c = 0; c < cols; ++c) {
        const int exponent = exponent_of(row[c]);
        const int finite = exponent == 255 ? 1 : exponent;
        largest = finite > largest ? finite : largest;
    }
    return largest;
}

// Whether a weight has one of the fifteen largest exponents; branchless, for whole vectors.
inline bool is_common(uint16_t weight, int largest) {
    const int exponent = exponent_of(weight);
    return (exponent > largest - kBf12Zero) & (exponent > 0) & (exponent < 255);
}

inline bool is_other(uint16_t weight, int largest) {
    return !is_common(weight, largest) & ((weight & 0x7fff) != 0);
}

Bf12Row load_row(const PackCall& call, int64_t r) {
    Bf12Row row;
    std::memcpy(&row, call.records + r * sizeof row, sizeof row);
    return row;
}

void store_row(const PackCall& call, int64_t r, const Bf12Row& row) {
    std::memcpy(call.records + r * sizeof row, &row, sizeof row);
}

void count_thread(Team& team, int, void* argument) {
    const PackCall& call = *static_cast<PackCall*>(argument);
    team.loop(call.rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const uint16_t* source = call.source + r * call.cols;
            const int largest = largest_exponent(source, call.cols);
            int others = 0;
            for (int c = 0; c < call.cols; ++c) others += is_other(source[c], largest);
            store_row(call, r, {largest, others, 0});
        }
    });
}

// Loops of fixed lengths without branches: the compiler makes vectors of them.
void pack_group(const uint16_t* source, int column, int largest, uint8_t* out, Bf12Other*& others) {
    uint16_t weights[kBf12Group], codes[kBf12Group], words[16];
    for (int half = 0; half < kBf12Group; half += 32)
        for (int i = 0; i < 16; ++i) {
            weights[half + i] = source[half + 2 * i];
            weights[half + 16 + i] = source[half + 2 * i + 1];
        }
    int num_others = 0;
    const int16_t first = (int16_t)(largest - kBf12Zero + 1);
    for (int i = 0; i < kBf12Group; ++i) {
        const uint16_t weight = weights[i];
        const int16_t exponent = (int16_t)(weight >> 7 & 255);
        const uint16_t is_in = (uint16_t) - (uint16_t)((exponent >= first) & (exponent > 0) & (exponent < 255));
        codes[i] = (uint16_t)((is_in & (uint16_t)(exponent - first)) | (~is_in & kBf12Zero));
        const uint16_t is_zero = (uint16_t) - (uint16_t)((weight & 0x7fff) == 0);
        out[i] = (uint8_t)(((weight >> 8 & 0x80) | (weight & 0x7f)) & (is_in | is_zero));
        num_others += (uint16_t)(~(is_in | is_zero)) & 1;
    }
    for (int i = 0; i < 16; ++i)
        words[i] = (uint16_t)(codes[i] | codes[16 + i] << 4 | codes[32 + i] << 8 | codes[48 + i] << 12);
    std::memcpy(out + kBf12Group, words, sizeof words);
    for (int i = 0; num_others > 0 && i < kBf12Group; ++i)
        if (is_other(source[i], largest)) {
            const uint32_t bits = (uint32_t)source[i] << 16;
            others->column = column + i;
            std::memcpy(&others->value, &bits, 4);
            ++others;
        }
}

void pack_thread(Team& team, int, void* argument) {
    const PackCall& call = *static_cast<PackCall*>(argument);
    team.loop(call.rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const Bf12Row row = load_row(call, r);
            auto* others = reinterpret_cast<Bf12Other*>(call.records + r * sizeof row + row.offset);
            uint8_t* out = call.data + (size_t)r * row_bytes_of(OSSIA_BF12, call.cols);
            for (int c = 0; c < call.cols; c += kBf12Group, out += kBf12Bytes)
                pack_group(call.source + r * call.cols + c, c, row.exponent, out, others);
        }
    });
}

}  // namespace
}  // namespace ossia

using namespace ossia;

int64_t ossia_bf12_count(const uint16_t* source, int64_t rows, int32_t cols, uint8_t* records) {
    if (rows < 0 || cols <= 0 || cols % kBf12Group != 0) return -1;
    PackCall call{source, rows, cols, records, nullptr};
    run_team(count_thread, &call);
    int64_t total = 0;
    for (int64_t r = 0; r < rows; ++r) {
        Bf12Row row = load_row(call, r);
        row.offset = (rows - r) * (int64_t)sizeof(Bf12Row) + total * (int64_t)sizeof(Bf12Other);
        store_row(call, r, row);
        total += row.num_others;
    }
    return total;
}

int32_t ossia_bf12_pack(const uint16_t* source, int64_t rows, int32_t cols, uint8_t* records, uint8_t* data) {
    if (rows < 0 || cols <= 0 || cols % kBf12Group != 0) return OSSIA_BAD_ARGUMENT;
    PackCall call{source, rows, cols, records, data};
    run_team(pack_thread, &call);
    return OSSIA_OK;
}
