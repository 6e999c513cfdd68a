// A whole decode step of one sequence, all layers, as one grid that never leaves the chip.
//
// One block a multiprocessor, 12 warps each. A layer has six phases, and all blocks wait for each other after each:
//
//   1 qkv      stream += experts' sums; norm; q, k and v -> sums
//   2 attend   rope, the cache; blocks of (KV head, share of the keys) -> attended
//   3 out      -> sums
//   4 route    stream += sums; norm; a block an expert -> logits
//   5 gate_up  the best experts -> hidden
//   6 down     all experts' columns of a row tile in a row -> sums
//
// Every block keeps the residual stream, float32, in shared memory; all copies are the same to the bit.
//
// A phase's weights are a line of stages (2 blocks of 32 columns, or 3 packed tiles), row tile after row tile. Every block
// takes an equal stretch of the line, every warp an equal part of that; what the warps have of one row tile is added up in
// shared memory. A block's stretch is at least a row tile long, so that a row tile has sums of at most two blocks: of the
// one with its first stage, and of the next, which are zeros where there is none. (gate_up's stretches are whole row tiles.)
//
// Weights come through a ring of each warp that runs ahead across phases: while a block waits for the others, its next
// weights are on their way. Only gate_up must first know the experts.

#include "attention_core.cuh"
#include "experts_core.cuh"
#include "router_core.cuh"
#include "step_feed.cuh"
#include "step_sums.cuh"
#include "step_phases.cuh"

// One layer's addresses to shared memory, where the layer two before was.
DEVICE void copy_layer(const StepArgs& s, const Shared& m, int layer) {
  const int words = sizeof(LayerWeights) / 8;
  if (layer < s.num_layers && (int)threadIdx.x < words)
    ((u64*)(m.layers + (layer & 1)))[threadIdx.x] = ((const u64*)(s.layers + layer))[threadIdx.x];
}

template <int C>
DEVICE void run_step(const StepArgs& s) {
  DYNAMIC_SHARED(shared);
  const Shared m = lay_out(s, shared);
  const int warp = threadIdx.x / 32;
  u32 generation = 0;
  if (threadIdx.x < NUM_STREAMED) m.stretches[threadIdx.x] = block_stretch(s.lines[threadIdx.x], threadIdx.x);
  copy_layer(s, m, 0);
  copy_layer(s, m, 1);
  __syncthreads();
  Feed f;
  f.ring = m.rings + warp * STEP_STAGES * STAGE_BYTES;
  f.fill = f.drain = f.ahead = f.routed = f.layer = 0;
  f.phase = -1;
  f.at = f.end = 0;
  enter_unit(f, s, m);
  Ahead ahead;
  load_ahead(&ahead, s, nullptr, m.layers[0].attn_norm);
  let_next_start();
  wait_for_previous();
  const int context = load_fresh_int(s.context_len);
  const i64 position = load_fresh_i64(s.position);
  const i64 full_slot = load_fresh_i64(s.full_slot), sliding_slot = load_fresh_i64(s.sliding_slot);
  const u16* const row = s.embedding + load_fresh_i64(s.token_id) * s.D;
#pragma unroll 1
  for (int i = threadIdx.x; i < s.D; i += THREADS) m.stream[i] = load_bf16(row + i);
  __syncthreads();

  for (int layer = 0;; ++layer) {
    const LayerWeights& w = m.layers[layer & 1];
#pragma unroll 1
    for (int phase = QKV; phase < NUM_STREAMED; ++phase) {
      MARK(phase * 4);
      u32 bias_pair = 0;
      float bias_sum = 0;
      uint4 router_row = {0, 0, 0, 0};
      if (phase == OUT) {
        run_attention_phase<C>(s, m, w, context, position, w.window ? sliding_slot : full_slot);
        arrive(s.barrier);
        load_ahead(&ahead, s, w.out_bias, w.mlp_norm);
        await_all(s.barrier, &generation);
#pragma unroll 1
        for (int i = threadIdx.x; i < s.H * s.C / 8; i += THREADS)
          *(uint4*)(m.vector + i * 16) = load_fresh(s.attended + i * 8);
        __syncthreads();
      } else if (phase == DOWN) {
        stage_hidden(s, m);
      } else {
        if (phase == GATE_UP && (int)blockIdx.x < s.E && (int)threadIdx.x * 8 < s.D)
          router_row = *(const uint4*)(w.router + (i64)blockIdx.x * s.D + threadIdx.x * 8);
        const float* const sums = phase == GATE_UP ? s.row_sums : layer ? s.down_sums : nullptr;
        add_and_norm(s, m, sums, ahead, phase == GATE_UP);
        if (layer == s.num_layers) {
          if (blockIdx.x == 0)
#pragma unroll 1
            for (int i = threadIdx.x; i < s.D; i += THREADS) s.normed[i] = ((const u16*)m.vector)[i];
          if (threadIdx.x == 0 && atomicAdd((int*)s.barrier + 1, 1) == (int)gridDim.x - 1) {
            s.barrier[0] = 0;
            s.barrier[1] = 0;
          }
          copy_wait<0>();
          return;
        }
      }
      if (phase == GATE_UP) {
        run_router(s, m, w, router_row);
        arrive(s.barrier);
        await_all(s.barrier, &generation);
        if (warp == 0) choose(s.logits, nullptr, s.E, s.A, m.experts, m.weights);
        __syncthreads();
        f.routed = layer + 1;
        if (f.layer == layer && f.phase >= GATE_UP) enter_unit(f, s, m);
      }
      if (phase >= GATE_UP) load_biases(s, m, w, phase, &bias_pair, &bias_sum);
      MARK(phase * 4 + 1);
      run_line(f, s, m, phase);
      __syncthreads();
      if (phase == GATE_UP) finish_gate_up(s, m, bias_pair);
      else write_sums(s, m, phase, phase == QKV ? s.qkv_sums : phase == OUT ? s.row_sums : s.down_sums, bias_sum);
      MARK(phase * 4 + 2);
      arrive(s.barrier);
      if (phase == QKV) {
        if (layer + 1 < s.num_layers && (int)blockIdx.x == (layer + 9) % (int)gridDim.x)
          prefetch_small(s, m.layers[(layer + 1) & 1]);
        prefetch_pages<C>(s, w, context);
      } else if (phase == DOWN) {
        load_ahead(&ahead, s, nullptr, layer + 1 < s.num_layers ? m.layers[(layer + 1) & 1].attn_norm : s.final_norm);
      }
      await_all(s.barrier, &generation);
      MARK(phase * 4 + 3);
    }
    copy_layer(s, m, layer + 2);  // its parity's last reader is past a barrier, its first one before the next
  }
}

#define STEP_KERNEL(C)                                                         \
  KERNEL void __launch_bounds__(THREADS, 1) decode_step_##C(StepArgs args) {   \
    run_step<C>(args);                                                         \
  }
STEP_KERNEL(32)
STEP_KERNEL(64)
STEP_KERNEL(128)
