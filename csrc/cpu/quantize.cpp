// Rows of a float matrix to 8-bit codes and back, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Both pass over memory once or twice and compute almost nothing, so a work item is a row; its bits depend on it alone.
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int64_t kOneThread = 1 << 15;  // elements; for fewer, waking a team takes longer than the work

template <typename T>
void quantize_row(const T* row, int64_t n, uint8_t* codes, float* scale) {
  const Vec::R zero = Vec::set1(0.0f);
  Vec::R most = zero, poison = zero;  // poison: x * 0 is NaN for NaN and infinity
  for (int64_t j = 0; j < n; j += Vec::width) {
    const Vec::R x = load_partial(row + j, n - j, 0.0f);
    most = Vec::max(Vec::max(x, Vec::sub(zero, x)), most);
    poison = Vec::fma(x, zero, poison);
  }
  const float largest = Vec::reduce_max(most);
  const bool finite = Vec::reduce_add(poison) == 0.0f;
  if (!finite || largest < kSmallestScaled) {
    for (int64_t j = 0; j < n; ++j) codes[j] = kZeroCode;
    *scale = finite ? 0.0f : __builtin_nanf("");
    return;
  }
  const Vec::R inverse = Vec::set1(kLargestCode / largest);
  alignas(64) float lanes[Vec::width];
  for (int64_t j = 0; j < n; j += Vec::width) {
    Vec::store(lanes, Vec::round(Vec::mul(load_partial(row + j, n - j, 0.0f), inverse)));
    uint8_t bytes[Vec::width];
    for (int i = 0; i < Vec::width; ++i) bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(lanes[i]) + kZeroCode);
    const int64_t left = n - j;
    if (left >= Vec::width) {
      __builtin_memcpy(codes + j, bytes, Vec::width);
    } else {
      for (int64_t i = 0; i < left; ++i) codes[j + i] = bytes[i];
    }
  }
  *scale = largest / kLargestCode;
}

template <typename T>
void dequantize_row(const DequantizeTask& task, int64_t row) {
  const int64_t n = task.columns;
  const float* product = task.products + row * n;
  const T* residual = task.residual ? static_cast<const T*>(task.residual) + row * n : nullptr;
  T* out = static_cast<T*>(task.out) + row * n;
  const Vec::R scale = Vec::set1(task.scales[row]), zero = Vec::set1(0.0f);
  alignas(64) float lanes[Vec::width];
  for (int64_t j = 0; j < n; j += Vec::width) {
    const int64_t left = n - j;
    Vec::R y = Vec::fma(load_partial(product + j, left, 0.0f), scale, load_partial(task.bias + j, left, 0.0f));
    if (task.relu) y = Vec::max(zero, y);  // this order keeps NaN
    if (residual) y = Vec::add(y, load_partial(residual + j, left, 0.0f));
    Vec::store(lanes, y);
    for (int64_t i = 0; i < (left < Vec::width ? left : Vec::width); ++i) from_float(lanes[i], out + j + i);
  }
}

}  // namespace

void quantize_rows(const QuantizeTask& task) {
#pragma omp parallel for schedule(static) if (task.rows * task.columns > kOneThread)
  for (int64_t row = 0; row < task.rows; ++row) {
    const int64_t begin = row * task.row_stride;
    uint8_t* codes = task.codes + row * task.columns;
    if (task.bf16) {
      quantize_row(static_cast<const Bf16*>(task.states) + begin, task.columns, codes, task.scales + row);
    } else {
      quantize_row(static_cast<const float*>(task.states) + begin, task.columns, codes, task.scales + row);
    }
  }
}

void dequantize_rows(const DequantizeTask& task) {
#pragma omp parallel for schedule(static) if (task.rows * task.columns > kOneThread)
  for (int64_t row = 0; row < task.rows; ++row) {
    task.bf16 ? dequantize_row<Bf16>(task, row) : dequantize_row<float>(task, row);
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
