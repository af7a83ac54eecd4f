#include "cuda/attention.cuh"

#include <algorithm>

#include "cuda/cached_attention.cuh"
#include "cuda/pack_source.cuh"
#include "cuda/plain_attention.cuh"

namespace pegasus::cuda {
namespace {

constexpr int64_t kMostGridY = 65535;

// Blocks along y so that a document of average size has one per `step`; what is left is taken in turn.
unsigned share(int64_t total, int64_t documents, int64_t step) {
  const int64_t parts = (total + documents * step - 1) / (documents * step);
  return static_cast<unsigned>(std::clamp<int64_t>(parts, 1, kMostGridY));
}

unsigned blocks_of(const AttentionTask& task) {
  return static_cast<unsigned>(task.n_documents * task.n_heads);
}

template <typename T>
void launch_plain(const char* op, const AttentionTask& task, void* stream) {
  const dim3 grid(blocks_of(task), task.ancestry ? 1 : share(task.n_rows, task.n_documents, kPlainWarps));
  const auto kernel = task.head_size <= 64 ? plain_attention_kernel<T, 2> : plain_attention_kernel<T, 8>;
  launch(op, kernel, grid, kPlainWarps * 32, 0, stream, task);
}

void launch_plain(const char* op, const AttentionTask& task, void* stream) {
  switch (task.element) {
    case Element::kFloat32:
      return launch_plain<float>(op, task, stream);
    case Element::kBFloat16:
      return launch_plain<Bf16>(op, task, stream);
    case Element::kFloat16:
      return launch_plain<Fp16>(op, task, stream);
  }
}

template <typename T>
void launch_tiles(const AttentionTask& task, void* stream) {
  const unsigned blocks = blocks_of(task);
  const unsigned along_y =
      task.partials ? static_cast<unsigned>(task.n_chunks) : share(task.n_rows, task.n_documents, kTileRows);
  launch("attention", attention_kernel<T>, dim3(blocks, along_y), kSourceWarps * 32, kSourceSharedBytes, stream, task);
  if (task.partials) launch("attention", merge_chunks_kernel<T>, dim3(blocks), kSourceWarps * 32, 0, stream, task);
}

template <typename T>
void launch_cached(const AttentionTask& task, void* stream) {
  launch("cached_attention", cached_attention_kernel<T>, dim3(blocks_of(task)), kCachedThreads, kCachedSharedBytes,
         stream, task);
}

bool is_empty(const AttentionTask& task) {
  return task.n_documents == 0 || task.n_heads == 0 || task.n_rows == 0;
}

}  // namespace

void attention(const AttentionTask& task, int device, void* stream) {
  if (is_empty(task)) return;
  const DeviceGuard guard(device);
  if (!takes_tiles(task.element, task.head_size)) return launch_plain("attention", task, stream);
  task.element == Element::kBFloat16 ? launch_tiles<Bf16>(task, stream) : launch_tiles<Fp16>(task, stream);
}

void cached_attention(const AttentionTask& task, int device, void* stream) {
  if (is_empty(task)) return;
  const DeviceGuard guard(device);
  if (!takes_tiles(task.element, task.head_size)) return launch_plain("cached_attention", task, stream);
  task.element == Element::kBFloat16 ? launch_cached<Bf16>(task, stream) : launch_cached<Fp16>(task, stream);
}

void pack_source(const PackTask& task, int device, void* stream) {
  if (task.n_documents == 0 || task.n_heads == 0) return;
  const DeviceGuard guard(device);
  const dim3 grid(static_cast<unsigned>(task.n_documents), share(task.n_rows, task.n_documents, kPanelKeys));
  const int64_t unit = 16 / task.element_size;
  const bool in_units = task.head_size % unit == 0 && task.key_stride % unit == 0 && task.value_stride % unit == 0;
  uintptr_t addresses = 0;
  for (const void* p :
       {task.key, task.value, static_cast<const void*>(task.key_panels), static_cast<const void*>(task.value_panels)}) {
    addresses |= reinterpret_cast<uintptr_t>(p);
  }
  if (in_units && addresses % 16 == 0) {
    PackTask wide = task;
    for (int64_t* size : {&wide.head_size, &wide.padded_size, &wide.key_stride, &wide.value_stride}) *size /= unit;
    launch("pack_source", pack_source_kernel<Bytes16>, grid, kPackThreads, 0, stream, wide);
  } else if (task.element_size == 4) {
    launch("pack_source", pack_source_kernel<uint32_t>, grid, kPackThreads, 0, stream, task);
  } else {
    launch("pack_source", pack_source_kernel<uint16_t>, grid, kPackThreads, 0, stream, task);
  }
}

}  // namespace pegasus::cuda
