#include "cuda/plan_edits.cuh"

namespace pegasus::cuda {

void plan_edits(const PlanEditsTask& task, int device, void* stream) {
  if (task.n_rows == 0) return;
  const DeviceGuard guard(device);
  // As many rows as 48 KiB hold, which every device has; a row of more gets more.
  const int64_t row_bytes = task.penalizes || task.ngram_size ? plan_edits_words(task.columns) * 4 : 0;
  int rows = 4;
  while (rows > 1 && rows * row_bytes > 48 << 10) --rows;
  const dim3 grid(static_cast<unsigned>((task.n_rows + rows - 1) / rows));
  launch("plan_edits", plan_edits_kernel, grid, rows * 32, static_cast<int>(rows * row_bytes), stream, task);
}

}  // namespace pegasus::cuda
