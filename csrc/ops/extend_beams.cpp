#include "ops/extend_beams.h"

#ifdef PEGASUS_WITH_CUDA
#include "cuda/extend_beams.h"
#endif

namespace pegasus {

void extend_beams(const ExtendBeamsParams& p, void* stream) {
  const char* op = "extend_beams";
  expect_contiguous(op, p.sequences, {DType::kInt32}, {kAny, kAny, kAny});
  const int64_t documents = p.sequences.shape[0], beams = p.sequences.shape[1], columns = p.sequences.shape[2];
  const int64_t rows = documents * beams;
  expect_contiguous(op, p.pool_sequences, {DType::kInt32}, {documents, beams, columns});
  for (const TensorView* x : {&p.scores, &p.pool_scores, &p.kept_scores, &p.kept_pool_scores}) {
    expect_contiguous(op, *x, {DType::kFloat32}, {documents, beams});
  }
  for (const TensorView* x : {&p.parents, &p.tokens, &p.pool_source, &p.pool_tokens, &p.pool_lengths}) {
    expect_contiguous(op, *x, {DType::kInt32}, {documents, beams});
  }
  for (const TensorView* x : {&p.pool_finished, &p.kept_pool_finished}) {
    expect_contiguous(op, *x, {DType::kBool}, {documents, beams});
  }
  for (const TensorView* x : {&p.open, &p.done, &p.active, &p.kept_open}) {
    expect_contiguous(op, *x, {DType::kBool}, {documents});
  }
  for (const TensorView* x : {&p.lengths, &p.source_length}) expect_contiguous(op, *x, {DType::kInt32}, {documents});
  for (const TensorView* x : {&p.next_tokens, &p.n_keys}) expect_contiguous(op, *x, {DType::kInt32}, {rows});
  expect_contiguous(op, p.ancestry, {DType::kInt32}, {rows, kAny});
  expect_same_device(op, p.sequences,
                     {&p.scores,
                      &p.parents,
                      &p.tokens,
                      &p.pool_scores,
                      &p.pool_finished,
                      &p.pool_source,
                      &p.pool_tokens,
                      &p.open,
                      &p.done,
                      &p.active,
                      &p.lengths,
                      &p.kept_scores,
                      &p.kept_pool_scores,
                      &p.kept_pool_finished,
                      &p.kept_open,
                      &p.pool_sequences,
                      &p.pool_lengths,
                      &p.next_tokens,
                      &p.ancestry,
                      &p.n_keys,
                      &p.source_length});
  if (p.sequences.data == p.pool_sequences.data && p.sequences.numel()) {
    fail(op, "pool_sequences must not be the memory of sequences");
  }
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.sequences)) {
    if (beams > cuda::kMaxExtendedBeams) {
      fail(op, "the kernel takes up to " + std::to_string(cuda::kMaxExtendedBeams) + " beams, got " +
                   describe(p.sequences));
    }
    cuda::ExtendBeamsTask task{};
    task.scores = p.scores.as<const float>();
    task.pool_scores = p.pool_scores.as<const float>();
    task.parents = p.parents.as<const int32_t>();
    task.tokens = p.tokens.as<const int32_t>();
    task.pool_source = p.pool_source.as<const int32_t>();
    task.pool_tokens = p.pool_tokens.as<const int32_t>();
    task.pool_finished = p.pool_finished.as<const bool>();
    task.open = p.open.as<const bool>();
    task.done = p.done.as<const bool>();
    task.active = p.active.as<bool>();
    task.kept_pool_finished = p.kept_pool_finished.as<bool>();
    task.kept_open = p.kept_open.as<bool>();
    task.kept_scores = p.kept_scores.as<float>();
    task.kept_pool_scores = p.kept_pool_scores.as<float>();
    task.lengths = p.lengths.as<int32_t>();
    task.source_length = p.source_length.as<int32_t>();
    task.sequences = p.sequences.as<int32_t>();
    task.pool_sequences = p.pool_sequences.as<int32_t>();
    task.pool_lengths = p.pool_lengths.as<int32_t>();
    task.next_tokens = p.next_tokens.as<int32_t>();
    task.n_keys = p.n_keys.as<int32_t>();
    task.ancestry = p.ancestry.as<int32_t>();
    task.n_documents = documents;
    task.n_beams = beams;
    task.columns = columns;
    task.times = p.ancestry.shape[1];
    return cuda::extend_beams(task, p.sequences.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  fail(op, "no kernel for " + describe(p.sequences) + " in this build");
}

}  // namespace pegasus
