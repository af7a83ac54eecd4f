// Sixteen query rows against tiles of sixteen keys on the tensor cores, for 16-bit types and heads of 64.
//
// Each warp walks its own tiles (warp, warp + kWarps, ...) through a ring of kStages shared-memory stages, so there is
// no block barrier on the way. Running maximum and denominator per row in base 2; the warps' partial results meet in
// shared memory. Bound by memory, not by arithmetic: padding 8 beams to 16 rows costs nothing.
#pragma once
#include "cuda/keys.cuh"

namespace pegasus::cuda {

constexpr int kTileRows = kPartialRows;
constexpr int kTileKeys = 16;
constexpr int kRowBytes = kTileHeadSize * 2;
constexpr int kTileBytes = kTileKeys * kRowBytes;  // of keys, and again of values
constexpr int kStageBytes = 2 * kTileBytes;
constexpr int kPartialBytes = kTileRows * kPartialFloats * 4;
// Below every score that can occur, yet finite: the difference of two of them is 0, not NaN.
constexpr float kHidden = -1e30f;

// The tensor cores' two types: how they are multiplied, d[16][8] += a[16][16] * b[16][8], and packed.
__device__ __forceinline__ void multiply(Bf16, float d[4], const uint32_t a[4], const uint32_t b[2]) {
  multiply_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(Fp16, float d[4], const uint32_t a[4], const uint32_t b[2]) {
  multiply_fp16(d, a, b);
}
__device__ __forceinline__ uint32_t pack(Bf16, float low, float high) {
  return pack_bf16(low, high);
}
__device__ __forceinline__ uint32_t pack(Fp16, float low, float high) {
  return pack_fp16(low, high);
}

struct alignas(8) Pair {
  float x, y;
};

// Byte offset of a 16-byte chunk in a tile. The exclusive or spreads a column of chunks over all banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Two neighbouring sums of a row, and what they are relative to.
struct Partial {
  Pair sums;
  float most, total;
};

// Partial results are kept as [kTileRows][kPartialFloats]; the distance of rows spares the banks conflicts.
__device__ __forceinline__ Partial load_partial(const float* partial, int row, int column) {
  const Pair* pairs = reinterpret_cast<const Pair*>(partial + row * kPartialFloats);
  const Pair last = pairs[kTileHeadSize / 2];
  return {pairs[column / 2], last.x, last.y};
}
__device__ __forceinline__ void store_partial(float* partial, int row, int column, const Partial& p) {
  Pair* pairs = reinterpret_cast<Pair*>(partial + row * kPartialFloats);
  pairs[column / 2] = p.sums;
  if (column == 0) pairs[kTileHeadSize / 2] = {p.most, p.total};
}

// Adds what later keys gave. Spelt out, so that every kernel rounds the same way.
__device__ __forceinline__ void add_partial(Partial& sum, const Partial& next) {
  const float most = fmaxf(sum.most, next.most);
  const float old_factor = exp2_fast(sum.most - most), new_factor = exp2_fast(next.most - most);
  sum.sums.x = fmaf(next.sums.x, new_factor, sum.sums.x * old_factor);
  sum.sums.y = fmaf(next.sums.y, new_factor, sum.sums.y * old_factor);
  sum.total = fmaf(next.total, new_factor, sum.total * old_factor);
  sum.most = most;
}

template <typename T>
__device__ __forceinline__ void write_result(const AttentionTask& task, int64_t row, int64_t head, int column,
                                             const Partial& p, bool has_keys) {
  const float inverse = has_keys ? 1.f / p.total : 0.f;  // a row without keys yields zeros
  T* to = static_cast<T*>(task.out) + (row * task.n_heads + head) * kTileHeadSize + column;
  *reinterpret_cast<uint32_t*>(to) = pack(T{}, p.sums.x * inverse, p.sums.y * inverse);
}

// The rows, in a warp's registers where the tensor core's fragments want them: each lane has two rows, row() and
// row() + 8, and columns column() and column() + 1 of every 8.
template <typename T>
struct RowTile {
  uint32_t query[4][4];
  float out[8][4], most[2], sum[2];

  static __device__ __forceinline__ int row() { return threadIdx.x % 32 / 4; }
  static __device__ __forceinline__ int column() { return threadIdx.x % 4 * 2; }

  __device__ __forceinline__ void load_query(const AttentionTask& task, int64_t first, int n_rows, int64_t head) {
    const T* base = static_cast<const T*>(task.query) + first * task.query_stride + head * kTileHeadSize;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = row() + (e & 1) * 8, c = step * 16 + column() + (e >> 1) * 8;
        query[step][e] = r < n_rows ? *reinterpret_cast<const uint32_t*>(base + r * task.query_stride + c) : 0u;
      }
    }
  }

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[i][e] = 0.f;
    }
    most[0] = most[1] = kHidden;
    sum[0] = sum[1] = 0.f;
  }

  // One tile of keys, and of values behind it. visible(key, row) tells which keys of the tile a row sees.
  template <typename Visible>
  __device__ __forceinline__ void attend(const char* tile, float scale, Visible visible) {
    const int matrix = threadIdx.x % 32 / 8, matrix_row = threadIdx.x % 8;
    float score[2][4] = {};  // keys 0-7 and 8-15
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[4];  // (keys 0-7, low d), (keys 0-7, high d), (keys 8-15, low d), (keys 8-15, high d)
      load_matrices(b, tile + swizzled((matrix >> 1) * 8 + matrix_row, step * 2 + (matrix & 1)));
      multiply(T{}, score[0], query[step], b);
      multiply(T{}, score[1], query[step], b + 2);
    }
    float high[2] = {most[0], most[1]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool seen = visible(half * 8 + column() + (e & 1), row() + (e >> 1) * 8);
        score[half][e] = seen ? score[half][e] * scale : kHidden;
        high[e >> 1] = fmaxf(high[e >> 1], score[half][e]);
      }
    }
#pragma unroll
    for (int x = 1; x < 4; x <<= 1) {  // the four lanes of a row
      high[0] = fmaxf(high[0], __shfl_xor_sync(~0u, high[0], x));
      high[1] = fmaxf(high[1], __shfl_xor_sync(~0u, high[1], x));
    }
    const float shrink[2] = {exp2_fast(most[0] - high[0]), exp2_fast(most[1] - high[1])};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = high[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float weight = score[half][e] <= kHidden ? 0.f : exp2_fast(score[half][e] - most[e >> 1]);
        score[half][e] = weight;
        sum[e >> 1] += weight;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[i][e] *= shrink[e >> 1];
    }
    const uint32_t weights[4] = {pack(T{}, score[0][0], score[0][1]), pack(T{}, score[0][2], score[0][3]),
                                 pack(T{}, score[1][0], score[1][1]), pack(T{}, score[1][2], score[1][3])};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[4];  // (keys 0-7, low d), (keys 8-15, low d), (keys 0-7, high d), (keys 8-15, high d)
      load_matrices_transposed(b,
                               tile + kTileBytes + swizzled((matrix & 1) * 8 + matrix_row, step * 2 + (matrix >> 1)));
      multiply(T{}, out[step * 2], weights, b);
      multiply(T{}, out[step * 2 + 1], weights, b + 2);
    }
  }

  __device__ __forceinline__ void store(float* partial) {
#pragma unroll
    for (int x = 1; x < 4; x <<= 1) {
      sum[0] += __shfl_xor_sync(~0u, sum[0], x);
      sum[1] += __shfl_xor_sync(~0u, sum[1], x);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const Partial p{{out[i][2 * r], out[i][2 * r + 1]}, most[r], sum[r]};
        store_partial(partial, row() + r * 8, i * 8 + column(), p);
      }
    }
  }
};

// Attends the rows to tiles [begin, end) of keys. place(key) gives where a key and its value lie, and
// visible(key, row) whether the row sees it; place must answer for the whole of the last tile.
template <int kWarps, int kStages, typename T, typename Place, typename Visible>
__device__ __forceinline__ void attend_tiles(RowTile<T>& rows, char* shared, int begin, int end, float scale,
                                             Place place, Visible visible) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  char* stages = shared + warp * (kStages * kStageBytes);
  const auto load = [&](int tile, int stage) {
    if (tile < end) {
#pragma unroll
      for (int i = 0; i < kTileBytes / (32 * 16); ++i) {
        const int chunk = lane % 8, row = i * 4 + lane / 8;
        char* to = stages + stage * kStageBytes + swizzled(row, chunk);
        const Rows<T> from = place(tile * kTileKeys + row);
        copy_async16(to, from.key + chunk * 8);
        copy_async16(to + kTileBytes, from.value + chunk * 8);
      }
    }
    copy_commit();  // also when empty, so that groups count stages
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) load(begin + warp + s * kWarps, s);
  int stage = 0;
  for (int tile = begin + warp; tile < end; tile += kWarps) {
    copy_wait<kStages - 1>();
    __syncwarp();
    rows.attend(stages + stage * kStageBytes, scale,
                [&](int key, int row) { return visible(tile * kTileKeys + key, row); });
    __syncwarp();  // every lane has read the stage that is filled again
    load(tile + kStages * kWarps, stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  copy_wait<0>();
}

// Merges the warps' results in shared memory and hands every pair of columns of rows [0, n_rows) to
// take(row, column, partial). The stages become the meeting place, and are free again on return.
template <int kWarps, typename T, typename Take>
__device__ __forceinline__ void merge_warps(RowTile<T>& rows, char* shared, int n_rows, Take take) {
  float* partials = reinterpret_cast<float*>(shared);
  __syncthreads();  // all warps are done with their stages
  rows.store(partials + threadIdx.x / 32 * (kTileRows * kPartialFloats));
  __syncthreads();
  for (int i = threadIdx.x; i < n_rows * (kTileHeadSize / 2); i += kWarps * 32) {
    const int row = i / (kTileHeadSize / 2), column = i % (kTileHeadSize / 2) * 2;
    Partial merged = load_partial(partials, row, column);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      add_partial(merged, load_partial(partials + w * (kTileRows * kPartialFloats), row, column));
    }
    take(row, column, merged);
  }
  __syncthreads();  // the stages are filled again
}

}  // namespace pegasus::cuda
