// The part of beam_step that follows the pass over the logits: a block per document ranks its candidates, picks the
// beams that go on and updates the pool of finished hypotheses.
#pragma once
#include "cuda/beam_rank.cuh"
#include "cuda/beam_step.h"

namespace pegasus::cuda {

constexpr double kBanished = -1.0e9;   // added to what must not be chosen; finite, so that order survives
constexpr int kSpareCandidates = 512;  // that may be collected beside those wanted

struct StepScratch : RankScratch {
  double divisor, future_divisor;  // of a sum of log-probabilities, by its length and the length that it may reach
  double running;                  // the best beam that goes on
  bool full;                       // the pool, before this step
  int all_hit;
};

// Where in a block's shared memory everything lies, in bytes.
struct StepLayout {
  int rows, keys, found, best, finals, kept, hit, kept_finished, bytes = 0;

  explicit StepLayout(const BeamStepTask& task) {
    const int k = task.n_beams, c = task.n_candidates;
    take<StepScratch>(1);
    rows = take<RowState>(k);
    keys = take<uint64_t>(task.keys ? 0 : k * task.scan.n_chunks);
    found = take<Candidate>(c + kSpareCandidates);
    best = take<Candidate>(c);
    finals = take<double>(k + c);
    kept = take<float>(k);
    hit = take<bool>(c);
    kept_finished = take<bool>(k);
  }

 private:
  template <typename E>
  int take(int64_t n) {
    const int at = bytes;
    bytes += static_cast<int>((n * static_cast<int64_t>(sizeof(E)) + 15) / 16 * 16);
    return at;
  }
};

// How many of values[0 : n] come before values[i], the largest first and equal ones in order.
template <typename Value>
__device__ __forceinline__ int rank_of(int i, int n, Value value) {
  const double mine = value(i);
  int rank = 0;
  for (int j = 0; j < n; ++j) {
    const double other = value(j);
    rank += other > mine || (other == mine && j < i);
  }
  return rank;
}

template <typename T>
__global__ void __launch_bounds__(kRankThreads, 2) beam_step_kernel(BeamStepTask task, StepLayout layout) {
  PEGASUS_DYNAMIC_SHARED(shared);
  StepScratch* scratch = reinterpret_cast<StepScratch*>(shared);
  Candidate* best = reinterpret_cast<Candidate*>(shared + layout.best);
  double* finals = reinterpret_cast<double*>(shared + layout.finals);
  float* kept = reinterpret_cast<float*>(shared + layout.kept);
  bool* hit = reinterpret_cast<bool*>(shared + layout.hit);
  bool* kept_finished = reinterpret_cast<bool*>(shared + layout.kept_finished);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, k = task.n_beams, c = task.n_candidates;
  const int64_t document = blockIdx.x, at = document * k;
  const int n_keys = k * static_cast<int>(task.scan.n_chunks);
  const int n_new = task.n_new[document], max_new = task.max_new[document];
  const bool open = task.open[document];

  Ranker<T> ranker{task.scan,
                   at,
                   k,
                   c,
                   n_keys,
                   c + kSpareCandidates,
                   scratch,
                   reinterpret_cast<RowState*>(shared + layout.rows),
                   task.keys ? task.keys + document * n_keys : reinterpret_cast<uint64_t*>(shared + layout.keys),
                   reinterpret_cast<Candidate*>(shared + layout.found),
                   best,
                   warp,
                   lane,
                   0};
  const int n_found = ranker.choose(ranker.prepare(task.scores, task.renormalize));
  // The first warps have candidates to rank meanwhile.
  if (warp == kRankWarps - 1) {
    bool full = true;
    for (int i = lane; i < k; i += 32) {
      full = full && task.pool_finished[at + i];
      finals[i] = task.pool_scores[at + i];
    }
    full = __all_sync(~0u, full);
    if (lane == 0) {
      const bool hopeful = task.early_stopping == 2 && task.length_penalty > 0.0;
      scratch->full = full;
      scratch->all_hit = 1;
      scratch->divisor = pow(static_cast<double>(n_new), task.length_penalty);
      scratch->future_divisor = hopeful ? pow(static_cast<double>(max_new), task.length_penalty) : scratch->divisor;
    }
  }
  ranker.rank(n_found);
  __syncthreads();

  for (int i = thread; i < c; i += kRankThreads) {
    bool ends = n_new >= max_new;
    for (int e = 0; e < task.n_eos; ++e) ends = ends || task.eos_ids[e] == best[i].token();
    hit[i] = ends;
    if (!ends) scratch->all_hit = 0;
    double value = best[i].value / scratch->divisor;
    if (scratch->full && task.early_stopping == 1) value += kBanished;
    if (!open) value += kBanished;
    if (!ends || i >= k) value += kBanished;
    finals[k + i] = clean(value);
  }
  __syncthreads();

  const auto running = [&](int i) { return best[i].value + (hit[i] ? kBanished : 0.0); };
  for (int i = thread; i < c; i += kRankThreads) {
    const int rank = rank_of(i, c, running);
    if (rank >= k) continue;
    task.out_scores[at + rank] = static_cast<float>(running(i));
    task.out_parents[at + rank] = best[i].beam();
    task.out_tokens[at + rank] = best[i].token();
    if (rank == 0) scratch->running = running(i);
  }
  for (int i = thread; i < k + c; i += kRankThreads) {
    const int rank = rank_of(i, k + c, [&](int j) { return finals[j]; });
    if (rank >= k) continue;
    const bool old = i < k;
    kept[rank] = static_cast<float>(finals[i]);
    kept_finished[rank] = old ? task.pool_finished[at + i] : hit[i - k] && i - k < k;
    task.out_pool_scores[at + rank] = kept[rank];
    task.out_pool_finished[at + rank] = kept_finished[rank];
    task.out_pool_source[at + rank] = old ? i : k + best[i - k].beam();
    task.out_pool_tokens[at + rank] = old ? -1 : best[i - k].token();
  }
  __syncthreads();

  if (warp != 0) return;
  float worst = INFINITY;
  bool all_finished = true, any_finished = false;
  for (int i = lane; i < k; i += 32) {
    worst = fminf(worst, kept[i]);
    all_finished = all_finished && kept_finished[i];
    any_finished = any_finished || kept_finished[i];
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) worst = fminf(worst, __shfl_xor_sync(~0u, worst, step));
  all_finished = __all_sync(~0u, all_finished);
  any_finished = __any_sync(~0u, any_finished);
  if (lane != 0) return;
  // Rounded like the pool, so that a running beam which ties with a hypothesis of the same length is no improvement.
  const float possible = static_cast<float>(scratch->running / scratch->future_divisor);
  // An entry that is not finished counts as kBanished, whatever its value.
  const bool improvable =
      (any_finished && possible > worst) || (!all_finished && possible > static_cast<float>(kBanished));
  task.out_open[document] = open && improvable;
  task.out_done[document] =
      !(open && improvable) || (task.early_stopping == 1 && all_finished) || scratch->all_hit != 0;
}

}  // namespace pegasus::cuda
