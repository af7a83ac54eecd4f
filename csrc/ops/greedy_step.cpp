#include "ops/greedy_step.h"

#ifdef PEGASUS_WITH_CUDA
#include "cuda/greedy_step.h"
#endif

namespace pegasus {

int64_t greedy_step_workspace(const TensorView& logits, int64_t n_edits) {
#ifdef PEGASUS_WITH_CUDA
  cuda::RowScan scan = row_scan(logits, n_edits);
  return cuda::row_scan_workspace(&scan, nullptr);
#else
  static_cast<void>(logits);
  return n_edits * 0;
#endif
}

void greedy_step(const GreedyStepParams& p, void* stream) {
  const char* op = "greedy_step";
  expect_edited_logits(op, p.rows, kAny);
  const TensorView& logits = p.rows.logits;
  const int64_t rows = logits.shape[0];
  expect_contiguous(op, p.tokens, {DType::kInt32}, {rows});
  expect_contiguous(op, p.gains, {DType::kFloat64}, {rows});
  expect_contiguous(op, p.broken, {DType::kBool}, {rows});
  expect_contiguous(op, p.workspace, {DType::kUInt8}, {kAny});
  expect_same_device(op, logits, {&p.tokens, &p.gains, &p.broken, &p.workspace});
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(logits)) {
    cuda::GreedyStepTask task{row_scan(p.rows), p.renormalize, p.tokens.as<int32_t>(), p.gains.as<double>(),
                              p.broken.as<bool>()};
    expect_bytes(op, p.workspace, cuda::row_scan_workspace(&task.scan, p.workspace.data));
    return cuda::greedy_step(task, logits.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  fail(op, "no kernel for " + describe(logits) + " in this build");
}

}  // namespace pegasus
