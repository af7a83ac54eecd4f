#include "ops/plan_edits.h"

#ifdef PEGASUS_WITH_CUDA
#include "cuda/plan_edits.h"
#endif

namespace pegasus {

void plan_edits(const PlanEditsParams& p, void* stream) {
  const char* op = "plan_edits";
  expect_contiguous(op, p.sequences, {DType::kInt32}, {kAny, kAny, kAny});
  const int64_t documents = p.sequences.shape[0], beams = p.sequences.shape[1], columns = p.sequences.shape[2];
  const int64_t rows = documents * beams;
  expect_contiguous(op, p.lengths, {DType::kInt32}, {documents});
  expect_contiguous(op, p.phase_begin, {DType::kInt32}, {columns + 2});
  expect_contiguous(op, p.phase_token, {DType::kInt32}, {kAny});
  expect_contiguous(op, p.phase_kind, {DType::kInt32}, {p.phase_token.shape[0]});
  expect_contiguous(op, p.phase_value, {DType::kFloat32}, {p.phase_token.shape[0]});
  expect_contiguous(op, p.phase_forced, {DType::kInt32}, {columns + 1});
  for (const TensorView* x : {&p.begin, &p.end, &p.forced}) expect_contiguous(op, *x, {DType::kInt32}, {rows});
  expect_contiguous(op, p.token, {DType::kInt32}, {kAny});
  const int64_t places = p.token.shape[0];
  expect_contiguous(op, p.kind, {DType::kInt32}, {places});
  expect_contiguous(op, p.value, {DType::kFloat32}, {places});
  expect_same_device(op, p.sequences,
                     {&p.lengths, &p.phase_begin, &p.phase_token, &p.phase_kind, &p.phase_value, &p.phase_forced,
                      &p.begin, &p.end, &p.token, &p.kind, &p.value, &p.forced});
  if (p.ngram_size < 0 || p.ngram_size > INT32_MAX) {
    fail(op, "ngram_size must be 0 (for none) or a length, got " + std::to_string(p.ngram_size));
  }
  if (places > INT32_MAX || rows > INT32_MAX) fail(op, "sizes must fit 32 bits");
  const bool penalizes = p.repetition_penalty != 1;
  const int64_t stretch = rows ? places / rows : 0, needed = ((penalizes ? 1 : 0) + (p.ngram_size ? 1 : 0)) * columns;
  if (rows && stretch < needed) {
    fail(op, "histories of " + std::to_string(columns) + " tokens can need " + std::to_string(needed) +
                 " edits a row, but " + std::to_string(places) + " places for " + std::to_string(rows) +
                 " rows leave only " + std::to_string(stretch));
  }
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.sequences)) {
    if (columns > cuda::kMaxPlannedColumns) {
      fail(op, "sequences may have up to " + std::to_string(cuda::kMaxPlannedColumns) + " tokens, got " +
                   describe(p.sequences));
    }
    cuda::PlanEditsTask task{};
    task.sequences = p.sequences.as<const int32_t>();
    task.lengths = p.lengths.as<const int32_t>();
    task.phase_begin = p.phase_begin.as<const int32_t>();
    task.phase_token = p.phase_token.as<const int32_t>();
    task.phase_kind = p.phase_kind.as<const int32_t>();
    task.phase_value = p.phase_value.as<const float>();
    task.phase_forced = p.phase_forced.as<const int32_t>();
    task.begin = p.begin.as<int32_t>();
    task.end = p.end.as<int32_t>();
    task.forced = p.forced.as<int32_t>();
    task.token = p.token.as<int32_t>();
    task.kind = p.kind.as<int32_t>();
    task.value = p.value.as<float>();
    task.n_rows = static_cast<int>(rows);
    task.n_beams = static_cast<int>(beams);
    task.columns = columns;
    task.stretch = static_cast<int>(stretch);
    task.ngram_size = static_cast<int>(p.ngram_size);
    task.penalizes = penalizes;
    task.repetition_penalty = static_cast<float>(p.repetition_penalty);
    return cuda::plan_edits(task, p.sequences.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  fail(op, "no kernel for " + describe(p.sequences) + " in this build");
}

}  // namespace pegasus
