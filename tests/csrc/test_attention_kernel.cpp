// Runs the CUDA attention kernel under the block emulator and compares it with float64. Exits with 1 and a message on
// the first difference. tests/csrc/test_cuda_kernels.py compiles it, also with mistakes planted in the kernel.
#include <cstdio>

#include "cuda/attention.cuh"

namespace {

using pegasus::cuda::AttentionTask;
using pegasus::cuda::bf16_to_float;
using pegasus::cuda::float_to_bf16;
using pegasus::cuda::kHeadSize;

constexpr int kWarps = 4, kStages = 4, kHeads = 2;
constexpr uint16_t kNan = 0x7fc1;

std::mt19937 generator(7);
std::vector<uint16_t> normal(size_t n) {
  std::normal_distribution<float> distribution;
  std::vector<uint16_t> x(n);
  for (uint16_t& e : x) e = float_to_bf16(distribution(generator));
  return x;
}

// The root mean square error of `out` relative to float64, or NaN.
template <typename RowsOf, typename KeyOffset>
double error_of(const AttentionTask& task, RowsOf rows_of, KeyOffset key_offset) {
  double error = 0, size = 0;
  for (int document = 0; document < task.n_documents; ++document) {
    for (int row = rows_of(document).first; row < rows_of(document).second; ++row) {
      for (int head = 0; head < kHeads; ++head) {
        const int n = task.n_keys[document];
        std::vector<double> weight(n), exact(kHeadSize, 0.0);
        double highest = -INFINITY, total = 0;
        for (int t = 0; t < n; ++t) {
          double dot = 0;
          for (int d = 0; d < kHeadSize; ++d) {
            dot += double{bf16_to_float(task.query[row * task.query_stride + head * kHeadSize + d])} *
                   bf16_to_float(task.key[key_offset(document, t, task.key_stride) + head * kHeadSize + d]);
          }
          weight[t] = dot * task.scale;
          highest = std::max(highest, weight[t]);
        }
        for (int t = 0; t < n; ++t) {
          weight[t] = std::exp(weight[t] - highest);
          total += weight[t];
          for (int d = 0; d < kHeadSize; ++d) {
            exact[d] += weight[t] *
                        bf16_to_float(task.value[key_offset(document, t, task.value_stride) + head * kHeadSize + d]);
          }
        }
        for (int d = 0; d < kHeadSize; ++d) {
          const double wanted = n ? exact[d] / total : 0.0;
          const double got = bf16_to_float(task.out[(int64_t{row} * kHeads + head) * kHeadSize + d]);
          error += (got - wanted) * (got - wanted);
          size += wanted * wanted;
        }
      }
    }
  }
  return std::sqrt(error / size);
}

// Weights are rounded to bfloat16 before the second product, the result after it: 2^-9 each, a few times in a sum.
constexpr double kLimit = 8e-3;

bool run(const char* name, const AttentionTask& task, std::vector<uint16_t>& out, bool cached,
         const std::function<double()>& error) {
  const dim3 grid(static_cast<unsigned>(task.n_documents), kHeads);
  const int shared = pegasus::cuda::attention_shared_bytes(kWarps, kStages);
  for (unsigned order = 0; order < 3; ++order) {
    std::fill(out.begin(), out.end(), kNan);
    try {
      emulator::launch(grid, kWarps * 32, shared, order, [&] {
        if (cached) {
          pegasus::cuda::attention_kernel<true, kWarps, kStages>(task);
        } else {
          pegasus::cuda::attention_kernel<false, kWarps, kStages>(task);
        }
      });
    } catch (const emulator::Error& e) {
      std::printf("%s, order %u: %s\n", name, order, e.what());
      return false;
    }
    const double found = error();
    if (!(found < kLimit)) {
      std::printf("%s, order %u: relative error %g, limit %g\n", name, order, found, kLimit);
      return false;
    }
  }
  return true;
}

bool test_attention() {
  // Rows per document: one beam, several, none, more than one pass. Keys: tails of a tile, none, less than a tile.
  const std::vector<int32_t> query_begin = {0, 1, 9, 9, 28, 33}, n_keys = {70, 145, 40, 33, 0},
                             key_begin = {3, 73, 0, 218, 5};
  const int rows = query_begin.back(), keys = 260, stride = 2 * kHeads * kHeadSize;
  std::vector<uint16_t> query = normal(size_t(rows) * kHeads * kHeadSize), packed = normal(size_t(keys) * stride);
  // Rows that no document owns hold NaN.
  for (int row : {0, 1, 2, 251, 252}) std::fill_n(packed.begin() + row * stride, stride, kNan);
  std::vector<uint16_t> out(query.size());
  AttentionTask task{};
  task.query = query.data();
  task.key = packed.data();
  task.value = packed.data() + kHeads * kHeadSize;
  task.out = out.data();
  task.query_stride = kHeads * kHeadSize;
  task.key_stride = task.value_stride = stride;
  task.query_begin = query_begin.data();
  task.key_begin = key_begin.data();
  task.n_keys = n_keys.data();
  task.n_documents = static_cast<int64_t>(n_keys.size());
  task.n_heads = kHeads;
  task.scale = 0.125f;
  return run("attention", task, out, false, [&] {
    return error_of(
        task, [&](int document) { return std::make_pair(query_begin[document], query_begin[document + 1]); },
        [&](int document, int t, int64_t step) { return (key_begin[document] + t) * step; });
  });
}

bool test_cached_attention() {
  const int slots = 4, times = 50, rows = 4;
  const std::vector<int32_t> n_keys = {50, 1, 0, 17};
  std::vector<int32_t> ancestry(rows * times, 1 << 28);  // wild where it must not be read
  std::vector<uint16_t> query = normal(rows * kHeads * kHeadSize);
  std::vector<uint16_t> key = normal(size_t(slots) * times * kHeads * kHeadSize), value = normal(key.size());
  for (int r = 0; r < rows; ++r) {
    for (int t = 0; t < n_keys[r]; ++t) ancestry[r * times + t] = static_cast<int32_t>(generator() % slots);
  }
  std::vector<uint16_t> out(query.size());
  AttentionTask task{};
  task.query = query.data();
  task.key = key.data();
  task.value = value.data();
  task.out = out.data();
  task.query_stride = task.key_stride = task.value_stride = kHeads * kHeadSize;
  task.n_keys = n_keys.data();
  task.ancestry = ancestry.data();
  task.ancestry_stride = times;
  task.key_slot_stride = task.value_slot_stride = times * kHeads * kHeadSize;
  task.n_documents = rows;
  task.n_heads = kHeads;
  task.scale = 0.125f;
  return run("cached_attention", task, out, true, [&] {
    return error_of(
        task, [](int document) { return std::make_pair(document, document + 1); },
        [&](int document, int t, int64_t step) {
          return ancestry[document * times + t] * task.key_slot_stride + t * step;
        });
  });
}

}  // namespace

int main() {
  return test_attention() && test_cached_attention() ? 0 : 1;
}
