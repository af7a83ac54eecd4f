// Runs the CUDA kernel of extend_beams under the block emulator and compares it with plain copies. Exits with 1 and a
// message on the first difference. tests/csrc/test_kernels.py compiles it, also with mistakes planted in the kernel.
#include <cstdio>

#include "cuda/extend_beams.cuh"

namespace {

using pegasus::cuda::ExtendBeamsTask;

constexpr int32_t kWild = 1 << 28;

std::mt19937 generator(3);
int below(int n) {
  return static_cast<int>(generator() % static_cast<unsigned>(n));
}
std::vector<int32_t> numbers(size_t n, int low, int high) {
  std::vector<int32_t> x(n);
  for (int32_t& e : x) e = low + below(high - low);
  return x;
}

// Everything that the kernel changes; flags as bytes.
struct State {
  std::vector<char> active, finished, open;
  std::vector<float> scores, pool_scores;
  std::vector<int32_t> lengths, source_length, sequences, pool, pool_lengths, next_tokens, n_keys, ancestry;

  bool operator==(const State& o) const {
    return active == o.active && finished == o.finished && open == o.open && scores == o.scores &&
           pool_scores == o.pool_scores && lengths == o.lengths && source_length == o.source_length &&
           sequences == o.sequences && pool == o.pool && pool_lengths == o.pool_lengths &&
           next_tokens == o.next_tokens && n_keys == o.n_keys && ancestry == o.ancestry;
  }
};

bool* flags(std::vector<char>& x) {
  return reinterpret_cast<bool*>(x.data());
}

template <int kBeams>
bool run(int beams, int columns, int times) {
  // A long one, an empty slot, a new one, one at the last column, another empty slot.
  const std::vector<int32_t> lengths = {columns / 2 + 1, kWild, 1, columns - 1, -kWild};
  const int documents = static_cast<int>(lengths.size()), rows = documents * beams;
  State before;
  before.active = {1, 0, 1, 1, 0};
  std::vector<char> done = {0, 1, 0, 1, 0}, open = {1, 0, 0, 1, 1}, finished(rows);
  before.open = {0, 1, 1, 0, 1};
  before.finished.resize(rows);
  for (int row = 0; row < rows; ++row) {
    finished[row] = static_cast<char>(below(2));
    before.finished[row] = static_cast<char>(below(2));
  }
  before.lengths = lengths;
  before.source_length = numbers(documents, 1, 99);
  before.sequences = numbers(rows * columns, 0, 1000);
  before.pool = numbers(rows * columns, 1000, 2000);
  before.pool_lengths = numbers(rows, 1, columns);
  before.next_tokens = numbers(rows, 0, 1000);
  before.ancestry = numbers(rows * times, 0, 1000);
  before.n_keys.resize(rows);
  const std::vector<int32_t> tokens = numbers(rows, 2000, 3000);
  std::vector<int32_t> parents = numbers(rows, 0, beams), sources = numbers(rows, 0, 2 * beams), pool_tokens(rows, -1);
  std::vector<float> scores(rows), pool_scores(rows);
  before.scores.resize(rows);
  before.pool_scores.resize(rows);
  for (int row = 0; row < rows; ++row) {
    const int document = row / beams;
    before.n_keys[row] = before.active[document] ? std::min(lengths[document] + 2, times) : kWild;
    if (!before.active[document]) parents[row] = sources[row] = row % 2 ? kWild : -kWild;
    if (sources[row] >= beams) pool_tokens[row] = 3000 + below(1000);
    scores[row] = static_cast<float>(below(1000));
    pool_scores[row] = static_cast<float>(below(1000));
    before.scores[row] = before.pool_scores[row] = -1.f;
  }

  State wanted = before;
  for (int document = 0; document < documents; ++document) {
    if (!before.active[document]) continue;
    const int n = lengths[document], m = before.n_keys[document * beams];
    for (int k = 0; k < beams; ++k) {
      const int row = document * beams + k, parent = document * beams + parents[row];
      const bool from_beam = sources[row] >= beams;
      const int source = document * beams + (from_beam ? sources[row] - beams : sources[row]);
      for (int c = 0; c < n; ++c) {
        wanted.sequences[row * columns + c] = before.sequences[parent * columns + c];
        wanted.pool[row * columns + c] = (from_beam ? before.sequences : before.pool)[source * columns + c];
      }
      for (int t = 0; t < m; ++t) wanted.ancestry[row * times + t] = before.ancestry[parent * times + t];
      if (n < columns) wanted.sequences[row * columns + n] = tokens[row];
      if (n < columns && pool_tokens[row] >= 0) wanted.pool[row * columns + n] = pool_tokens[row];
      if (m < times) wanted.ancestry[row * times + m] = row;
      wanted.pool_lengths[row] = from_beam ? n + 1 : before.pool_lengths[source];
      wanted.n_keys[row] = done[document] ? 0 : m + 1;
      wanted.next_tokens[row] = tokens[row];
      wanted.scores[row] = scores[row];
      wanted.pool_scores[row] = pool_scores[row];
      wanted.finished[row] = finished[row];
    }
    wanted.lengths[document] = n + 1;
    wanted.open[document] = open[document];
    if (done[document]) wanted.active[document] = 0;
    if (done[document]) wanted.source_length[document] = 0;
  }

  for (unsigned order = 0; order < 3; ++order) {
    State after = before;
    ExtendBeamsTask task{};
    task.scores = scores.data();
    task.pool_scores = pool_scores.data();
    task.parents = parents.data();
    task.tokens = tokens.data();
    task.pool_source = sources.data();
    task.pool_tokens = pool_tokens.data();
    task.pool_finished = flags(finished);
    task.open = flags(open);
    task.done = flags(done);
    task.active = flags(after.active);
    task.kept_pool_finished = flags(after.finished);
    task.kept_open = flags(after.open);
    task.kept_scores = after.scores.data();
    task.kept_pool_scores = after.pool_scores.data();
    task.lengths = after.lengths.data();
    task.source_length = after.source_length.data();
    task.sequences = after.sequences.data();
    task.pool_sequences = after.pool.data();
    task.pool_lengths = after.pool_lengths.data();
    task.next_tokens = after.next_tokens.data();
    task.n_keys = after.n_keys.data();
    task.ancestry = after.ancestry.data();
    task.n_documents = documents;
    task.n_beams = beams;
    task.columns = columns;
    task.times = times;
    try {
      emulator::launch(dim3(static_cast<unsigned>(documents)), dim3(pegasus::cuda::kExtendThreads),
                       3 * kBeams * sizeof(void*), order, [&] { pegasus::cuda::extend_beams_kernel<kBeams>(task); });
    } catch (const emulator::Error& e) {
      std::printf("order %u: %s\n", order, e.what());
      return false;
    }
    if (!(after == wanted)) {
      std::printf("order %u, %d beams, %d columns, %d times: not the state that was wanted\n", order, beams, columns,
                  times);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  for (int columns : {2, 40, 600}) {  // 600: a thread has several columns
    for (int times : {columns, columns / 2}) {
      if (!run<4>(1, columns, times) || !run<4>(4, columns, times) || !run<8>(7, columns, times) ||
          !run<16>(16, columns, times) || !run<32>(29, columns, times)) {
        return 1;
      }
    }
  }
  return 0;
}
