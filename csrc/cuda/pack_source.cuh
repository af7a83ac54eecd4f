// Lays the keys and values of documents out in panels, in pieces of a Unit: 16 bytes, or one element where D does not
// come in such pieces. What is padding is not written.
#pragma once
#include "cuda/keys.cuh"

namespace pegasus::cuda {

constexpr int kPackThreads = 256;

// Grid: (B, panels of a document; more than there are blocks for are taken in turn). `unit` elements are a Unit.
template <typename Unit>
__global__ void __launch_bounds__(kPackThreads) pack_source_kernel(PackTask task, int unit) {
  const int64_t document = blockIdx.x, begin = task.key_begin[document];
  const int n_keys = task.n_keys[document], width = static_cast<int>(task.head_size) / unit;
  const int64_t padded = round_up(task.head_size, kPanelKeys) / unit, keys = round_up(n_keys, kPanelKeys);
  const int64_t base = task.panel_begin[document] * task.n_heads * kPanelKeys * padded;
  const Unit *from_key = static_cast<const Unit*>(task.key), *from_value = static_cast<const Unit*>(task.value);
  Unit *to_key = static_cast<Unit*>(task.key_panels) + base, *to_value = static_cast<Unit*>(task.value_panels) + base;
  const int row_units = static_cast<int>(task.n_heads) * width;
  for (int first = blockIdx.y * kPanelKeys; first < n_keys; first += gridDim.y * kPanelKeys) {
    const int here = n_keys - first < kPanelKeys ? n_keys - first : kPanelKeys;
#pragma unroll 4
    for (int i = threadIdx.x; i < here * row_units; i += kPackThreads) {
      const int t = first + i / row_units, part = i % row_units;
      const int64_t to = (part / width * keys + t) * padded + part % width;
      to_key[to] = from_key[(begin + t) * (task.key_stride / unit) + part];
      to_value[to] = from_value[(begin + t) * (task.value_stride / unit) + part];
    }
  }
}

}  // namespace pegasus::cuda
