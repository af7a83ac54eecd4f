// Attention of a document's query rows to its keys on the tensor cores: the encoder's packed rows, or the beams of a
// document, which read its panels once for all of them.
//
// One block per (document, head, pass of 16 rows). Keys are taken in chunks of kChunkKeys whose results are added up in
// order, so a document has the same bits whether one block walks its chunks or each has a block of its own (few long
// documents), and whatever else is in the call.
#pragma once
#include "cuda/row_tile.cuh"

namespace pegasus::cuda {

constexpr int kSourceWarps = 4, kSourceStages = 3;
constexpr int kSourceStageBytes = kSourceWarps * kSourceStages * kStageBytes;
constexpr int kSourceSharedBytes =
    kSourceStageBytes + kPartialBytes;  // 52.5 KiB: four blocks on a Hopper multiprocessor

__device__ __forceinline__ int chunks_of(int n_keys) {
  return (n_keys + kChunkKeys - 1) / kChunkKeys;
}

// Whether a document's chunks have blocks of their own, and meet in task.partials.
__device__ __forceinline__ bool is_shared_out(const AttentionTask& task, int n_keys, int64_t n_rows) {
  return task.partials && n_keys > kChunkKeys && chunks_of(n_keys) <= task.n_chunks && n_rows <= kTileRows;
}

__device__ __forceinline__ float* partial_of(const AttentionTask& task, int64_t document, int64_t chunk, int64_t head) {
  return task.partials + ((document * task.n_chunks + chunk) * task.n_heads + head) * (kTileRows * kPartialFloats);
}

// Grid: (B * H, chunks if task.partials, else passes).
template <typename T>
__global__ void __launch_bounds__(kSourceWarps * 32) attention_kernel(AttentionTask task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  const DocumentHead work = document_head(task);
  const int64_t document = work.document, head = work.head;
  const int n_keys = task.n_keys[document];
  const int64_t begin = task.query_begin[document], end = task.query_begin[document + 1];
  const bool shared_out = is_shared_out(task, n_keys, end - begin);
  const int first_chunk = shared_out ? blockIdx.y : 0;
  if (shared_out && first_chunk >= chunks_of(n_keys)) return;
  if (!shared_out && task.partials && blockIdx.y > 0) return;
  const int end_chunk = shared_out ? first_chunk + 1 : chunks_of(n_keys);
  const int64_t first_pass = task.partials ? 0 : blockIdx.y, passes = task.partials ? 1 : gridDim.y;

  const Rows<T> rows = rows_of<T>(task, document, head);
  const auto place = [&](int t) {
    const int key = t < n_keys ? t : n_keys - 1;  // readable memory; its score is hidden
    return Rows<T>{rows.key + key * rows.key_stride, rows.value + key * rows.value_stride, 0, 0};
  };
  const auto visible = [&](int t, int) { return t < n_keys; };
  float* total = reinterpret_cast<float*>(shared + kSourceStageBytes);

  for (int64_t first = begin + first_pass * kTileRows; first < end; first += passes * kTileRows) {
    const int n_rows = static_cast<int>(end - first < kTileRows ? end - first : kTileRows);
    RowTile<T> tile;
    tile.load_query(task, first, n_rows, head);
    int chunk = first_chunk;
    do {  // also for a document without keys: its rows become zeros
      const int from = chunk * kChunkKeys, to = n_keys < from + kChunkKeys ? n_keys : from + kChunkKeys;
      tile.start();
      attend_tiles<kSourceWarps, kSourceStages>(tile, shared, from / kTileKeys, (to + kTileKeys - 1) / kTileKeys,
                                                task.scale * kLog2E, place, visible);
      merge_warps<kSourceWarps>(tile, shared, n_rows, [&](int row, int column, Partial p) {
        if (shared_out) return store_partial(partial_of(task, document, chunk, head), row, column, p);
        if (chunk > 0) {
          Partial sum = load_partial(total, row, column);
          __syncwarp();  // a row is one warp's, whose first lane writes the maximum for all
          add_partial(sum, p);
          p = sum;
        }
        if (chunk + 1 >= end_chunk) return write_result<T>(task, first + row, head, column, p, n_keys > 0);
        store_partial(total, row, column, p);
      });
    } while (++chunk < end_chunk);
  }
}

// Adds up the chunks that had blocks of their own. Grid: B * H.
template <typename T>
__global__ void __launch_bounds__(kSourceWarps * 32) merge_chunks_kernel(AttentionTask task) {
  const DocumentHead work = document_head(task);
  const int64_t document = work.document, head = work.head;
  const int n_keys = task.n_keys[document];
  const int64_t begin = task.query_begin[document], n_rows = task.query_begin[document + 1] - begin;
  if (!is_shared_out(task, n_keys, n_rows)) return;
  for (int i = threadIdx.x; i < n_rows * (kTileHeadSize / 2); i += kSourceWarps * 32) {
    const int row = i / (kTileHeadSize / 2), column = i % (kTileHeadSize / 2) * 2;
    Partial sum = load_partial(partial_of(task, document, 0, head), row, column);
    for (int chunk = 1; chunk < chunks_of(n_keys); ++chunk) {
      add_partial(sum, load_partial(partial_of(task, document, chunk, head), row, column));
    }
    write_result<T>(task, begin + row, head, column, sum, true);
  }
}

}  // namespace pegasus::cuda
