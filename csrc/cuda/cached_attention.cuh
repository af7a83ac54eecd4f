// Attention of a document's beams to their past on the tensor cores. Beams share most of it, so every row of the cache
// that some beam still sees is read once, and hidden from the beams that do not see it.
//
// One block per (document, head). It writes the newest rows, then takes times in runs: lists the distinct slots of a
// run's times with the beams that see each, in order of time, and attends to the list. Beams of a document meet in the
// same product, where a hidden value counts zero times: one that is not finite reaches all of them.
#pragma once
#include "cuda/row_tile.cuh"

namespace pegasus::cuda {

// Small blocks, eight on a multiprocessor: a typical past is four tiles, and waiting for them is what takes time.
constexpr int kCachedWarps = 2, kCachedStages = 2;
constexpr int kCachedThreads = kCachedWarps * 32, kCachedBlocks = 8;
constexpr int kCachedStageBytes = kCachedWarps * kCachedStages * kStageBytes;
constexpr int kLiveRows = kCachedThreads * 8;  // room in the list: a time for every thread, or for half of them

// A row of the cache and the beams that see it.
struct alignas(8) LiveRow {
  int32_t slot;
  uint16_t time;  // within the run
  uint16_t beams;
};

struct CachedShared {
  LiveRow live[kLiveRows];
  int lengths[kTileRows];
  int counts[kCachedWarps];
};
constexpr int kCachedSharedBytes = kCachedStageBytes + static_cast<int>(sizeof(CachedShared));

// Lists what the rows [first, first + n_rows) see of times [from, from + n_times), a time per thread; returns how many.
// The first barrier also waits for the warps that still read the list before.
__device__ __forceinline__ int list_live_rows(const AttentionTask& task, int64_t first, int n_rows, int from,
                                              int n_times, CachedShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = from + static_cast<int>(threadIdx.x);
  int32_t slots[kTileRows];  // -1 where nothing is seen
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const bool seen = r < n_rows && static_cast<int>(threadIdx.x) < n_times && t < shared.lengths[r];
    slots[r] = seen ? task.ancestry[(first + r) * task.ancestry_stride + t] : -1;
  }
  uint32_t firsts = 0;  // beams that are the first to see their slot
  int count = 0;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= n_rows) continue;
    bool is_first = slots[r] >= 0;
#pragma unroll
    for (int other = 0; other < r; ++other) is_first = is_first && slots[other] != slots[r];
    firsts |= static_cast<uint32_t>(is_first) << r;
    count += is_first;
  }
  int at = count;  // of this thread and those before it, then of those before it
#pragma unroll
  for (int x = 1; x < 32; x <<= 1) {
    const int before = __shfl_up_sync(~0u, at, x);
    at += lane >= x ? before : 0;
  }
  if (lane == 31) shared.counts[warp] = at;
  __syncthreads();
  at -= count;
  int total = 0;
#pragma unroll
  for (int w = 0; w < kCachedWarps; ++w) {
    at += w < warp ? shared.counts[w] : 0;
    total += shared.counts[w];
  }
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    if (!(firsts >> r & 1)) continue;
    uint32_t beams = 0;
#pragma unroll
    for (int other = r; other < kTileRows; ++other) beams |= static_cast<uint32_t>(slots[other] == slots[r]) << other;
    shared.live[at++] = {slots[r], static_cast<uint16_t>(threadIdx.x), static_cast<uint16_t>(beams)};
  }
  __syncthreads();
  return total;
}

// Grid: B * H.
template <typename T>
__global__ void __launch_bounds__(kCachedThreads, kCachedBlocks) cached_attention_kernel(AttentionTask task) {
  PEGASUS_DYNAMIC_SHARED(stages);
  CachedShared& shared = *reinterpret_cast<CachedShared*>(stages + kCachedStageBytes);
  const DocumentHead work = document_head(task);
  const int64_t document = work.document, head = work.head;
  const int64_t begin = task.query_begin[document], end = task.query_begin[document + 1];
  append_newest<T, Bytes16>(task, begin, end, head, kTileHeadSize);
  const Rows<T> rows = rows_of<T>(task, document, head);

  for (int64_t first = begin; first < end; first += kTileRows) {
    const int n_rows = static_cast<int>(end - first < kTileRows ? end - first : kTileRows);
    RowTile<T> tile;
    tile.load_query(task, first, n_rows, head);
    tile.start();
    if (threadIdx.x < kTileRows) {
      shared.lengths[threadIdx.x] = static_cast<int>(threadIdx.x) < n_rows ? task.n_keys[first + threadIdx.x] : 0;
    }
    __syncthreads();  // the newest rows are in the cache as well
    int longest = 0;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) longest = longest < shared.lengths[r] ? shared.lengths[r] : longest;
    const int n_times = n_rows <= kTileRows / 2 ? kCachedThreads : kCachedThreads / 2;
    for (int from = 0; from < longest; from += n_times) {
      const int n_live = list_live_rows(task, first, n_rows, from, n_times, shared);
      const auto place = [&](int i) {
        const LiveRow live = shared.live[i < n_live ? i : n_live - 1];
        const int64_t slot = live.slot, t = from + live.time;
        return Rows<T>{rows.key + slot * task.key_slot_stride + t * rows.key_stride,
                       rows.value + slot * task.value_slot_stride + t * rows.value_stride, 0, 0};
      };
      const auto visible = [&](int i, int row) { return i < n_live && shared.live[i].beams >> row & 1; };
      attend_tiles<kCachedWarps, kCachedStages>(tile, stages, 0, (n_live + kTileKeys - 1) / kTileKeys,
                                                task.scale * kLog2E, place, visible);
    }
    merge_warps<kCachedWarps>(tile, stages, n_rows, [&](int row, int column, const Partial& p) {
      write_result<T>(task, first + row, head, column, p, shared.lengths[row] > 0);
    });
  }
}

}  // namespace pegasus::cuda
