// Rows of a linear layer as its products read them, where those are not the states themselves: normalised, if a layer
// norm comes first, and as codes, if the weights are such. Compiled once per instruction set.
#pragma once

#include "cpu/kernels.h"
#include "cpu/quantize.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

// The sum of term(j, width) over n elements, in several chains, for additions take longer than what they add.
template <typename Term>
__attribute__((always_inline)) inline float sum_of(int64_t n, Term term) {
  constexpr int64_t kChains = 4, kStep = kChains * Vec::width;
  Vec::R sums[kChains];
  for (auto& sum : sums) sum = Vec::set1(0.0f);
  const int64_t whole = n - n % kStep;
  for (int64_t j = 0; j < whole; j += kStep) {
    for (int i = 0; i < kChains; ++i) sums[i] = Vec::add(sums[i], term(j + i * Vec::width, int64_t{Vec::width}));
  }
  for_registers(n - whole, [&](int64_t j, int64_t width) { sums[0] = Vec::add(sums[0], term(whole + j, width)); });
  return Vec::reduce_add(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
}

template <typename T>
struct NormedRow {
  const T* states;
  const float *weight, *bias;
  Vec::R mean, inverse;

  NormedRow(const T* row, int64_t n, const LinearTask& task)
      : states(row), weight(task.norm_weight), bias(task.norm_bias) {
    const float count = static_cast<float>(n);
    const float average =
        sum_of(n, [=](int64_t j, int64_t width) { return load_partial(row + j, width, 0.0f); }) / count;
    mean = Vec::set1(average);
    const float squares = sum_of(n, [=](int64_t j, int64_t width) {
      const Vec::R distance = Vec::sub(load_partial(row + j, width, average), Vec::set1(average));
      return Vec::mul(distance, distance);
    });
    inverse = Vec::set1(1.0f / __builtin_sqrtf(squares / count + task.norm_eps));
  }

  Vec::R at(int64_t j, int64_t width) const {
    const Vec::R normed = Vec::mul(Vec::sub(load_partial(states + j, width, 0.0f), mean), inverse);
    return Vec::fma(normed, load_partial(weight + j, width, 0.0f), load_partial(bias + j, width, 0.0f));
  }
};

// Makes codes of a row if the weights are such, else elements of their type.
template <typename Row>
void write_row(const LinearTask& task, int64_t index, const Row& row) {
  const int64_t n = task.inputs;
  const auto copy = [&](auto* out) {
    for_registers(n, [&](int64_t j, int64_t width) { store_partial(out + j, width, row.at(j, width)); });
  };
  switch (task.type) {
    case WeightType::kCodes: {
      int8_t* codes = task.codes + index * divide_up(n, kCodesPerWord) * kCodesPerWord;
      return quantize_row(row, n, codes, task.scales + index, task.starts + index);
    }
    case WeightType::kFloat32:
      return copy(static_cast<float*>(task.normed) + index * n);
    case WeightType::kBFloat16:
      return copy(static_cast<Bf16*>(task.normed) + index * n);
  }
}

template <typename T>
void prepare_row(const LinearTask& task, int64_t index) {
  const T* states = static_cast<const T*>(task.states) + index * task.row_stride;
  if (task.norm_weight) {
    write_row(task, index, NormedRow<T>(states, task.inputs, task));
  } else {
    write_row(task, index, PlainRow<T>{states});
  }
}

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
