// Attention of query rows to their document's keys, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: one document, one head, a block of query rows. Keys are read in panels, kPanel of them transposed to
// [D][kPanel], so that scores are computed for a register of keys at once, and values as rows [D], so that outputs are
// computed for a register of D at once. Both are then the same small matrix product. A tile of keys and values is
// copied to that form, unless it lies in it already (pack_panels: what a decoder attends to at every step). A running
// maximum and denominator per row (online softmax) mean that no [rows, keys] matrix exists.
//
// Every element of a result is one chain of multiply-adds whose order depends on that row's D and n_keys alone. So a
// row has the same bits wherever it stands in a block, whatever else is in the call and however many threads run.
#include "cpu/panels.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int kTile = 64;   // keys per tile; a multiple of kPanel, which is one of every register width
constexpr int kRows = 256;  // query rows that share a copied tile
constexpr int kRowsAtOnce = 4;
constexpr int kColumnsAtOnce = Vec::width == 16 ? 4 : 2;  // registers; 16 accumulators need AVX-512's 32 registers

// c[kHigh][kWide registers] = (accumulate ? c : 0) + a[kHigh][depth] * b[depth][kWide registers from column j on].
template <typename Chain, typename B, int kHigh, int kWide>
inline void multiply_tile(const float* a, int64_t a_stride, const Right<B>& b, int64_t first, int64_t depth, float* c,
                          int64_t c_stride, bool accumulate) {
  Vec::R sum[kHigh][kWide];
  const B* columns[kWide];
  for (int j = 0; j < kWide; ++j) columns[j] = b.column(first + j * Vec::width);
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kWide; ++j)
      sum[i][j] = accumulate ? Vec::load(c + i * c_stride + j * Vec::width) : Vec::set1(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec::R right[kWide];
    for (int j = 0; j < kWide; ++j) right[j] = load(columns[j] + k * b.stride);
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
template <typename Chain, int kHigh, typename B>
inline void multiply_rows(const float* a, int64_t a_stride, const Right<B>& b, int64_t depth, float* c,
                          int64_t c_stride, int64_t columns, bool accumulate) {
  int64_t j = 0;
  for (; j + kColumnsAtOnce * Vec::width <= columns; j += kColumnsAtOnce * Vec::width) {
    multiply_tile<Chain, B, kHigh, kColumnsAtOnce>(a, a_stride, b, j, depth, c + j, c_stride, accumulate);
  }
  for (; j < columns; j += Vec::width) {
    multiply_tile<Chain, B, kHigh, 1>(a, a_stride, b, j, depth, c + j, c_stride, accumulate);
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

// Turns kHigh rows of n scores each into weights e^(scale * s - max), and brings the rows' state up to date. The rows
// go side by side: each is a chain of dependent steps.
template <int kHigh>
inline void softmax_rows(float* scores, int64_t n, float scale, float* row_max, float* row_sum, float* out,
                         int64_t padded) {
  const int64_t wide = round_up(n, Vec::width);
  const Vec::R scales = Vec::set1(scale);
  for (int i = 0; i < kHigh; ++i) {
    for (int64_t j = n; j < wide; ++j) scores[i * kTile + j] = -kInfinity;
  }
  Vec::R most[kHigh], reference[kHigh], total[kHigh];
  for (int i = 0; i < kHigh; ++i) most[i] = Vec::set1(row_max[i]);
  for (int64_t j = 0; j < wide; j += Vec::width) {
    for (int i = 0; i < kHigh; ++i) {
      const Vec::R scaled = Vec::mul(Vec::load(scores + i * kTile + j), scales);
      Vec::store(scores + i * kTile + j, scaled);
      most[i] = Vec::max(most[i], scaled);
    }
  }
  // The first kHigh: what a row's former sum and output shrink by.
  alignas(64) float shrink[Vec::width > kHigh ? Vec::width : kHigh] = {};
  bool moved = false;
  for (int i = 0; i < kHigh; ++i) {
    const float maximum = Vec::reduce_max(most[i]);
    // While every score is -inf, any finite reference gives weights of zero; -inf itself would give NaN.
    reference[i] = Vec::set1(maximum == -kInfinity ? 0.0f : maximum);
    total[i] = Vec::set1(0.0f);
    moved = moved || maximum != row_max[i];
    shrink[i] = maximum == row_max[i] ? 0.0f : row_max[i] - maximum;  // -inf at first
    row_max[i] = maximum;
  }
  for (int64_t j = 0; j < wide; j += Vec::width) {
    for (int i = 0; i < kHigh; ++i) {
      const Vec::R weight = exp(Vec::sub(Vec::load(scores + i * kTile + j), reference[i]));
      Vec::store(scores + i * kTile + j, weight);
      total[i] = Vec::add(total[i], weight);
    }
  }
  if (moved) {
    for (int i = 0; i < kHigh; i += Vec::width) Vec::store(shrink + i, exp(Vec::load(shrink + i)));
    for (int i = 0; i < kHigh; ++i) {
      row_sum[i] *= shrink[i];
      for (int64_t d = 0; d < padded; d += Vec::width) {
        Vec::store(out + i * padded + d, Vec::mul(Vec::load(out + i * padded + d), Vec::set1(shrink[i])));
      }
    }
  }
  for (int i = 0; i < kHigh; ++i) row_sum[i] += Vec::reduce_add(total[i]);
}

template <typename T>
void write_row(const float* sums, float row_sum, int64_t head_size, T* out) {
  for (int64_t d = 0; d < head_size; ++d) from_float(sums[d] / row_sum, out + d);
}

// A document's keys and values of one head as they come: a tile of both is copied.
template <typename T>
struct Copied {
  using Key = float;
  using Value = float;
  KeyRows<T> keys, values;
  int64_t head_size;
  alignas(64) float key_tile[kMaxHeadSize * kTile], value_tile[kTile * kMaxHeadSize];

  Copied(const AttentionTask& task, int64_t document, int64_t head) : head_size(task.head_size) {
    const int64_t begin = task.key_begin ? task.key_begin[document] : 0, at = head * head_size;
    const int32_t* slots = task.ancestry ? task.ancestry + document * task.ancestry_stride : nullptr;
    keys = {static_cast<const T*>(task.key) + begin * task.key_stride + at, task.key_stride, task.key_slot_stride,
            slots};
    values = {static_cast<const T*>(task.value) + begin * task.value_stride + at, task.value_stride,
              task.value_slot_stride, slots};
  }
  Right<Key> key_panels(int64_t first, int64_t n) {
    transpose_keys(keys, first, n, head_size, key_tile);
    return {key_tile, kPanel, lanes_of_panel<T>(head_size)};
  }
  Right<Value> value_rows(int64_t first, int64_t n) {
    copy_values(values, first, n, head_size, value_tile);
    return {value_tile, padded_size(head_size), kPanel};
  }
};

// The same as pack_panels has laid them out: nothing is copied.
template <typename T>
struct Packed {
  using Key = typename ScoreForm<T>::Lane;
  using Value = typename ValueForm<T>::Lane;
  const Key* keys;
  const Value* values;
  int64_t head_size;

  Packed(const AttentionTask& task, int64_t document, int64_t head) : head_size(task.head_size) {
    const int64_t panels = (task.n_keys[document] + kPanel - 1) / kPanel;
    const int64_t at = (task.key_begin[document] * task.n_heads + head * panels) * panel_size(head_size);
    keys = reinterpret_cast<const Key*>(static_cast<const T*>(task.key) + at);
    values = reinterpret_cast<const Value*>(static_cast<const T*>(task.value) + at);
  }
  Right<Key> key_panels(int64_t first, int64_t) const {
    const int64_t lanes = lanes_of_panel<T>(head_size);
    return {keys + first / kPanel * lanes, kPanel, lanes};
  }
  Right<Value> value_rows(int64_t first, int64_t) const {
    const int64_t padded = padded_size(head_size);
    return {values + first / ValueForm<T>::kKeys * padded, padded, kPanel};
  }
};

// kHigh query rows against one tile of n keys.
template <typename T, int kHigh, typename Key, typename Value>
inline void attend_tile(const float* queries, const Right<Key>& keys, const Right<Value>& values, int64_t n,
                        const AttentionTask& task, float* scores, float* row_max, float* row_sum, float* sums) {
  const int64_t padded = padded_size(task.head_size), depth = ScoreForm<T>::depth(task.head_size);
  multiply_rows<typename ScoreForm<T>::Chain, kHigh>(queries, padded, keys, depth, scores, kTile,
                                                     round_up(n, Vec::width), false);
  softmax_rows<kHigh>(scores, n, task.scale, row_max, row_sum, sums, padded);
  form_weights<T, kHigh>(scores, n);
  multiply_rows<typename ValueForm<T>::Chain, kHigh>(
      scores, kTile, values, round_up(n, ValueForm<T>::kKeys) / ValueForm<T>::kKeys, sums, padded, padded, true);
}

// Query rows [first, first + n_rows) of one document and head; n_rows <= kRows.
template <typename T, typename Source>
void attend(const AttentionTask& task, int64_t document, int64_t head, int64_t first, int64_t n_rows) {
  const int64_t size = task.head_size, padded = padded_size(size), n_keys = task.n_keys[document];
  T* out = static_cast<T*>(task.out) + (first * task.n_heads + head) * size;
  if (n_keys == 0) {
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t d = 0; d < size; ++d) from_float(0.0f, out + i * task.n_heads * size + d);
    }
    return;
  }
  alignas(64) float queries[kRows * kMaxHeadSize], sums[kRows * kMaxHeadSize], scores[kRowsAtOnce * kTile];
  float row_max[kRows], row_sum[kRows];

  const T* query = static_cast<const T*>(task.query) + first * task.query_stride + head * size;
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t link = 0; link < ScoreForm<T>::depth(size); link += Vec::width) {
      Vec::store(queries + i * padded + link, ScoreForm<T>::load(query + i * task.query_stride, link, size));
    }
    for (int64_t d = 0; d < padded; ++d) sums[i * padded + d] = 0.0f;
    row_max[i] = -kInfinity;
    row_sum[i] = 0.0f;
  }
  Source source(task, document, head);
  for (int64_t tile = 0; tile < n_keys; tile += kTile) {
    const int64_t n = minimum(kTile, n_keys - tile);
    const auto keys = source.key_panels(tile, n);
    const auto values = source.value_rows(tile, n);
    int64_t i = 0;
    for (; i + kRowsAtOnce <= n_rows; i += kRowsAtOnce) {
      attend_tile<T, kRowsAtOnce>(queries + i * padded, keys, values, n, task, scores, row_max + i, row_sum + i,
                                  sums + i * padded);
    }
    for (; i < n_rows; ++i) {
      attend_tile<T, 1>(queries + i * padded, keys, values, n, task, scores, row_max + i, row_sum + i,
                        sums + i * padded);
    }
  }
  for (int64_t i = 0; i < n_rows; ++i) {
    write_row(sums + i * padded, row_sum[i], size, out + i * task.n_heads * size);
  }
}

template <typename T>
void attend_from(const AttentionTask& task, int64_t document, int64_t head, int64_t first, int64_t n_rows) {
  if (task.packed) {
    attend<T, Packed<T>>(task, document, head, first, n_rows);
  } else {
    attend<T, Copied<T>>(task, document, head, first, n_rows);
  }
}

}  // namespace

void attention(const AttentionTask& task) {
  const int64_t blocks = (task.max_rows + kRows - 1) / kRows;
  // Documents differ in length, so items are handed out one by one; heads of a document go to neighbours in time. In a
  // cache the heads of a token lie together, and one thread takes them all.
  const int64_t items = task.ancestry ? task.n_heads : 1;
#pragma omp parallel for collapse(3) schedule(dynamic, items)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t head = 0; head < task.n_heads; ++head) {
        const int64_t begin = task.query_begin ? task.query_begin[document] : document;
        const int64_t end = task.query_begin ? task.query_begin[document + 1] : document + 1;
        const int64_t first = begin + block * kRows, n_rows = minimum(kRows, end - first);
        if (n_rows <= 0) continue;
        if (task.bf16) {
          attend_from<Bf16>(task, document, head, first, n_rows);
        } else {
          attend_from<float>(task, document, head, first, n_rows);
        }
      }
    }
  }
}

void pack_panels(const PackTask& task) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    for (int64_t head = 0; head < task.n_heads; ++head) {
      if (task.bf16) {
        pack<Bf16>(task, document, head);
      } else {
        pack<float>(task, document, head);
      }
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
