// Rows of logits with their edits, as beam_step and greedy_step take them.
#pragma once
#include "tensor.h"
#ifdef PEGASUS_WITH_CUDA
#include "cuda/row_scan.h"
#endif

namespace pegasus {

struct EditedLogits {
  TensorView logits;      // [R, V] float32 | bfloat16, on CUDA also float16; rows may be strided
  TensorView edit_begin;  // [R] int32
  TensorView edit_end;  // [R] int32: row r owns edits edit_begin[r] : edit_end[r]; ranges ascend, gaps may lie between
  TensorView edit_token;  // [n_edits] int32
  TensorView edit_kind;   // [n_edits] int32
  TensorView edit_value;  // [n_edits] float32
  TensorView forced;      // [R] int32, -1 for none
};

// Checks dtypes, shapes (R = n_rows, or kAny) and devices; on the CPU also the values of indices.
void expect_edited_logits(const char* op, const EditedLogits& rows, int64_t n_rows);

#ifdef PEGASUS_WITH_CUDA
// The pass of these rows over logits [R, V], still without a workspace.
cuda::RowScan row_scan(const TensorView& logits, int64_t n_edits);
cuda::RowScan row_scan(const EditedLogits& rows);
#endif

}  // namespace pegasus
