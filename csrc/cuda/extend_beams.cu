#include "cuda/extend_beams.cuh"

namespace pegasus::cuda {

void extend_beams(const ExtendBeamsTask& task, int device, void* stream) {
  if (task.n_documents == 0) return;
  const DeviceGuard guard(device);
  const int bound = task.n_beams <= 4 ? 4 : task.n_beams <= 8 ? 8 : task.n_beams <= 16 ? 16 : 32;
  const auto kernel = bound == 4    ? extend_beams_kernel<4>
                      : bound == 8  ? extend_beams_kernel<8>
                      : bound == 16 ? extend_beams_kernel<16>
                                    : extend_beams_kernel<32>;
  const dim3 grid(static_cast<unsigned>(task.n_documents));
  launch("extend_beams", kernel, grid, kExtendThreads, 3 * bound * static_cast<int>(sizeof(void*)), stream, task);
}

}  // namespace pegasus::cuda
