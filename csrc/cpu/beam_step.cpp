// One step of beam search. Per row: a single read of the logits gives chunk maxima and the normaliser. Per document: an
// untouched token among the C best lies in a chunk whose maximum is at least the C-th best chunk maximum, so only those
// few chunks are read again. Tokens that edits touch are left out of the chunks and take part one by one.
#include "cpu/beam_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/isa.h"

namespace pegasus::cpu {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr double kBanished = -1.0e9;  // added to what must not be chosen; finite, so that order survives

struct Candidate {
  double value;
  int32_t beam, token;
};

// The order that every implementation promises.
bool better(const Candidate& a, const Candidate& b) {
  if (a.value != b.value) return a.value > b.value;
  return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
}

double clean(double x) {
  return std::isnan(x) ? kNever : x;
}

struct RowState {
  double log_sum;         // of the logits
  double edited_log_sum;  // of the log-probabilities after edits; 0 unless renormalised
  double score;           // of the beam so far
  bool dead;              // every untouched token is -inf
  int64_t n_touched;

  double candidate(float logit) const {
    return dead ? kNever : clean(((double{logit} - log_sum) - edited_log_sum) + score);
  }
};

// The workspace, cut into arrays. Every row r has room for its edits and a forced token, from edit_begin[r] + r on.
struct Workspace {
  RowState* rows;         // [R]
  float* chunk_max;       // [R, chunks], without touched tokens
  int32_t* touched;       // [n_edits + R] tokens, ascending and unique within a row
  double* touched_value;  // [n_edits + R] their log-probabilities after edits
  int32_t* order;         // [n_edits] edits of a row by (token, position)
  Candidate* best;        // [B, C]
  double* bounds;         // [B, C]
  Candidate* merged;      // [B, K + C]
  bool* hit;              // [B, C]

  size_t bytes;

  explicit Workspace(const BeamTask& task) {
    const int64_t rows_ = task.rows(), c = task.candidates(), touches = task.n_edits + rows_;
    const int64_t chunks = (task.vocabulary + kChunk - 1) / kChunk;
    bytes = 0;
    char* base = static_cast<char*>(task.workspace);
    take(base, rows, rows_);
    take(base, chunk_max, rows_ * chunks);
    take(base, touched, touches);
    take(base, touched_value, touches);
    take(base, order, task.n_edits);
    take(base, best, task.n_documents * c);
    take(base, bounds, task.n_documents * c);
    take(base, merged, task.n_documents * (task.n_beams + c));
    take(base, hit, task.n_documents * c);
  }

 private:
  template <typename T>
  void take(char* base, T*& array, int64_t n) {
    array = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += (n * sizeof(T) + 63) / 64 * 64;
  }
};

// log of a sum of e^x, fed by terms of any size.
struct LogSum {
  double max = kNever, sum = 0.0;

  void add(double x, double weight = 1.0) {  // weight * e^x
    if (x == kNever || weight == 0.0) return;
    if (x > max) {
      sum = sum * std::exp(max - x) + weight;
      max = x;
    } else {
      sum += x == max ? weight : weight * std::exp(x - max);
    }
  }
  void add(const ChunkStats& chunk) { add(chunk.max, std::isinf(chunk.max) ? 1.0 : chunk.sum_exp); }
  double value() const { return max == kNever || std::isinf(max) ? max : max + std::log(sum); }
};

float logit_at(const BeamTask& task, int64_t row, int64_t token) {
  const int64_t at = row * task.logits_stride + token;
  if (!task.bf16) return static_cast<const float*>(task.logits)[at];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(task.logits)[at]} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

const void* logits_at(const BeamTask& task, int64_t row, int64_t token) {
  return static_cast<const char*>(task.logits) + (row * task.logits_stride + token) * (task.bf16 ? 2 : 4);
}

double edited(double s, int32_t kind, double v) {
  if (kind == kSet) return v;
  if (s == kNever) return s;
  if (kind == kPenalize) return s < 0 ? s * v : s / v;
  return kind == kAdd ? s + v : s + std::fabs(s) * v;
}

// Fills chunk maxima, touched tokens with their final log-probabilities, and the row's normalisers.
void scan_row(const BeamTask& task, const Workspace& work, const Kernels& kernels, int64_t row) {
  const int64_t begin = task.edit_begin[row], end = task.edit_end[row], n_edits = end - begin;
  const int64_t chunks = (task.vocabulary + kChunk - 1) / kChunk;
  const int32_t forced = task.forced[row];
  float* chunk_max = work.chunk_max + row * chunks;
  RowState& state = work.rows[row];
  state.score = task.scores[row];
  state.edited_log_sum = 0.0;

  int32_t* order = work.order + begin;
  for (int64_t i = 0; i < n_edits; ++i) order[i] = static_cast<int32_t>(begin + i);
  std::sort(order, order + n_edits, [&](int32_t a, int32_t b) {
    return task.edit_token[a] != task.edit_token[b] ? task.edit_token[a] < task.edit_token[b] : a < b;
  });
  int32_t* touched = work.touched + begin + row;
  double* value = work.touched_value + begin + row;
  int64_t n = 0;
  for (int64_t i = 0; i < n_edits; ++i) {
    const int32_t token = task.edit_token[order[i]];
    if (n == 0 || touched[n - 1] != token) touched[n++] = token;
  }
  if (forced >= 0) {
    int32_t* at = std::lower_bound(touched, touched + n, forced);
    if (at == touched + n || *at != forced) {
      std::copy_backward(at, touched + n, touched + n + 1);
      *at = forced;
      ++n;
    }
  }
  state.n_touched = n;

  LogSum rest;  // of the untouched logits; needed to normalise again
  if (forced >= 0) {
    state.dead = true;
    state.log_sum = 0.0;
    std::fill(chunk_max, chunk_max + chunks, static_cast<float>(kNever));
    for (int64_t i = 0; i < n; ++i) value[i] = touched[i] == forced ? 0.0 : kNever;
  } else {
    // The normaliser comes from whole chunks, touched tokens included: so an edit moves no bit of the other tokens, and
    // beams with equal logits stay tied.
    LogSum all;
    int32_t skip[kChunk];
    int64_t next = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * kChunk, size = std::min<int64_t>(kChunk, task.vocabulary - first);
      const void* logits = logits_at(task, row, first);
      ChunkStats stats = kernels.scan_chunk(logits, task.bf16, size, nullptr, 0);
      all.add(stats);
      int64_t n_skip = 0;
      for (; next < n && touched[next] < first + size; ++next)
        skip[n_skip++] = static_cast<int32_t>(touched[next] - first);
      if (n_skip) stats = kernels.scan_chunk(logits, task.bf16, size, skip, n_skip);
      if (task.renormalize) rest.add(stats);
      chunk_max[chunk] = stats.max;
    }
    for (int64_t i = 0; i < n; ++i) value[i] = clean(logit_at(task, row, touched[i]));
    state.log_sum = all.value();
    // A row of -inf, or one with +inf, has no distribution: inf - inf is NaN, which counts as -inf.
    state.dead = !std::isfinite(state.log_sum);
    for (int64_t i = 0; i < n; ++i) value[i] = clean(value[i] - state.log_sum);
  }
  for (int64_t i = 0, edit = 0; i < n; ++i) {
    for (; edit < n_edits && task.edit_token[order[edit]] == touched[i]; ++edit) {
      value[i] = edited(value[i], task.edit_kind[order[edit]], task.edit_value[order[edit]]);
    }
    value[i] = clean(value[i]);
  }
  if (!task.renormalize) return;
  LogSum all;
  if (!state.dead) all.add(rest.max - state.log_sum, rest.sum);
  for (int64_t i = 0; i < n; ++i) all.add(value[i]);
  state.edited_log_sum = all.value();
  state.dead = state.dead || !std::isfinite(state.edited_log_sum);
  for (int64_t i = 0; i < n; ++i) value[i] = clean(value[i] - state.edited_log_sum);
}

// The n best candidates offered so far, the worst on top of a heap.
struct Ranking {
  Candidate* heap;
  int64_t capacity, size = 0;

  bool wants(const Candidate& c) const { return size < capacity || better(c, heap[0]); }
  void offer(const Candidate& c) {
    if (!wants(c)) return;
    if (size == capacity) std::pop_heap(heap, heap + size--, better);
    heap[size++] = c;
    std::push_heap(heap, heap + size, better);
  }
  double worst() const { return size < capacity ? kNever : heap[0].value; }
};

// The n-th largest of the chunk maxima as candidates, or -inf if there are fewer.
double chunk_bound(const BeamTask& task, const Workspace& work, int64_t document, int64_t n, double* heap) {
  const int64_t chunks = (task.vocabulary + kChunk - 1) / kChunk, first_row = document * task.n_beams;
  const auto larger = [](double a, double b) { return a > b; };
  int64_t size = 0;
  for (int64_t row = first_row; row < first_row + task.n_beams; ++row) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double value = work.rows[row].candidate(work.chunk_max[row * chunks + chunk]);
      if (size == n) {
        if (value <= heap[0]) continue;
        std::pop_heap(heap, heap + size--, larger);
      }
      heap[size++] = value;
      std::push_heap(heap, heap + size, larger);
    }
  }
  return size < n ? kNever : heap[0];
}

// Offers the untouched tokens of one chunk that reach the bound.
void offer_chunk(const BeamTask& task, const Workspace& work, const Kernels& kernels, int64_t document, int64_t beam,
                 int64_t chunk, double bound, Ranking* ranking) {
  const int64_t row = document * task.n_beams + beam, first = chunk * kChunk;
  const int64_t size = std::min<int64_t>(kChunk, task.vocabulary - first);
  const RowState& state = work.rows[row];
  const int32_t* touched = work.touched + task.edit_begin[row] + row;
  const int32_t* touched_end = touched + state.n_touched;
  const auto offer = [&](int32_t token, double value) {
    if (!std::binary_search(touched, touched_end, token)) {
      ranking->offer({value, static_cast<int32_t>(beam), token});
    }
  };
  if (state.dead) {
    for (int64_t token = first; token < first + size; ++token) {
      const int32_t id = static_cast<int32_t>(token);
      if (!ranking->wants({kNever, static_cast<int32_t>(beam), id})) return;  // nor any later one
      offer(id, kNever);
    }
    return;
  }
  bound = std::max(bound, ranking->worst());
  // The bound as a logit, a little too low so that rounding loses nobody; the exact comparison follows in double.
  const double logit = ((bound - state.score) + state.edited_log_sum) + state.log_sum;
  const double slack =
      1e-12 * (std::fabs(bound) + std::fabs(state.score) + std::fabs(state.edited_log_sum) + std::fabs(state.log_sum));
  float limit = static_cast<float>(logit - slack);
  limit = std::isfinite(limit) ? std::nextafterf(limit, static_cast<float>(kNever)) : static_cast<float>(kNever);
  int16_t positions[kChunk];
  const int found = kernels.find_at_least(logits_at(task, row, first), task.bf16, size, limit, positions);
  for (int i = 0; i < found; ++i) {
    const int64_t token = first + positions[i];
    offer(static_cast<int32_t>(token), state.candidate(static_cast<float>(clean(logit_at(task, row, token)))));
  }
}

// Writes the C best candidates of a document to `best`, best first.
void rank_candidates(const BeamTask& task, const Workspace& work, const Kernels& kernels, int64_t document,
                     Candidate* best) {
  const int64_t c = task.candidates(), chunks = (task.vocabulary + kChunk - 1) / kChunk;
  Ranking ranking{best, c};
  for (int64_t beam = 0; beam < task.n_beams; ++beam) {
    const int64_t row = document * task.n_beams + beam, at = task.edit_begin[row] + row;
    const RowState& state = work.rows[row];
    for (int64_t i = at; i < at + state.n_touched; ++i) {
      ranking.offer({clean(work.touched_value[i] + state.score), static_cast<int32_t>(beam), work.touched[i]});
    }
  }
  const double bound = chunk_bound(task, work, document, c, work.bounds + document * c);
  for (int64_t beam = 0; beam < task.n_beams; ++beam) {
    const int64_t row = document * task.n_beams + beam;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double most = work.rows[row].candidate(work.chunk_max[row * chunks + chunk]);
      const Candidate first{most, static_cast<int32_t>(beam), static_cast<int32_t>(chunk * kChunk)};
      if (most < bound || !ranking.wants(first)) continue;
      offer_chunk(task, work, kernels, document, beam, chunk, bound, &ranking);
    }
  }
  std::sort_heap(best, best + c, better);
}

// Candidates in `merged` name their position in `token`, so that equal values keep their order.
void choose_document(const BeamTask& task, const Workspace& work, const Kernels& kernels, int64_t document) {
  const int64_t k = task.n_beams, c = task.candidates(), at = document * k;
  Candidate* best = work.best + document * c;
  bool* hit = work.hit + document * c;
  Candidate* merged = work.merged + document * (k + c);
  rank_candidates(task, work, kernels, document, best);

  const bool out_of_room = task.n_new[document] >= task.max_new[document];
  bool all_hit = true;
  for (int32_t i = 0; i < c; ++i) {
    hit[i] =
        out_of_room || std::find(task.eos_ids, task.eos_ids + task.n_eos, best[i].token) != task.eos_ids + task.n_eos;
    all_hit = all_hit && hit[i];
    merged[i] = {best[i].value + (hit[i] ? kBanished : 0.0), 0, i};
  }
  std::partial_sort(merged, merged + k, merged + c, better);
  const double running = merged[0].value;
  for (int64_t i = 0; i < k; ++i) {
    task.out_scores[at + i] = static_cast<float>(merged[i].value);
    task.out_parents[at + i] = best[merged[i].token].beam;
    task.out_tokens[at + i] = best[merged[i].token].token;
  }

  bool full = true;
  for (int32_t i = 0; i < k; ++i) {
    full = full && task.pool_finished[at + i];
    merged[i] = {task.pool_scores[at + i], 0, i};
  }
  const bool open = task.open[document];
  const double divisor = std::pow(static_cast<double>(task.n_new[document]), task.length_penalty);
  for (int32_t i = 0; i < c; ++i) {
    double value = best[i].value / divisor;
    if (full && task.early_stopping == 1) value += kBanished;
    if (!open) value += kBanished;
    if (!hit[i] || i >= k) value += kBanished;
    merged[k + i] = {clean(value), 0, static_cast<int32_t>(k + i)};
  }
  std::partial_sort(merged, merged + k, merged + k + c, better);
  bool all_finished = true, any_finished = false;
  float worst = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < k; ++i) {
    const int64_t source = merged[i].token, rank = source - k;
    const bool old = rank < 0, finished = old ? task.pool_finished[at + source] : hit[rank] && rank < k;
    task.out_pool_scores[at + i] = static_cast<float>(merged[i].value);
    task.out_pool_finished[at + i] = finished;
    task.out_pool_source[at + i] = static_cast<int32_t>(old ? source : k + best[rank].beam);
    task.out_pool_tokens[at + i] = old ? -1 : best[rank].token;
    worst = std::min(worst, task.out_pool_scores[at + i]);
    all_finished = all_finished && finished;
    any_finished = any_finished || finished;
  }

  const bool hopeful = task.early_stopping == 2 && task.length_penalty > 0.0;
  const double length = hopeful ? task.max_new[document] : task.n_new[document];
  // Rounded like the pool, so that a running beam which ties with a hypothesis of the same length is no improvement.
  const float possible = static_cast<float>(running / std::pow(length, task.length_penalty));
  // An entry that is not finished counts as kBanished, whatever its value.
  const bool improvable =
      (any_finished && possible > worst) || (!all_finished && possible > static_cast<float>(kBanished));
  task.out_open[document] = open && improvable;
  task.out_done[document] = !(open && improvable) || (task.early_stopping == 1 && all_finished) || all_hit;
}

}  // namespace

size_t beam_step_workspace(const BeamTask& task) {
  return Workspace(task).bytes;
}

void beam_step(const BeamTask& task) {
  const Workspace work(task);
  const Kernels& kernels = cpu::kernels();
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t row = 0; row < task.rows(); ++row) scan_row(task, work, kernels, row);
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    choose_document(task, work, kernels, document);
  }
}

}  // namespace pegasus::cpu
