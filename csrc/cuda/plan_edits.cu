#include "cuda/plan_edits.cuh"

#include <algorithm>

namespace pegasus::cuda {

void plan_edits(const PlanEditsTask& task, int device, void* stream) {
  if (task.n_rows == 0) return;
  const DeviceGuard guard(device);
  // As many rows as 48 KiB hold, which every device has, and one row of more where it is longer.
  const int64_t row_bytes = plan_edits_words(task.columns) * 4;
  const int rows =
      static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(4, (48 << 10) / std::max<int64_t>(row_bytes, 1))));
  const dim3 grid(static_cast<unsigned>((task.n_rows + rows - 1) / rows));
  launch("plan_edits", plan_edits_kernel, grid, rows * 32, static_cast<int>(rows * row_bytes), stream, task);
}

}  // namespace pegasus::cuda
