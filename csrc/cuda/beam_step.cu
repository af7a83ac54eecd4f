#include "cuda/beam_step.cuh"

namespace pegasus::cuda {

void beam_step(const BeamStepTask& task, int device, void* stream) {
  if (task.n_documents == 0) return;
  const DeviceGuard guard(device);
  scan_rows<true>("beam_step", task.scan, stream);
  const StepLayout layout(task);
  const auto kernel = task.scan.type == LogitType::kFloat32    ? beam_step_kernel<float>
                      : task.scan.type == LogitType::kBFloat16 ? beam_step_kernel<BFloat16>
                                                               : beam_step_kernel<Float16>;
  launch("beam_step", kernel, dim3(static_cast<unsigned>(task.n_documents)), kRankThreads, layout.bytes, stream, task,
         layout);
}

}  // namespace pegasus::cuda
