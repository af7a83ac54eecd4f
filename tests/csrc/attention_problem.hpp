// A problem for the attention kernels, and its solution in float64: what every query row attends to is known apart from
// how its keys lie in memory.
#pragma once
#include <cstdio>

#include "cuda/keys.cuh"

using pegasus::cuda::AttentionTask;
using pegasus::cuda::Bf16;
using pegasus::cuda::Element;
using pegasus::cuda::Fp16;
using pegasus::cuda::set_to;
using pegasus::cuda::to_float;

constexpr int kHeads = 2;

inline std::mt19937 generator(7);

template <typename T>
T poison() {
  if constexpr (sizeof(T) == 4) {
    return NAN;
  } else {
    return {0x7fc1};
  }
}

template <typename T>
T random_element() {
  static std::normal_distribution<float> distribution;
  T x;
  set_to(x, distribution(generator));
  return x;
}

template <typename T>
constexpr Element element_of() {
  return std::is_same_v<T, float>  ? Element::kFloat32
         : std::is_same_v<T, Bf16> ? Element::kBFloat16
                                   : Element::kFloat16;
}

// Relative to float64: the weights are rounded to a 16-bit type before the second product, the result after it.
template <typename T>
constexpr double limit() {
  return std::is_same_v<T, float> ? 1e-5 : std::is_same_v<T, Bf16> ? 1.2e-2 : 1.5e-3;
}

template <typename T>
struct Problem {
  int size;                                         // of a head
  std::vector<int32_t> query_begin, n_keys;         // n_keys: of a document, or of a row
  std::vector<std::vector<const T*>> keys, values;  // of every row: [H, D] each
  std::vector<T> query, out;
  AttentionTask task{};

  Problem(int size_, std::vector<int32_t> begins) : size(size_), query_begin(std::move(begins)) {
    const size_t rows = static_cast<size_t>(query_begin.back());
    query.resize(rows * kHeads * size);
    for (T& x : query) x = random_element<T>();
    out.resize(query.size());
    keys.resize(rows);
    values.resize(rows);
    task.element = element_of<T>();
    task.query = query.data();
    task.out = out.data();
    task.query_stride = int64_t{kHeads} * size;
    task.query_begin = query_begin.data();
    task.n_documents = static_cast<int64_t>(query_begin.size()) - 1;
    task.n_rows = query_begin.back();
    task.n_heads = kHeads;
    task.head_size = size;
    task.scale = 0.125f;
  }
  Problem(const Problem&) = delete;

  // The largest relative error of any row and head; infinite for a NaN, and for a row without keys that is not zero.
  double error() const {
    double worst = 0;
    for (size_t row = 0; row < keys.size(); ++row) {
      for (int head = 0; head < kHeads; ++head) {
        const auto at = [&](const T* p, int d) { return double{to_float(p[head * size + d])}; };
        const size_t first = (row * kHeads + head) * size, n = keys[row].size();
        std::vector<double> weight(n), exact(size, 0.0);
        double highest = -INFINITY, total = 0, difference = 0, norm = 0;
        for (size_t t = 0; t < n; ++t) {
          double dot = 0;
          for (int d = 0; d < size; ++d) dot += double{to_float(query[first + d])} * at(keys[row][t], d);
          weight[t] = dot * double{task.scale};
          highest = std::max(highest, weight[t]);
        }
        for (size_t t = 0; t < n; ++t) {
          weight[t] = std::exp(weight[t] - highest);
          total += weight[t];
          for (int d = 0; d < size; ++d) exact[d] += weight[t] * at(values[row][t], d);
        }
        for (int d = 0; d < size; ++d) {
          const double wanted = n ? exact[d] / total : 0.0, got = double{to_float(out[first + d])};
          difference += (got - wanted) * (got - wanted);
          norm += wanted * wanted;
        }
        const double relative = n ? std::sqrt(difference / norm) : difference == 0 ? 0.0 : INFINITY;
        if (!(relative <= worst)) worst = std::isnan(relative) ? INFINITY : relative;
      }
    }
    return worst;
  }

  // Runs launch(order) in three orders of the threads and compares each result with float64.
  bool solve(const char* name, const std::function<void(unsigned)>& launch) {
    for (unsigned order = 0; order < 3; ++order) {
      std::fill(out.begin(), out.end(), poison<T>());
      try {
        launch(order);
      } catch (const emulator::Error& e) {
        std::printf("%s, order %u: %s\n", name, order, e.what());
        return false;
      }
      const double found = error();
      if (found < limit<T>()) continue;
      std::printf("%s, order %u: relative error %g, limit %g\n", name, order, found, limit<T>());
      return false;
    }
    return true;
  }
};

// Documents whose keys are rows [keys, 2, H, D], with rows of NaN between them.
template <typename T>
struct RowsProblem : Problem<T> {
  std::vector<int32_t> key_begin;
  std::vector<T> memory;

  RowsProblem(int size, std::vector<int32_t> begins, const std::vector<int32_t>& lengths)
      : Problem<T>(size, std::move(begins)) {
    const int64_t half = int64_t{kHeads} * size;
    this->n_keys = lengths;
    int32_t total = 3;
    for (int32_t n : lengths) {
      key_begin.push_back(total);
      total += n + 2;
    }
    memory.assign(total * 2 * half, poison<T>());
    for (size_t b = 0; b < lengths.size(); ++b) {
      T* first = memory.data() + key_begin[b] * 2 * half;
      for (int64_t i = 0; i < lengths[b] * 2 * half; ++i) first[i] = random_element<T>();
      for (int32_t row = this->query_begin[b]; row < this->query_begin[b + 1]; ++row) {
        for (int t = 0; t < lengths[b]; ++t) {
          this->keys[row].push_back(first + t * 2 * half);
          this->values[row].push_back(first + t * 2 * half + half);
        }
      }
    }
    this->task.key = memory.data();
    this->task.value = memory.data() + half;
    this->task.key_stride = this->task.value_stride = 2 * half;
    this->task.key_begin = key_begin.data();
    this->task.n_keys = this->n_keys.data();
  }
};

// The same documents with their keys in panels, in reverse order and with NaN in all padding.
template <typename T>
struct PanelsProblem : RowsProblem<T> {
  std::vector<int32_t> panel_begin;
  std::vector<T> key_panels, value_panels;

  PanelsProblem(int size, std::vector<int32_t> begins, const std::vector<int32_t>& lengths)
      : RowsProblem<T>(size, std::move(begins), lengths) {
    constexpr int kPanel = pegasus::cuda::kPanelKeys;
    const int64_t padded = (size + kPanel - 1) / kPanel * kPanel;
    panel_begin.resize(lengths.size());
    int32_t total = 0;
    for (size_t b = lengths.size(); b-- > 0; total += 1) {
      panel_begin[b] = total;
      total += (lengths[b] + kPanel - 1) / kPanel;
    }
    key_panels.assign(total * kHeads * kPanel * padded, poison<T>());
    value_panels = key_panels;
    for (size_t b = 0; b < lengths.size(); ++b) {
      const int64_t keys = (lengths[b] + kPanel - 1) / kPanel * kPanel;  // of a head
      const T* from = this->memory.data() + this->key_begin[b] * this->task.key_stride;
      for (int head = 0; head < kHeads; ++head) {
        for (int t = 0; t < lengths[b]; ++t) {
          const int64_t to = ((panel_begin[b] * kHeads * kPanel) + head * keys + t) * padded;
          for (int d = 0; d < size; ++d) {
            key_panels[to + d] = from[t * this->task.key_stride + head * size + d];
            value_panels[to + d] = from[t * this->task.key_stride + (kHeads + head) * size + d];
          }
        }
      }
    }
    this->task.packed = true;
    this->task.key = key_panels.data();
    this->task.value = value_panels.data();
    this->task.key_begin = panel_begin.data();
  }
};

// Rows with a past in a cache [slots, T, 2, H, D]: of every document lengths[b], and a slot for each row. NaN wherever
// nobody looks and where the newest keys are still to come; wild slots in the ancestry beyond a row's past.
template <typename T>
struct CachedProblem : Problem<T> {
  int times, slots;
  std::vector<int32_t> ancestry;
  std::vector<T> memory, newest;

  CachedProblem(int size, const std::vector<std::vector<int32_t>>& lengths, int times_, int different)
      : Problem<T>(size, begins_of(lengths)), times(times_), slots(this->query_begin.back()) {
    const int64_t half = int64_t{kHeads} * size;
    ancestry.assign(size_t(slots) * times, 1 << 28);
    memory.assign(size_t(slots) * times * 2 * half, poison<T>());
    newest.assign(size_t(slots) * 2 * half, poison<T>());
    for (size_t b = 0; b < lengths.size(); ++b) {
      const int first = this->query_begin[b], rows = static_cast<int>(lengths[b].size());
      for (int r = 0; r < rows; ++r) {
        const int n = lengths[b][r], row = first + r;
        this->n_keys.push_back(n);
        for (int t = 0; t < n; ++t) {
          const int slot = t == n - 1 ? row : first + (static_cast<int>(generator()) & 255) % std::min(rows, different);
          ancestry[row * times + t] = slot;
          T* cell = memory.data() + (int64_t{slot} * times + t) * 2 * half;
          this->keys[row].push_back(cell);
          this->values[row].push_back(cell + half);
          for (int64_t i = 0; i < 2 * half; ++i) cell[i] = random_element<T>();
        }
        if (n == 0) continue;
        for (int64_t i = 0; i < 2 * half; ++i) newest[row * 2 * half + i] = random_element<T>();
      }
    }
    clear_newest();
    AttentionTask& task = this->task;
    task.key = memory.data();
    task.value = memory.data() + half;
    task.key_stride = task.value_stride = 2 * half;
    task.key_slot_stride = task.value_slot_stride = times * 2 * half;
    task.newest_key = newest.data();
    task.newest_value = newest.data() + half;
    task.newest_key_stride = task.newest_value_stride = 2 * half;
    task.ancestry = ancestry.data();
    task.ancestry_stride = times;
    task.n_keys = this->n_keys.data();
  }

  // The cache as it is before a call.
  void clear_newest() {
    for (int row = 0; row < slots; ++row) {
      if (this->n_keys[row] > 0) std::fill_n(newest_cell(row), cell_size(), poison<T>());
    }
  }

  // What a call must have written, of all that it may write to.
  void expect_newest() {
    for (int row = 0; row < slots; ++row) {
      if (this->n_keys[row] == 0) continue;
      if (std::memcmp(newest_cell(row), newest.data() + row * cell_size(), cell_size() * sizeof(T)) != 0) {
        throw emulator::Error("the newest key or value of row " + std::to_string(row) + " is not in the cache");
      }
    }
  }

  int64_t cell_size() const { return int64_t{kHeads} * this->size * 2; }
  T* newest_cell(int row) { return memory.data() + (int64_t{row} * times + this->n_keys[row] - 1) * cell_size(); }

  static std::vector<int32_t> begins_of(const std::vector<std::vector<int32_t>>& lengths) {
    std::vector<int32_t> begins{0};
    for (const auto& rows : lengths) begins.push_back(begins.back() + static_cast<int32_t>(rows.size()));
    return begins;
  }
};
