// What the CUDA kernel of add_norm takes, in plain C++: no CUDA header is needed to call it.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

enum class NormType { kFloat32, kBFloat16, kFloat16 };

// Every pointer is to device memory.
struct AddNormTask {
  float* stream;        // [N, D]
  const void* branch;   // [N, D] of `type`, or null
  const float* weight;  // [D]
  const float* bias;    // [D]
  void* normed;         // [N, D] of `type`
  NormType type;
  int64_t n_rows, size;
  float eps;
  bool post_norm;
};

// Launches on the caller's stream of that device; throws std::runtime_error if the launch fails.
void add_norm(const AddNormTask& task, int device, void* stream);

}  // namespace pegasus::cuda
