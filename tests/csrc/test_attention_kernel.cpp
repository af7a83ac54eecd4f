// Runs the CUDA kernels of attention and source_attention on the tensor cores under the block emulator, against
// float64. Exits with 1 and a message on the first difference. test_kernels.py compiles it, also with mistakes planted.
#include "attention_problem.hpp"
#include "cuda/attention.cuh"

namespace {

namespace cuda = pegasus::cuda;

template <typename T>
void launch(const AttentionTask& task, unsigned along_y, unsigned order) {
  const unsigned blocks = static_cast<unsigned>(task.n_documents * kHeads);
  constexpr int kThreads = cuda::kSourceWarps * 32;
  emulator::launch(dim3(blocks, along_y), kThreads, cuda::kSourceSharedBytes, order,
                   [&] { cuda::attention_kernel<T>(task); });
  if (!task.partials) return;
  emulator::launch(dim3(blocks), kThreads, 0, order, [&] { cuda::merge_chunks_kernel<T>(task); });
}

// Rows per document: one beam, several, none, more than one pass. Keys: tails of a tile, none, less than a tile.
template <typename T>
bool test_rows(const char* name) {
  RowsProblem<T> problem(64, {0, 1, 9, 9, 28, 33}, {70, 145, 40, 33, 0});
  for (unsigned passes = 1; passes < 3; ++passes) {
    if (!problem.solve(name, [&](unsigned order) { launch<T>(problem.task, passes, order); })) return false;
  }
  return true;
}

// Chunks by one block and by a block each: the same bits. Of 17 rows, one block takes all chunks; so it does where
// there are more chunks than blocks.
template <typename T>
bool test_panels(const char* name) {
  PanelsProblem<T> problem(64, {0, 2, 2, 19, 20, 22}, {513, 40, 530, 0, 1030});
  if (!problem.solve(name, [&](unsigned order) { launch<T>(problem.task, 1, order); })) return false;
  const std::vector<T> alone = problem.out;
  for (int64_t chunks = 2; chunks < 4; ++chunks) {
    std::vector<float> partials(problem.task.n_documents * chunks * kHeads * cuda::kPartialRows * cuda::kPartialFloats,
                                NAN);
    problem.task.partials = partials.data();
    problem.task.n_chunks = chunks;
    const auto shared_out = [&](unsigned order) { launch<T>(problem.task, static_cast<unsigned>(chunks), order); };
    if (!problem.solve(name, shared_out)) return false;
    if (std::memcmp(alone.data(), problem.out.data(), alone.size() * sizeof(T)) != 0) {
      std::printf("%s: %d chunks in blocks of their own give other bits\n", name, static_cast<int>(chunks));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  const bool right = test_rows<Bf16>("attention, bfloat16") && test_rows<Fp16>("attention, float16") &&
                     test_panels<Bf16>("source_attention, bfloat16") && test_panels<Fp16>("source_attention, float16");
  return right ? 0 : 1;
}
