#include "ops/edited_logits.h"

#include "edit_kind.h"

namespace pegasus {

void expect_edited_logits(const char* op, const EditedLogits& rows, int64_t n_rows) {
  const TensorView& logits = rows.logits;
  if (on_cuda(logits)) {
    expect(op, logits, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}, {n_rows, kAny});
  } else {
    expect(op, logits, {DType::kFloat32, DType::kBFloat16}, {n_rows, kAny});
  }
  expect_inner_contiguous(op, logits, 1);
  expect_contiguous(op, rows.edit_token, {DType::kInt32}, {kAny});
  const int64_t vocabulary = logits.shape[1], edits = rows.edit_token.shape[0];
  n_rows = logits.shape[0];
  expect_contiguous(op, rows.edit_kind, {DType::kInt32}, {edits});
  expect_contiguous(op, rows.edit_value, {DType::kFloat32}, {edits});
  for (const TensorView* x : {&rows.edit_begin, &rows.edit_end, &rows.forced}) {
    expect_contiguous(op, *x, {DType::kInt32}, {n_rows});
  }
  expect_same_device(
      op, logits,
      {&rows.edit_begin, &rows.edit_end, &rows.edit_token, &rows.edit_kind, &rows.edit_value, &rows.forced});
  if (vocabulary < 1) fail(op, "needs at least one token, got " + describe(logits));
  if (vocabulary > INT32_MAX || n_rows > INT32_MAX || edits + n_rows > INT32_MAX) fail(op, "sizes must fit 32 bits");
  if (on_cuda(logits) || logits.device != DeviceKind::kCpu) return;
  const int32_t *begin = rows.edit_begin.as<const int32_t>(), *end = rows.edit_end.as<const int32_t>();
  for (int64_t r = 0, before = 0; r < n_rows; before = end[r++]) {
    if (begin[r] < before || end[r] < begin[r] || end[r] > edits) {
      fail(op, "row " + std::to_string(r) + " has edits " + std::to_string(begin[r]) + " : " + std::to_string(end[r]) +
                   "; ranges must ascend without overlap within 0 : " + std::to_string(edits));
    }
    // Only what the rows own: between their ranges anything may lie.
    expect_range(op, rows.edit_token, 0, vocabulary, begin[r], end[r]);
    expect_range(op, rows.edit_kind, 0, kDecay + 1, begin[r], end[r]);
  }
  expect_range(op, rows.forced, -1, vocabulary);
}

#ifdef PEGASUS_WITH_CUDA
cuda::RowScan row_scan(const TensorView& logits, int64_t n_edits) {
  cuda::RowScan scan{};
  scan.logits = logits.data;
  scan.type = logits.dtype == DType::kFloat32    ? cuda::LogitType::kFloat32
              : logits.dtype == DType::kBFloat16 ? cuda::LogitType::kBFloat16
                                                 : cuda::LogitType::kFloat16;
  scan.stride = logits.strides[0];
  scan.aligned = reinterpret_cast<uintptr_t>(logits.data) % 16 == 0 && scan.stride * logits.bits / 8 % 16 == 0;
  scan.n_rows = logits.shape[0];
  scan.vocabulary = logits.shape[1];
  scan.n_chunks = (scan.vocabulary + cuda::kChunk - 1) / cuda::kChunk;
  scan.n_edits = n_edits;
  return scan;
}

cuda::RowScan row_scan(const EditedLogits& rows) {
  cuda::RowScan scan = row_scan(rows.logits, rows.edit_token.shape[0]);
  scan.edit_begin = rows.edit_begin.as<const int32_t>();
  scan.edit_end = rows.edit_end.as<const int32_t>();
  scan.edit_token = rows.edit_token.as<const int32_t>();
  scan.edit_kind = rows.edit_kind.as<const int32_t>();
  scan.edit_value = rows.edit_value.as<const float>();
  scan.forced = rows.forced.as<const int32_t>();
  return scan;
}
#endif

}  // namespace pegasus
