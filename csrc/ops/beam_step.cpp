#include "ops/beam_step.h"

#include <algorithm>

#include "cpu/beam_step.h"
#ifdef PEGASUS_WITH_CUDA
#include "cuda/beam_step.h"
#endif

namespace pegasus {
namespace {

int64_t candidates_of(int64_t beams, int64_t eos_ids) {
  return std::max<int64_t>(2, 1 + eos_ids) * beams;
}

void check(const char* op, const BeamStepParams& p) {
  expect(op, p.scores, {DType::kFloat32}, {kAny, kAny});
  const int64_t documents = p.scores.shape[0], beams = p.scores.shape[1];
  expect_edited_logits(op, p.rows, documents * beams);
  const TensorView& logits = p.rows.logits;
  for (const TensorView* x : {&p.scores, &p.pool_scores, &p.out_scores, &p.out_pool_scores}) {
    expect_contiguous(op, *x, {DType::kFloat32}, {documents, beams});
  }
  for (const TensorView* x : {&p.out_parents, &p.out_tokens, &p.out_pool_source, &p.out_pool_tokens}) {
    expect_contiguous(op, *x, {DType::kInt32}, {documents, beams});
  }
  for (const TensorView* x : {&p.pool_finished, &p.out_pool_finished}) {
    expect_contiguous(op, *x, {DType::kBool}, {documents, beams});
  }
  for (const TensorView* x : {&p.open, &p.out_open, &p.out_done})
    expect_contiguous(op, *x, {DType::kBool}, {documents});
  for (const TensorView* x : {&p.n_new, &p.max_new}) expect_contiguous(op, *x, {DType::kInt32}, {documents});
  expect_contiguous(op, p.eos_ids, {DType::kInt32}, {kAny});
  expect_contiguous(op, p.workspace, {DType::kUInt8}, {kAny});
  expect_same_device(op, logits,
                     {&p.scores, &p.pool_scores, &p.pool_finished, &p.open, &p.n_new, &p.max_new, &p.eos_ids,
                      &p.out_scores, &p.out_parents, &p.out_tokens, &p.out_pool_scores, &p.out_pool_finished,
                      &p.out_pool_source, &p.out_pool_tokens, &p.out_open, &p.out_done, &p.workspace});
  if (p.early_stopping < 0 || p.early_stopping > 2) {
    fail(op, "early_stopping must be 0, 1 or 2, got " + std::to_string(p.early_stopping));
  }
  if (beams < 1) fail(op, "needs at least one beam, got " + describe(p.scores));
  const int64_t candidates = candidates_of(beams, p.eos_ids.shape[0]), choices = beams * logits.shape[1];
  if (candidates > choices) {
    fail(op,
         std::to_string(candidates) + " candidates wanted but beams * vocabulary is only " + std::to_string(choices));
  }
  if (choices > INT32_MAX) fail(op, "beams * vocabulary must fit 32 bits, got " + std::to_string(choices));
}

cpu::BeamTask cpu_task(const TensorView& logits, int64_t beams, int64_t edits, int64_t eos_ids) {
  cpu::BeamTask task{};
  task.n_documents = logits.shape[0] / beams;
  task.n_beams = beams;
  task.vocabulary = logits.shape[1];
  task.n_edits = edits;
  task.n_eos = eos_ids;
  return task;
}

// What both devices call by the same names, apart from the logits and their edits.
template <typename Task>
void set_common(const BeamStepParams& p, Task* task) {
  task->scores = p.scores.as<const float>();
  task->pool_scores = p.pool_scores.as<const float>();
  task->pool_finished = p.pool_finished.as<const bool>();
  task->open = p.open.as<const bool>();
  task->n_new = p.n_new.as<const int32_t>();
  task->max_new = p.max_new.as<const int32_t>();
  task->eos_ids = p.eos_ids.as<const int32_t>();
  task->length_penalty = p.length_penalty;
  task->early_stopping = p.early_stopping;
  task->renormalize = p.renormalize;
  task->out_scores = p.out_scores.as<float>();
  task->out_parents = p.out_parents.as<int32_t>();
  task->out_tokens = p.out_tokens.as<int32_t>();
  task->out_pool_scores = p.out_pool_scores.as<float>();
  task->out_pool_finished = p.out_pool_finished.as<bool>();
  task->out_pool_source = p.out_pool_source.as<int32_t>();
  task->out_pool_tokens = p.out_pool_tokens.as<int32_t>();
  task->out_open = p.out_open.as<bool>();
  task->out_done = p.out_done.as<bool>();
}

#ifdef PEGASUS_WITH_CUDA
cuda::BeamStepTask cuda_task(const cuda::RowScan& scan, int64_t beams, int64_t eos_ids) {
  cuda::BeamStepTask task{};
  task.scan = scan;
  task.n_documents = scan.n_rows / beams;
  task.n_beams = static_cast<int>(beams);
  task.n_eos = static_cast<int>(eos_ids);
  task.n_candidates = static_cast<int>(candidates_of(beams, eos_ids));
  return task;
}
#endif

}  // namespace

int64_t beam_step_workspace(const TensorView& logits, int64_t beams, int64_t edits, int64_t eos_ids) {
  if (beams < 1) return 0;  // the step itself will complain
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(logits)) {
    cuda::BeamStepTask task = cuda_task(row_scan(logits, edits), beams, eos_ids);
    return cuda::beam_step_workspace(&task, nullptr);
  }
#endif
  return static_cast<int64_t>(cpu::beam_step_workspace(cpu_task(logits, beams, edits, eos_ids)));
}

void beam_step(const BeamStepParams& p, void* stream) {
  const char* op = "beam_step";
  check(op, p);
  const TensorView& logits = p.rows.logits;
  const int64_t beams = p.scores.shape[1], eos_ids = p.eos_ids.shape[0];
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(logits)) {
    const int64_t candidates = candidates_of(beams, eos_ids);
    if (candidates > cuda::kMaxCandidates) {
      fail(op, std::to_string(candidates) + " candidates wanted, but on CUDA there is room for " +
                   std::to_string(cuda::kMaxCandidates) + ": take fewer beams or end-of-sequence ids");
    }
    cuda::BeamStepTask task = cuda_task(row_scan(p.rows), beams, eos_ids);
    task.scan.wants_rest_sum = p.renormalize;
    set_common(p, &task);
    expect_bytes(op, p.workspace, cuda::beam_step_workspace(&task, p.workspace.data));
    return cuda::beam_step(task, logits.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  if (logits.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(logits) + " in this build");
  expect_range(op, p.n_new, 1, int64_t{INT32_MAX} + 1);
  cpu::BeamTask task = cpu_task(logits, beams, p.rows.edit_token.shape[0], eos_ids);
  task.logits = logits.data;
  task.bf16 = logits.dtype == DType::kBFloat16;
  task.logits_stride = logits.strides[0];
  task.edit_begin = p.rows.edit_begin.as<const int32_t>();
  task.edit_end = p.rows.edit_end.as<const int32_t>();
  task.edit_token = p.rows.edit_token.as<const int32_t>();
  task.edit_kind = p.rows.edit_kind.as<const int32_t>();
  task.edit_value = p.rows.edit_value.as<const float>();
  task.forced = p.rows.forced.as<const int32_t>();
  set_common(p, &task);
  task.workspace = p.workspace.data;
  expect_bytes(op, p.workspace, static_cast<int64_t>(cpu::beam_step_workspace(task)));
  cpu::beam_step(task);
}

}  // namespace pegasus
