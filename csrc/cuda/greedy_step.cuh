// The part of greedy_step that follows the pass over the logits: a warp per row finds the best token.
#pragma once
#include "cuda/greedy_step.h"
#include "cuda/row_scan.cuh"

namespace pegasus::cuda {

// The score after its edits of the token whose first touch is i.
__device__ __forceinline__ float touched_score(const RowScan& scan, int i, int end, int forced) {
  const Touch touch = scan.touches[i];
  return edited_by_all(scan, i, end, forced < 0 ? touch.logit : touch.token == forced ? 0.f : kLowest);
}

template <typename T>
__global__ void __launch_bounds__(32) greedy_step_kernel(GreedyStepTask task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  const RowScan& scan = task.scan;
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x, begin = scan.edit_begin[row], end = scan.edit_end[row], forced = scan.forced[row];
  const ChunkStats* stats = scan.stats + row * scan.n_chunks;
  // A forced row's chunks are -inf throughout.
  const int n_chunks = forced < 0 ? static_cast<int>(scan.n_chunks) : 0;

  const auto for_each_touched = [&](auto f) {  // f(token, score) for the lane's share
    bool among = false;
    for (int i = begin + lane; i < end; i += 32) {
      const int32_t token = scan.touches[i].token;
      among = among || token == forced;
      if (is_first_touch(scan, i, begin)) f(token, touched_score(scan, i, end, forced));
    }
    if (forced >= 0 && !__any_sync(~0u, among) && lane == 0) f(forced, 0.f);
  };

  float most = kLowest;
  bool nan = false;
  const auto raise = [&](float x) {
    nan = nan || x != x;
    most = fmaxf(most, x);
  };
  for (int chunk = lane; chunk < n_chunks; chunk += 32) raise(stats[chunk].rest_max);
  for_each_touched([&](int32_t, float score) { raise(score); });
#pragma unroll
  for (int step = 16; step; step >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  nan = __any_sync(~0u, nan);

  const bool finite = !nan && fabsf(most) < INFINITY;
  double sum = 0.0;
  if (finite) {
    for (int chunk = lane; chunk < n_chunks; chunk += 32) {
      sum += stats[chunk].rest_sum * exp(static_cast<double>(stats[chunk].rest_max) - most);
    }
    for_each_touched([&](int32_t, float score) { sum += exp(static_cast<double>(score) - most); });
#pragma unroll
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  }
  const double log_sum = log(sum);

  // Log-probabilities are rounded, so that the best one may have equals which it had not before. A row without a
  // distribution has NaN everywhere once it is normalised, and then the first token is taken.
  const float rounded_log_sum = static_cast<float>(log_sum);
  const bool any = task.renormalize ? !finite : !nan && most == kLowest;
  const auto wins = [&](float x) {
    if (nan) return x != x;
    return task.renormalize ? (x - most) - rounded_log_sum == -rounded_log_sum : x == most;
  };
  int64_t first = any ? 0 : scan.vocabulary, first_chunk = n_chunks;
  if (!any) {
    for (int chunk = n_chunks - 1 - lane; chunk >= 0; chunk -= 32) {
      if (wins(stats[chunk].rest_max)) first_chunk = chunk;
    }
    for_each_touched([&](int32_t token, float score) {
      if (wins(score) && token < first) first = token;
    });
  }
  const auto warp_least = [](int64_t x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) {
      const int64_t other = __shfl_xor_sync(~0u, x, step);
      x = other < x ? other : x;
    }
    return x;
  };
  first_chunk = warp_least(first_chunk);
  if (first_chunk < n_chunks) {
    float x[kLaneLogits];
    load_chunk<T>(scan, row, first_chunk, lane, x);
    uint32_t touched = 0;
    if (begin < end) {
      uint32_t* marks = reinterpret_cast<uint32_t*>(shared);
      marks[lane] = 0;
      __syncwarp();
      mark_touched(scan, begin, end, first_chunk * kChunk, kChunkWords, marks, lane, 32);
      __syncwarp();
      touched = lane_marks<T>(marks, lane);
    }
#pragma unroll
    for (int e = kLaneLogits - 1; e >= 0; --e) {  // a lane's tokens ascend
      const int64_t token = first_chunk * kChunk + offset_of<T>(e, lane);
      if (token < first && !(touched >> e & 1) && wins(x[e])) first = token;
    }
  }
  first = warp_least(first);
  if (lane != 0) return;
  const float own = to_float(row_logits<T>(scan, row)[first]);
  task.tokens[row] = static_cast<int32_t>(first);
  task.gains[row] = finite ? -log_sum : NAN;
  task.broken[row] = own != own;
}

}  // namespace pegasus::cuda
