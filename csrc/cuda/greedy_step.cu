#include "cuda/greedy_step.cuh"

namespace pegasus::cuda {

void greedy_step(const GreedyStepTask& task, int device, void* stream) {
  if (task.scan.n_rows == 0) return;
  const DeviceGuard guard(device);
  scan_rows<false>("greedy_step", task.scan, stream);
  const auto kernel = task.scan.type == LogitType::kFloat32    ? greedy_step_kernel<float>
                      : task.scan.type == LogitType::kBFloat16 ? greedy_step_kernel<BFloat16>
                                                               : greedy_step_kernel<Float16>;
  launch("greedy_step", kernel, dim3(static_cast<unsigned>(task.scan.n_rows)), 32, kChunkWords * 4, stream, task);
}

}  // namespace pegasus::cuda
