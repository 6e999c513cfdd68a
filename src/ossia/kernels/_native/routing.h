// Which experts a token goes to, and the tokens that go to an expert.
#pragma once
#include <cmath>

#include "products.h"

namespace ossia {
namespace {

// The A largest logits, equal ones by their number, and the softmax over them.
void choose(const float* logits, int E, int A, int32_t* chosen, float* shares) {
    for (int a = 0; a < A; ++a) {
        int best = -1;
        for (int e = 0; e < E; ++e) {
            bool is_taken = false;
            for (int i = 0; i < a; ++i) is_taken = is_taken || chosen[i] == e;
            if (!is_taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        chosen[a] = best;
    }
    float total = 0;
    for (int a = 0; a < A; ++a) {
        shares[a] = std::exp(logits[chosen[a]] - logits[chosen[0]]);
        total += shares[a];
    }
    for (int a = 0; a < A; ++a) shares[a] /= total;
}

// Counting sort of the pairs by expert; within an expert tokens ascend.
void group_pairs(Run& run) {
    Grouping& g = run.groups;
    const int E = run.E, pairs = run.T * run.A;
    std::memset(g.starts, 0, (E + 1) * sizeof(int32_t));
    for (int i = 0; i < pairs; ++i) ++g.starts[run.chosen[i] + 1];
    g.num_active = 0;
    g.num_tiles = 0;
    for (int e = 0; e < E; ++e) {
        const int count = g.starts[e + 1];
        g.tile_starts[e] = g.num_tiles;
        if (count > 0) g.active[g.num_active++] = e;
        for (int tile = 0; tile < ceil_div(count, kTokenTile); ++tile) g.tile_expert[g.num_tiles++] = e;
        g.starts[e + 1] += g.starts[e];
    }
    g.tile_starts[E] = g.num_tiles;
    int32_t* next = g.pair_of;  // borrowed: filled below
    for (int t = 0; t < run.T; ++t) {
        int32_t order[64];
        for (int a = 0; a < run.A; ++a) {  // a token's experts, ascending
            int place = a;
            while (place > 0 && run.chosen[t * run.A + order[place - 1]] > run.chosen[t * run.A + a]) {
                order[place] = order[place - 1];
                --place;
            }
            order[place] = a;
        }
        for (int a = 0; a < run.A; ++a) next[t * run.A + a] = order[a];
    }
    // starts[e] walks forward as pairs are placed, and is set back afterwards.
    for (int t = 0; t < run.T; ++t)
        for (int a = 0; a < run.A; ++a) {
            const int slot = next[t * run.A + a];
            const int expert = run.chosen[t * run.A + slot];
            const int pair = g.starts[expert]++;
            g.tokens[pair] = t;
            g.weights[pair] = run.shares[t * run.A + slot];
            next[t * run.A + a] = pair;
        }
    for (int e = E; e > 0; --e) g.starts[e] = g.starts[e - 1];
    g.starts[0] = 0;
}


// The norm of a token, its router, and what the experts' products need of it.
void route_token(const Run& run, const OssiaLayer& layer, int index, int t, float* normed, uint8_t* packed_router) {
    run.k.rms_norm(run.x + (size_t)t * run.D, layer.mlp_norm, run.D, run.model.eps, normed);
    run.k.pack(layer.router.kind, normed, run.D, packed_router);
    const void* packed[1] = {packed_router};
    float* logits = run.router + (size_t)t * run.E;
    run.k.multiply(rows_of(layer.router, 0), 0, run.E, packed, 1, logits, run.E);
    add_bias(layer.router, 0, 0, run.E, logits);
    choose(logits, run.E, run.A, run.chosen + (size_t)t * run.A, run.shares + (size_t)t * run.A);
    if (run.step.chosen != nullptr)
        std::memcpy(run.step.chosen + ((size_t)(index - run.step.first_layer) * run.T + t) * run.A,
                    run.chosen + (size_t)t * run.A, run.A * sizeof(int32_t));
}

}  // namespace
}  // namespace ossia
