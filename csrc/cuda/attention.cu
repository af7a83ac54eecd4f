#include "cuda/attention.cuh"

namespace pegasus::cuda {
namespace {

constexpr int kWarps = 4, kStages = 4;  // 64 KiB of shared memory: three blocks on a Hopper multiprocessor

}  // namespace

void attention(const AttentionTask& task, int device, void* stream) {
  if (task.n_documents == 0 || task.n_heads == 0) return;
  const DeviceGuard guard(device);
  const dim3 grid(static_cast<unsigned>(task.n_documents), static_cast<unsigned>(task.n_heads));
  const auto kernel =
      task.ancestry ? attention_kernel<true, kWarps, kStages> : attention_kernel<false, kWarps, kStages>;
  launch("attention", kernel, grid, kWarps * 32, attention_shared_bytes(kWarps, kStages), stream, task);
}

}  // namespace pegasus::cuda
