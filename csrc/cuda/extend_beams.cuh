// The state of a search after a step, a block per document.
//
// Rows move to where other rows have been, in place: a thread reads a column of all beams before it writes that column,
// and no other thread touches it. Everything else of a document is read before the block's one barrier and written
// after.
#pragma once
#include "cuda/common.cuh"
#include "cuda/extend_beams.h"

namespace pegasus::cuda {

constexpr int kExtendThreads = 256;

// What becomes of the rows of a document: row k gets what is in from[k], or stays where that is null.
template <int kBeams>
struct Moves {
  const int32_t* from[kBeams];
};

// One column of those rows, on its way.
template <int kBeams>
struct MovingColumn {
  int32_t value[kBeams];
  uint32_t moves = 0;

  // Volatile, lest the compiler hold the addresses of all rows in registers, for a loop that hardly ever turns twice.
  __device__ __forceinline__ MovingColumn(const volatile Moves<kBeams>& rows, int column, int n_columns) {
#pragma unroll
    for (int k = 0; k < kBeams; ++k) {
      const int32_t* from = column < n_columns ? rows.from[k] : nullptr;
      value[k] = from ? from[column] : 0;
      moves |= (from ? 1u : 0u) << k;
    }
  }
  __device__ __forceinline__ void store(int32_t* rows, int columns, int column) const {
#pragma unroll
    for (int k = 0; k < kBeams; ++k) {
      if (moves >> k & 1) rows[k * columns + column] = value[k];
    }
  }
};

// kBeams: at least the task's. Shared memory: three Moves.
template <int kBeams>
__global__ void __launch_bounds__(kExtendThreads) extend_beams_kernel(ExtendBeamsTask task) {
  PEGASUS_DYNAMIC_SHARED(shared);
  auto* moves = reinterpret_cast<Moves<kBeams>*>(shared);
  Moves<kBeams>&of_sequences = moves[0], &of_pool = moves[1], &of_ancestry = moves[2];
  const int beams = static_cast<int>(task.n_beams), beam = threadIdx.x;
  const int columns = static_cast<int>(task.columns), times = static_cast<int>(task.times);
  const int64_t document = blockIdx.x, first = document * beams, row = first + beam;
  const bool active = task.active[document], done = task.done[document], open = task.open[document];
  const int length = task.lengths[document], n_keys = task.n_keys[first];
  // All that a beam brings along, loaded together.
  int parent = beam, source = beam, token = 0, pool_token = 0;
  float score = 0.f, pool_score = 0.f;
  bool finished = false;
  if (beam < beams) {
    parent = task.parents[row];
    source = task.pool_source[row];
    token = task.tokens[row];
    pool_token = task.pool_tokens[row];
    score = task.scores[row];
    pool_score = task.pool_scores[row];
    finished = task.pool_finished[row];
  }
  if (!active) return;

  int32_t* sequences = task.sequences + first * columns;
  int32_t* pool = task.pool_sequences + first * columns;
  int32_t* ancestry = task.ancestry + first * times;
  const bool from_beam = source >= beams;
  if (beam < kBeams) {
    const bool stays = parent == beam;
    of_sequences.from[beam] = stays ? nullptr : sequences + parent * columns;
    of_ancestry.from[beam] = stays ? nullptr : ancestry + parent * times;
    of_pool.from[beam] = source == beam ? nullptr
                         : from_beam    ? sequences + (source - beams) * columns
                                        : pool + source * columns;
  }
  const int pool_length = beam >= beams ? 0 : from_beam ? length + 1 : task.pool_lengths[first + source];
  __syncthreads();

  if (beam < beams) {
    if (length < columns) {
      sequences[beam * columns + length] = token;
      if (pool_token >= 0) pool[beam * columns + length] = pool_token;
    }
    if (n_keys < times) ancestry[beam * times + n_keys] = static_cast<int32_t>(row);
    task.n_keys[row] = done ? 0 : n_keys + 1;
    task.next_tokens[row] = token;
    task.pool_lengths[row] = pool_length;
    task.kept_scores[row] = score;
    task.kept_pool_scores[row] = pool_score;
    task.kept_pool_finished[row] = finished;
  }
  if (threadIdx.x == 0) {
    task.lengths[document] = length + 1;
    task.kept_open[document] = open;
    if (done) {
      task.active[document] = false;
      task.source_length[document] = 0;
    }
  }
  const int longest = length > n_keys ? length : n_keys;
  for (int column = threadIdx.x; column < longest; column += kExtendThreads) {
    const MovingColumn<kBeams> in_sequences(of_sequences, column, length), in_pool(of_pool, column, length),
        in_ancestry(of_ancestry, column, n_keys);
    in_sequences.store(sequences, columns, column);
    in_pool.store(pool, columns, column);
    in_ancestry.store(ancestry, times, column);
  }
}

}  // namespace pegasus::cuda
