// Runs the CUDA kernel of cached_attention on the tensor cores under the block emulator, against float64. Exits with 1
// and a message on the first difference. test_kernels.py compiles it, also with mistakes planted.
#include "attention_problem.hpp"
#include "cuda/cached_attention.cuh"

namespace {

namespace cuda = pegasus::cuda;

template <typename T>
bool solve(const char* name, CachedProblem<T>& problem) {
  const unsigned blocks = static_cast<unsigned>(problem.task.n_documents * kHeads);
  const auto launch = [&](unsigned order) {
    problem.clear_newest();
    emulator::launch(dim3(blocks), cuda::kCachedThreads, cuda::kCachedSharedBytes, order,
                     [&] { cuda::cached_attention_kernel<T>(problem.task); });
    problem.expect_newest();
  };
  return problem.solve(name, launch);
}

template <typename T>
bool test_pasts(const char* name) {
  // Of one document: equal lengths, lengths that differ, none, no rows; more than a pass; more than a run of times.
  CachedProblem<T> ragged(64, {{50, 50, 50, 50}, {1, 0, 17}, {0, 0}, {}, std::vector<int32_t>(19, 20), {90}}, 90, 2);
  // The list is as full as it can be: every row by itself at every time.
  CachedProblem<T> full(64, {std::vector<int32_t>(8, 70), std::vector<int32_t>(16, 70)}, 70, 16);
  return solve(name, ragged) && solve(name, full);
}

}  // namespace

int main() {
  return test_pasts<Bf16>("cached_attention, bfloat16") && test_pasts<Fp16>("cached_attention, float16") ? 0 : 1;
}
