// The two passes of beam_step over logits, compiled once per instruction set; PEGASUS_ISA names the namespace.
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

// Registers in flight: enough to hide the latency of max, add and the exponential.
constexpr int kStreams = 4;

// NaN becomes -inf.
template <typename T>
inline Vec::R load_clean(const T* p) {
  return Vec::max(load(p), Vec::set1(-kInfinity));
}

template <typename T>
ChunkStats scan(const T* logits, int64_t n) {
  const Vec::R lowest = Vec::set1(-kInfinity);
  const int64_t step = kStreams * Vec::width;
  Vec::R most[kStreams];
  for (int i = 0; i < kStreams; ++i) most[i] = lowest;
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    for (int i = 0; i < kStreams; ++i) most[i] = Vec::max(load(logits + j + i * Vec::width), most[i]);
  }
  for (; j < n; j += Vec::width) {
    most[0] = Vec::max(load_partial(logits + j, n - j, -kInfinity), most[0]);
  }
  const float maximum = Vec::reduce_max(Vec::max(Vec::max(most[0], most[1]), Vec::max(most[2], most[3])));
  // -inf - -inf and inf - inf are NaN; neither chunk has a sum that anyone may use.
  if (maximum == -kInfinity || maximum == kInfinity) return {maximum, 0.0f};

  const Vec::R reference = Vec::set1(maximum);
  Vec::R sum[kStreams];
  for (int i = 0; i < kStreams; ++i) sum[i] = Vec::set1(0.0f);
  for (j = 0; j + step <= n; j += step) {
    for (int i = 0; i < kStreams; ++i) {
      __builtin_prefetch(logits + n + j + i * Vec::width);
      sum[i] = Vec::add(sum[i], exp(Vec::sub(load_clean(logits + j + i * Vec::width), reference)));
    }
  }
  for (; j < n; j += Vec::width) {
    const Vec::R x = Vec::max(load_partial(logits + j, n - j, -kInfinity), lowest);
    sum[0] = Vec::add(sum[0], exp(Vec::sub(x, reference)));
  }
  return {maximum, Vec::reduce_add(Vec::add(Vec::add(sum[0], sum[1]), Vec::add(sum[2], sum[3])))};
}

template <typename T>
ChunkStats scan_without(const T* logits, int64_t n, const int32_t* skip, int64_t n_skip) {
  if (n_skip == 0) return scan(logits, n);
  alignas(64) float copy[kChunk + Vec::width];
  for (int64_t j = 0; j < n; j += Vec::width) Vec::store(copy + j, load_partial(logits + j, n - j, -kInfinity));
  for (int64_t i = 0; i < n_skip; ++i) copy[skip[i]] = -kInfinity;
  return scan<float>(copy, n);
}

template <typename T>
int find(const T* logits, int64_t n, float bound, int16_t* positions) {
  const Vec::R limit = Vec::set1(bound), lowest = Vec::set1(-kInfinity);
  int found = 0;
  for (int64_t j = 0; j < n; j += Vec::width) {
    const Vec::R x = Vec::max(load_partial(logits + j, n - j, -kInfinity), lowest);
    uint32_t hits = Vec::at_least(x, limit);
    for (; hits; hits &= hits - 1) {
      const int64_t position = j + __builtin_ctz(hits);
      if (position < n) positions[found++] = static_cast<int16_t>(position);  // the filling may reach a bound of -inf
    }
  }
  return found;
}

}  // namespace

ChunkStats scan_chunk(const void* logits, bool bf16, int64_t n, const int32_t* skip, int64_t n_skip) {
  return bf16 ? scan_without(static_cast<const Bf16*>(logits), n, skip, n_skip)
              : scan_without(static_cast<const float*>(logits), n, skip, n_skip);
}

int find_at_least(const void* logits, bool bf16, int64_t n, float bound, int16_t* positions) {
  return bf16 ? find(static_cast<const Bf16*>(logits), n, bound, positions)
              : find(static_cast<const float*>(logits), n, bound, positions);
}

}  // namespace pegasus::cpu::PEGASUS_ISA
