// What every form of attention shares: its types, where the keys and values of a document lie, and how a cache takes
// the newest ones.
#pragma once
#include "cuda/attention.h"
#include "cuda/common.cuh"

namespace pegasus::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// The 16-bit types as raw bits; float stands for itself.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(Bf16 x) {
  return bf16_to_float(x.bits);
}
__device__ __forceinline__ float to_float(Fp16 x) {
  return fp16_to_float(x.bits);
}
__device__ __forceinline__ void set_to(float& x, float value) {
  x = value;
}
__device__ __forceinline__ void set_to(Bf16& x, float value) {
  x.bits = static_cast<uint16_t>(pack_bf16(value, 0.f));
}
__device__ __forceinline__ void set_to(Fp16& x, float value) {
  x.bits = static_cast<uint16_t>(pack_fp16(value, 0.f));
}

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

__device__ __forceinline__ int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// What a block of a grid of B * H works on.
struct DocumentHead {
  int64_t document, head;
};
__device__ __forceinline__ DocumentHead document_head(const AttentionTask& task) {
  const unsigned heads = static_cast<unsigned>(task.n_heads);  // 64 bits would be divided by a subroutine
  return {blockIdx.x / heads, blockIdx.x % heads};
}

// The keys and values of one head, as rows; with a cache, those of time 0 in slot 0.
template <typename T>
struct Rows {
  const T *key, *value;
  int64_t key_stride, value_stride;
};

template <typename T>
__device__ __forceinline__ Rows<T> rows_of(const AttentionTask& task, int64_t document, int64_t head) {
  const T *key = static_cast<const T*>(task.key), *value = static_cast<const T*>(task.value);
  if (task.packed) {
    const int64_t stride = round_up(task.head_size, kPanelKeys);
    const int64_t keys = round_up(task.n_keys[document], kPanelKeys);  // of every head
    const int64_t at = (task.key_begin[document] * task.n_heads * kPanelKeys + head * keys) * stride;
    return {key + at, value + at, stride, stride};
  }
  const int64_t first = task.ancestry ? 0 : task.key_begin[document], at = head * task.head_size;
  return {key + first * task.key_stride + at, value + first * task.value_stride + at, task.key_stride,
          task.value_stride};
}

// Writes one head of D = `size` of the newest key and value of rows [begin, end) to the cache, by the whole block, in
// pieces of a Unit. Nothing is written for a row without keys.
template <typename T, typename Unit>
__device__ __forceinline__ void append_newest(const AttentionTask& task, int64_t begin, int64_t end, int64_t head,
                                              unsigned size) {
  constexpr unsigned kElements = sizeof(Unit) / sizeof(T);
  const unsigned units = size / kElements, total = static_cast<unsigned>(end - begin) * 2 * units;
  for (unsigned i = threadIdx.x; i < total; i += blockDim.x) {
    const int64_t row = begin + i / (2 * units);
    const unsigned part = i % (2 * units);
    const int n = task.n_keys[row];
    if (n == 0) continue;
    const bool is_value = part >= units;
    const int64_t at = head * size + (is_value ? part - units : part) * kElements;
    const int64_t slot = task.ancestry[row * task.ancestry_stride + n - 1];
    const T* from = is_value ? static_cast<const T*>(task.newest_value) + row * task.newest_value_stride
                             : static_cast<const T*>(task.newest_key) + row * task.newest_key_stride;
    T* to = is_value ? static_cast<T*>(task.value) + slot * task.value_slot_stride + (n - 1) * task.value_stride
                     : static_cast<T*>(task.key) + slot * task.key_slot_stride + (n - 1) * task.key_stride;
    *reinterpret_cast<Unit*>(to + at) = *reinterpret_cast<const Unit*>(from + at);
  }
}

}  // namespace pegasus::cuda
