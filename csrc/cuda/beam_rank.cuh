// The best candidates of one document, exactly: by value, then beam, then token.
//
// An untouched token among the C best lies in a chunk whose maximum is at least the C-th best chunk maximum, so a
// bisection over the chunk maxima leaves a few chunks to read again, and the tokens in them that reach the bound are
// ranked by counting. Mass ties and fewer live chunks than candidates leave too many: then the bisection goes on over
// the tokens.
#pragma once
#include "cuda/row_scan.cuh"

namespace pegasus::cuda {

constexpr int kRankWarps = 8;
constexpr int kRankThreads = kRankWarps * 32;
constexpr double kNever = -INFINITY;

__device__ __forceinline__ double clean(double x) {
  return x != x ? kNever : x;
}
__device__ __forceinline__ bool is_finite(double x) {
  return fabs(x) < INFINITY;
}

// A number that orders as the value does, equal where values are equal; no value may be NaN.
__device__ __forceinline__ uint64_t order_key(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));  // -0.0 + 0.0 is 0.0
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}
__device__ __forceinline__ double value_of(uint64_t key) {
  return __longlong_as_double(static_cast<long long>(key >> 63 ? key & ~(uint64_t{1} << 63) : ~key));
}
constexpr uint64_t kNeverKey = 0x000fffffffffffff;   // of -inf: below it are only those of NaN
constexpr uint64_t kBeyondKey = 0xfff0000000000001;  // above that of +inf

struct Candidate {
  double value;
  uint64_t place;  // beam, token: 32 bits each

  __device__ Candidate(double value_, int beam, int64_t token)
      : value(value_), place(static_cast<uint64_t>(beam) << 32 | static_cast<uint64_t>(token)) {}
  __device__ int32_t beam() const { return static_cast<int32_t>(place >> 32); }
  __device__ int32_t token() const { return static_cast<int32_t>(place & 0xffffffffu); }
  __device__ bool before(const Candidate& other) const {
    return value > other.value || (value == other.value && place < other.place);
  }
};

struct RowState {
  double log_sum;         // of the logits
  double edited_log_sum;  // of the log-probabilities after edits; 0 unless renormalised
  double score;           // of the beam so far
  int begin, end;         // of its touches
  int forced;
  bool forced_apart;  // no edit touches the forced token
  bool dead;          // every untouched token is -inf

  // The value that a log-probability after edits gives its token.
  __device__ double total(double log_probability) const {
    return clean(clean(log_probability - edited_log_sum) + score);
  }
  __device__ double candidate(float logit) const { return dead ? kNever : total(clean(logit - log_sum)); }

  // A logit below which no candidate reaches the bound: rounding loses nobody, the exact comparison follows.
  __device__ float lowest_logit(double bound) const {
    const double size = fabs(bound) + fabs(score) + fabs(edited_log_sum) + fabs(log_sum);
    const float lowest = static_cast<float>(((bound - score) + edited_log_sum) + log_sum - 1e-12 * size);
    return fabsf(lowest) < INFINITY ? nextafterf(lowest, kLowest) : kLowest;
  }
};

// What a block needs of shared memory, whatever the sizes.
struct RankScratch {
  uint32_t marks[kRankWarps][kChunkWords];
  int counts[2][kRankWarps];
  uint64_t highest[kRankWarps];
  int n_found;
};

// log of the warp's sum of weight * e^x over terms(f), which calls f(x, weight) for each of the lane's own.
template <typename Terms>
__device__ __forceinline__ double warp_log_sum(Terms terms) {
  double most = kNever, sum = 0.0;
  terms([&](double x, double) { most = fmax(most, x); });
#pragma unroll
  for (int step = 16; step; step >>= 1) most = fmax(most, __shfl_xor_sync(~0u, most, step));
  if (!is_finite(most)) return most;
  terms([&](double x, double weight) { sum += weight * exp(x - most); });
#pragma unroll
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  return most + log(sum);
}

// The threads of a block at work on one document. Methods are called by all of them.
template <typename T>
struct Ranker {
  const RowScan& scan;
  int64_t first_row;
  int n_beams, n_wanted, n_keys;
  int capacity;  // of `found`, at least n_wanted
  RankScratch* scratch;
  RowState* rows;    // [K]
  uint64_t* keys;    // [K, chunks] of the chunk maxima
  Candidate* found;  // [capacity]
  Candidate* best;   // [n_wanted]
  int warp, lane, turn;

  __device__ int64_t row_of(int beam) const { return first_row + beam; }

  // Sums up what the warps bring.
  __device__ int block_sum(int of_warp) {
    turn ^= 1;  // the counts of the turn before may still be read
    if (lane == 0) scratch->counts[turn][warp] = of_warp;
    __syncthreads();
    int total = 0;
    for (int w = 0; w < kRankWarps; ++w) total += scratch->counts[turn][w];
    return total;
  }

  // The log-probability after edits of the token whose first touch is i.
  __device__ double touched(const RowState& row, int i) const {
    const Touch touch = scan.touches[i];
    const double before = row.forced < 0 ? clean(touch.logit - row.log_sum) : touch.token == row.forced ? 0.0 : kNever;
    return clean(edited_by_all(scan, i, row.end, before));
  }

  // Calls f(token, log-probability after edits) for the lane's share of the row's touched tokens, the forced one
  // included.
  template <typename F>
  __device__ __forceinline__ void for_each_touched(const RowState& row, F f) const {
    for (int i = row.begin + lane; i < row.end; i += 32) {
      if (is_first_touch(scan, i, row.begin)) f(scan.touches[i].token, touched(row, i));
    }
    if (row.forced_apart && lane == 0) f(row.forced, 0.0);
  }

  // Computes a row's state and the keys of its chunks; a warp alone. Returns the highest key of the lane's.
  __device__ uint64_t prepare_row(int beam, float score, bool renormalize) {
    const int64_t at = row_of(beam);
    const ChunkStats* stats = scan.stats + at * scan.n_chunks;
    const auto for_each_chunk = [&](auto f) {
      for (int64_t chunk = lane; chunk < scan.n_chunks; chunk += 32) f(chunk, stats[chunk]);
    };
    RowState row{0.0, 0.0, score, scan.edit_begin[at], scan.edit_end[at], scan.forced[at], false, false};
    if (row.forced >= 0) {
      bool among = false;
      for (int i = row.begin + lane; i < row.end; i += 32) among |= scan.touches[i].token == row.forced;
      row.forced_apart = !__any_sync(~0u, among);
      row.dead = true;
    } else {
      // Touched tokens are in: so an edit moves no bit of the other tokens, and beams with equal logits stay tied.
      row.log_sum = warp_log_sum(
          [&](auto add) { for_each_chunk([&](int64_t, const ChunkStats& chunk) { add(chunk.max, chunk.sum); }); });
      // A row of -inf, or one with +inf, has no distribution: inf - inf is NaN, which counts as -inf.
      row.dead = !is_finite(row.log_sum);
    }
    if (renormalize) {
      row.edited_log_sum = warp_log_sum([&](auto add) {
        if (!row.dead) {
          for_each_chunk([&](int64_t, const ChunkStats& chunk) { add(chunk.rest_max - row.log_sum, chunk.rest_sum); });
        }
        for_each_touched(row, [&](int32_t, double log_probability) { add(log_probability, 1.0); });
      });
    }
    uint64_t highest = kNeverKey;
    uint64_t* own = keys + beam * scan.n_chunks;
    if (row.dead) {
      for (int64_t chunk = lane; chunk < scan.n_chunks; chunk += 32) own[chunk] = kNeverKey;
    } else {
      for_each_chunk([&](int64_t chunk, const ChunkStats& found_there) {
        own[chunk] = order_key(row.candidate(found_there.rest_max));
        highest = own[chunk] > highest ? own[chunk] : highest;
      });
    }
    if (lane == 0) rows[beam] = row;
    return highest;
  }

  // Prepares all rows and returns the highest key of all chunks.
  __device__ uint64_t prepare(const float* scores, bool renormalize) {
    uint64_t highest = kNeverKey;
    for (int beam = warp; beam < n_beams; beam += kRankWarps) {
      const uint64_t key = prepare_row(beam, scores[row_of(beam)], renormalize);
      highest = key > highest ? key : highest;
    }
#pragma unroll
    for (int step = 16; step; step >>= 1) {
      const uint64_t other = __shfl_xor_sync(~0u, highest, step);
      highest = other > highest ? other : highest;
    }
    if (lane == 0) scratch->highest[warp] = highest;
    __syncthreads();
    for (int w = 0; w < kRankWarps; ++w) highest = scratch->highest[w] > highest ? scratch->highest[w] : highest;
    return highest;
  }

  __device__ int count_chunks(uint64_t bound) {
    int n = 0;
    for (int first = warp * 32; first < n_keys; first += kRankThreads) {
      n += __popc(__ballot_sync(~0u, first + lane < n_keys && keys[first + lane] >= bound));
    }
    return block_sum(n);
  }

  // Collects the tokens of a chunk that reach the bound, which is above kNeverKey; a warp alone.
  __device__ void collect_chunk(int index, uint64_t bound) {
    const int beam = index / static_cast<int>(scan.n_chunks);
    const int64_t first = (index - beam * scan.n_chunks) * kChunk;
    const RowState& row = rows[beam];
    const T* logits = row_logits<T>(scan, row_of(beam)) + first;
    float x[kLaneLogits];
    load_chunk<T>(scan, row_of(beam), first / kChunk, lane, x);
    const float lowest = row.lowest_logit(value_of(bound));
    uint32_t reaching = 0;
#pragma unroll
    for (int e = 0; e < kLaneLogits; ++e) reaching |= static_cast<uint32_t>(x[e] >= lowest) << e;
    if (row.begin < row.end) {
      uint32_t* marks = scratch->marks[warp];
      __syncwarp();  // of the chunk before
      marks[lane] = 0;
      __syncwarp();
      mark_touched(scan, row.begin, row.end, first, kChunkWords, marks, lane, 32);
      __syncwarp();
      reaching &= ~lane_marks<T>(marks, lane);
    }
    const auto value = [&](int offset) { return row.candidate(to_float(logits[offset])); };
    for (uint32_t left = reaching; left; left &= left - 1) {
      const int e = __ffs(static_cast<int>(left)) - 1, offset = offset_of<T>(e, lane);
      if (first + offset >= scan.vocabulary || order_key(value(offset)) < bound) reaching &= ~(1u << e);
    }
    int at = reaching ? atomicAdd(&scratch->n_found, __popc(reaching)) : 0;
    for (; reaching && at < capacity; reaching &= reaching - 1, ++at) {
      const int offset = offset_of<T>(__ffs(static_cast<int>(reaching)) - 1, lane);
      found[at] = Candidate(value(offset), beam, first + offset);
    }
  }

  // Collects the candidates that reach the bound, which is above kNeverKey, and returns how many there are; those
  // beyond the capacity are lost.
  __device__ int collect(uint64_t bound) {
    __syncthreads();  // the number that was found before may still be read
    if (threadIdx.x == 0) scratch->n_found = 0;
    __syncthreads();
    for (int first = 0, nth = 0; first < n_keys; first += 32) {
      uint32_t chosen = __ballot_sync(~0u, first + lane < n_keys && keys[first + lane] >= bound);
      for (; chosen; chosen &= chosen - 1, ++nth) {
        if (nth % kRankWarps == warp) collect_chunk(first + __ffs(static_cast<int>(chosen)) - 1, bound);
      }
    }
    for (int beam = warp; beam < n_beams; beam += kRankWarps) {
      const RowState& row = rows[beam];
      for_each_touched(row, [&](int32_t token, double log_probability) {
        const double value = row.total(log_probability);
        if (order_key(value) < bound) return;
        const int at = atomicAdd(&scratch->n_found, 1);
        if (at < capacity) found[at] = Candidate(value, beam, token);
      });
    }
    __syncthreads();
    return scratch->n_found;
  }

  // The value of any token: what the chunks' lanes and the touches know, one by one.
  __device__ double value_at(int beam, int64_t token) const {
    const RowState& row = rows[beam];
    int low = row.begin, high = row.end;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (scan.touches[middle].token < token) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low < row.end && scan.touches[low].token == token) return row.total(touched(row, low));
    if (token == row.forced) return row.total(0.0);
    return row.dead ? kNever : row.candidate(to_float(row_logits<T>(scan, row_of(beam))[token]));
  }

  // Appends to n found candidates those of exactly this key, in their order, until n_wanted are there.
  __device__ void add_ties(uint64_t key, int n) {
    for (int index = 0; index < n_keys && n < n_wanted; ++index) {
      const int beam = index / static_cast<int>(scan.n_chunks);
      const bool has_touches = rows[beam].begin < rows[beam].end || rows[beam].forced_apart;
      if (keys[index] < key && !has_touches) continue;
      const int64_t chunk = index - beam * scan.n_chunks;
      for (int first = 0; first < kChunk && n < n_wanted; first += kRankThreads) {
        const int64_t token = chunk * kChunk + first + threadIdx.x;
        const bool tied = token < scan.vocabulary && order_key(value_at(beam, token)) == key;
        const uint32_t ballot = __ballot_sync(~0u, tied);
        const int total = block_sum(__popc(ballot));
        int at = n + __popc(ballot & ((1u << lane) - 1));
        for (int w = 0; w < warp; ++w) at += scratch->counts[turn][w];
        if (tied && at < n_wanted) {
          found[at] = Candidate(value_of(key), beam, token);
        }
        n += total;
      }
    }
    __syncthreads();
  }

  // Finds the highest bound, or almost, that the keys of n_wanted chunks reach; `low` must be one.
  __device__ uint64_t chunk_bound(uint64_t low, uint64_t highest) {
    // One chunk too many costs more than a round. Most chunks are far below the best one, so that is tried first.
    const int enough = n_wanted + n_wanted / 8 + 1;
    uint64_t high = highest + 1, middle = order_key(value_of(highest) - 32.0);
    while (high - low > 1) {
      if (middle <= low || middle >= high) middle = low + (high - low) / 2;
      const int n = count_chunks(middle);
      (n >= n_wanted ? low : high) = middle;
      if (n >= n_wanted && n <= enough) break;
      middle = low + (high - low) / 2;
    }
    return low;
  }

  // Collects the n_wanted best candidates among others, and returns how many there are. All rows must be prepared, and
  // `highest` be the highest of all keys.
  __device__ int choose(uint64_t highest) {
    uint64_t bound = kNeverKey + 1;
    if (count_chunks(bound) >= n_wanted) bound = chunk_bound(bound, highest);
    // More than n_wanted candidates reach `low`, fewer reach `high`.
    for (uint64_t low = kNeverKey, high = kBeyondKey;;) {
      const int n = collect(bound);
      if (n >= n_wanted && n <= capacity) return n;
      if (n < n_wanted && bound - low == 1) {
        add_ties(low, n);
        return n_wanted;
      }
      (n < n_wanted ? high : low) = bound;
      bound = low + (high - low + 1) / 2;
    }
  }

  // Writes the best of n found candidates to `best`, the best first; a barrier must follow.
  __device__ void rank(int n) {
    for (int i = threadIdx.x; i < n; i += kRankThreads) {
      const Candidate mine = found[i];
      int place = 0;
      for (int j = 0; j < n; ++j) place += found[j].before(mine);
      if (place < n_wanted) best[place] = mine;
    }
  }
};

}  // namespace pegasus::cuda
