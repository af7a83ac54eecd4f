// Runs the CUDA kernel of plan_edits under the block emulator and compares it with edits made by plain loops. Exits
// with 1 and a message on the first difference. tests/csrc/test_kernels.py compiles it, also with mistakes planted in
// the kernel.
#include <algorithm>
#include <cstdio>

#include "cuda/plan_edits.cuh"

namespace {

using pegasus::cuda::PlanEditsTask;

constexpr int32_t kUntouched = -77;

struct Edit {
  int32_t token, kind;
  float value;
  bool operator==(const Edit& other) const {
    return token == other.token && kind == other.kind && value == other.value;
  }
};

std::mt19937 generator(5);
int below(int n) {
  return static_cast<int>(generator() % static_cast<unsigned>(n));
}

bool run(int beams, int columns, int alphabet, float penalty, int ngram_size, int warps) {
  const std::vector<int> lengths = {columns, 0, columns - 1, columns / 2, below(columns + 1)};
  const int documents = static_cast<int>(lengths.size()), rows = documents * beams;
  const std::vector<int32_t> lengths_given(lengths.begin(), lengths.end());
  std::vector<int32_t> sequences(rows * columns, 1 << 28);  // wild behind a row's own tokens
  std::vector<int32_t> phase_begin = {0}, phase_token, phase_kind, phase_forced;
  std::vector<float> phase_value;
  int longest = 0;
  for (int n = 0; n <= columns; ++n) {
    const int edits = n % 3 == 0 ? 0 : below(50);
    longest = std::max(longest, edits);
    for (int i = 0; i < edits; ++i) {
      phase_token.push_back(below(alphabet));
      phase_kind.push_back(below(4));
      phase_value.push_back(static_cast<float>(below(100)));
    }
    phase_begin.push_back(static_cast<int32_t>(phase_token.size()));
    phase_forced.push_back(n % 5 == 4 ? below(alphabet) : -1);
  }
  std::vector<std::vector<Edit>> wanted(rows);
  for (int row = 0; row < rows; ++row) {
    const int n = lengths[row / beams];
    int32_t* history = sequences.data() + row * columns;
    for (int i = 0; i < n; ++i) history[i] = below(alphabet);
    if (phase_forced[n] < 0) {
      for (int i = 0; i < n && penalty != 1.f; ++i) {
        if (std::find(history, history + i, history[i]) == history + i) wanted[row].push_back({history[i], 1, penalty});
      }
      for (int i = 0; ngram_size && i + ngram_size <= n; ++i) {
        if (std::equal(history + i, history + i + ngram_size - 1, history + n - ngram_size + 1)) {
          wanted[row].push_back({history[i + ngram_size - 1], 0, -INFINITY});
        }
      }
    }
    for (int i = phase_begin[n]; i < phase_begin[n + 1]; ++i) {
      wanted[row].push_back({phase_token[i], phase_kind[i], phase_value[i]});
    }
  }

  PlanEditsTask task{};
  task.sequences = sequences.data();
  task.lengths = lengths_given.data();
  task.phase_begin = phase_begin.data();
  task.phase_token = phase_token.data();
  task.phase_kind = phase_kind.data();
  task.phase_value = phase_value.data();
  task.phase_forced = phase_forced.data();
  task.n_rows = rows;
  task.n_beams = beams;
  task.columns = columns;
  task.stretch = 2 * columns + longest;
  task.ngram_size = ngram_size;
  task.penalizes = penalty != 1.f;
  task.repetition_penalty = penalty;
  const dim3 grid(static_cast<unsigned>((rows + warps - 1) / warps));
  const size_t shared = warps * pegasus::cuda::plan_edits_words(columns) * 4;
  for (unsigned order = 0; order < 3; ++order) {
    std::vector<int32_t> begin(rows, kUntouched), end(begin), forced(begin);
    std::vector<int32_t> token(rows * task.stretch + 1, kUntouched), kind(token);
    std::vector<float> value(token.size(), kUntouched);
    task.begin = begin.data();
    task.end = end.data();
    task.forced = forced.data();
    task.token = token.data();
    task.kind = kind.data();
    task.value = value.data();
    try {
      emulator::launch(grid, dim3(static_cast<unsigned>(warps * 32)), shared, order,
                       [&] { pegasus::cuda::plan_edits_kernel(task); });
    } catch (const emulator::Error& e) {
      std::printf("order %u: %s\n", order, e.what());
      return false;
    }
    int touched = 0;
    for (int row = 0; row < rows; ++row) {
      std::vector<Edit> got;
      for (int i = begin[row]; i < std::min(end[row], rows * task.stretch); ++i) {
        got.push_back({token[i], kind[i], value[i]});
      }
      if (begin[row] != row * task.stretch || got != wanted[row] || forced[row] != phase_forced[lengths[row / beams]]) {
        std::printf("order %u, columns %d, n-grams of %d: row %d of length %d has %zu edits, wanted %zu\n", order,
                    columns, ngram_size, row, lengths[row / beams], got.size(), wanted[row].size());
        return false;
      }
      touched += static_cast<int>(got.size());
    }
    const auto left = std::count(token.begin(), token.end(), kUntouched);
    if (left != static_cast<int64_t>(token.size()) - touched) {
      std::printf("order %u: %d places are used, but only %ld are untouched\n", order, touched,
                  static_cast<long>(left));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  for (int columns : {1, 31, 32, 33, 100, 300}) {
    for (int alphabet : {3, 60, 96103}) {
      for (int warps : {1, 4}) {
        if (!run(3, columns, alphabet, 1.5f, 2, warps) || !run(2, columns, alphabet, 0.5f, 0, warps) ||
            !run(1, columns, alphabet, 1.f, 3, warps) || !run(2, columns, alphabet, 1.f, 0, warps)) {
          return 1;
        }
      }
    }
  }
  // A row needs more than its stretch: the kernel stops before it writes into another's.
  const int32_t zero = 0, phases[3] = {0, 9, 9}, many[9] = {}, free_row[2] = {-1, -1};
  const float values[9] = {};
  int32_t begin = 0, end = 0, forced = 0, token[10] = {}, kind[10] = {};
  float value[10] = {};
  PlanEditsTask task{};
  task.sequences = &zero;
  task.lengths = &zero;
  task.phase_begin = phases;
  task.phase_token = task.phase_kind = many;
  task.phase_value = values;
  task.phase_forced = free_row;
  task.begin = &begin;
  task.end = &end;
  task.forced = &forced;
  task.token = token;
  task.kind = kind;
  task.value = value;
  task.n_rows = task.n_beams = 1;
  task.columns = 1;
  task.stretch = 8;
  try {
    emulator::launch(1, 32, 12, 0, [&] { pegasus::cuda::plan_edits_kernel(task); });
  } catch (const emulator::Error&) {
    return 0;
  }
  std::printf("nine edits went into eight places\n");
  return 1;
}
