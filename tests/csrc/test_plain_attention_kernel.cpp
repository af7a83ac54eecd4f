// Runs the plain CUDA kernels of attention, in all its forms, and of pack_source under the block emulator, against
// float64. Exits with 1 and a message on the first difference. test_kernels.py compiles it, also with mistakes planted.
#include "attention_problem.hpp"
#include "cuda/pack_source.cuh"
#include "cuda/plain_attention.cuh"

namespace {

namespace cuda = pegasus::cuda;

template <typename T>
void launch(const AttentionTask& task, unsigned along_y, unsigned order) {
  const auto kernel = task.head_size <= 64 ? cuda::plain_attention_kernel<T, 2> : cuda::plain_attention_kernel<T, 8>;
  emulator::launch(dim3(static_cast<unsigned>(task.n_documents * kHeads), along_y), cuda::kPlainWarps * 32, 0, order,
                   [&] { kernel(task); });
}

template <typename T>
bool test_forms(const char* name, int size) {
  const std::vector<int32_t> begins = {0, 1, 9, 9, 28, 33}, lengths = {70, 33, 4, 17, 0};
  RowsProblem<T> rows(size, begins, lengths);
  PanelsProblem<T> panels(size, begins, lengths);
  CachedProblem<T> cached(size, {{20, 20, 20}, {1, 0, 17}, {0}, {}, std::vector<int32_t>(11, 9)}, 20, 2);
  const auto attend_cached = [&](unsigned order) {
    cached.clear_newest();
    launch<T>(cached.task, 1, order);
    cached.expect_newest();
  };
  return rows.solve(name, [&](unsigned order) { launch<T>(rows.task, 2, order); }) &&
         panels.solve(name, [&](unsigned order) { launch<T>(panels.task, 1, order); }) &&
         cached.solve(name, attend_cached);
}

// Packs the keys of a problem whose panels are packed already, and compares; nothing else is written.
template <typename T, typename Unit>
bool test_packing(const char* name, int size) {
  PanelsProblem<T> problem(size, {0, 1, 1, 1, 1}, {33, 16, 0, 5});
  const AttentionTask& from = problem.task;
  cuda::PackTask task{};
  std::vector<T> keys(problem.key_panels.size(), poison<T>()), values(keys);
  task.key = problem.memory.data();
  task.value = problem.memory.data() + kHeads * size;
  task.key_panels = keys.data();
  task.value_panels = values.data();
  constexpr int kUnit = sizeof(Unit) / sizeof(T);
  task.key_stride = task.value_stride = from.key_stride / kUnit;
  task.key_begin = problem.RowsProblem<T>::key_begin.data();
  task.n_keys = from.n_keys;
  task.panel_begin = problem.panel_begin.data();
  task.n_heads = kHeads;
  task.head_size = size / kUnit;
  task.padded_size = (size + 15) / 16 * 16 / kUnit;
  for (unsigned along_y = 1; along_y < 3; ++along_y) {
    emulator::launch(dim3(4, along_y), cuda::kPackThreads, 0, along_y, [&] { cuda::pack_source_kernel<Unit>(task); });
    if (std::memcmp(keys.data(), problem.key_panels.data(), keys.size() * sizeof(T)) != 0 ||
        std::memcmp(values.data(), problem.value_panels.data(), keys.size() * sizeof(T)) != 0) {
      std::printf("%s, %u blocks a document: the panels differ\n", name, along_y);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool right = test_packing<Bf16, cuda::Bytes16>("packing 16 bytes", 40) &&
               test_packing<float, cuda::Bytes16>("packing 16 bytes of float32", 20) &&
               test_packing<Fp16, uint16_t>("packing 2 bytes", 9) &&
               test_packing<float, uint32_t>("packing 4 bytes", 9);
  for (int size : {1, 9, 64, 80, 256}) {
    right = right && test_forms<float>("plain attention, float32", size) &&
            test_forms<Bf16>("plain attention, bfloat16", size) && test_forms<Fp16>("plain attention, float16", size);
  }
  return right ? 0 : 1;
}
