// A step through whole layers: each thread of the team runs the same function and meets the others at barriers.
//
// The residual stream and everything between the products is float32. A step of up to the level's few_tokens tokens, or
// any step of an exact model, runs the products for few tokens; others run those for many, up to kFineTokens finely, but
// while an expert has few of a step's tokens (the level's few_pairs on average), experts run those for few.
// Within each of these ways a token's results do not depend on the rest of the step.
#include "attend.h"
#include "dispatch.h"
#include "experts.h"
#include "plan.h"
#include "products.h"
#include "routing.h"
#include "run.h"

namespace ossia {
namespace {

// Both begin with a barrier: what came before wrote the stream without one.

void layer_few(Run& run, Team& team, int thread, const OssiaLayer& layer, int index) {
    const int T = run.T, D = run.D;
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    float* norm = scratch<float>(run, thread, run.offset_norm);
    team.barrier_each(T, [&](int t) {
        run.k.rms_norm(run.x + (size_t)t * D, layer.attn_norm, D, run.model.eps, norm);
        run.k.pack(layer.qkv.kind, norm, D, run.packed + t * run.k.pack_bytes(layer.qkv.kind, D));
    });
    multiply_few(run, team, thread, layer.qkv, T, [&](int begin, int end, int t, int count, float* part) {
        for (int i = 0; i < count; ++i) {
            float* out = run.qkv + (size_t)(t + i) * width + begin;
            std::memcpy(out, part + (size_t)i * kMaxChunk, (end - begin) * sizeof(float));
            add_bias(layer.qkv, 0, begin, end, out);
        }
    });
    team.barrier_each(T, [&](int t) { rope_and_write(run, layer, index, t); });
    attend_all(run, team, thread, run.qkv, width, layer.sinks, layer.window, layer.group, index, run.attended);
    team.barrier_each(T, [&](int t) {
        run.k.pack(layer.out.kind, run.attended + (size_t)t * layer.out.cols, layer.out.cols,
                   run.packed + t * run.k.pack_bytes(layer.out.kind, layer.out.cols));
    });
    multiply_few(run, team, thread, layer.out, T, [&](int begin, int end, int t, int count, float* part) {
        for (int i = 0; i < count; ++i) {
            float* values = part + (size_t)i * kMaxChunk;
            add_bias(layer.out, 0, begin, end, values);
            run.k.add_scaled(run.x + (size_t)(t + i) * D + begin, values, 1.0f, end - begin);
        }
    });
    uint8_t* packed_router = reinterpret_cast<uint8_t*>(norm + D + 64);
    auto route = [&](int t) {
        route_token(run, layer, index, t, norm, packed_router);
        run.k.pack(layer.gate_up.kind, norm, D, run.packed + t * run.k.pack_bytes(layer.gate_up.kind, D));
    };
    if (T == 1) {
        team.barrier([&] {
            route(0);
            group_pairs(run);
        });
    } else {
        team.barrier();
        team.chunks(T, 1, [&](int64_t t, int64_t) { route((int)t); });
        team.barrier([&] { group_pairs(run); });
    }
    experts_few(run, team, thread, layer);
}

void layer_many(Run& run, Team& team, int thread, const OssiaLayer& layer, int index) {
    const int T = run.T, D = run.D;
    const size_t width = (size_t)(run.H + 2 * run.K) * run.C;
    float* norm = scratch<float>(run, thread, run.offset_norm);
    team.barrier();
    pack_tiles(run, team, layer.qkv.kind, D, T, run.is_fine, [&](int i, int t) {
        run.k.rms_norm(run.x + (size_t)t * D, layer.attn_norm, D, run.model.eps, norm + (size_t)i * D);
        return norm + (size_t)i * D;
    });
    multiply_many(run, team, thread, layer.qkv, T, run.is_fine,
                  [&](int first, int num_rows, int token, int count, float* c) {
        for (int t = 0; t < count; ++t) {
            float* out = run.qkv + (size_t)(token + t) * width + first;
            for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
            add_bias(layer.qkv, 0, first, first + num_rows, out);
        }
    });
    team.barrier_each(T, [&](int t) { rope_and_write(run, layer, index, t); });
    attend_all(run, team, thread, run.qkv, width, layer.sinks, layer.window, layer.group, index, run.attended);
    team.barrier();
    pack_tiles(run, team, layer.out.kind, layer.out.cols, T, run.is_fine,
               [&](int, int t) { return run.attended + (size_t)t * layer.out.cols; });
    multiply_many(run, team, thread, layer.out, T, run.is_fine,
                  [&](int first, int num_rows, int token, int count, float* c) {
        const float* bias = layer.out.bias;
        for (int t = 0; t < count; ++t) {
            float* out = run.x + (size_t)(token + t) * D + first;
            for (int r = 0; r < num_rows; ++r) out[r] += c[(size_t)r * kSumsStride + t] + (bias ? bias[first + r] : 0);
        }
    });
    team.barrier();
    float* normed = run.attended;  // free by now; planned large enough
    uint8_t* packed_router = reinterpret_cast<uint8_t*>(norm);
    team.chunks(T, 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* row = normed + (size_t)t * D;
            route_token(run, layer, index, (int)t, row, packed_router);
            if (run.has_few_experts)
                run.k.pack(layer.gate_up.kind, row, D, run.packed + t * run.k.pack_bytes(layer.gate_up.kind, D));
        }
    });
    team.barrier([&] { group_pairs(run); });
    if (run.has_few_experts)
        experts_few(run, team, thread, layer);
    else
        experts_many(run, team, thread, layer, normed);
}

// ---- Before and behind the layers --------------------------------------------------------------------------------

void embed(const Run& run, int t) {
    const OssiaMatrix& matrix = run.model.embed;
    float* out = run.x + (size_t)t * run.D;
    const size_t start = (size_t)run.step.ids[t] * run.D;
    if (matrix.kind == OSSIA_BF16)
        run.k.widen((const uint16_t*)matrix.data + start, run.D, out);
    else
        std::memcpy(out, (const float*)matrix.data + start, run.D * sizeof(float));
}

void finish(Run& run, Team& team, int thread) {
    const int num_out = run.step.num_out, D = run.D;
    float* rows = run.step.hidden != nullptr ? run.step.hidden : run.final_rows;
    const OssiaMatrix& head = run.model.lm_head;
    const bool is_few = num_out <= run.k.few_tokens || run.model.exact;
    team.barrier_each(num_out, [&](int i) {
        float* row = rows + (size_t)i * D;
        run.k.rms_norm(run.x + (size_t)run.step.out_rows[i] * D, run.model.final_norm, D, run.model.eps, row);
        if (run.step.logits != nullptr && is_few)
            run.k.pack(head.kind, row, D, run.packed + i * run.k.pack_bytes(head.kind, D));
    });
    if (run.step.logits == nullptr) return;
    float* logits = run.step.logits;
    if (is_few) {
        multiply_few(run, team, thread, head, num_out, [&](int begin, int end, int t, int count, float* part) {
            for (int i = 0; i < count; ++i)
                std::memcpy(logits + (size_t)(t + i) * run.V + begin, part + (size_t)i * kMaxChunk,
                            (end - begin) * sizeof(float));
        });
        return;  // the end of the run is the last barrier
    }
    const bool is_fine = num_out <= kFineTokens;
    pack_tiles(run, team, head.kind, D, num_out, is_fine, [&](int, int t) { return rows + (size_t)t * D; });
    multiply_many(run, team, thread, head, num_out, is_fine,
                  [&](int first, int num_rows, int token, int count, float* c) {
        for (int t = 0; t < count; ++t) {
            float* out = logits + (size_t)(token + t) * run.V + first;
            for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
        }
    });
}

void run_thread(Team& team, int thread, void* argument) {
    Run& run = *static_cast<Run*>(argument);
    run.k.thread_begin();
    if (run.step.ids != nullptr)
        team.chunks(run.T, 8, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) embed(run, (int)t);
        });
    for (int index = run.step.first_layer; index < run.step.last_layer; ++index) {
        const OssiaLayer& layer = run.model.layers[index];
        if (run.is_few)
            layer_few(run, team, thread, layer, index);
        else
            layer_many(run, team, thread, layer, index);
    }
    if (run.step.num_out > 0) finish(run, team, thread);
    run.k.thread_end();
}

Run make_run(const OssiaModel& m, const OssiaStep& s) {
    Run run{m, s, current_kernels()};
    run.is_few = s.num_tokens <= run.k.few_tokens || m.exact != 0;
    run.is_fine = s.num_tokens <= kFineTokens;
    run.has_few_experts = run.is_few || (int64_t)s.num_tokens * m.active <= (int64_t)run.k.few_pairs * m.experts;
    run.T = s.num_tokens;
    run.D = m.dim, run.H = m.heads, run.K = m.kv_heads, run.C = m.head_dim;
    run.E = m.experts, run.A = m.active, run.F = m.hidden, run.V = m.vocab;
    run.team_size = num_threads();
    return run;
}

// The memory of steps, one step at a time.
Workspace step_space;

struct AttentionCall {
    Run* run;
    const float *q, *sinks;
    int window, group;
    float* out;
};

struct MatmulCall {
    Run* run;
    const OssiaMatrix* matrix;
    const float* x;
    float* out;
};

void attention_thread(Team& team, int thread, void* argument) {
    const AttentionCall& call = *static_cast<AttentionCall*>(argument);
    attend_all(*call.run, team, thread, call.q, (size_t)call.run->H * call.run->C, call.sinks, call.window, call.group,
               0, call.out);
}

void matmul_thread(Team& team, int thread, void* argument) {
    const MatmulCall& call = *static_cast<MatmulCall*>(argument);
    Run& run = *call.run;
    const OssiaMatrix& matrix = *call.matrix;
    run.k.thread_begin();
    if (run.is_few) {
        const size_t bytes = run.k.pack_bytes(matrix.kind, matrix.cols);
        team.barrier_each(run.T, [&](int t) {
            run.k.pack(matrix.kind, call.x + (size_t)t * matrix.cols, matrix.cols, run.packed + t * bytes);
        });
        multiply_few(run, team, thread, matrix, run.T, [&](int begin, int end, int t, int count, float* part) {
            for (int i = 0; i < count; ++i) {
                add_bias(matrix, 0, begin, end, part + (size_t)i * kMaxChunk);
                std::memcpy(call.out + (size_t)(t + i) * matrix.rows + begin, part + (size_t)i * kMaxChunk,
                            (end - begin) * sizeof(float));
            }
        });
    } else {
        pack_tiles(run, team, matrix.kind, matrix.cols, run.T, run.is_fine,
                   [&](int, int t) { return call.x + (size_t)t * matrix.cols; });
        multiply_many(run, team, thread, matrix, run.T, run.is_fine,
                  [&](int first, int num_rows, int token, int count, float* c) {
            for (int t = 0; t < count; ++t) {
                float* out = call.out + (size_t)(token + t) * matrix.rows + first;
                for (int r = 0; r < num_rows; ++r) out[r] = c[(size_t)r * kSumsStride + t];
                add_bias(matrix, 0, first, first + num_rows, out);
            }
        });
    }
    run.k.thread_end();
}

}  // namespace
}  // namespace ossia

using namespace ossia;

int32_t ossia_forward(const OssiaModel* model, const OssiaStep* step) {
    if (const int status = check(*model, *step)) return status;
    if (step->num_tokens == 0) return OSSIA_OK;
    StepLock lock;
    Run run = make_run(*model, *step);
    if (!prepare(run, step_space)) return OSSIA_NO_MEMORY;
    if (is_short(run))
        run_alone(run_thread, &run);
    else
        run_team(run_thread, &run);
    return OSSIA_OK;
}

int32_t ossia_attention(const OssiaModel* model, const OssiaStep* step, const float* q, const float* sinks,
                        int32_t window, int32_t group, float* out) {
    OssiaStep alone = *step;
    alone.first_layer = alone.last_layer = alone.num_out = 0;
    StepLock lock;
    Run run = make_run(*model, alone);
    if (!prepare(run, step_space)) return OSSIA_NO_MEMORY;
    AttentionCall call{&run, q, sinks, window, group, out};
    run_team(attention_thread, &call);
    return OSSIA_OK;
}

int32_t ossia_matmul(const OssiaMatrix* matrix, const float* x, int32_t num_tokens, int32_t way, float* out) {
    if (num_tokens <= 0) return num_tokens == 0 ? OSSIA_OK : OSSIA_BAD_ARGUMENT;
    OssiaModel model{};
    model.heads = model.kv_heads = model.head_dim = model.dim = model.active = model.experts = 1;
    OssiaStep step{};
    step.num_tokens = num_tokens;
    StepLock lock;
    Run run = make_run(model, step);
    run.is_few = way == OSSIA_FEW;
    run.is_fine = way == OSSIA_FINE;
    Needs needs;
    needs.product(run, *matrix, num_tokens, ceil_div(num_tokens, kTokenTile), run.is_few, run.is_fine);
    step_space.begin();
    const size_t packed = step_space.plan(needs.packed + 64);
    size_t threads = 0;
    plan_threads(run, step_space, needs.stage, threads);
    if (!step_space.commit()) return OSSIA_NO_MEMORY;
    run.packed = step_space.at<uint8_t>(packed);
    run.threads = step_space.at<uint8_t>(threads);
    MatmulCall call{&run, matrix, x, out};
    run_team(matmul_thread, &call);
    return OSSIA_OK;
}
