// Attention of a decoder row to its own past, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: a row with all its heads, because a token's heads lie together in the cache. Nearly all time would go to
// waiting for memory, token by token at places that nothing foresees; so while a tile of tokens is used, the
// next one is asked for, be it of this row or of the next.
//
// Every element of a result is one chain of operations whose order depends on the row's D and number of keys alone.
#include <omp.h>

#include "cpu/panels.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int kTokens = kPanel;       // tokens; a multiple of every register width
constexpr int kRegisters = 4;         // of a result, computed together
constexpr int64_t kRowsAtMost = 8;    // that a thread takes one after the other: those of a document share keys
constexpr int64_t kStateSize = 4096;  // floats of a row's result; heads beyond that wait for another pass

// Up to kTokens tokens of a row's past, from `first` on: their keys and values, all heads.
template <typename T>
struct Tile {
  const T *keys[kTokens], *values[kTokens];
  alignas(64) float hidden[kTokens];  // what scores of tokens that are missing become: -inf; 0 for the others
  int64_t row = 0, first = 0, n = 0;

  Tile(const CachedAttentionTask& task, int64_t row, int64_t first) : row(row), first(first) {
    n = row < task.n_rows ? minimum(kTokens, task.n_keys[row] - first) : 0;
    for (int64_t i = 0; i < kTokens; ++i) hidden[i] = i < n ? 0.0f : -kInfinity;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = first + i, slot = task.ancestry[row * task.ancestry_stride + t];
      keys[i] = static_cast<const T*>(task.key_cache) + slot * task.key_slot_stride + t * task.key_time_stride;
      values[i] = static_cast<const T*>(task.value_cache) + slot * task.value_slot_stride + t * task.value_time_stride;
    }
  }
  Tile next(const CachedAttentionTask& task) const {
    const bool more = row < task.n_rows && first + kTokens < task.n_keys[row];
    return more ? Tile(task, row, first + kTokens) : Tile(task, row + 1, 0);
  }
  // Asks for one head.
  __attribute__((always_inline)) inline void prefetch(int64_t at, int64_t head_size) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t byte = 0; byte < head_size * int64_t{sizeof(T)}; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(keys[i] + at) + byte, 0, 2);
        __builtin_prefetch(reinterpret_cast<const char*>(values[i] + at) + byte, 0, 2);
      }
    }
  }
};

// What a head of a row has come to: its sums are relative to e^maximum; former sums shrink by the last factor.
struct HeadState {
  float maximum, total, shrink;
};

// scores[i] = scale * query . key i, for the keys of one head.
template <typename T>
inline void score_tile(const T* queries, const Tile<T>& tile, int64_t at, int64_t head_size, float scale,
                       float* scores) {
  using Form = ScoreForm<T>;
  const int64_t depth = Form::depth(head_size);
  for (int first = 0; first < kTokens; first += Vec::width) {
    Vec::R sums[Vec::width];
    for (int i = 0; i < Vec::width; ++i) {
      sums[i] = Vec::set1(0.0f);
      if (first + i >= tile.n) continue;
      for (int64_t link = 0; link < depth; link += Vec::width) {
        sums[i] = Form::Chain::step(Form::load(queries + at, link, head_size),
                                    Form::load(tile.keys[first + i] + at, link, head_size), sums[i]);
      }
    }
    Vec::transpose(sums);  // now a key to a lane
    for (int step = 1; step < Vec::width; step *= 2) {
      for (int i = 0; i + step < Vec::width; i += 2 * step) sums[i] = Vec::add(sums[i], sums[i + step]);
    }
    Vec::store(scores + first, Vec::fma(sums[0], Vec::set1(scale), Vec::load(tile.hidden + first)));
  }
}

// Turns scores into weights e^(score - maximum).
inline void weigh_tile(float* scores, HeadState* state) {
  Vec::R most = Vec::set1(state->maximum), total = Vec::set1(0.0f);
  for (int i = 0; i < kTokens; i += Vec::width) most = Vec::max(most, Vec::load(scores + i));
  const float maximum = Vec::reduce_max(most);
  // While every score is -inf, any finite reference gives weights of zero; -inf itself would give NaN.
  const Vec::R reference = Vec::set1(maximum == -kInfinity ? 0.0f : maximum);
  for (int i = 0; i < kTokens; i += Vec::width) {
    const Vec::R weights = exp(Vec::sub(Vec::load(scores + i), reference));
    Vec::store(scores + i, weights);
    total = Vec::add(total, weights);
  }
  alignas(64) float shrink[Vec::width];
  Vec::store(shrink, exp(Vec::sub(Vec::set1(state->maximum), reference)));
  *state = {maximum, state->total * shrink[0] + Vec::reduce_add(total), shrink[0]};
}

// sums = sums * shrink + weights . values, n of them, of one head.
template <typename T>
inline void add_values(const float* weights, const T* const* values, int64_t at, int64_t n, int64_t head_size,
                       float shrink, float* sums) {
  const Vec::R factor = Vec::set1(shrink);
  int64_t d = 0;
  for (; d + kRegisters * Vec::width <= head_size; d += kRegisters * Vec::width) {
    Vec::R sum[kRegisters];
    for (int j = 0; j < kRegisters; ++j) sum[j] = Vec::mul(Vec::load(sums + d + j * Vec::width), factor);
    for (int64_t i = 0; i < n; ++i) {
      const Vec::R weight = Vec::set1(weights[i]);
      for (int j = 0; j < kRegisters; ++j) {
        sum[j] = Vec::fma(weight, load(values[i] + at + d + j * Vec::width), sum[j]);
      }
    }
    for (int j = 0; j < kRegisters; ++j) Vec::store(sums + d + j * Vec::width, sum[j]);
  }
  for (; d < head_size; d += Vec::width) {
    Vec::R sum = Vec::mul(Vec::load(sums + d), factor);
    for (int64_t i = 0; i < n; ++i) {
      sum = Vec::fma(Vec::set1(weights[i]), load_partial(values[i] + at + d, head_size - d, 0.0f), sum);
    }
    Vec::store(sums + d, sum);
  }
}

template <typename T>
void append_newest(const CachedAttentionTask& task, int64_t row) {
  const int64_t t = task.n_keys[row] - 1;
  if (t < 0) return;
  const int64_t slot = task.ancestry[row * task.ancestry_stride + t];
  const int64_t bytes = task.n_heads * task.head_size * int64_t{sizeof(T)};
  __builtin_memcpy(static_cast<T*>(task.key_cache) + slot * task.key_slot_stride + t * task.key_time_stride,
                   static_cast<const T*>(task.key) + row * task.key_stride, bytes);
  __builtin_memcpy(static_cast<T*>(task.value_cache) + slot * task.value_slot_stride + t * task.value_time_stride,
                   static_cast<const T*>(task.value) + row * task.value_stride, bytes);
}

// Heads [first, end) of a row. What is done with a tile is done for all heads before the next thing: each is a chain of
// dependent steps, and the processor takes those of several heads at a time.
template <typename T>
void attend_heads(const CachedAttentionTask& task, int64_t row, int64_t first, int64_t end) {
  const int64_t size = task.head_size, padded = padded_size(size), heads = end - first;
  alignas(64) float sums[kStateSize], scores[kStateSize / kPanel * kTokens];
  HeadState states[kStateSize / kPanel];
  for (int64_t i = 0; i < heads * padded; ++i) sums[i] = 0.0f;
  for (int64_t i = 0; i < heads; ++i) states[i] = {-kInfinity, 0.0f, 0.0f};
  const T* queries = static_cast<const T*>(task.query) + row * task.query_stride;
  T* out = static_cast<T*>(task.out) + (row * task.n_heads + first) * size;

  for (Tile<T> tile(task, row, 0); tile.row == row;) {
    const Tile<T> next = tile.next(task);
    for (int64_t i = 0; i < heads; ++i) {
      next.prefetch((first + i) * size, size);
      score_tile(queries, tile, (first + i) * size, size, task.scale, scores + i * kTokens);
    }
    for (int64_t i = 0; i < heads; ++i) weigh_tile(scores + i * kTokens, states + i);
    for (int64_t i = 0; i < heads; ++i) {
      add_values(scores + i * kTokens, tile.values, (first + i) * size, tile.n, size, states[i].shrink,
                 sums + i * padded);
    }
    tile = next;
  }
  for (int64_t i = 0; i < heads; ++i) {
    const Vec::R share = Vec::set1(1.0f / states[i].total);
    for (int64_t d = 0; d < size; d += Vec::width) {
      store_partial(out + i * size + d, size - d, Vec::mul(Vec::load(sums + i * padded + d), share));
    }
  }
}

template <typename T>
void attend_row(const CachedAttentionTask& task, int64_t row) {
  if (task.n_keys[row] == 0) {
    T* out = static_cast<T*>(task.out) + row * task.n_heads * task.head_size;
    for (int64_t i = 0; i < task.n_heads * task.head_size; ++i) out[i] = T{};
    return;
  }
  const int64_t heads = kStateSize / padded_size(task.head_size);
  for (int64_t head = 0; head < task.n_heads; head += heads) {
    attend_heads<T>(task, row, head, minimum(task.n_heads, head + heads));
  }
}

}  // namespace

void cached_attention(const CachedAttentionTask& task) {
  const int64_t share = task.n_rows / (4 * omp_get_max_threads());
  const int64_t rows = share < 1 ? 1 : minimum(share, kRowsAtMost);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, rows)
    for (int64_t row = 0; row < task.n_rows; ++row) {
      task.bf16 ? append_newest<Bf16>(task, row) : append_newest<float>(task, row);
    }
#pragma omp for schedule(dynamic, rows)
    for (int64_t row = 0; row < task.n_rows; ++row) {
      task.bf16 ? attend_row<Bf16>(task, row) : attend_row<float>(task, row);
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
