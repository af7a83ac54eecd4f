// What the CUDA kernels of greedy_step take, in plain C++: no CUDA header is needed to call them.
#pragma once
#include "cuda/row_scan.h"

namespace pegasus::cuda {

// Every pointer is to device memory.
struct GreedyStepTask {
  RowScan scan;
  bool renormalize;
  int32_t* tokens;  // [R]
  double* gains;    // [R]
  bool* broken;     // [R]
};

// Launches on the caller's stream of that device; throws std::runtime_error if a launch fails. Reads no device memory
// from the host, so the caller answers for the ranges of edits and of token ids.
void greedy_step(const GreedyStepTask& task, int device, void* stream);

}  // namespace pegasus::cuda
