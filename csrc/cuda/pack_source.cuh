// Lays the keys and values of documents out in panels, in pieces of a Unit: 16 bytes, or one element where D does not
// come in such pieces. What is padding is not written.
#pragma once
#include "cuda/keys.cuh"

namespace pegasus::cuda {

constexpr int kPackThreads = 256;

// The task's sizes and strides are in Units. Grid: (B, panels of a document; those beyond are taken in turn).
template <typename Unit>
__global__ void __launch_bounds__(kPackThreads) pack_source_kernel(PackTask task) {
  const int64_t document = blockIdx.x, begin = task.key_begin[document], padded = task.padded_size;
  const int n_keys = task.n_keys[document];
  const int64_t base = task.panel_begin[document] * task.n_heads * kPanelKeys * padded;
  const Unit *from_key = static_cast<const Unit*>(task.key), *from_value = static_cast<const Unit*>(task.value);
  Unit *to_key = static_cast<Unit*>(task.key_panels) + base, *to_value = static_cast<Unit*>(task.value_panels) + base;
  const unsigned size = static_cast<unsigned>(task.head_size), row_size = static_cast<unsigned>(task.n_heads) * size;
  const unsigned keys = static_cast<unsigned>(round_up(n_keys, kPanelKeys));  // of every head
  for (int first = blockIdx.y * kPanelKeys; first < n_keys; first += gridDim.y * kPanelKeys) {
    const unsigned here = n_keys - first < kPanelKeys ? n_keys - first : kPanelKeys;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < here * row_size; i += kPackThreads) {
      const unsigned t = first + i / row_size, part = i % row_size;
      const int64_t to = (part / size * keys + t) * padded + part % size;
      to_key[to] = from_key[(begin + t) * task.key_stride + part];
      to_value[to] = from_value[(begin + t) * task.value_stride + part];
    }
  }
}

}  // namespace pegasus::cuda
