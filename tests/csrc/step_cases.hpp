// One call of beam_step or greedy_step for the emulator's tests, and what it must return, from float64 over the whole
// vocabulary.
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "cuda/row_scan.h"
#include "edit_kind.h"

namespace step_cases {

using pegasus::cuda::LogitType;

constexpr double kInfinity = INFINITY;

inline std::mt19937 generator(11);
inline int below(int n) {
  return static_cast<int>(generator() % static_cast<unsigned>(n));
}

struct Edit {
  int token, kind;
  float value;
};

// One call. Logits are small multiples of 1/16, which every type holds.
struct Case {
  const char* name;
  int documents, beams, vocabulary, stride;
  LogitType type = LogitType::kFloat32;
  std::vector<std::vector<float>> logits{};  // [R][V]
  std::vector<std::vector<Edit>> edits{};    // [R]
  std::vector<int32_t> forced{}, eos{};
  std::vector<float> scores{}, pool_scores{};
  std::vector<char> pool_finished{}, open{};
  std::vector<int32_t> n_new{}, max_new{};
  double length_penalty = 1.0;
  int early_stopping = 0;
  bool renormalize = false;

  int rows() const { return documents * beams; }
  int candidates() const { return std::max(2, 1 + static_cast<int>(eos.size())) * beams; }

  // What a test does not set: random logits, of which every second row has masses of ties; beams of every score; a pool
  // that is half full.
  void complete() {
    const size_t n = static_cast<size_t>(rows());
    std::normal_distribution<float> normal;
    for (size_t r = logits.size(); r < n; ++r) {
      const float grid = 0.25f + 0.0625f * static_cast<float>(r % 3), spread = r % 2 ? 1.f : 6.f;
      logits.emplace_back(vocabulary);
      for (float& x : logits.back()) x = grid * std::round(spread * std::min(4.f, std::max(-4.f, normal(generator))));
    }
    edits.resize(n);
    forced.resize(n, -1);
    for (size_t r = scores.size(); r < n; ++r) scores.push_back(-0.37f * static_cast<float>(below(6)));
    for (size_t r = pool_scores.size(); r < n; ++r) {
      pool_finished.push_back(static_cast<int>(r) % beams <= beams / 2);
      pool_scores.push_back(pool_finished.back() ? -0.3f - 0.1f * static_cast<float>(static_cast<int>(r) % beams)
                                                 : -1e9f);
    }
    open.resize(static_cast<size_t>(documents), 1);
    n_new.resize(static_cast<size_t>(documents), 3);
    max_new.resize(static_cast<size_t>(documents), 9);
  }
};

template <typename Real>
Real apply(const Edit& edit, Real score) {
  const Real value = edit.value;
  if (edit.kind == pegasus::kSet) return value;
  if (score == -INFINITY) return score;
  if (edit.kind == pegasus::kPenalize) return score < 0 ? score * value : score / value;
  return edit.kind == pegasus::kAdd ? score + value : score + std::abs(score) * value;
}

inline double settled(double x) {
  return std::isnan(x) ? -kInfinity : x;
}

inline void log_softmax(std::vector<double>& x) {
  double most = -kInfinity, sum = 0;
  for (double e : x) most = std::max(most, e);
  for (double e : x) sum += std::exp(e - most);
  for (double& e : x) e = settled(e - (most + std::log(sum)));
}

struct Result {
  std::vector<int32_t> parents, tokens, pool_source, pool_tokens;
  std::vector<char> pool_finished, open, done;
  std::vector<float> scores, pool_scores;
};

struct Ranked {
  double value;
  int beam, token;
};

template <typename Value>
std::vector<int> best_first(int n, Value value) {
  std::vector<int> order(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) > value(b); });
  return order;
}

inline void truth_of_document(const Case& c, int document, Result* out) {
  const int k = c.beams, first = document * k;
  std::vector<Ranked> all;
  for (int beam = 0; beam < k; ++beam) {
    const size_t row = static_cast<size_t>(first + beam);
    std::vector<double> x(c.logits[row].begin(), c.logits[row].end());
    for (double& e : x) e = settled(e);
    log_softmax(x);
    if (c.forced[row] >= 0) {
      std::fill(x.begin(), x.end(), -kInfinity);
      x[static_cast<size_t>(c.forced[row])] = 0.0;
    }
    for (const Edit& edit : c.edits[row])
      x[static_cast<size_t>(edit.token)] = apply(edit, x[static_cast<size_t>(edit.token)]);
    for (double& e : x) e = settled(e);
    if (c.renormalize) log_softmax(x);
    for (int t = 0; t < c.vocabulary; ++t) all.push_back({settled(x[static_cast<size_t>(t)] + c.scores[row]), beam, t});
  }
  std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) { return a.value > b.value; });
  const int n = c.candidates();
  all.resize(static_cast<size_t>(n));
  const auto at = [&](int i) { return all[static_cast<size_t>(i)]; };

  const size_t d = static_cast<size_t>(document);
  std::vector<bool> hit;
  for (const Ranked& r : all) {
    hit.push_back(c.n_new[d] >= c.max_new[d] || std::find(c.eos.begin(), c.eos.end(), r.token) != c.eos.end());
  }
  const auto running = [&](int i) { return at(i).value + (hit[static_cast<size_t>(i)] ? -1e9 : 0.0); };
  const std::vector<int> goes_on = best_first(n, running);
  bool full = true;
  for (int i = 0; i < k; ++i) full = full && c.pool_finished[static_cast<size_t>(first + i)];
  const auto ends = [&](int i) { return hit[static_cast<size_t>(i)] && i < k; };
  const auto final_value = [&](int i) {
    if (i < k) return static_cast<double>(c.pool_scores[static_cast<size_t>(first + i)]);
    double value = at(i - k).value / std::pow(c.n_new[d], c.length_penalty);
    if (full && c.early_stopping == 1) value += -1e9;
    if (!c.open[d]) value += -1e9;
    return settled(ends(i - k) ? value : value + -1e9);
  };
  const std::vector<int> pool = best_first(k + n, final_value);
  float worst = INFINITY;
  bool all_finished = true, any_finished = false, all_hit = true;
  for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
    out->scores.push_back(static_cast<float>(running(goes_on[i])));
    out->parents.push_back(at(goes_on[i]).beam);
    out->tokens.push_back(at(goes_on[i]).token);
    const int source = pool[i];
    const bool finished = source < k ? c.pool_finished[static_cast<size_t>(first + source)] : ends(source - k);
    out->pool_scores.push_back(static_cast<float>(final_value(source)));
    out->pool_finished.push_back(finished);
    out->pool_source.push_back(source < k ? source : k + at(source - k).beam);
    out->pool_tokens.push_back(source < k ? -1 : at(source - k).token);
    worst = std::min(worst, out->pool_scores.back());
    all_finished = all_finished && finished;
    any_finished = any_finished || finished;
  }
  for (bool h : hit) all_hit = all_hit && h;
  const double length = c.early_stopping == 2 && c.length_penalty > 0 ? c.max_new[d] : c.n_new[d];
  const float possible = static_cast<float>(running(goes_on[0]) / std::pow(length, c.length_penalty));
  const bool improvable = (any_finished && possible > worst) || (!all_finished && possible > -1e9f);
  out->open.push_back(c.open[d] && improvable);
  out->done.push_back(!out->open.back() || (c.early_stopping == 1 && all_finished) || all_hit);
}

}  // namespace step_cases
