#include "cuda/attention.cuh"

namespace pegasus::cuda {
namespace {

constexpr int kWarps = 4, kStages = 4;  // 64 KiB of shared memory: three blocks on a Hopper multiprocessor

template <bool kCached>
void launch(const AttentionTask& task, cudaStream_t stream) {
  constexpr int kShared = attention_shared_bytes(kWarps, kStages);
  const auto kernel = attention_kernel<kCached, kWarps, kStages>;
  // More than 48 KiB must be asked for, once per device; asking again is cheap and allowed during graph capture.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "attention: shared memory");
  const dim3 grid(static_cast<unsigned>(task.n_documents), static_cast<unsigned>(task.n_heads));
  kernel<<<grid, kWarps * 32, kShared, stream>>>(task);
  check(cudaGetLastError(), "attention: launch");
}

}  // namespace

void attention(const AttentionTask& task, int device, void* stream) {
  if (task.n_documents == 0 || task.n_heads == 0) return;
  const DeviceGuard guard(device);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (task.ancestry) {
    launch<true>(task, cuda_stream);
  } else {
    launch<false>(task, cuda_stream);
  }
}

}  // namespace pegasus::cuda
