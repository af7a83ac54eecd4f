// A linear layer, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Whatever the type of the weights, a word of 32 bits of a row (a float32, two bfloat16 or four codes) meets a register
// of words of as many outputs, and a tile of rows and outputs has its sums in registers. A sum runs over the inputs in
// their order, so a row has the same bits whatever else is in the call and however many threads run.
//
// A layer norm before the layer is part of it: rows are normalised on the way in. In 8 bits every row becomes signed
// codes and a scale of its own. The weights are unsigned, 128 more than they are, because AVX-512 multiplies unsigned
// bytes by signed ones; what that adds, 128 times the sum of the row's codes, every sum starts without. Sums are
// integers and the rest is computed element by element.
//
// Work item: one panel of outputs, a block of rows. A chunk of the panel comes from memory once, for all rows of the
// block; both then stay in the second-level cache, from where they come as fast as they are multiplied. A thread begins
// with a block whose rows it has prepared itself, and helps with those of others when it is through.
#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/linear_rows.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int64_t kOneThread = 1 << 20;  // products; for fewer, waking a team takes longer than the work
constexpr int64_t kLine = 64;            // bytes
constexpr int64_t kWord = 4;             // bytes
constexpr int64_t kPanelWord = kOutputPanel * kWord;
constexpr int64_t kItemsPerThread = 4;  // at least, so that none waits long for the last
constexpr int kVectorsAtOnce = Vec::kTileVectors;
constexpr int kTileOutputs = kVectorsAtOnce * Vec::width;
constexpr int64_t kTileWord = kTileOutputs * kWord;

// With 32 registers of 512 bits a tile is as wide as a panel, and reads it in the second-level cache. A narrower one
// would jump through it: its part of a chunk is copied into the first-level cache, in the form that tiles multiply.
constexpr bool kNear = kTileOutputs < kOutputPanel;
constexpr int64_t kNearBytes = 1 << 14;
constexpr int64_t kBlockBytes = kNear ? 1 << 17 : 1 << 19;  // of a chunk of all rows of a block

inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The types of weights: what a word holds, what the sums are, how words are multiplied, how many of what a word becomes
// nearby, and the end of the layer before activation and residual.
struct Floats {
  using Sum = Vec::R;
  static constexpr int64_t kInputs = 1;
  static constexpr int64_t kNearWords = 1;
  static constexpr int kRowsAtOnce = Vec::kTileRows;
  static constexpr bool kScaled = false;
  static Sum begin(int32_t) { return Vec::set1(0.0f); }
  static Sum dot(Sum weights, Sum row, Sum sum) { return Vec::fma(weights, row, sum); }
  static Vec::I near_word(Vec::I word, int) { return word; }
  static Vec::R finish(Sum sum, Vec::R, Vec::R, Vec::R bias) { return Vec::add(sum, bias); }
};

// Nearby they are floats, of weights and of rows.
struct Pairs : Floats {
  static constexpr int64_t kInputs = 2;
  static constexpr int64_t kNearWords = 2;
  static Sum dot(Sum weights, Sum row, Sum sum) {
    return kNear ? Floats::dot(weights, row, sum) : dot_pairs(weights, row, sum);
  }
  static Vec::I near_word(Vec::I word, int i) {
    return (Vec::I)(i == 0 ? first_of_pairs(word) : second_of_pairs(word));
  }
};

// Nearby, weights are signed, and sums start from 0.
struct Codes {
  using Sum = Vec::I;
  static constexpr int64_t kInputs = kCodesPerWord;
  static constexpr int64_t kNearWords = 1;
  static constexpr int kRowsAtOnce = Vec::kCodeTileRows;
  static constexpr bool kScaled = true;
  static Sum begin(int32_t start) { return Vec::set1_int(kNear ? 0 : start); }
  static Sum dot(Sum weights, Sum row, Sum sum) { return Vec::dot_quads(weights, row, sum); }
  static Vec::I near_word(Vec::I word, int) { return word ^ Vec::set1_int(static_cast<int32_t>(0x80808080)); }
  static Vec::R finish(Sum sum, Vec::R weight_scale, Vec::R scale, Vec::R bias) {
    return Vec::fma(Vec::mul(Vec::to_float(sum), weight_scale), scale, bias);
  }
};

// How many words a word is when it is multiplied, the words of a chunk, and what a row's part of a chunk takes, in
// bytes.
template <typename Weights>
constexpr int64_t kForms = kNear ? Weights::kNearWords : 1;
template <typename Weights>
constexpr int64_t kChunkWords = kNear ? kNearBytes / (kTileWord * kForms<Weights>) : 2048;
template <typename Weights>
constexpr int64_t row_bytes(int64_t words) {
  return words * kWord * kForms<Weights>;
}

template <typename R>
inline R load_words(const void* p) {
  R words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

// The rows of a block, as words.
struct Rows {
  const char* first;
  int64_t stride;  // bytes
  int64_t rest;    // bytes of a last word that is not whole, else 0
};

// The weights that come next: all tiles of a block together ask for them, `pace` bytes with each word, because memory
// does not bring a panel at the rate of its first tile.
struct Ahead {
  const char* begin;
  int64_t pace;
};

// Weights of a chunk for the outputs of a tile: `step` bytes from word to word.
struct Chunk {
  const char* first;
  int64_t step;
};

// sums[kHigh][kTileOutputs], kOutputPanel apart, (+)= the products of kHigh rows and a chunk, `first` of its panel or
// the others. What lies ahead is asked for on the way: nothing foresees a panel.
template <typename Weights, int kHigh>
void multiply_tile(const Chunk& chunk, const Ahead& ahead, const Rows& rows, int64_t words, bool first,
                   const int32_t* starts, float* sums) {
  using Sum = typename Weights::Sum;
  Sum sum[kHigh][kVectorsAtOnce];
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kVectorsAtOnce; ++j) {
      const float* before = sums + i * kOutputPanel + j * Vec::width;
      sum[i][j] = first ? Weights::begin(Weights::kScaled ? starts[i] : 0) : load_words<Sum>(before);
    }
  }
  const char *w = chunk.first, *row = rows.first;
  const auto multiply_word = [&](int64_t bytes) __attribute__((always_inline)) {
    Sum right[kVectorsAtOnce];
    for (int j = 0; j < kVectorsAtOnce; ++j) right[j] = load_words<Sum>(w + j * sizeof(Sum));
    for (int i = 0; i < kHigh; ++i) {
      int32_t left = 0;  // the row's word, for all outputs
      __builtin_memcpy(&left, row + i * rows.stride, bytes);
      for (int j = 0; j < kVectorsAtOnce; ++j) sum[i][j] = Weights::dot(right[j], (Sum)Vec::set1_int(left), sum[i][j]);
    }
  };
  for (int64_t word = 0; word < words; ++word, w += chunk.step, row += kWord) {
    __builtin_prefetch(ahead.begin + word * ahead.pace, 0, 2);
    multiply_word(kWord);
  }
  if (rows.rest > 0) multiply_word(rows.rest);
  for (int i = 0; i < kHigh; ++i) {
    for (int j = 0; j < kVectorsAtOnce; ++j) {
      __builtin_memcpy(sums + i * kOutputPanel + j * Vec::width, &sum[i][j], sizeof(Sum));
    }
  }
}

template <typename Weights, int kHigh = Weights::kRowsAtOnce>
void multiply_rows(int64_t n, const Chunk& chunk, const Ahead& ahead, const Rows& rows, int64_t words, bool first,
                   const int32_t* starts, float* sums) {
  if constexpr (kHigh > 1) {
    if (n < kHigh) return multiply_rows<Weights, kHigh - 1>(n, chunk, ahead, rows, words, first, starts, sums);
  }
  multiply_tile<Weights, kHigh>(chunk, ahead, rows, words, first, starts, sums);
}

// The end of the layer for rows of a tile and the outputs of a panel, `row` and `first` the first of them.
template <typename Weights, typename T>
void finish_tile(const LinearTask& task, const float* sums, int64_t row, int64_t rows, int64_t first) {
  const int64_t outputs = task.outputs, n = minimum(outputs - first, kTileOutputs);
  const float* weight_scales = Weights::kScaled ? task.weight_scales + first : nullptr;
  const float* bias = task.bias + first;
  const float* scales = Weights::kScaled ? task.scales + row : nullptr;
  const T* residual = task.residual ? static_cast<const T*>(task.residual) + row * outputs + first : nullptr;
  T* out = static_cast<T*>(task.out) + row * outputs + first;
  const Vec::R least = Vec::set1(task.relu ? 0.0f : -kInfinity);
  const auto finish = [=](int64_t i, int64_t j, int64_t width) __attribute__((always_inline)) {
    const auto sum = load_words<typename Weights::Sum>(sums + i * kOutputPanel + j);
    const Vec::R weight_scale = Weights::kScaled ? load_partial(weight_scales + j, width, 0.0f) : Vec::set1(1.0f);
    const Vec::R scale = Vec::set1(Weights::kScaled ? scales[i] : 1.0f);
    const Vec::R product = Weights::finish(sum, weight_scale, scale, load_partial(bias + j, width, 0.0f));
    Vec::R y = Vec::max(least, product);  // this order keeps NaN
    if (residual) y = Vec::add(y, load_partial(residual + i * outputs + j, width, 0.0f));
    store_partial(out + i * outputs + j, width, y);
  };
  for (int64_t i = 0; i < rows; ++i) {
    if (n == kTileOutputs) {  // constants, so that the loop has no ends
      for (int64_t j = 0; j < kTileOutputs; j += Vec::width) finish(i, j, Vec::width);
    } else {
      for (int64_t j = 0; j < n; j += Vec::width) finish(i, j, minimum(n - j, Vec::width));
    }
  }
}

// Asks for what finish_tile will add: every row of it lies in another page, where nothing foresees it.
__attribute__((always_inline)) inline void prefetch_residual(const LinearTask& task, int64_t row, int64_t rows,
                                                             int64_t first) {
  const int64_t size = task.bf16_out ? sizeof(Bf16) : sizeof(float);
  const int64_t bytes = minimum(task.outputs - first, kTileOutputs) * size;
  for (int64_t i = row; i < row + rows; ++i) {
    const char* begin = static_cast<const char*>(task.residual) + (i * task.outputs + first) * size;
    for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(begin + byte);
  }
}

// `words` words of the rows of a block, from the given one on.
template <typename Weights>
Rows rows_from(const LinearTask& task, int64_t row, int64_t word, int64_t words) {
  if (Weights::kScaled) {
    const int64_t stride = divide_up(task.inputs, Weights::kInputs) * kWord;
    return {reinterpret_cast<const char*>(task.codes) + row * stride + word * kWord, stride, 0};
  }
  const int64_t size = kWord / Weights::kInputs, stride = (task.norm_weight ? task.inputs : task.row_stride) * size;
  const char* first = static_cast<const char*>(task.norm_weight ? task.normed : task.states) + row * stride;
  const int64_t inputs = minimum(task.inputs - word * Weights::kInputs, words * Weights::kInputs);
  return {first + word * kWord, stride, inputs % Weights::kInputs * size};
}

// The same of n rows of pairs, as floats.
Rows widen_rows(const LinearTask& task, int64_t row, int64_t n, int64_t word, int64_t words, char* near) {
  const int64_t width = words * Pairs::kInputs, inputs = minimum(task.inputs - word * Pairs::kInputs, width);
  const Rows far = rows_from<Pairs>(task, row, word, words);
  for (int64_t i = 0; i < n; ++i) {
    float* out = reinterpret_cast<float*>(near) + i * width;
    if (inputs < width) out[inputs] = 0.0f;
    const Bf16* states = reinterpret_cast<const Bf16*>(far.first + i * far.stride);
    for_registers(inputs, [&](int64_t j, int64_t w) { store_partial(out + j, w, load_partial(states + j, w, 0.0f)); });
  }
  return {near, width * kWord, 0};
}

// The words of a chunk for the outputs of a tile, nearby.
template <typename Weights>
Chunk copy_chunk(const char* far, int64_t words, char* near) {
  char* out = near;
  for (int64_t word = 0; word < words; ++word, far += kPanelWord) {
    for (int i = 0; i < Weights::kNearWords; ++i, out += kTileWord) {
      for (int64_t byte = 0; byte < kTileWord; byte += sizeof(Vec::I)) {
        const Vec::I copy = Weights::near_word(load_words<Vec::I>(far + byte), i);
        __builtin_memcpy(out + byte, &copy, sizeof copy);
      }
    }
  }
  return {near, kTileWord};
}

template <typename Weights>
void multiply_block(const LinearTask& task, int64_t begin, int64_t end, int64_t panel, int64_t next_panel) {
  constexpr int64_t kMostWords = kChunkWords<Weights>, kRowBytes = row_bytes<Weights>(kMostWords);
  constexpr bool kWide = kForms<Weights> > 1;
  const int64_t words = divide_up(task.inputs, Weights::kInputs), first = panel * kOutputPanel;
  const char* weights = static_cast<const char*>(task.weights) + panel * words * kPanelWord;
  const char* next = static_cast<const char*>(task.weights) + next_panel * words * kPanelWord;
  const int64_t outputs = minimum(task.outputs - first, kOutputPanel);
  const int64_t tiles = divide_up(end - begin, Weights::kRowsAtOnce) * divide_up(outputs, kTileOutputs);
  const int64_t pace = divide_up(kPanelWord, tiles * kForms<Weights>);
  alignas(64) float sums[(kBlockBytes / kRowBytes + Weights::kRowsAtOnce) * kOutputPanel];
  alignas(64) char near_weights[kNear ? kNearBytes : 1];
  alignas(64) char near_rows[kWide ? kBlockBytes + Weights::kRowsAtOnce * kRowBytes : 1];
  int64_t word = 0;
  do {
    const int64_t n = minimum(words - word, kMostWords);
    const bool is_last = word + n == words;
    const char* chunk = weights + word * kPanelWord;
    Ahead ahead{is_last ? next : chunk + n * kPanelWord, pace};
    const Rows block =
        kWide ? widen_rows(task, begin, end - begin, word, n, near_rows) : rows_from<Weights>(task, begin, word, n);
    for (int64_t output = 0; output < outputs; output += kTileOutputs) {
      const char* far = chunk + output * kWord;
      const Chunk part = kNear ? copy_chunk<Weights>(far, n, near_weights) : Chunk{far, kPanelWord};
      for (int64_t row = begin, height; row < end; row += height) {
        // Tiles of nearly the same height: a low one has too few sums to keep the multipliers busy.
        height = divide_up(end - row, divide_up(end - row, Weights::kRowsAtOnce));
        if (is_last && task.residual) prefetch_residual(task, row, height, first + output);
        const Rows rows{block.first + (row - begin) * block.stride, block.stride, block.rest};
        float* tile = words > kMostWords ? sums + (row - begin) * kOutputPanel + output : sums;
        multiply_rows<Weights>(height, part, ahead, rows, n * kForms<Weights> - (rows.rest > 0), word == 0,
                               Weights::kScaled ? task.starts + row : nullptr, tile);
        ahead.begin += n * kForms<Weights> * pace;
        if (!is_last) continue;
        task.bf16_out ? finish_tile<Weights, Bf16>(task, tile, row, height, first + output)
                      : finish_tile<Weights, float>(task, tile, row, height, first + output);
      }
    }
    word += n;
  } while (word < words);
}

// Prepares rows begin to end, and asks on the way for the panel that comes first.
template <typename Weights>
void prepare_rows(const LinearTask& task, int64_t begin, int64_t end, int64_t panel) {
  const int64_t words = divide_up(task.inputs, Weights::kInputs),
                lines = minimum(words, kChunkWords<Weights>) * kPanelWord / kLine;
  const char* ahead = static_cast<const char*>(task.weights) + panel * words * kPanelWord;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < divide_up(lines, end - begin); ++i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    task.bf16_states ? prepare_row<Bf16>(task, row) : prepare_row<float>(task, row);
  }
}

template <typename Weights>
void compute(const LinearTask& task) {
  if (task.rows == 0 || task.outputs == 0) return;
  const int64_t panels = divide_up(task.outputs, kOutputPanel);
  const bool alone = task.rows * task.outputs * task.inputs < kOneThread;
  const int64_t wanted = divide_up(kItemsPerThread * (alone ? 1 : omp_get_max_threads()), panels);
  const int64_t words = minimum(divide_up(task.inputs, Weights::kInputs), kChunkWords<Weights>);
  const int64_t large = divide_up(task.rows * row_bytes<Weights>(words), kBlockBytes);
  const int64_t least = minimum(large > wanted ? large : wanted, divide_up(task.rows, Weights::kRowsAtOnce));
  const int64_t height = divide_up(divide_up(task.rows, least), Weights::kRowsAtOnce) * Weights::kRowsAtOnce;
  const int64_t blocks = divide_up(task.rows, height);
  auto* taken = static_cast<int64_t*>(__builtin_alloca(blocks * sizeof(int64_t)));  // panels of each block
  for (int64_t i = 0; i < blocks; ++i) taken[i] = 0;
#pragma omp parallel if (!alone)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t own = thread * blocks / threads, together = threads > blocks ? threads / blocks : 1;
    if (Weights::kScaled || task.norm_weight) {
      const int64_t panel = minimum(thread - divide_up(own * threads, blocks), panels - 1);
      prepare_rows<Weights>(task, task.rows * thread / threads, task.rows * (thread + 1) / threads, panel);
#pragma omp barrier
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block = (own + i) % blocks, begin = block * height, end = minimum(task.rows, begin + height);
      while (true) {
        int64_t panel;
#pragma omp atomic capture
        panel = taken[block]++;
        if (panel >= panels) break;
        const int64_t next = minimum(panel + together, panels - 1);  // this thread's, most likely
        multiply_block<Weights>(task, begin, end, panel, next);
      }
    }
  }
}

}  // namespace

void linear(const LinearTask& task) {
  switch (task.type) {
    case WeightType::kFloat32:
      return compute<Floats>(task);
    case WeightType::kBFloat16:
      return compute<Pairs>(task);
    case WeightType::kCodes:
      return compute<Codes>(task);
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
