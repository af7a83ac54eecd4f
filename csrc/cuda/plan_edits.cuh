// The edits of a step, a warp per row: nothing but the warp's own lanes ever waits.
//
// The history is copied to shared memory once, with all loads under way together. Tokens that were seen are kept in a
// hash table beside it; the lanes of a warp go through the history 32 places at a time, so that "first occurrence"
// means the same whatever lane is faster, and what is appended has one order.
#pragma once
#include "cuda/common.cuh"
#include "cuda/plan_edits.h"
#include "edit_kind.h"

namespace pegasus::cuda {

constexpr int32_t kNoToken = INT32_MIN;
constexpr int kLoadsUnderWay = 8;  // of each lane

// int32 words of shared memory per row: its history, and a table with two places per token.
__host__ __device__ constexpr int64_t plan_edits_words(int64_t columns) {
  return 3 * columns;
}

__device__ __forceinline__ uint32_t lanes_before(int lane) {
  return (1u << lane) - 1;
}

// Puts a token into a table; tells whether it was not there. Lanes that call together have different tokens.
__device__ __forceinline__ bool insert(int32_t* table, uint32_t places, int32_t token) {
  const uint32_t hash = static_cast<uint32_t>(token) * 0x9e3779b1u;
  uint32_t place = static_cast<uint32_t>(uint64_t{hash} * places >> 32);
  for (uint32_t probe = 0; probe < places; ++probe) {  // bounded, though half of the places are always free
    const int32_t held = atomicCAS(table + place, kNoToken, token);
    if (held == kNoToken) return true;
    if (held == token) return false;
    place = place + 1 == places ? 0 : place + 1;
  }
  return false;
}

// Blocks of any number of whole warps, with plan_edits_words(columns) words of shared memory for each.
__global__ void __launch_bounds__(128) plan_edits_kernel(PlanEditsTask task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = static_cast<int>(blockIdx.x * (blockDim.x / 32)) + warp;
  if (row >= task.n_rows) return;
  const int n = task.lengths[row / task.n_beams];
  const int phase = task.phase_begin[n], in_phase = task.phase_begin[n + 1] - phase, forced = task.phase_forced[n];
  const int first = row * task.stretch;
  int count = 0;

  const auto append = [&](bool applies, int32_t token, int32_t kind, float value) {
    const uint32_t applying = __ballot_sync(~0u, applies);
    if (applies) {
      const int place = first + count + __popc(applying & lanes_before(lane));
      task.token[place] = token;
      task.kind[place] = kind;
      task.value[place] = value;
    }
    count += __popc(applying);
  };

  const int32_t* sequence = task.sequences + row * task.columns;
  if (forced < 0 && (task.penalizes || task.ngram_size)) {
    int32_t* history = reinterpret_cast<int32_t*>(shared) + warp * plan_edits_words(task.columns);
    int32_t* table = history + task.columns;
    const uint32_t places = 2 * n;
    for (int from = 0; from < n; from += 32 * kLoadsUnderWay) {
      int32_t loaded[kLoadsUnderWay];
#pragma unroll
      for (int i = 0; i < kLoadsUnderWay; ++i) {
        const int t = from + i * 32 + lane;
        loaded[i] = t < n ? sequence[t] : kNoToken;
      }
#pragma unroll
      for (int i = 0; i < kLoadsUnderWay; ++i) {
        const int t = from + i * 32 + lane;
        if (t < n) history[t] = loaded[i];
      }
    }
    if (task.penalizes) {
      for (uint32_t place = lane; place < places; place += 32) table[place] = kNoToken;
    }
    __syncwarp();

    for (int from = 0; task.penalizes && from < n; from += 32) {
      const int32_t token = from + lane < n ? history[from + lane] : kNoToken;
      // The first lane of those with the same token asks for all of them.
      const bool asks = !(__match_any_sync(~0u, token) & lanes_before(lane)) && token != kNoToken;
      append(asks && insert(table, places, token), token, kPenalize, task.repetition_penalty);
    }
    const int last = n - task.ngram_size + 1;  // where the tokens begin that the next one would complete
    for (int from = 0; task.ngram_size && from < last; from += 32) {
      const int begin = from + lane;
      bool repeats = begin < last;
      for (int i = 0; repeats && i < task.ngram_size - 1; ++i) repeats = history[begin + i] == history[last + i];
      append(repeats, repeats ? history[begin + task.ngram_size - 1] : kNoToken, kSet, -INFINITY);
    }
  }
  if (count + in_phase > task.stretch) __trap();  // rather than into the next row's stretch
  for (int i = lane; i < in_phase; i += 32) {
    const int place = first + count + i;
    const int32_t token = task.phase_token[phase + i], kind = task.phase_kind[phase + i];
    const float value = task.phase_value[phase + i];
    task.token[place] = token;
    task.kind[place] = kind;
    task.value[place] = value;
  }
  if (lane == 0) {
    task.begin[row] = first;
    task.end[row] = first + count + in_phase;
    task.forced[row] = forced;
  }
}

}  // namespace pegasus::cuda
