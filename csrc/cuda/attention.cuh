// Decoder attention: the beams of a document are the 16 rows of the tensor core's tile, so its keys and values are read
// once for all of them.
//
// One block per (document, head); each warp walks its own 16-key tiles (tile = warp, warp + kWarps, ...) through a ring
// of kStages shared-memory stages, so the main loop has no block barrier. Running maximum and denominator per row in
// base 2; the warps' partial results meet in shared memory at the end. A document of more than 16 rows takes several
// passes.
//
// Bound by memory, not by arithmetic: padding 8 beams to 16 rows costs nothing.
#pragma once
#include "cuda/attention.h"
#include "cuda/common.cuh"

namespace pegasus::cuda {

constexpr int kRowsPerPass = 16;
constexpr int kTileKeys = 16;
constexpr int kTileBytes = kTileKeys * kHeadSize * 2;  // of keys, and again of values
constexpr int kStageBytes = 2 * kTileBytes;
constexpr int kRowBytes = kHeadSize * 2;
constexpr float kLog2E = 1.4426950408889634f;
// Below every score that can occur, yet finite: the difference of two of them is 0, not NaN.
constexpr float kHidden = -1e30f;

constexpr int attention_shared_bytes(int warps, int stages) {
  return warps * stages * kStageBytes;
}

// Byte offset of a 16-byte chunk in a tile. The exclusive or spreads a column of chunks over all banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Element offset of a document's t-th key or value.
template <bool kCached>
__device__ __forceinline__ int64_t key_offset(const AttentionTask& task, int64_t document, int t, int64_t stride,
                                              int64_t slot_stride) {
  if (kCached) return task.ancestry[document * task.ancestry_stride + t] * slot_stride + t * stride;
  return (task.key_begin[document] + int64_t{t}) * stride;
}

// kCached: each row is a document and finds its keys through its ancestry.
template <bool kCached, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32) attention_kernel(AttentionTask task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t document = blockIdx.x, head = blockIdx.y;
  const int n_keys = task.n_keys[document];
  const int64_t rows_begin = kCached ? document : task.query_begin[document];
  const int64_t rows_end = kCached ? document + 1 : task.query_begin[document + 1];
  const uint16_t* keys = task.key + head * kHeadSize;
  const uint16_t* values = task.value + head * kHeadSize;
  const float scale = task.scale * kLog2E;
  char* stages = shared + warp * (kStages * kStageBytes);
  const int n_tiles = (n_keys + kTileKeys - 1) / kTileKeys;

  const auto load_tile = [&](int tile, int stage) {
    if (tile < n_tiles) {
#pragma unroll
      for (int i = 0; i < kTileBytes / (32 * 16); ++i) {
        const int chunk = (i * 32 + lane) % 8, row = (i * 32 + lane) / 8;
        int t = tile * kTileKeys + row;
        if (t >= n_keys) t = n_keys - 1;  // readable memory; the scores are hidden below
        char* to = stages + stage * kStageBytes + swizzled(row, chunk);
        copy_async16(to,
                     keys + key_offset<kCached>(task, document, t, task.key_stride, task.key_slot_stride) + chunk * 8);
        copy_async16(
            to + kTileBytes,
            values + key_offset<kCached>(task, document, t, task.value_stride, task.value_slot_stride) + chunk * 8);
      }
    }
    copy_commit();  // also when empty, so that groups count stages
  };

  // Where the tensor core's fragments put this lane: rows r0 and r0 + 8, columns c0 and c0 + 1 of each 8.
  const int r0 = lane >> 2, c0 = (lane & 3) * 2;
  const int matrix = lane >> 3, matrix_row = lane & 7;

  for (int64_t first = rows_begin; first < rows_end; first += kRowsPerPass) {
    const int n_rows = static_cast<int>(rows_end - first < kRowsPerPass ? rows_end - first : kRowsPerPass);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) load_tile(warp + s * kWarps, s);

    uint32_t query[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = r0 + (e & 1) * 8, c = step * 16 + c0 + (e >> 1) * 8;
        const uint16_t* q = task.query + (first + r) * task.query_stride + head * kHeadSize + c;
        query[step][e] = r < n_rows ? *reinterpret_cast<const uint32_t*>(q) : 0u;
      }
    }
    float out[8][4] = {}, most[2] = {kHidden, kHidden}, sum[2] = {0.f, 0.f};
    int stage = 0;
    for (int tile = warp; tile < n_tiles; tile += kWarps) {
      copy_wait<kStages - 2>();
      __syncwarp();
      load_tile(tile + (kStages - 1) * kWarps, (stage + kStages - 1) % kStages);
      const char* key_tile = stages + stage * kStageBytes;
      const char* value_tile = key_tile + kTileBytes;

      float score[2][4] = {};  // keys 0-7 and 8-15
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t b[4];  // (keys 0-7, low d), (keys 0-7, high d), (keys 8-15, low d), (keys 8-15, high d)
        load_matrices(b, key_tile + swizzled((matrix >> 1) * 8 + matrix_row, step * 2 + (matrix & 1)));
        multiply_16x8x16(score[0], query[step], b);
        multiply_16x8x16(score[1], query[step], b + 2);
      }
      float high[2] = {most[0], most[1]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int t = tile * kTileKeys + half * 8 + c0 + (e & 1);
          score[half][e] = t < n_keys ? score[half][e] * scale : kHidden;
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
      const uint32_t weights[4] = {pack_bf16(score[0][0], score[0][1]), pack_bf16(score[0][2], score[0][3]),
                                   pack_bf16(score[1][0], score[1][1]), pack_bf16(score[1][2], score[1][3])};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t b[4];  // (keys 0-7, low d), (keys 8-15, low d), (keys 0-7, high d), (keys 8-15, high d)
        load_matrices_transposed(b, value_tile + swizzled((matrix & 1) * 8 + matrix_row, step * 2 + (matrix >> 1)));
        multiply_16x8x16(out[step * 2], weights, b);
        multiply_16x8x16(out[step * 2 + 1], weights, b + 2);
      }
      __syncwarp();  // every lane has read the stage that the next round overwrites
      stage = (stage + 1) % kStages;
    }
    copy_wait<0>();
#pragma unroll
    for (int x = 1; x < 4; x <<= 1) {
      sum[0] += __shfl_xor_sync(~0u, sum[0], x);
      sum[1] += __shfl_xor_sync(~0u, sum[1], x);
    }
    __syncthreads();  // the stages become the meeting place

    // Per warp and row: 64 sums, the maximum, the denominator.
    constexpr int kRecord = kHeadSize + 2, kMax = kHeadSize, kSum = kHeadSize + 1;
    float* records = reinterpret_cast<float*>(shared);
    float* mine = records + warp * (kRowsPerPass * kRecord);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) mine[(r0 + (e >> 1) * 8) * kRecord + i * 8 + c0 + (e & 1)] = out[i][e];
    }
    if ((lane & 3) == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        mine[(r0 + r * 8) * kRecord + kMax] = most[r];
        mine[(r0 + r * 8) * kRecord + kSum] = sum[r];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_rows * (kHeadSize / 2); i += kWarps * 32) {
      const int r = i / (kHeadSize / 2), c = (i % (kHeadSize / 2)) * 2;
      float highest = kHidden, total = 0.f, x = 0.f, y = 0.f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, records[(w * kRowsPerPass + r) * kRecord + kMax]);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float* record = records + (w * kRowsPerPass + r) * kRecord;
        const float factor = exp2_fast(record[kMax] - highest);
        total += record[kSum] * factor;
        x += record[c] * factor;
        y += record[c + 1] * factor;
      }
      const float inverse = n_keys > 0 ? 1.f / total : 0.f;  // a document without keys yields zeros
      uint16_t* to = task.out + ((first + r) * task.n_heads + head) * kHeadSize + c;
      *reinterpret_cast<uint32_t*>(to) = pack_bf16(x * inverse, y * inverse);
    }
    __syncthreads();  // the next pass reuses the stages
  }
}

}  // namespace pegasus::cuda
