// Attention of query rows to their document's keys, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: one document, one head, a block of query rows. A tile of keys is copied transposed to [D][kTile] floats,
// so that scores are computed for a register of keys at once; the tile's values are copied to [kTile][D] floats, so
// that outputs are computed for a register of D at once. Both are then the same small matrix product. A running maximum
// and denominator per row (online softmax) mean that no [rows, keys] matrix exists.
//
// Every element of a result is one chain of multiply-adds whose order depends on that row's D and n_keys alone. So a
// row has the same bits wherever it stands in a block, whatever else is in the call and however many threads run.
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int kTile = 64;  // keys per tile; a multiple of every register width
constexpr int kRows = 64;  // query rows that share a copied tile
constexpr int kRowsAtOnce = 4;
constexpr int kColumnsAtOnce = Vec::width == 16 ? 4 : 2;  // registers; 16 accumulators need AVX-512's 32 registers

inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// One link of the chain that an element of a product is.
struct MultiplyAdd {
  static Vec::R step(Vec::R a, Vec::R b, Vec::R c) { return Vec::fma(a, b, c); }
};

// How the scores' product takes its operands: a chain of depth(D) links, each from one float of query and key.
template <typename T>
struct ScoreForm {
  using Chain = MultiplyAdd;
  static int64_t depth(int64_t head_size) { return head_size; }
  // A register of links from the given one on; zeros after the last.
  static Vec::R load(const T* row, int64_t link, int64_t head_size) {
    return load_partial(row + link, head_size - link, 0.0f);
  }
};

#if defined(__AVX512BF16__)
// The products of bfloat16 are exact in float32, so scores need no conversion and take two products a link. Weights are
// no bfloat16: rounding them would lose what the tolerance allows, so the second product stays in float32.
struct PairMultiplyAdd {
  static Vec::R step(Vec::R a, Vec::R b, Vec::R c) { return Vec::dot_pairs(a, b, c); }
};

template <>
struct ScoreForm<Bf16> {
  using Chain = PairMultiplyAdd;
  static int64_t depth(int64_t head_size) { return (head_size + 1) / 2; }
  static Vec::R load(const Bf16* row, int64_t link, int64_t head_size) {
    return Vec::load_pairs(reinterpret_cast<const uint16_t*>(row + 2 * link), head_size - 2 * link);
  }
};
#endif

// c[kHigh][kWide registers] = (accumulate ? c : 0) + a[kHigh][depth] * b[depth][kWide registers].
template <typename Chain, int kHigh, int kWide>
inline void multiply_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                          int64_t c_stride, bool accumulate) {
  Vec::R sum[kHigh][kWide];
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kWide; ++j)
      sum[i][j] = accumulate ? Vec::load(c + i * c_stride + j * Vec::width) : Vec::set1(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec::R right[kWide];
    for (int j = 0; j < kWide; ++j) right[j] = Vec::load(b + k * b_stride + j * Vec::width);
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
template <typename Chain, int kHigh>
inline void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                          int64_t c_stride, int64_t columns, bool accumulate) {
  int64_t j = 0;
  for (; j + kColumnsAtOnce * Vec::width <= columns; j += kColumnsAtOnce * Vec::width) {
    multiply_tile<Chain, kHigh, kColumnsAtOnce>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, accumulate);
  }
  for (; j < columns; j += Vec::width) {
    multiply_tile<Chain, kHigh, 1>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, accumulate);
  }
}

// One key, or one value, of the task: [D] elements of one head.
template <typename T>
struct KeyRows {
  const T* base;  // of the head; of the document's first key unless there is an ancestry
  int64_t stride, slot_stride;
  const int32_t* slots;  // null, or the cache slot of each time
  const T* operator[](int64_t t) const { return base + (slots ? slots[t] * slot_stride : 0) + t * stride; }
};

// out[link][key] = link of keys[first + key], n keys; the padding up to a register of keys and of links is zero.
template <typename T>
void copy_transposed(const KeyRows<T>& keys, int64_t first, int64_t n, int64_t head_size, float* out) {
  for (int64_t key = 0; key < n; key += Vec::width) {
    for (int64_t link = 0; link < ScoreForm<T>::depth(head_size); link += Vec::width) {
      Vec::R block[Vec::width];
      for (int i = 0; i < Vec::width; ++i) {
        block[i] = key + i < n ? ScoreForm<T>::load(keys[first + key + i], link, head_size) : Vec::set1(0.0f);
      }
      Vec::transpose(block);
      for (int i = 0; i < Vec::width; ++i) Vec::store(out + (link + i) * kTile + key, block[i]);
    }
  }
}

// out[d] = row[d], zeros up to a register.
template <typename T>
inline void copy_row(const T* row, int64_t head_size, float* out) {
  for (int64_t d = 0; d < head_size; d += Vec::width) Vec::store(out + d, load_partial(row + d, head_size - d, 0.0f));
}

inline float exp_one(float x) {
  alignas(64) float lanes[Vec::width];
  Vec::store(lanes, exp(Vec::set1(x)));
  return lanes[0];
}

// Turns a row's n scores into weights e^(scale * s - max), and brings the row's state up to date.
inline void softmax_row(float* scores, int64_t n, float scale, float* row_max, float* row_sum, float* out,
                        int64_t padded) {
  const int64_t wide = round_up(n, Vec::width);
  const Vec::R scales = Vec::set1(scale);
  for (int64_t j = 0; j < wide; j += Vec::width) Vec::store(scores + j, Vec::mul(Vec::load(scores + j), scales));
  for (int64_t j = n; j < wide; ++j) scores[j] = -kInfinity;
  Vec::R most = Vec::set1(*row_max);
  for (int64_t j = 0; j < wide; j += Vec::width) most = Vec::max(most, Vec::load(scores + j));
  const float maximum = Vec::reduce_max(most);
  // While every score is -inf, any finite reference gives weights of zero; -inf itself would give NaN.
  const Vec::R reference = Vec::set1(maximum == -kInfinity ? 0.0f : maximum);
  Vec::R total = Vec::set1(0.0f);
  for (int64_t j = 0; j < wide; j += Vec::width) {
    const Vec::R weight = exp(Vec::sub(Vec::load(scores + j), reference));
    Vec::store(scores + j, weight);
    total = Vec::add(total, weight);
  }
  if (maximum != *row_max) {
    const float shrink = *row_max == -kInfinity ? 0.0f : exp_one(*row_max - maximum);
    *row_sum *= shrink;
    for (int64_t d = 0; d < padded; d += Vec::width) {
      Vec::store(out + d, Vec::mul(Vec::load(out + d), Vec::set1(shrink)));
    }
    *row_max = maximum;
  }
  *row_sum += Vec::reduce_add(total);
}

template <typename T>
void write_row(const float* sums, float row_sum, int64_t head_size, T* out) {
  for (int64_t d = 0; d < head_size; ++d) from_float(sums[d] / row_sum, out + d);
}

// Query rows [first, first + n_rows) of one document and head; n_rows <= kRows.
template <typename T>
void attend(const AttentionTask& task, int64_t document, int64_t head, int64_t first, int64_t n_rows) {
  using Scores = typename ScoreForm<T>::Chain;
  const int64_t size = task.head_size, padded = round_up(size, Vec::width), n_keys = task.n_keys[document];
  const int64_t depth = ScoreForm<T>::depth(size);
  T* out = static_cast<T*>(task.out) + (first * task.n_heads + head) * size;
  if (n_keys == 0) {
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t d = 0; d < size; ++d) from_float(0.0f, out + i * task.n_heads * size + d);
    }
    return;
  }
  alignas(64) float queries[kRows * kMaxHeadSize], sums[kRows * kMaxHeadSize];
  alignas(64) float keys[kMaxHeadSize * kTile], values[kTile * kMaxHeadSize], scores[kRowsAtOnce * kTile];
  float row_max[kRows], row_sum[kRows];

  const T* query = static_cast<const T*>(task.query) + first * task.query_stride + head * size;
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t link = 0; link < depth; link += Vec::width) {
      Vec::store(queries + i * padded + link, ScoreForm<T>::load(query + i * task.query_stride, link, size));
    }
    for (int64_t d = 0; d < padded; ++d) sums[i * padded + d] = 0.0f;
    row_max[i] = -kInfinity;
    row_sum[i] = 0.0f;
  }
  const int64_t begin = task.key_begin ? task.key_begin[document] : 0;
  const int32_t* slots = task.ancestry ? task.ancestry + document * task.ancestry_stride : nullptr;
  const KeyRows<T> key_rows{static_cast<const T*>(task.key) + begin * task.key_stride + head * size, task.key_stride,
                            task.key_slot_stride, slots};
  const KeyRows<T> value_rows{static_cast<const T*>(task.value) + begin * task.value_stride + head * size,
                              task.value_stride, task.value_slot_stride, slots};

  for (int64_t tile = 0; tile < n_keys; tile += kTile) {
    const int64_t n = minimum(kTile, n_keys - tile), wide = round_up(n, Vec::width);
    copy_transposed(key_rows, tile, n, size, keys);
    for (int64_t i = 0; i < n; ++i) copy_row(value_rows[tile + i], size, values + i * padded);
    for (int64_t i = 0; i < n_rows;) {
      const bool many = i + kRowsAtOnce <= n_rows;
      const int64_t high = many ? kRowsAtOnce : 1;
      const float* q = queries + i * padded;
      float* o = sums + i * padded;
      if (many) {
        multiply_rows<Scores, kRowsAtOnce>(q, padded, keys, kTile, depth, scores, kTile, wide, false);
      } else {
        multiply_rows<Scores, 1>(q, padded, keys, kTile, depth, scores, kTile, wide, false);
      }
      for (int64_t j = 0; j < high; ++j) {
        softmax_row(scores + j * kTile, n, task.scale, row_max + i + j, row_sum + i + j, o + j * padded, padded);
      }
      if (many) {
        multiply_rows<MultiplyAdd, kRowsAtOnce>(scores, kTile, values, padded, n, o, padded, padded, true);
      } else {
        multiply_rows<MultiplyAdd, 1>(scores, kTile, values, padded, n, o, padded, padded, true);
      }
      i += high;
    }
  }
  for (int64_t i = 0; i < n_rows; ++i) {
    write_row(sums + i * padded, row_sum[i], size, out + i * task.n_heads * size);
  }
}

}  // namespace

void attention(const AttentionTask& task) {
  const int64_t blocks = (task.max_rows + kRows - 1) / kRows;
  // Documents differ in length, so items are handed out one by one; heads of a document go to neighbours in time.
#pragma omp parallel for collapse(3) schedule(dynamic, 1)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t head = 0; head < task.n_heads; ++head) {
        const int64_t begin = task.query_begin ? task.query_begin[document] : document;
        const int64_t end = task.query_begin ? task.query_begin[document + 1] : document + 1;
        const int64_t first = begin + block * kRows, n_rows = minimum(kRows, end - first);
        if (n_rows <= 0) continue;
        if (task.bf16) {
          attend<Bf16>(task, document, head, first, n_rows);
        } else {
          attend<float>(task, document, head, first, n_rows);
        }
      }
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
