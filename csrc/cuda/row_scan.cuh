// One pass over rows of logits: a warp summarises a chunk, and every row's edits are sorted meanwhile.
//
// Edits touch few tokens. The chunks leave those out of their maxima, so that a later choice can trust a maximum to
// belong to a token that kept its logit; the touched tokens then take part one by one.
//
// Bound by memory: an element costs about eight instructions, one of them an exponential.
#pragma once
#include "cuda/common.cuh"
#include "cuda/row_scan.h"
#include "edit_kind.h"

namespace pegasus::cuda {

constexpr int kLaneLogits = kChunk / 32;
constexpr int kChunkWords = kChunk / 32;  // of a bit per token
constexpr int kScanWarps = 8;
constexpr int kScanThreads = kScanWarps * 32;
constexpr int kSharedKeys = 4096;  // edits of a row that are sorted in shared memory; more are sorted in global memory
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLowest = -INFINITY;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 x) {
  return fp16_to_float(x.bits);
}

// 16 bytes of logits, loaded at once.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T element[kSize];
};

// The lane's e-th logit of a chunk is the chunk's offset_of<T>(e, lane)-th, so that a warp reads 512 bytes at once.
template <typename T>
__device__ __forceinline__ int offset_of(int e, int lane) {
  constexpr int kSize = Vector<T>::kSize;
  return e / kSize * 32 * kSize + lane * kSize + e % kSize;
}

template <typename T>
__device__ __forceinline__ const T* row_logits(const RowScan& task, int64_t row) {
  return static_cast<const T*>(task.logits) + row * task.stride;
}

// The lane's logits of a chunk; -inf beyond the vocabulary, where no memory is read.
template <typename T>
__device__ __forceinline__ void load_chunk(const RowScan& task, int64_t row, int64_t chunk, int lane,
                                           float (&x)[kLaneLogits]) {
  constexpr int kSize = Vector<T>::kSize;
  const T* logits = row_logits<T>(task, row) + chunk * kChunk;
  const int64_t left = task.vocabulary - chunk * kChunk;
  if (task.aligned && left >= kChunk) {
    Vector<T> loaded[kLaneLogits / kSize];
#pragma unroll
    for (int i = 0; i < kLaneLogits / kSize; ++i) {
      loaded[i] = reinterpret_cast<const Vector<T>*>(logits)[i * 32 + lane];
    }
#pragma unroll
    for (int e = 0; e < kLaneLogits; ++e) x[e] = to_float(loaded[e / kSize].element[e % kSize]);
  } else {
    // The same logits in the same lanes, or rows of equal logits would not have equal sums.
#pragma unroll
    for (int e = 0; e < kLaneLogits; ++e) {
      const int offset = offset_of<T>(e, lane);
      x[e] = offset < left ? to_float(logits[offset]) : kLowest;
    }
  }
}

// Sets the bits of those tokens among edits begin : end that lie in first : first + 32 * words. The threads start at
// `thread`, in steps of `threads`; the words must be zero, and a barrier must follow.
__device__ __forceinline__ void mark_touched(const RowScan& task, int begin, int end, int64_t first, int words,
                                             uint32_t* marks, int thread, int threads) {
  for (int i = begin + thread; i < end; i += threads) {
    const int64_t at = task.edit_token[i] - first;
    if (at >= 0 && at < words * 32) atomicOr(marks + at / 32, 1u << (at % 32));
  }
}

// Bit e tells whether the lane's e-th logit of a chunk is marked.
template <typename T>
__device__ __forceinline__ uint32_t lane_marks(const uint32_t* marks, int lane) {
  constexpr int kSize = Vector<T>::kSize;
  uint32_t mine = 0;
#pragma unroll
  for (int e = 0; e < kLaneLogits; e += kSize) {
    const int offset = offset_of<T>(e, lane);
    mine |= (marks[offset / 32] >> (offset % 32) & ((1u << kSize) - 1)) << e;
  }
  return mine;
}

struct MaxAndSum {
  float max, sum;
};

// Of the warp's logits, none of them NaN; the sum only where it is wanted.
__device__ __forceinline__ MaxAndSum summarise(const float (&x)[kLaneLogits], bool wants_sum) {
  float most = kLowest;
#pragma unroll
  for (int e = 0; e < kLaneLogits; ++e) most = fmaxf(most, x[e]);
#pragma unroll
  for (int step = 16; step; step >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  if (!wants_sum || fabsf(most) == INFINITY) return {most, 0.f};  // inf - inf is NaN
  float sum[2] = {0.f, 0.f};
#pragma unroll
  for (int e = 0; e < kLaneLogits; ++e) sum[e % 2] += exp2_fast((x[e] - most) * kLog2E);
  float total = sum[0] + sum[1];
#pragma unroll
  for (int step = 16; step; step >>= 1) total += __shfl_xor_sync(~0u, total, step);
  return {most, total};
}

// Sorts a row's edits by (token, position) and writes them out beside their logits.
template <typename T>
__device__ void sort_edits(const RowScan& task, int64_t row, char* shared) {
  const int thread = threadIdx.x, begin = task.edit_begin[row], n = task.edit_end[row] - begin;
  if (n < 1) return;
  Touch* touches = task.touches + begin;
  // In global memory the keys take the upper half of the place of what they become.
  uint64_t* keys =
      reinterpret_cast<uint64_t*>(n <= kSharedKeys ? shared : reinterpret_cast<char*>(touches) + 8 * int64_t{n});
  for (int i = thread; i < n; i += kScanThreads) {
    keys[i] = static_cast<uint64_t>(task.edit_token[begin + i]) << 32 | static_cast<uint32_t>(i);
  }
  // A bitonic network of ascending comparators only; what would lie beyond n is larger than everything and never moves.
  int places = 1;
  while (places < n) places *= 2;
  for (int size = 2; size <= places; size *= 2) {
    for (int step = size / 2; step; step /= 2) {
      __syncthreads();
      for (int pair = thread; pair < places / 2; pair += kScanThreads) {
        const int within = pair & (step - 1), block = (pair - within) * 2, low = block + within;
        // The first step of a merge mirrors, the others shift.
        const int high = step == size / 2 ? block + size - 1 - within : low + step;
        if (high >= n || keys[low] <= keys[high]) continue;
        const uint64_t larger = keys[low];
        keys[low] = keys[high];
        keys[high] = larger;
      }
    }
  }
  __syncthreads();
  const T* logits = row_logits<T>(task, row);
  for (int first = 0; first < n; first += kScanThreads) {
    const int i = first + thread;
    Touch touch{};
    if (i < n) {
      const int edit = begin + static_cast<int>(keys[i] & 0xffffffffu);
      touch.token = static_cast<int32_t>(keys[i] >> 32);
      touch.kind = task.edit_kind[edit];
      touch.value = task.edit_value[edit];
      touch.logit = to_float(logits[touch.token]);
    }
    __syncthreads();  // writing the i-th overwrites no key beyond the i-th
    if (i < n) touches[i] = touch;
  }
}

// Blocks (row, 0) sort the row's edits; block (row, part) summarises chunks (part - 1) * kScanWarps on.
//
// kBeams: NaN counts as -inf, and a sum of the rest is there only where it is wanted. Else the rest is all that is
// told, and its maximum is NaN where there is one.
template <typename T, bool kBeams>
__global__ void __launch_bounds__(kScanThreads) row_scan_kernel(RowScan task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x;
  if (blockIdx.y == 0) return sort_edits<T>(task, row, shared);
  if (task.forced[row] >= 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, begin = task.edit_begin[row], end = task.edit_end[row];
  const int64_t first = (int64_t{blockIdx.y} - 1) * kScanWarps, chunk = first + warp;
  const bool present = chunk < task.n_chunks;

  float x[kLaneLogits];
  if (present) load_chunk<T>(task, row, chunk, lane, x);
  uint32_t touched = 0;
  if (begin < end) {  // while the logits are on their way
    uint32_t* marks = reinterpret_cast<uint32_t*>(shared);
    marks[threadIdx.x] = 0;
    __syncthreads();
    mark_touched(task, begin, end, first * kChunk, kScanWarps * kChunkWords, marks, threadIdx.x, kScanThreads);
    __syncthreads();
    touched = lane_marks<T>(marks + warp * kChunkWords, lane);
  }
  if (!present) return;

  const auto leave_touched_out = [&] {
#pragma unroll
    for (int e = 0; e < kLaneLogits; ++e) x[e] = touched >> e & 1 ? kLowest : x[e];
  };
  const bool any_touched = __any_sync(~0u, touched != 0);
  bool broken = false;
  if (!kBeams) {
    if (any_touched) leave_touched_out();
#pragma unroll
    for (int e = 0; e < kLaneLogits; ++e) broken |= x[e] != x[e];
    broken = __any_sync(~0u, broken);
  }
#pragma unroll
  for (int e = 0; e < kLaneLogits; ++e) x[e] = fmaxf(x[e], kLowest);  // of a number and NaN, the number
  const MaxAndSum all = summarise(x, true);
  MaxAndSum rest = all;
  if (kBeams && any_touched) {
    leave_touched_out();
    rest = summarise(x, task.wants_rest_sum);
  }
  if (lane == 0) {
    task.stats[row * task.n_chunks + chunk] = {all.max, all.sum, broken ? NAN : rest.max, rest.sum};
  }
}

__device__ __forceinline__ double product(double a, double b) {
  return __dmul_rn(a, b);
}
__device__ __forceinline__ float product(float a, float b) {
  return __fmul_rn(a, b);
}

// What an edit makes of a score; products are rounded before they are added, as everywhere else.
template <typename Real>
__device__ __forceinline__ Real edited(Real score, int kind, Real value) {
  if (kind == kSet) return value;
  if (score == static_cast<Real>(kLowest)) return score;
  if (kind == kPenalize) return score < 0 ? product(score, value) : score / value;
  return score + (kind == kAdd ? value : product(score < 0 ? -score : score, value));
}

// Applies all edits of the token whose first one is touches[first]; `end` is where the row's touches end.
template <typename Real>
__device__ __forceinline__ Real edited_by_all(const RowScan& task, int first, int end, Real score) {
  const int32_t token = task.touches[first].token;
  for (int i = first; i < end && task.touches[i].token == token; ++i) {
    score = edited(score, task.touches[i].kind, static_cast<Real>(task.touches[i].value));
  }
  return score;
}

// Whether a touch is the first of its token's; `begin` is where the row's touches begin.
__device__ __forceinline__ bool is_first_touch(const RowScan& task, int i, int begin) {
  return i == begin || task.touches[i - 1].token != task.touches[i].token;
}

// Launches the pass; shared memory is for the sorting of edits.
template <bool kBeams>
void scan_rows(const char* what, const RowScan& task, void* stream) {
  const int64_t parts = 1 + (task.n_chunks + kScanWarps - 1) / kScanWarps;
  const dim3 grid(static_cast<unsigned>(task.n_rows), static_cast<unsigned>(parts));
  const int64_t keys = task.n_edits < kSharedKeys ? task.n_edits : kSharedKeys;
  const int marks = kScanThreads * 4, shared = keys * 8 > marks ? static_cast<int>(keys * 8) : marks;
  const auto kernel = task.type == LogitType::kFloat32    ? row_scan_kernel<float, kBeams>
                      : task.type == LogitType::kBFloat16 ? row_scan_kernel<BFloat16, kBeams>
                                                          : row_scan_kernel<Float16, kBeams>;
  launch(what, kernel, grid, kScanThreads, shared, stream, task);
}

}  // namespace pegasus::cuda
