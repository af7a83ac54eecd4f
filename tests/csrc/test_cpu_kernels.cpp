// Drives the CPU kernels without Python, for the sanitizers: every instruction set of this host, buffers of exactly the
// promised size, against straightforward float64. Exits with 1 and a message on the first difference.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/beam_step.h"
#include "cpu/isa.h"

namespace {

std::mt19937 generator(11);

std::vector<float> normal(size_t n, float scale = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> x(n);
  for (float& e : x) e = distribution(generator);
  return x;
}

int below(int n) {
  return static_cast<int>(generator() % static_cast<unsigned>(n));
}

bool report(const char* what, const std::string& isa, double error) {
  std::printf("%s, %s: error %g\n", what, isa.c_str(), error);
  return false;
}

template <typename T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<T>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

template <typename T>
float to_float(T x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  }
}

template <typename T>
std::vector<T> normal_as(size_t n) {
  std::vector<T> x(n);
  std::normal_distribution<float> distribution;
  for (T& e : x) e = from_float<T>(distribution(generator));
  return x;
}

// What attention may err by, of numbers near 1.
template <typename T>
constexpr double kError = sizeof(T) == 2 ? 2e-2 : 1e-5;

// Whether `out` is within `error` what one head of a query row gets from these keys and values, all of [head_size]; T
// is float, or uint16_t for bfloat16.
template <typename T>
bool attends(const T* query, const std::vector<const T*>& keys, const std::vector<const T*>& values, int head_size,
             float scale, const T* out, double error = kError<T>) {
  std::vector<double> weight;
  double total = 0;
  for (const T* key : keys) {
    double dot = 0;
    for (int d = 0; d < head_size; ++d) dot += double{to_float(query[d])} * to_float(key[d]);
    weight.push_back(std::exp(dot * scale));
    total += weight.back();
  }
  for (int d = 0; d < head_size; ++d) {
    double wanted = 0;
    for (size_t t = 0; t < keys.size(); ++t) wanted += weight[t] / total * to_float(values[t][d]);
    if (!(std::fabs(to_float(out[d]) - wanted) < error)) return false;
  }
  return true;
}

template <typename T>
bool test_attention(const std::string& isa, int head_size, bool codes = false) {
  const int heads = 2, panel = pegasus::cpu::kPanel, padded = (head_size + panel - 1) / panel * panel;
  const std::vector<int32_t> query_begin = {0, 1, 70, 70}, key_begin = {0, 66, 67}, n_keys = {66, 1, 0};
  const std::vector<int32_t> panel_begin = {1, 0, 6};
  const int rows = 70, keys = 67;
  const int64_t width = int64_t{heads} * head_size;
  const std::vector<T> query = normal_as<T>(rows * width), key = normal_as<T>(keys * width),
                       value = normal_as<T>(keys * width);
  const int64_t panel_bytes = codes ? panel * (padded + 1) : panel * padded * int64_t{sizeof(T)};
  std::vector<char> key_panels(6 * heads * panel_bytes), value_panels(key_panels.size());
  std::vector<T> out(query.size());
  pegasus::cpu::PackTask pack{};
  pack.codes = codes;
  pack.bf16 = sizeof(T) == 2;
  pack.key = key.data();
  pack.value = value.data();
  pack.key_stride = pack.value_stride = width;
  pack.key_panels = key_panels.data();
  pack.value_panels = value_panels.data();
  pack.key_begin = key_begin.data();
  pack.n_keys = n_keys.data();
  pack.panel_begin = panel_begin.data();
  pack.n_documents = 3;
  pack.max_keys = 66;
  pack.n_heads = heads;
  pack.head_size = head_size;
  pegasus::cpu::kernels().pack_panels(pack);
  pegasus::cpu::AttentionTask task{};
  task.bf16 = pack.bf16;
  task.codes = codes;
  task.query = query.data();
  task.key_panels = key_panels.data();
  task.value_panels = value_panels.data();
  task.out = out.data();
  task.query_stride = width;
  task.query_begin = query_begin.data();
  task.panel_begin = panel_begin.data();
  task.n_keys = n_keys.data();
  task.n_documents = 3;
  task.max_rows = 69;
  task.n_heads = heads;
  task.head_size = head_size;
  task.scale = 0.2f;
  pegasus::cpu::kernels().attention(task);
  for (int b = 0; b < 3; ++b) {
    for (int row = query_begin[b]; row < query_begin[b + 1]; ++row) {
      for (int h = 0; h < heads; ++h) {
        std::vector<const T*> own_keys, own_values;
        for (int t = key_begin[b]; t < key_begin[b] + n_keys[b]; ++t) {
          own_keys.push_back(key.data() + t * width + h * head_size);
          own_values.push_back(value.data() + t * width + h * head_size);
        }
        const int64_t at = row * width + h * head_size;
        const double error = codes ? 6e-2 : kError<T>;
        if (!attends(query.data() + at, own_keys, own_values, head_size, task.scale, out.data() + at, error)) {
          return report(codes ? "attention to codes" : "attention", isa, row);
        }
      }
    }
  }
  return true;
}

template <typename T>
bool test_cached_attention(const std::string& isa, int head_size) {
  const int heads = 3, slots = 4, times = 35;
  const int64_t width = int64_t{heads} * head_size;
  const std::vector<int32_t> n_keys = {35, 0, 17, 1};
  const int rows = static_cast<int>(n_keys.size());
  const std::vector<T> query = normal_as<T>(rows * width), key = normal_as<T>(rows * width),
                       value = normal_as<T>(rows * width);
  std::vector<T> keys = normal_as<T>(slots * times * width), values = normal_as<T>(keys.size()), out(query.size());
  std::vector<int32_t> ancestry(rows * times);
  for (int32_t& slot : ancestry) slot = below(slots);
  for (int row = 0; row < rows; ++row) {
    if (n_keys[row] > 0) ancestry[row * times + n_keys[row] - 1] = row;
  }
  pegasus::cpu::CachedAttentionTask task{};
  task.bf16 = sizeof(T) == 2;
  task.query = query.data();
  task.key = key.data();
  task.value = value.data();
  task.query_stride = task.key_stride = task.value_stride = width;
  task.key_cache = keys.data();
  task.value_cache = values.data();
  task.key_slot_stride = task.value_slot_stride = times * width;
  task.key_time_stride = task.value_time_stride = width;
  task.out = out.data();
  task.ancestry = ancestry.data();
  task.ancestry_stride = times;
  task.n_keys = n_keys.data();
  task.n_rows = rows;
  task.n_heads = heads;
  task.head_size = head_size;
  task.scale = 0.2f;
  pegasus::cpu::kernels().cached_attention(task);
  for (int row = 0; row < rows; ++row) {
    for (int h = 0; h < heads; ++h) {
      std::vector<const T*> own_keys, own_values;
      for (int t = 0; t < n_keys[row]; ++t) {
        const int64_t at = (ancestry[row * times + t] * times + t) * width + h * head_size;
        own_keys.push_back(keys.data() + at);
        own_values.push_back(values.data() + at);
      }
      const int64_t at = row * width + h * head_size;
      if (!attends(query.data() + at, own_keys, own_values, head_size, task.scale, out.data() + at)) {
        return report("cached attention", isa, row);
      }
    }
    if (n_keys[row] == 0) continue;
    const T* cached = keys.data() + (int64_t{row} * times + n_keys[row] - 1) * width;
    if (!std::equal(cached, cached + width, key.data() + row * width)) return report("newest key", isa, row);
  }
  return true;
}

// A weight as it was before packing.
float plain(float x) {
  return x;
}
float plain(uint16_t x) {
  return to_float(x);
}
float plain(uint8_t x) {
  return static_cast<float>(x) - pegasus::cpu::kCodeOffset;
}

// Whole numbers, the largest of a row 127, are their own codes, and their sums fit float32: every result is known. With
// a layer norm before it is known up to the rounding, or half a code's step, of every input.
template <typename Weight, typename T>
bool test_linear(const std::string& isa, int rows, int inputs, int outputs, bool with_norm = false) {
  using namespace pegasus::cpu;
  const int in_word = 4 / sizeof(Weight);
  const int words = (inputs + in_word - 1) / in_word, panels = (outputs + kOutputPanel - 1) / kOutputPanel;
  std::vector<T> states(size_t(rows) * inputs), residual(size_t(rows) * outputs), out(residual.size());
  for (T& x : states) x = from_float<T>(below(255) - 127);
  for (int i = 0; i < rows; ++i) states[size_t(i) * inputs] = from_float<T>(-127);
  for (T& x : residual) x = from_float<T>(below(99));
  std::vector<float> bias(outputs), weight_scales(outputs, 1.0f);
  for (float& x : bias) x = below(999);
  std::vector<Weight> weights(size_t(panels) * words * kOutputPanel * in_word);
  for (Weight& x : weights) x = sizeof(Weight) == 1 ? Weight(below(256)) : from_float<Weight>(below(255) - 127);
  std::vector<int8_t> codes(size_t(rows) * words * in_word);
  std::vector<float> scales(rows);
  std::vector<int32_t> starts(rows);
  LinearTask task{};
  task.type = sizeof(Weight) == 4   ? WeightType::kFloat32
              : sizeof(Weight) == 2 ? WeightType::kBFloat16
                                    : WeightType::kCodes;
  task.bf16_states = task.bf16_out = sizeof(T) == 2;
  task.states = states.data();
  task.row_stride = inputs;
  task.weights = weights.data();
  task.bias = bias.data();
  task.residual = residual.data();
  task.out = out.data();
  task.relu = true;
  task.rows = rows;
  task.inputs = inputs;
  task.outputs = outputs;
  if (sizeof(Weight) == 1) {
    for (int i = 0; i < outputs; ++i) weight_scales[i] = i % 2 ? 0.5f : 1.0f;
    task.weight_scales = weight_scales.data();
    task.codes = codes.data();
    task.scales = scales.data();
    task.starts = starts.data();
  }
  std::vector<float> norm_weight(inputs), norm_bias(inputs), read(states.size());
  std::vector<char> normed(states.size() * sizeof(T));
  for (float& x : norm_weight) x = below(9) - 4;
  for (float& x : norm_bias) x = below(5) - 2;
  for (size_t i = 0; i < states.size(); ++i) read[i] = to_float(states[i]);
  if (with_norm) {
    task.norm_weight = norm_weight.data();
    task.norm_bias = norm_bias.data();
    task.norm_eps = 1e-5f;
    task.normed = normed.data();
    for (int i = 0; i < rows; ++i) {
      float* row = read.data() + size_t(i) * inputs;
      double mean = 0, variance = 0;
      for (int k = 0; k < inputs; ++k) mean += row[k] / double(inputs);
      for (int k = 0; k < inputs; ++k) variance += (row[k] - mean) * (row[k] - mean) / inputs;
      for (int k = 0; k < inputs; ++k) {
        row[k] = float((row[k] - mean) / std::sqrt(variance + 1e-5) * norm_weight[k] + norm_bias[k]);
      }
    }
  }
  kernels().linear(task);
  for (int i = 0; i < rows; ++i) {
    const float* row = read.data() + size_t(i) * inputs;
    float largest = 0;
    for (int k = 0; k < inputs; ++k) largest = std::max(largest, std::abs(row[k]));
    const float off = largest * (sizeof(Weight) == 1 ? 0.51f / 127 : sizeof(Weight) == 2 ? 1.0f / 256 : 1e-5f);
    for (int j = 0; j < outputs; ++j) {
      float sum = 0, tolerance = 0;
      for (int k = 0; k < inputs; ++k) {
        const size_t word = size_t(j / kOutputPanel) * words + k / in_word;
        const float weight = plain(weights[(word * kOutputPanel + j % kOutputPanel) * in_word + k % in_word]);
        sum += weight * row[k];
        if (with_norm) tolerance += std::abs(weight) * off * weight_scales[j];
      }
      const float finished =
          std::max(sum * weight_scales[j] + bias[j], 0.0f) + to_float(residual[size_t(i) * outputs + j]);
      const float got = to_float(out[size_t(i) * outputs + j]), wanted = to_float(from_float<T>(finished));
      if (with_norm) tolerance += (std::abs(wanted) + 1) / 128;
      if (!(std::abs(got - wanted) <= tolerance)) return report("linear", isa, got - wanted);
    }
  }
  return true;
}

template <typename Weight, typename T>
bool test_linears(const std::string& isa) {
  for (int rows = 1; rows < 9; ++rows) {
    for (int inputs : {1, 3, 4, 15, 16, 17, 130}) {
      for (int outputs : {1, 17, 63, 64, 65}) {
        for (bool with_norm : {false, true}) {
          if (!test_linear<Weight, T>(isa, rows, inputs, outputs, with_norm)) return false;
        }
      }
    }
  }
  return test_linear<Weight, T>(isa, 70, 200, 300);
}

// A first step of one document with a ban and a forced row; the expected winners are found by sorting everything.
bool test_beam_step(const std::string& isa, int vocabulary) {
  const int beams = 3, candidates = 2 * beams;
  const std::vector<float> logits = normal(size_t(beams) * vocabulary, 3.0f), scores = {-1.0f, -1.5f, -30.0f};
  const int banned = static_cast<int>(std::max_element(logits.begin(), logits.begin() + vocabulary) - logits.begin());
  const int forced_token = below(vocabulary);
  const std::vector<int32_t> edit_begin = {0, 2, 2}, edit_end = {2, 2, 2}, edit_token = {banned, banned},
                             kinds = {2, 0}, forced = {-1, -1, forced_token}, eos = {vocabulary - 1}, n_new = {1},
                             max_new = {5};
  const std::vector<float> values = {1.0f, -INFINITY}, pool(beams, -1e9f);
  const bool finished[beams] = {}, open[1] = {true};
  std::vector<float> out_scores(beams), out_pool(beams);
  std::vector<int32_t> parents(beams), tokens(beams), source(beams), pool_tokens(beams);
  bool out_finished[beams], out_open[1], out_done[1];

  pegasus::cpu::BeamTask task{};
  task.logits = logits.data();
  task.logits_stride = vocabulary;
  task.scores = scores.data();
  task.pool_scores = pool.data();
  task.pool_finished = finished;
  task.open = open;
  task.edit_begin = edit_begin.data();
  task.edit_end = edit_end.data();
  task.edit_token = edit_token.data();
  task.edit_kind = kinds.data();
  task.edit_value = values.data();
  task.forced = forced.data();
  task.n_new = n_new.data();
  task.max_new = max_new.data();
  task.eos_ids = eos.data();
  task.n_documents = 1;
  task.n_beams = beams;
  task.vocabulary = vocabulary;
  task.n_edits = 2;
  task.n_eos = 1;
  task.length_penalty = 1.0;
  task.out_scores = out_scores.data();
  task.out_parents = parents.data();
  task.out_tokens = tokens.data();
  task.out_pool_scores = out_pool.data();
  task.out_pool_finished = out_finished;
  task.out_pool_source = source.data();
  task.out_pool_tokens = pool_tokens.data();
  task.out_open = out_open;
  task.out_done = out_done;
  std::vector<double> workspace((pegasus::cpu::beam_step_workspace(task) + 7) / 8);
  task.workspace = workspace.data();
  pegasus::cpu::beam_step(task);

  struct Entry {
    double value;
    int beam, token;
  };
  std::vector<Entry> all;
  for (int b = 0; b < beams; ++b) {
    double sum = 0;
    for (int t = 0; t < vocabulary; ++t) sum += std::exp(double{logits[b * vocabulary + t]});
    for (int t = 0; t < vocabulary; ++t) {
      double value = logits[b * vocabulary + t] - std::log(sum) + scores[b];
      if (b == 0 && t == banned) value = -INFINITY;
      if (b == 2) value = t == forced_token ? scores[b] : -INFINITY;
      all.push_back({value, b, t});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) { return a.value > b.value; });
  int next = 0;
  for (int c = 0; c < candidates && next < beams; ++c) {
    if (all[c].token == eos[0]) continue;
    if (parents[next] != all[c].beam || tokens[next] != all[c].token) return report("beam_step choice", isa, c);
    const double error = std::fabs(out_scores[next] - all[c].value);
    if (!(error < 1e-4)) return report("beam_step score", isa, error);
    ++next;
  }
  return true;
}

}  // namespace

int main() {
  for (const std::string& isa : pegasus::cpu::available_isas()) {
    pegasus::cpu::select_isa(isa);
    for (int head_size : {1, 9, 15, 16, 64, 80, 256}) {
      if (!test_attention<float>(isa, head_size) || !test_attention<uint16_t>(isa, head_size) ||
          !test_attention<uint16_t>(isa, head_size, true)) {
        return 1;
      }
      if (!test_cached_attention<float>(isa, head_size) || !test_cached_attention<uint16_t>(isa, head_size)) return 1;
    }
    if (!test_linears<float, float>(isa) || !test_linears<uint16_t, uint16_t>(isa)) return 1;
    if (!test_linears<uint8_t, float>(isa) || !test_linears<uint8_t, uint16_t>(isa)) return 1;
    if (!test_linear<float, float>(isa, 75, 2100, 70)) return 1;  // a panel in several chunks
    for (int vocabulary : {6, 1023, 1024, 1025, 5000}) {
      for (int i = 0; i < 5; ++i) {
        if (!test_beam_step(isa, vocabulary)) return 1;
      }
    }
  }
  return 0;
}
