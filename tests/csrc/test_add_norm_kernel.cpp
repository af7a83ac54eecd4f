// Runs the CUDA kernels of add_norm under the block emulator and compares them with float64. Exits with 1 and a message
// on the first difference. tests/csrc/test_kernels.py compiles it, also with mistakes planted in the kernels.
#include <cstdio>

#include "cuda/add_norm.cuh"

namespace {

using pegasus::cuda::AddNormTask;
using pegasus::cuda::NormType;

constexpr int kRows = 6;  // one and a half blocks
constexpr float kEps = 0.125f;

std::mt19937 generator(9);
float normal() {
  static std::normal_distribution<float> distribution;
  return distribution(generator);
}

struct Float32 {
  static constexpr NormType kType = NormType::kFloat32;
  static constexpr double kRounding = 1e-7;
  using Bits = float;
  static Bits of(float x) { return x; }
  static float from(Bits x) { return x; }
};
struct BFloat16 {
  static constexpr NormType kType = NormType::kBFloat16;
  static constexpr double kRounding = 0.00391;  // 2^-8, and a little
  using Bits = uint16_t;
  static Bits of(float x) { return pegasus::cuda::float_to_bf16(x); }
  static float from(Bits x) { return pegasus::cuda::bf16_to_float(x); }
};
struct Float16 {
  static constexpr NormType kType = NormType::kFloat16;
  static constexpr double kRounding = 0.000489;  // 2^-11, and a little
  using Bits = uint16_t;
  static Bits of(float x) { return pegasus::cuda::float_to_fp16(x); }
  static float from(Bits x) { return pegasus::cuda::fp16_to_float(x); }
};

// kChunks 0: the kernel for any size.
template <typename Element, int kChunks>
bool run(int size, bool has_branch, bool post_norm) {
  const size_t n = size_t{kRows} * size;
  alignas(16) static float stream[kRows * 2600 + 4], weight[2600], bias[2600];
  alignas(16) static typename Element::Bits branch[kRows * 2600], normed[kRows * 2600 + 4];
  std::vector<float> before(n);
  for (size_t i = 0; i < n; ++i) {
    before[i] = normal() * static_cast<float>(1 << i / size) + 100.f;
    branch[i] = Element::of(normal());
  }
  before[4 * size] = NAN;  // stays in its row
  for (int d = 0; d < size; ++d) {
    weight[d] = normal();
    bias[d] = normal();
  }
  AddNormTask task{};
  task.stream = stream;
  task.branch = has_branch ? branch : nullptr;
  task.weight = weight;
  task.bias = bias;
  task.normed = normed;
  task.type = Element::kType;
  task.n_rows = kRows;
  task.size = size;
  task.eps = kEps;
  task.post_norm = post_norm;
  const unsigned blocks = (kRows + pegasus::cuda::kNormWarps - 1) / pegasus::cuda::kNormWarps;
  for (unsigned order = 0; order < 3; ++order) {
    std::copy(before.begin(), before.end(), stream);
    std::fill(normed, normed + n, Element::of(NAN));
    // Behind the last row.
    stream[n] = 12345.f;
    normed[n] = Element::of(0.5f);
    try {
      emulator::launch(dim3(blocks), dim3(pegasus::cuda::kNormWarps * 32), 0, order, [&] {
        if constexpr (kChunks == 0) {
          pegasus::cuda::add_norm_any_kernel<Element::kType>(task);
        } else {
          pegasus::cuda::add_norm_kernel<Element::kType, kChunks>(task);
        }
      });
    } catch (const emulator::Error& e) {
      std::printf("order %u: %s\n", order, e.what());
      return false;
    }
    for (int row = 0; row < kRows; ++row) {
      const float* x = before.data() + size_t{static_cast<unsigned>(row)} * size;
      std::vector<float> sums(x, x + size);
      double mean = 0, variance = 0;
      for (int d = 0; d < size; ++d) {
        if (has_branch) sums[d] += Element::from(branch[row * size + d]);
        mean += sums[d];
      }
      mean /= size;
      for (int d = 0; d < size; ++d) variance += (sums[d] - mean) * (sums[d] - mean);
      const double scale = 1 / std::sqrt(variance / size + double{kEps});
      for (int d = 0; d < size; ++d) {
        const size_t i = size_t{static_cast<unsigned>(row)} * size + d;
        const double wanted = (sums[d] - mean) * scale * weight[d] + bias[d], got = Element::from(normed[i]);
        const double float_error = 1e-5 + 1e-6 * std::fabs(wanted);  // the sums are near 100, their rounding 4e-6
        const double error = std::fabs(got - wanted), limit = Element::kRounding * std::fabs(wanted) + float_error;
        if (row == 4 ? !std::isnan(got) : !(error <= limit)) {
          std::printf("order %u, size %d, row %d: error %g, limit %g\n", order, size, row, error, limit);
          return false;
        }
        const bool same = post_norm ? std::fabs(stream[i] - wanted) <= float_error : stream[i] == sums[d];
        if (!same && row != 4) {
          std::printf("order %u, size %d, row %d: the stream holds %g\n", order, size, row, stream[i]);
          return false;
        }
      }
    }
    if (stream[n] != 12345.f || Element::from(normed[n]) != 0.5f) {
      std::printf("order %u, size %d: written behind the end\n", order, size);
      return false;
    }
  }
  return true;
}

template <typename Element>
bool run_all() {
  for (bool has_branch : {false, true}) {
    for (bool post_norm : {false, true}) {
      if (!run<Element, 4>(4, has_branch, post_norm) || !run<Element, 4>(132, has_branch, post_norm) ||
          !run<Element, 4>(512, has_branch, post_norm) || !run<Element, 8>(1024, has_branch, post_norm) ||
          !run<Element, 16>(1028, has_branch, post_norm) || !run<Element, 16>(2048, has_branch, post_norm) ||
          !run<Element, 0>(1, has_branch, post_norm) || !run<Element, 0>(33, has_branch, post_norm) ||
          !run<Element, 0>(2500, has_branch, post_norm)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  // The emulated conversions first: every half number comes back, and what lies half way goes to the even one.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = pegasus::cuda::fp16_to_float(static_cast<uint16_t>(bits));
    if (x == x && pegasus::cuda::float_to_fp16(x) != bits) {
      std::printf("the half number %x comes back as another\n", bits);
      return 1;
    }
  }
  if (pegasus::cuda::float_to_fp16(1.f + 0x1p-11f) != 0x3c00 ||
      pegasus::cuda::float_to_fp16(1.f + 0x3p-11f) != 0x3c02 || pegasus::cuda::float_to_fp16(65519.f) != 0x7bff ||
      pegasus::cuda::float_to_fp16(65520.f) != 0x7c00 || pegasus::cuda::float_to_fp16(0x1p-25f) != 0 ||
      pegasus::cuda::float_to_fp16(0x3p-25f) != 2) {
    std::printf("rounding to half numbers\n");
    return 1;
  }
  return run_all<Float32>() && run_all<BFloat16>() && run_all<Float16>() ? 0 : 1;
}
