// Attention of any form, for float32 and for any head size: a warp per query row and head, whose lanes share the
// elements of D, so that rows are read in one piece. The warps of a block have rows of one document and head, which
// find each other's keys in the cache.
//
// A row's result depends on its own keys alone: it has the same bits whatever else is in the call.
#pragma once
#include "cuda/keys.cuh"

namespace pegasus::cuda {

constexpr int kPlainWarps = 8;
constexpr int kPlainKeys = 4;  // taken together, so that their reductions overlap

// kPerLane * 32 is at least D. Grid: (B * H, groups of kPlainWarps rows; one with an ancestry).
template <typename T, int kPerLane>
__global__ void __launch_bounds__(kPlainWarps * 32) plain_attention_kernel(AttentionTask task) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, size = static_cast<int>(task.head_size);
  const DocumentHead work = document_head(task);
  const int64_t document = work.document, head = work.head;
  const int64_t begin = task.query_begin[document], end = task.query_begin[document + 1];
  if (task.ancestry) {
    append_newest<T, T>(task, begin, end, head, static_cast<unsigned>(size));
    __syncthreads();
  }
  const Rows<T> rows = rows_of<T>(task, document, head);
  const auto load = [&](const T* from, float* to) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) to[i] = i * 32 + lane < size ? to_float(from[i * 32 + lane]) : 0.f;
  };

  for (int64_t row = begin + blockIdx.y * kPlainWarps + warp; row < end; row += gridDim.y * kPlainWarps) {
    const int n_keys = task.n_keys[task.ancestry ? row : document];
    const int32_t* slots = task.ancestry ? task.ancestry + row * task.ancestry_stride : nullptr;
    float query[kPerLane], out[kPerLane] = {}, most = -INFINITY, sum = 0.f;
    load(static_cast<const T*>(task.query) + row * task.query_stride + head * size, query);
    for (int first = 0; first < n_keys; first += kPlainKeys) {
      float score[kPlainKeys], value[kPlainKeys][kPerLane], high = most;
#pragma unroll
      for (int j = 0; j < kPlainKeys; ++j) {
        const int64_t t = first + j < n_keys ? first + j : n_keys - 1;
        const int64_t slot = slots ? slots[t] : 0;
        float key[kPerLane];
        load(rows.key + slot * task.key_slot_stride + t * rows.key_stride, key);
        load(rows.value + slot * task.value_slot_stride + t * rows.value_stride, value[j]);
        score[j] = 0.f;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) score[j] = fmaf(query[i], key[i], score[j]);
      }
#pragma unroll
      for (int x = 1; x < 32; x <<= 1) {
#pragma unroll
        for (int j = 0; j < kPlainKeys; ++j) score[j] += __shfl_xor_sync(~0u, score[j], x);
      }
#pragma unroll
      for (int j = 0; j < kPlainKeys; ++j) {
        score[j] *= task.scale;
        high = fmaxf(high, score[j]);  // the last key's again, where there is no key
      }
      // While every score is -inf, any finite reference gives weights of zero; -inf itself would give NaN.
      const float reference = high == -INFINITY ? 0.f : high;
      const float shrink = exp2_fast((most - reference) * kLog2E);
      most = high;
      sum *= shrink;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) out[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kPlainKeys; ++j) {
        if (first + j >= n_keys) continue;
        const float weight = exp2_fast((score[j] - reference) * kLog2E);
        sum += weight;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) out[i] = fmaf(weight, value[j][i], out[i]);
      }
    }
    const float inverse = n_keys > 0 ? 1.f / sum : 0.f;  // a row without keys yields zeros
    T* to = static_cast<T*>(task.out) + (row * task.n_heads + head) * size;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (i * 32 + lane < size) set_to(to[i * 32 + lane], out[i] * inverse);
    }
  }
}

}  // namespace pegasus::cuda
