#include "ops/weight_rows.h"

#include <cstring>

#include "cpu/kernels.h"

namespace pegasus {
namespace {

constexpr int64_t kWord = 4;                 // bytes of an output that lie together
constexpr int64_t kOneThread = 1 << 12;      // words; for fewer, waking a team takes longer than the work
constexpr uint32_t kCodeFlips = 0x80808080;  // 128 from each code: codes are stored so much higher, modulo 256

// A row's words lie a panel's width apart, each in a line of memory of its own.
void copy_row(const char* first, int64_t bytes, uint32_t flips, char* out) {
  const auto copy_word = [=](int64_t byte, int64_t size) {
    uint32_t word;
    std::memcpy(&word, first + byte * cpu::kOutputPanel, kWord);
    word ^= flips;
    std::memcpy(out + byte, &word, size);
  };
  const int64_t whole = bytes - bytes % kWord;
  for (int64_t byte = 0; byte < whole; byte += kWord) copy_word(byte, kWord);
  if (whole < bytes) copy_word(whole, bytes - whole);
}

}  // namespace

void weight_rows(const WeightRowsParams& p) {
  const char* op = "weight_rows";
  expect(op, p.weights, {DType::kFloat32, DType::kBFloat16, DType::kUInt8}, {kAny, kAny, kAny});
  const int64_t panels = p.weights.shape[0], words = p.weights.shape[1], size = p.weights.bits / 8;
  expect_contiguous(op, p.weights, {p.weights.dtype}, {panels, words, cpu::kOutputPanel * kWord / size});
  expect_contiguous(op, p.rows, {DType::kInt32}, {kAny});
  const int64_t n = p.rows.shape[0];
  expect_contiguous(op, p.out, {p.weights.dtype}, {n, kAny});
  const int64_t bytes = p.out.shape[1] * size;
  if ((bytes + kWord - 1) / kWord != words) {
    fail(op, "weights " + describe(p.weights) + " have no rows of " + describe(p.out));
  }
  expect_same_device(op, p.weights, {&p.rows, &p.out});
  if (p.weights.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(p.weights) + " in this build");
  expect_range(op, p.rows, 0, panels * cpu::kOutputPanel);
  const uint32_t flips = p.weights.dtype == DType::kUInt8 ? kCodeFlips : 0;
  const int32_t* rows = p.rows.as<const int32_t>();
  const char* weights = p.weights.as<const char>();
  char* out = p.out.as<char>();
#pragma omp parallel for schedule(static) if (n * words > kOneThread)
  for (int64_t i = 0; i < n; ++i) {
    const int64_t panel = rows[i] / cpu::kOutputPanel, column = rows[i] % cpu::kOutputPanel;
    copy_row(weights + (panel * words * cpu::kOutputPanel + column) * kWord, bytes, flips, out + i * bytes);
  }
}

}  // namespace pegasus
