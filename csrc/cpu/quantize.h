// Rows of numbers as codes of 8 bits with a scale. Compiled once per instruction set.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

inline int64_t divide_up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

// Calls take(j, width) for every register of n elements; width is a constant but for the last one.
template <typename Take>
__attribute__((always_inline)) inline void for_registers(int64_t n, Take take) {
  const int64_t whole = n - n % Vec::width;
  for (int64_t j = 0; j < whole; j += Vec::width) take(j, int64_t{Vec::width});
  if (whole < n) take(whole, n - whole);
}

template <typename T>
struct PlainRow {
  const T* states;

  Vec::R at(int64_t j, int64_t width) const { return load_partial(states + j, width, 0.0f); }
};

// Makes n codes of a row and zeros up to a whole word, their scale (NaN for a row that is not finite), and what a sum
// of products with weights that are kCodeOffset more than they are starts from.
template <typename Row>
void quantize_row(const Row& row, int64_t n, int8_t* codes, float* scale, int32_t* start) {
  Vec::I most = Vec::set1_int(0);
  for_registers(n, [&](int64_t j, int64_t width) {
    // What lies beyond the end of a row that is normalised is 0, too: its bias is.
    most = Vec::max_magnitude(row.at(j, width), most);
  });
  const int32_t bits = reduce_max(most);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  const bool finite = largest < kInfinity;
  const int64_t padded = divide_up(n, kCodesPerWord) * kCodesPerWord;
  if (!finite || largest < kSmallestScaled) {
    for (int64_t j = 0; j < padded; ++j) codes[j] = 0;
    *scale = finite ? 0.0f : __builtin_nanf("");
    *start = 0;
    return;
  }
  const Vec::R inverse = Vec::set1(kLargestCode / largest);
  Vec::I total = Vec::set1_int(0);
  for_registers(n, [&](int64_t j, int64_t width) {
    const Vec::I steps = Vec::round_int(Vec::mul(row.at(j, width), inverse));
    total += steps;
    if (width == Vec::width) return Vec::store_int8(codes + j, steps);
    int8_t bytes[Vec::width];
    Vec::store_int8(bytes, steps);
    for (int64_t i = j; i < padded; ++i) codes[i] = bytes[i - j];
  });
  *scale = largest / kLargestCode;
  *start = -kCodeOffset * reduce_add(total);
}

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
