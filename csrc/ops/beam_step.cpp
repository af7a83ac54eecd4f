#include "ops/beam_step.h"

#include "cpu/beam_step.h"

namespace pegasus {
namespace {

// Only what the rows own: between their ranges anything may lie.
void expect_edits(const char* op, const BeamStepParams& p) {
  const int32_t *begin = p.edit_begin.as<const int32_t>(), *end = p.edit_end.as<const int32_t>();
  const int64_t rows = p.logits.shape[0], vocabulary = p.logits.shape[1], edits = p.edit_token.shape[0];
  for (int64_t r = 0, before = 0; r < rows; before = end[r++]) {
    if (begin[r] < before || end[r] < begin[r] || end[r] > edits) {
      fail(op, "row " + std::to_string(r) + " has edits " + std::to_string(begin[r]) + " : " + std::to_string(end[r]) +
                   "; ranges must ascend without overlap within 0 : " + std::to_string(edits));
    }
    expect_range(op, p.edit_token, 0, vocabulary, begin[r], end[r]);
    expect_range(op, p.edit_kind, 0, cpu::kDecay + 1, begin[r], end[r]);
  }
}

void check(const char* op, const BeamStepParams& p) {
  expect(op, p.scores, {DType::kFloat32}, {kAny, kAny});
  const int64_t documents = p.scores.shape[0], beams = p.scores.shape[1], rows = documents * beams;
  expect(op, p.logits, {DType::kFloat32, DType::kBFloat16}, {rows, kAny});
  expect_inner_contiguous(op, p.logits, 1);
  const int64_t vocabulary = p.logits.shape[1];
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
  expect_contiguous(op, p.edit_token, {DType::kInt32}, {kAny});
  const int64_t edits = p.edit_token.shape[0];
  expect_contiguous(op, p.edit_kind, {DType::kInt32}, {edits});
  expect_contiguous(op, p.edit_value, {DType::kFloat32}, {edits});
  for (const TensorView* x : {&p.edit_begin, &p.edit_end, &p.forced})
    expect_contiguous(op, *x, {DType::kInt32}, {rows});
  expect_contiguous(op, p.eos_ids, {DType::kInt32}, {kAny});
  expect_contiguous(op, p.workspace, {DType::kUInt8}, {kAny});
  expect_same_device(op, p.logits, {&p.scores,          &p.pool_scores,
                                    &p.pool_finished,   &p.open,
                                    &p.edit_begin,      &p.edit_end,
                                    &p.edit_token,      &p.edit_kind,
                                    &p.edit_value,      &p.forced,
                                    &p.n_new,           &p.max_new,
                                    &p.eos_ids,         &p.out_scores,
                                    &p.out_parents,     &p.out_tokens,
                                    &p.out_pool_scores, &p.out_pool_finished,
                                    &p.out_pool_source, &p.out_pool_tokens,
                                    &p.out_open,        &p.out_done,
                                    &p.workspace});
  if (p.logits.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(p.logits) + " in this build");

  if (p.early_stopping < 0 || p.early_stopping > 2) {
    fail(op, "early_stopping must be 0, 1 or 2, got " + std::to_string(p.early_stopping));
  }
  if (beams < 1 || vocabulary < 1) fail(op, "needs at least one beam and one token, got " + describe(p.logits));
  const int64_t eos_ids = p.eos_ids.shape[0], candidates = (eos_ids < 1 ? 2 : 1 + eos_ids) * beams;
  if (candidates > beams * vocabulary) {
    fail(op, std::to_string(candidates) + " candidates wanted but beams * vocabulary is only " +
                 std::to_string(beams * vocabulary));
  }
  if (vocabulary > INT32_MAX || edits + rows > INT32_MAX) fail(op, "sizes must fit 32 bits");
  expect_edits(op, p);
  expect_range(op, p.forced, -1, vocabulary);
  expect_range(op, p.n_new, 1, int64_t{INT32_MAX} + 1);
}

}  // namespace

int64_t beam_step_workspace(int64_t documents, int64_t beams, int64_t vocabulary, int64_t edits, int64_t eos_ids) {
  cpu::BeamTask task{};
  task.n_documents = documents;
  task.n_beams = beams;
  task.vocabulary = vocabulary;
  task.n_edits = edits;
  task.n_eos = eos_ids;
  return static_cast<int64_t>(cpu::beam_step_workspace(task));
}

void beam_step(const BeamStepParams& p) {
  const char* op = "beam_step";
  check(op, p);
  cpu::BeamTask task{};
  task.logits = p.logits.data;
  task.bf16 = p.logits.dtype == DType::kBFloat16;
  task.logits_stride = p.logits.strides[0];
  task.scores = p.scores.as<const float>();
  task.pool_scores = p.pool_scores.as<const float>();
  task.pool_finished = p.pool_finished.as<const bool>();
  task.open = p.open.as<const bool>();
  task.edit_begin = p.edit_begin.as<const int32_t>();
  task.edit_end = p.edit_end.as<const int32_t>();
  task.edit_token = p.edit_token.as<const int32_t>();
  task.edit_kind = p.edit_kind.as<const int32_t>();
  task.edit_value = p.edit_value.as<const float>();
  task.forced = p.forced.as<const int32_t>();
  task.n_new = p.n_new.as<const int32_t>();
  task.max_new = p.max_new.as<const int32_t>();
  task.eos_ids = p.eos_ids.as<const int32_t>();
  task.n_documents = p.scores.shape[0];
  task.n_beams = p.scores.shape[1];
  task.vocabulary = p.logits.shape[1];
  task.n_edits = p.edit_token.shape[0];
  task.n_eos = p.eos_ids.shape[0];
  task.length_penalty = p.length_penalty;
  task.early_stopping = p.early_stopping;
  task.renormalize = p.renormalize;
  task.out_scores = p.out_scores.as<float>();
  task.out_parents = p.out_parents.as<int32_t>();
  task.out_tokens = p.out_tokens.as<int32_t>();
  task.out_pool_scores = p.out_pool_scores.as<float>();
  task.out_pool_finished = p.out_pool_finished.as<bool>();
  task.out_pool_source = p.out_pool_source.as<int32_t>();
  task.out_pool_tokens = p.out_pool_tokens.as<int32_t>();
  task.out_open = p.out_open.as<bool>();
  task.out_done = p.out_done.as<bool>();
  task.workspace = p.workspace.data;
  const int64_t needed = static_cast<int64_t>(cpu::beam_step_workspace(task));
  if (p.workspace.shape[0] < needed) {
    fail(op, "workspace must have at least " + std::to_string(needed) + " bytes, got " +
                 std::to_string(p.workspace.shape[0]));
  }
  cpu::beam_step(task);
}

}  // namespace pegasus
