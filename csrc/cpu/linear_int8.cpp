// A linear layer in 8 bits, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Every row becomes signed codes and a scale of its own. The weights are unsigned, 128 more than they are, because the
// processor multiplies unsigned bytes by signed ones and four codes of a row then meet a register of weights in a
// single instruction; what that adds, 128 times the sum of the row's codes, every sum starts without. Sums are integers
// and the rest is computed element by element, so a row has the same bits whatever else is in the call and however many
// threads run.
//
// Work item: one panel of outputs, a block of rows. The panel comes from memory once, for all rows of the block; both
// then stay in the second-level cache, from where they come as fast as they are multiplied.
#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

constexpr int64_t kOneThread = 1 << 20;      // products; for fewer, waking a team takes longer than the work
constexpr int64_t kLine = 64;                // bytes
constexpr int64_t kBlockBytes = 1 << 19;     // codes of a block of rows
constexpr int64_t kItemsPerThread = 4;       // at least, so that none waits long for the last
constexpr int kRowsAtOnce = Vec::kInt8Rows;  // a tile: its sums fill the registers
constexpr int kVectorsAtOnce = Vec::kInt8Vectors;

inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t divide_up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

template <typename T>
void quantize_row(const T* row, int64_t n, int8_t* codes, float* scale, int32_t* start) {
  const int64_t whole = n - n % Vec::width, padded = divide_up(n, kInt8Quad) * kInt8Quad;
  Vec::I most = Vec::set1_int(0);
  for (int64_t j = 0; j < whole; j += Vec::width) most = Vec::max_magnitude(load(row + j), most);
  if (whole < n) most = Vec::max_magnitude(load_partial(row + whole, n - whole, 0.0f), most);
  int32_t bits = 0;
  for (int i = 0; i < Vec::width; ++i) bits = most[i] > bits ? most[i] : bits;
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  const bool finite = largest < kInfinity;
  if (!finite || largest < kSmallestScaled) {
    for (int64_t j = 0; j < padded; ++j) codes[j] = 0;
    *scale = finite ? 0.0f : __builtin_nanf("");
    *start = 0;
    return;
  }
  const Vec::R inverse = Vec::set1(kLargestCode / largest);
  Vec::I total = Vec::set1_int(0);
  for (int64_t j = 0; j < whole; j += Vec::width) {
    const Vec::I steps = Vec::round_int(Vec::mul(load(row + j), inverse));
    total += steps;
    Vec::store_int8(codes + j, steps);
  }
  if (whole < n) {
    const Vec::I steps = Vec::round_int(Vec::mul(load_partial(row + whole, n - whole, 0.0f), inverse));
    total += steps;
    int8_t bytes[Vec::width];
    Vec::store_int8(bytes, steps);
    for (int64_t j = whole; j < padded; ++j) codes[j] = bytes[j - whole];
  }
  *scale = largest / kLargestCode;
  *start = 0;
  for (int i = 0; i < Vec::width; ++i) *start -= kInt8Offset * total[i];
}

// sums[kHigh][kInt8Panel] = start + the products of kHigh rows of codes and a panel of weights. A line of what lies
// `ahead` is asked for with each quad: nothing foresees a panel, and memory does not bring one at the rate of a first
// tile.
template <int kHigh>
void multiply_tile(const uint8_t* weights, const uint8_t* ahead, const int8_t* codes, int64_t stride, int64_t quads,
                   const int32_t* start, float* sums) {
  for (int first = 0; first < kInt8Panel; first += kVectorsAtOnce * Vec::width) {
    Vec::I sum[kHigh][kVectorsAtOnce];
    for (int i = 0; i < kHigh; ++i) {
      for (int j = 0; j < kVectorsAtOnce; ++j) sum[i][j] = Vec::set1_int(start[i]);
    }
    const uint8_t* w = weights + first * kInt8Quad;
    for (int64_t quad = 0; quad < quads; ++quad, w += kInt8Panel * kInt8Quad) {
      __builtin_prefetch(ahead + quad * kLine, 0, 2);
      Vec::I right[kVectorsAtOnce];
      for (int j = 0; j < kVectorsAtOnce; ++j) right[j] = Vec::load_bytes(w + j * Vec::width * kInt8Quad);
      for (int i = 0; i < kHigh; ++i) {
        int32_t four;
        __builtin_memcpy(&four, codes + i * stride + quad * kInt8Quad, sizeof four);
        const Vec::I left = Vec::set1_int(four);
        for (int j = 0; j < kVectorsAtOnce; ++j) sum[i][j] = Vec::dot_quads(right[j], left, sum[i][j]);
      }
    }
    for (int i = 0; i < kHigh; ++i) {
      for (int j = 0; j < kVectorsAtOnce; ++j) {
        Vec::store(sums + i * kInt8Panel + first + j * Vec::width, Vec::to_float(sum[i][j]));
      }
    }
  }
}

template <int kHigh = kRowsAtOnce>
void multiply_rows(int64_t rows, const uint8_t* weights, const uint8_t* ahead, const int8_t* codes, int64_t stride,
                   int64_t quads, const int32_t* start, float* sums) {
  if constexpr (kHigh > 1) {
    if (rows < kHigh) return multiply_rows<kHigh - 1>(rows, weights, ahead, codes, stride, quads, start, sums);
  }
  multiply_tile<kHigh>(weights, ahead, codes, stride, quads, start, sums);
}

// The end of the layer for rows of a tile and n outputs, at most a register of them.
template <typename T>
inline void finish_vector(const float* sums, const float* scales, Vec::R weight_scale, Vec::R bias, Vec::R least,
                          const T* residual, T* out, int64_t rows, int64_t outputs, int64_t n) {
  for (int64_t i = 0; i < rows; ++i) {
    const Vec::R product = Vec::mul(Vec::load(sums + i * kInt8Panel), weight_scale);
    Vec::R y = Vec::max(least, Vec::fma(product, Vec::set1(scales[i]), bias));  // this order keeps NaN
    if (residual) y = Vec::add(y, load_partial(residual + i * outputs, n, 0.0f));
    store_partial(out + i * outputs, n, y);
  }
}

// The end of the layer for rows of a tile and the outputs of a panel, `row` and `first` the first of them.
template <typename T>
void finish_tile(const LinearInt8Task& task, const float* sums, int64_t row, int64_t rows, int64_t first) {
  const int64_t outputs = task.outputs, end = minimum(outputs, first + kInt8Panel);
  const Vec::R least = Vec::set1(task.relu ? 0.0f : -kInfinity);
  for (int64_t j = first; j < end; j += Vec::width, sums += Vec::width) {
    const int64_t n = minimum(end - j, Vec::width);
    const T* residual = task.residual ? static_cast<const T*>(task.residual) + row * outputs + j : nullptr;
    T* out = static_cast<T*>(task.out) + row * outputs + j;
    const Vec::R weight_scale = load_partial(task.weight_scales + j, n, 0.0f);
    const Vec::R bias = load_partial(task.bias + j, n, 0.0f);
    if (n == Vec::width) {  // a constant, so that the loop has no ends
      finish_vector(sums, task.scales + row, weight_scale, bias, least, residual, out, rows, outputs, Vec::width);
    } else {
      finish_vector(sums, task.scales + row, weight_scale, bias, least, residual, out, rows, outputs, n);
    }
  }
}

// Asks for the memory that finish_tile will touch: every row of it lies in another page, where nothing foresees it.
__attribute__((always_inline)) inline void prefetch_row(const LinearInt8Task& task, int64_t row, int64_t first) {
  const int64_t size = task.bf16_out ? sizeof(Bf16) : sizeof(float);
  const int64_t begin = (row * task.outputs + first) * size, bytes = minimum(task.outputs - first, kInt8Panel) * size;
  for (int64_t byte = begin; byte < begin + bytes; byte += kLine) {
    if (task.residual) __builtin_prefetch(static_cast<const char*>(task.residual) + byte);
    __builtin_prefetch(static_cast<char*>(task.out) + byte, 1);
  }
}

void multiply_block(const LinearInt8Task& task, int64_t begin, int64_t end, int64_t panel, int64_t next_panel) {
  const int64_t quads = divide_up(task.inputs, kInt8Quad), stride = quads * kInt8Quad, first = panel * kInt8Panel;
  const uint8_t* weights = task.weights + first * stride;
  const uint8_t* ahead = task.weights + next_panel * kInt8Panel * stride;
  const uint8_t* ahead_end = ahead + kInt8Panel * stride;
  alignas(64) float sums[kRowsAtOnce * kInt8Panel];
  while (begin < end) {
    // Tiles of nearly the same height: a low one has too few sums to keep the multipliers busy.
    const int64_t rows = divide_up(end - begin, divide_up(end - begin, kRowsAtOnce));
    for (int64_t i = 0; i < rows; ++i) prefetch_row(task, begin + i, first);
    multiply_rows(rows, weights, ahead < ahead_end ? ahead : weights, task.codes + begin * stride, stride, quads,
                  task.starts + begin, sums);
    ahead += quads * kLine;
    task.bf16_out ? finish_tile<Bf16>(task, sums, begin, rows, first)
                  : finish_tile<float>(task, sums, begin, rows, first);
    begin += rows;
  }
}

void quantize(const LinearInt8Task& task, int64_t row) {
  const int64_t n = task.inputs, begin = row * task.row_stride;
  int8_t* codes = task.codes + row * divide_up(n, kInt8Quad) * kInt8Quad;
  if (task.bf16_states) {
    quantize_row(static_cast<const Bf16*>(task.states) + begin, n, codes, task.scales + row, task.starts + row);
  } else {
    quantize_row(static_cast<const float*>(task.states) + begin, n, codes, task.scales + row, task.starts + row);
  }
}

}  // namespace

void linear_int8(const LinearInt8Task& task) {
  const int64_t panels = divide_up(task.outputs, kInt8Panel);
  const bool alone = task.rows * task.outputs * task.inputs < kOneThread;
  const int64_t wanted = divide_up(kItemsPerThread * (alone ? 1 : omp_get_max_threads()), panels > 0 ? panels : 1);
  int64_t blocks = divide_up(task.rows * task.inputs, kBlockBytes);
  blocks = minimum(blocks > wanted ? blocks : wanted, divide_up(task.rows, kRowsAtOnce));
  const int64_t height = blocks > 0 ? divide_up(divide_up(task.rows, blocks), kRowsAtOnce) * kRowsAtOnce : 1;
#pragma omp parallel if (!alone)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < task.rows; ++row) quantize(task, row);
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t begin = 0; begin < task.rows; begin += height) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t next = minimum(panel + omp_get_num_threads(), panels - 1);  // this thread's, most likely
        multiply_block(task, begin, minimum(task.rows, begin + height), panel, next);
      }
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
