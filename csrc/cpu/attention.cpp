// Attention of query rows to their document's keys, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: one document, one head, a block of query rows. Keys lie transposed, [D][keys], so that scores are computed
// for a register of keys at once, and values as rows [D], so that outputs are computed for a register of D at once
// (pack_panels). Both are then the same small matrix product. A running reference and denominator per row (online
// softmax) mean that no [rows, keys] matrix exists.
//
// Every element of a result is one chain of multiply-adds whose order depends on that row's D and n_keys alone. So a
// row has the same bits wherever it stands in a block, whatever else is in the call and however many threads run.
#include <omp.h>

#include "cpu/source.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int kRows = 256;  // query rows that go through a head's keys together
constexpr int kRowsAtOnce = 4;
// Weights are 2^(score - reference), a row's reference the highest score at some time. It changes only for scores more
// than this above it, which is rare: nothing waits for a row's maximum, and weights stay far below what overflows.
constexpr float kSlack = 8.0f;
constexpr int64_t kItemsAtMost = 4;                       // that a thread takes together
constexpr int kColumnsAtOnce = Vec::width == 16 ? 4 : 2;  // registers; 16 accumulators need AVX-512's 32 registers

// A number that a template can take from an argument.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// c[kHigh][kWide registers] = (accumulate ? c : 0) + a[kHigh][depth] * b[depth][kWide registers from column j on].
// With kAhead, what is wanted next is asked for on the way.
template <typename Chain, bool kAhead, typename B, int kHigh, int kWide>
inline void multiply_tile(const float* a, int64_t a_stride, const Right<B>& b, int64_t first, int64_t depth, float* c,
                          int64_t c_stride, bool accumulate) {
  Vec::R sum[kHigh][kWide];
  const B* row = b.base + first;
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kWide; ++j)
      sum[i][j] = accumulate ? Vec::load(c + i * c_stride + j * Vec::width) : Vec::set1(0);
  }
  for (int64_t k = 0; k < depth; ++k, row += b.stride) {
    Vec::R right[kWide];
    for (int j = 0; j < kWide; ++j) {
      right[j] = load(row + j * Vec::width);
      if (kAhead) __builtin_prefetch(row + j * Vec::width + b.ahead);
    }
    for (int i = 0; i < kHigh; ++i) {
      const Vec::R left = Vec::set1(a[i * a_stride + k]);
      for (int j = 0; j < kWide; ++j) sum[i][j] = Chain::step(left, right[j], sum[i][j]);
    }
  }
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kWide; ++j) Vec::store(c + i * c_stride + j * Vec::width, sum[i][j]);
  }
}

// kHigh rows of a matrix product; columns is a multiple of the register width.
template <typename Chain, bool kAhead, int kHigh, typename B>
inline void multiply_rows(const float* a, int64_t a_stride, const Right<B>& b, int64_t depth, float* c,
                          int64_t c_stride, int64_t columns, bool accumulate) {
  int64_t j = 0;
  for (; j + kColumnsAtOnce * Vec::width <= columns; j += kColumnsAtOnce * Vec::width) {
    multiply_tile<Chain, kAhead, B, kHigh, kColumnsAtOnce>(a, a_stride, b, j, depth, c + j, c_stride, accumulate);
  }
  for (; j < columns; j += Vec::width) {
    multiply_tile<Chain, kAhead, B, kHigh, 1>(a, a_stride, b, j, depth, c + j, c_stride, accumulate);
  }
}

// Brings n weights of each of kHigh rows to the form in which the second product takes them, in place.
template <typename T, int kHigh>
inline void form_weights([[maybe_unused]] float* weights, [[maybe_unused]] int64_t n) {
#if defined(__AVX512BF16__)
  if constexpr (ValueForm<T>::kKeys == 2) {
    for (int i = 0; i < kHigh; ++i, weights += kTile) {
      for (int64_t j = 0; j < n; j += 2 * Vec::width) {
        const Vec::R second = j + Vec::width < n ? Vec::load(weights + j + Vec::width) : Vec::set1(0.0f);
        Vec::store(weights + j / 2, Vec::round_pairs(Vec::load(weights + j), second));
      }
    }
  }
#endif
}

// Gives rows whose scores exceed their reference too far a new one, and brings what they have summed so far down to it.
template <int kHigh>
__attribute__((noinline)) void raise_references(const Vec::R (&most)[kHigh], float* reference, Vec::R* row_sum,
                                                float* out, int64_t padded) {
  for (int i = 0; i < kHigh; ++i, out += padded) {
    const float maximum = Vec::reduce_max(most[i]);
    if (!(maximum > reference[i] + kSlack)) continue;
    const Vec::R shrink = exp2(Vec::set1(reference[i] - maximum));  // 0 at first
    reference[i] = maximum;
    row_sum[i] = Vec::mul(row_sum[i], shrink);
    for (int64_t d = 0; d < padded; d += Vec::width) Vec::store(out + d, Vec::mul(Vec::load(out + d), shrink));
  }
}

// Turns kHigh rows of n scores each into weights 2^(scale * s - reference), and adds them to the rows' sums. The rows
// go side by side: each is a chain of dependent steps.
template <int kHigh>
inline void softmax_rows(float* scores, int64_t n, float scale, float* reference, Vec::R* row_sum, float* out,
                         int64_t padded) {
  const int64_t wide = round_up(n, Vec::width);
  const Vec::R scales = Vec::set1(scale);
  for (int i = 0; i < kHigh; ++i) {
    for (int64_t j = n; j < wide; ++j) scores[i * kTile + j] = -kInfinity;
  }
  Vec::R most[kHigh], less[kHigh], total[kHigh];
  for (int i = 0; i < kHigh; ++i) most[i] = Vec::set1(-kInfinity);
  for (int64_t j = 0; j < wide; j += Vec::width) {
    for (int i = 0; i < kHigh; ++i) {
      most[i] = Vec::max(most[i], Vec::mul(Vec::load(scores + i * kTile + j), scales));
    }
  }
  uint32_t above = 0;
  for (int i = 0; i < kHigh; ++i) above |= Vec::at_least(most[i], Vec::set1(reference[i] + kSlack));
  if (above) raise_references<kHigh>(most, reference, row_sum, out, padded);
  for (int i = 0; i < kHigh; ++i) {
    // While every score is -inf, any finite reference gives weights of zero; -inf itself would give NaN.
    less[i] = Vec::set1(reference[i] == -kInfinity ? 0.0f : -reference[i]);
    total[i] = row_sum[i];
  }
  for (int64_t j = 0; j < wide; j += Vec::width) {
    for (int i = 0; i < kHigh; ++i) {
      const Vec::R weight = exp2(Vec::fma(Vec::load(scores + i * kTile + j), scales, less[i]));
      Vec::store(scores + i * kTile + j, weight);
      total[i] = Vec::add(total[i], weight);
    }
  }
  for (int i = 0; i < kHigh; ++i) row_sum[i] = total[i];
}

// Multiplies columns of kHigh rows by their panel's scale.
template <int kHigh>
inline void scale_panels(float* rows, int64_t n, const float* scales) {
  for (int64_t j = 0; j < n; j += Vec::width) {
    const Vec::R scale = Vec::set1(scales[j / kPanel]);
    for (int i = 0; i < kHigh; ++i) Vec::store(rows + i * kTile + j, Vec::mul(Vec::load(rows + i * kTile + j), scale));
  }
}

// kHigh query rows against one tile.
template <typename T, bool kAhead, int kHigh, typename Lane>
inline void attend_tile(const float* queries, const Tile<Lane>& tile, const AttentionTask& task, float* reference,
                        Vec::R* row_sum, float* sums) {
  using Score = ScoreForm<T>;
  using Value = ValueForm<T>;
  alignas(64) float scores[kHigh * kTile];
  const int64_t n = tile.n, wide = round_up(n, Vec::width), padded = padded_size(task.head_size);
  const int64_t depth = Score::depth(task.head_size), links = round_up(n, Value::kKeys) / Value::kKeys;
  multiply_rows<typename Score::Chain, kAhead, kHigh>(queries, padded, tile.keys, depth, scores, kTile, wide, false);
  if (tile.scales) scale_panels<kHigh>(scores, wide, tile.scales->keys);
  softmax_rows<kHigh>(scores, n, task.scale * kLog2E, reference, row_sum, sums, padded);
  if (tile.scales) scale_panels<kHigh>(scores, wide, tile.scales->values);
  form_weights<T, kHigh>(scores, n);
  multiply_rows<typename Value::Chain, kAhead, kHigh>(scores, kTile, tile.values, links, sums, padded, padded, true);
}

// Query rows [first, first + n_rows) of one document and head; n_rows <= kRows.
template <typename T, bool kCodes>
void attend(const AttentionTask& task, int64_t document, int64_t head, int64_t first, int64_t n_rows) {
  const int64_t size = task.head_size, padded = padded_size(size), n_keys = task.n_keys[document];
  const int64_t out_stride = task.n_heads * size;
  T* out = static_cast<T*>(task.out) + first * out_stride + head * size;
  if (n_keys == 0) {
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t d = 0; d < size; ++d) out[i * out_stride + d] = T{};
    }
    return;
  }
  alignas(64) float queries[kRows * kMaxHeadSize], sums[kRows * kMaxHeadSize];
  float reference[kRows];
  Vec::R row_sum[kRows];

  const T* query = static_cast<const T*>(task.query) + first * task.query_stride + head * size;
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t link = 0; link < ScoreForm<T>::depth(size); link += Vec::width) {
      Vec::store(queries + i * padded + link, ScoreForm<T>::load(query + i * task.query_stride, link, size));
    }
    for (int64_t d = 0; d < padded; ++d) sums[i * padded + d] = 0.0f;
    reference[i] = -kInfinity;
    row_sum[i] = Vec::set1(0.0f);
  }
  const Source<T, kCodes> source(task, document, head);
  TileMemory<T> memory;
  for (int64_t key = 0; key < n_keys; key += kTile) {
    const auto tile = source.tile(key, &memory);
    const auto attend_rows = [&](auto ahead, auto high, int64_t i) {
      attend_tile<T, decltype(ahead)::value, decltype(high)::value>(queries + i * padded, tile, task, reference + i,
                                                                    row_sum + i, sums + i * padded);
    };
    // The first rows ask for the next tile.
    int64_t i = 0;
    if (n_rows >= kRowsAtOnce) {
      attend_rows(Constant<true>{}, Constant<kRowsAtOnce>{}, 0);
      i = kRowsAtOnce;
    }
    for (; i + kRowsAtOnce <= n_rows; i += kRowsAtOnce) {
      attend_rows(Constant<false>{}, Constant<kRowsAtOnce>{}, i);
    }
    for (; i < n_rows; ++i) attend_rows(Constant<false>{}, Constant<1>{}, i);
  }
  for (int64_t i = 0; i < n_rows; ++i) {
    const Vec::R share = Vec::set1(1.0f / Vec::reduce_add(row_sum[i]));
    for (int64_t d = 0; d < size; d += Vec::width) {
      store_partial(out + i * out_stride + d, size - d, Vec::mul(Vec::load(sums + i * padded + d), share));
    }
  }
}

}  // namespace

void attention(const AttentionTask& task) {
  const int64_t blocks = round_up(task.max_rows, kRows) / kRows, items = task.n_documents * blocks * task.n_heads;
  // Documents differ in length, so items are handed out as they come; neighbours are asked for ahead.
  const int64_t share = items / (8 * omp_get_max_threads());
  const int64_t together = share < 1 ? 1 : minimum(share, kItemsAtMost);
#pragma omp parallel for collapse(3) schedule(dynamic, together)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t head = 0; head < task.n_heads; ++head) {
        const int64_t first = task.query_begin[document] + block * kRows;
        const int64_t n_rows = minimum(kRows, task.query_begin[document + 1] - first);
        if (n_rows <= 0) continue;
        const auto attend_rows = task.codes  ? attend<Bf16, true>
                                 : task.bf16 ? attend<Bf16, false>
                                             : attend<float, false>;
        attend_rows(task, document, head, first, n_rows);
      }
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
