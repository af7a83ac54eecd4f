#include "cuda/add_norm.cuh"

namespace pegasus::cuda {
namespace {

using Kernel = void (*)(AddNormTask);

bool is_aligned(const AddNormTask& task) {
  for (const void* p : {static_cast<const void*>(task.stream), task.branch, static_cast<const void*>(task.weight),
                        static_cast<const void*>(task.bias), static_cast<const void*>(task.normed)}) {
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  }
  return task.size % kLaneElements == 0;
}

template <NormType kType>
Kernel kernel_for(const AddNormTask& task) {
  if (!is_aligned(task) || task.size > 16 * kWarpElements) return add_norm_any_kernel<kType>;
  if (task.size > 8 * kWarpElements) return add_norm_kernel<kType, 16>;
  return task.size > 4 * kWarpElements ? add_norm_kernel<kType, 8> : add_norm_kernel<kType, 4>;
}

}  // namespace

void add_norm(const AddNormTask& task, int device, void* stream) {
  if (task.n_rows == 0 || task.size == 0) return;
  const DeviceGuard guard(device);
  const Kernel kernel = task.type == NormType::kFloat32    ? kernel_for<NormType::kFloat32>(task)
                        : task.type == NormType::kBFloat16 ? kernel_for<NormType::kBFloat16>(task)
                                                           : kernel_for<NormType::kFloat16>(task);
  const dim3 grid(static_cast<unsigned>((task.n_rows + kNormWarps - 1) / kNormWarps));
  launch("add_norm", kernel, grid, kNormWarps * 32, 0, stream, task);
}

}  // namespace pegasus::cuda
