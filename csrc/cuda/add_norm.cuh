// Residual addition and layer norm. Bound by memory: a row is read once, kept in registers for the mean and then for
// the centred squares, and written once.
#pragma once
#include "cuda/add_norm.h"
#include "cuda/common.cuh"

namespace pegasus::cuda {

constexpr int kNormWarps = 4;
constexpr int kLaneElements = 4;  // 16 bytes of the stream, so that a warp's load is one run of 512
constexpr int kWarpElements = 32 * kLaneElements;
constexpr int kChunksTogether = 4;

struct alignas(16) FourFloats {
  float x[4];
};
struct alignas(8) FourHalves {
  uint32_t pair[2];
};

template <NormType kType>
__device__ __forceinline__ void unpack(uint32_t pair, float* low, float* high) {
  if constexpr (kType == NormType::kBFloat16) {
    unpack_bf16(pair, low, high);
  } else {
    unpack_fp16(pair, low, high);
  }
}

template <NormType kType>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (kType == NormType::kBFloat16) {
    return pack_bf16(low, high);
  } else {
    return pack_fp16(low, high);
  }
}

__device__ __forceinline__ FourFloats load_four(const float* from) {
  return *reinterpret_cast<const FourFloats*>(from);
}

template <NormType kType>
__device__ __forceinline__ FourFloats load_four(const void* from, int64_t index) {
  if constexpr (kType == NormType::kFloat32) {
    return load_four(static_cast<const float*>(from) + index);
  } else {
    const auto halves = *reinterpret_cast<const FourHalves*>(static_cast<const uint16_t*>(from) + index);
    FourFloats four;
    unpack<kType>(halves.pair[0], four.x, four.x + 1);
    unpack<kType>(halves.pair[1], four.x + 2, four.x + 3);
    return four;
  }
}

template <NormType kType>
__device__ __forceinline__ void store_four(void* to, int64_t index, const FourFloats& four) {
  if constexpr (kType == NormType::kFloat32) {
    *reinterpret_cast<FourFloats*>(static_cast<float*>(to) + index) = four;
  } else {
    *reinterpret_cast<FourHalves*>(static_cast<uint16_t*>(to) +
                                   index) = {{pack<kType>(four.x[0], four.x[1]), pack<kType>(four.x[2], four.x[3])}};
  }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// What turns an element into a normal one. Where the mean is much larger than the deviation, its rounding is what
// limits the result; the centred elements are almost exact, so their own mean tells what it lacks, for nothing in a
// kernel that waits for memory.
struct Moments {
  float mean, missing, scale;

  __device__ __forceinline__ float operator()(float x) const { return ((x - mean) - missing) * scale; }
};

// `sum` and `squares` are of x - mean over the whole row.
__device__ __forceinline__ Moments moments_of(float mean, float sum, float squares, float size, float eps) {
  const float missing = warp_sum(sum) / size;
  const float variance = warp_sum(squares) / size - missing * missing;
  return {mean, missing, 1.f / sqrtf(variance + eps)};
}

// A warp per row of up to kChunks * kWarpElements elements, a multiple of kLaneElements; all memory is aligned to 16
// bytes.
template <NormType kType, int kChunks>
__global__ void __launch_bounds__(kNormWarps * 32) add_norm_kernel(AddNormTask task) {
  const int lane = threadIdx.x % 32, size = static_cast<int>(task.size);
  const int64_t row = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32;
  if (row >= task.n_rows) return;
  float* stream = task.stream + row * size;
  FourFloats four[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int d = c * kWarpElements + lane * kLaneElements;
    four[c] = d < size ? load_four(stream + d) : FourFloats{};
  }
  if (task.branch) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int d = c * kWarpElements + lane * kLaneElements;
      if (d >= size) continue;
      const FourFloats added = load_four<kType>(task.branch, row * size + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) four[c].x[i] += added.x[i];
    }
  }
  float sum = 0.f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) sum += (four[c].x[0] + four[c].x[1]) + (four[c].x[2] + four[c].x[3]);
  const float mean = warp_sum(sum) / static_cast<float>(size);
  float squares = 0.f;
  sum = 0.f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c * kWarpElements + lane * kLaneElements >= size) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float centred = four[c].x[i] - mean;
      sum += centred;
      squares += centred * centred;
    }
  }
  const Moments normal = moments_of(mean, sum, squares, static_cast<float>(size), task.eps);
#pragma unroll
  for (int group = 0; group < kChunks; group += kChunksTogether) {
    // No load may pass a store, so what several chunks need is loaded before the first of them is stored.
    FourFloats weight[kChunksTogether], bias[kChunksTogether];
#pragma unroll
    for (int c = 0; c < kChunksTogether; ++c) {
      const int d = (group + c) * kWarpElements + lane * kLaneElements;
      weight[c] = d < size ? load_four(task.weight + d) : FourFloats{};
      bias[c] = d < size ? load_four(task.bias + d) : FourFloats{};
    }
#pragma unroll
    for (int c = 0; c < kChunksTogether; ++c) {
      const int d = (group + c) * kWarpElements + lane * kLaneElements;
      if (d >= size) continue;
      const FourFloats& sums = four[group + c];
      FourFloats normed;
#pragma unroll
      for (int i = 0; i < 4; ++i) normed.x[i] = normal(sums.x[i]) * weight[c].x[i] + bias[c].x[i];
      if (task.post_norm || task.branch) store_four<NormType::kFloat32>(stream, d, task.post_norm ? normed : sums);
      store_four<kType>(task.normed, row * size + d, normed);
    }
  }
}

template <NormType kType>
__device__ __forceinline__ float load_one(const void* from, int64_t index) {
  if constexpr (kType == NormType::kFloat32) {
    return static_cast<const float*>(from)[index];
  } else {
    float x, none;
    unpack<kType>(static_cast<const uint16_t*>(from)[index], &x, &none);
    return x;
  }
}

template <NormType kType>
__device__ __forceinline__ void store_one(void* to, int64_t index, float x) {
  if constexpr (kType == NormType::kFloat32) {
    static_cast<float*>(to)[index] = x;
  } else {
    static_cast<uint16_t*>(to)[index] = static_cast<uint16_t>(pack<kType>(x, 0.f));
  }
}

// As add_norm_kernel for rows of any size and alignment: the sum waits in the stream, where its lane finds it again.
template <NormType kType>
__global__ void __launch_bounds__(kNormWarps * 32) add_norm_any_kernel(AddNormTask task) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / 32, first = row * task.size;
  if (row >= task.n_rows) return;
  float* stream = task.stream + first;
  float sum = 0.f;
  for (int64_t d = lane; d < task.size; d += 32) {
    float x = stream[d];
    if (task.branch) stream[d] = x += load_one<kType>(task.branch, first + d);
    sum += x;
  }
  const float mean = warp_sum(sum) / static_cast<float>(task.size);
  float squares = 0.f;
  sum = 0.f;
  for (int64_t d = lane; d < task.size; d += 32) {
    const float centred = stream[d] - mean;
    sum += centred;
    squares += centred * centred;
  }
  const Moments normal = moments_of(mean, sum, squares, static_cast<float>(task.size), task.eps);
  for (int64_t d = lane; d < task.size; d += 32) {
    const float normed = normal(stream[d]) * task.weight[d] + task.bias[d];
    if (task.post_norm) stream[d] = normed;
    store_one<kType>(task.normed, first + d, normed);
  }
}

}  // namespace pegasus::cuda
