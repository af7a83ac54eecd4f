// Runs the CUDA kernels of beam_step and greedy_step under the block emulator and compares them with float64 over the
// whole vocabulary. Exits with 1 and a message on the first difference. tests/csrc/test_kernels.py compiles it, also
// with mistakes planted in the kernels.
#include <cstdio>

#include "cuda/beam_step.cu"
#include "cuda/greedy_step.cu"
#include "step_cases.hpp"

namespace {

using namespace pegasus::cuda;
using namespace step_cases;
using pegasus::kAdd;
using pegasus::kPenalize;
using pegasus::kSet;

constexpr float kLoud = 30000.f;  // would win everything where it is read

// Of a number that a half holds without rounding and that is not denormal.
uint16_t half_of(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7e00;
  if (std::isinf(x)) return sign | 0x7c00;
  if (x == 0.f) return sign;
  int exponent;
  const float fraction = std::frexp(std::abs(x), &exponent) * 2048.f - 1024.f;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | static_cast<int>(fraction));
}

// A case as the kernels take it; between the rows' edits, and between rows, lies what nobody may look at.
struct Call {
  std::vector<uint32_t> logits;
  std::vector<int32_t> begin, end, token, kind;
  std::vector<float> value;
  RowScan scan{};

  explicit Call(const Case& c) : logits((static_cast<size_t>(c.rows()) * c.stride * 4 + 16) / 4) {
    for (const auto& row : c.edits) {
      begin.push_back(static_cast<int32_t>(token.size()));
      for (const Edit& edit : row) {
        token.push_back(edit.token);
        kind.push_back(edit.kind);
        value.push_back(edit.value);
      }
      end.push_back(static_cast<int32_t>(token.size()));
      token.push_back(1 << 28);
      kind.push_back(99);
      value.push_back(NAN);
    }
    const int bytes = c.type == LogitType::kFloat32 ? 4 : 2;
    for (int i = 0; i < c.rows() * c.stride; ++i) {
      const int row = i / c.stride, column = i % c.stride;
      store(c.type, i, column < c.vocabulary ? c.logits[static_cast<size_t>(row)][static_cast<size_t>(column)] : kLoud);
    }
    scan.logits = logits.data();
    scan.type = c.type;
    scan.aligned = reinterpret_cast<uintptr_t>(logits.data()) % 16 == 0 && c.stride * bytes % 16 == 0;
    scan.stride = c.stride;
    scan.n_rows = c.rows();
    scan.vocabulary = c.vocabulary;
    scan.n_chunks = (c.vocabulary + kChunk - 1) / kChunk;
    scan.edit_begin = begin.data();
    scan.edit_end = end.data();
    scan.edit_token = token.data();
    scan.edit_kind = kind.data();
    scan.edit_value = value.data();
    scan.n_edits = static_cast<int64_t>(token.size());
    scan.forced = c.forced.data();
  }

 private:
  void store(LogitType type, int i, float x) {
    if (type == LogitType::kFloat32) {
      std::memcpy(reinterpret_cast<float*>(logits.data()) + i, &x, 4);
      return;
    }
    uint16_t bits = float_to_bf16(x);
    if (type == LogitType::kFloat16) bits = half_of(x);
    std::memcpy(reinterpret_cast<uint16_t*>(logits.data()) + i, &bits, 2);
  }
};

bool report(const Case& c, unsigned order, const char* what) {
  std::printf("%s, order %u: %s\n", c.name, order, what);
  return false;
}

template <typename A, typename B>
bool close(const A& got, const B& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double a = got[i], b = wanted[i];
    if (!(a == b || std::abs(a - b) <= 2e-6 + 1e-6 * std::abs(b) || (std::isnan(a) && std::isnan(b)))) return false;
  }
  return true;
}

bool test_beam_step(Case c) {
  c.complete();
  Result wanted;
  for (int document = 0; document < c.documents; ++document) truth_of_document(c, document, &wanted);
  Call call(c);
  for (unsigned order = 0; order < 3; ++order) {
    emulator::thread_order = order;
    const size_t n = static_cast<size_t>(c.rows()), b = static_cast<size_t>(c.documents);
    std::vector<float> scores(n, NAN), pool_scores(n, NAN);
    std::vector<int32_t> parents(n, -9), tokens(n, -9), source(n, -9), pool_tokens(n, -9);
    std::vector<char> finished(n, 9), open(b, 9), done(b, 9);
    BeamStepTask task{};
    task.scan = call.scan;
    task.scan.wants_rest_sum = c.renormalize;
    task.scores = c.scores.data();
    task.pool_scores = c.pool_scores.data();
    task.pool_finished = reinterpret_cast<const bool*>(c.pool_finished.data());
    task.open = reinterpret_cast<const bool*>(c.open.data());
    task.n_new = c.n_new.data();
    task.max_new = c.max_new.data();
    task.eos_ids = c.eos.data();
    task.n_documents = c.documents;
    task.n_beams = c.beams;
    task.n_eos = static_cast<int>(c.eos.size());
    task.n_candidates = c.candidates();
    task.length_penalty = c.length_penalty;
    task.early_stopping = c.early_stopping;
    task.renormalize = c.renormalize;
    task.out_scores = scores.data();
    task.out_parents = parents.data();
    task.out_tokens = tokens.data();
    task.out_pool_scores = pool_scores.data();
    task.out_pool_finished = reinterpret_cast<bool*>(finished.data());
    task.out_pool_source = source.data();
    task.out_pool_tokens = pool_tokens.data();
    task.out_open = reinterpret_cast<bool*>(open.data());
    task.out_done = reinterpret_cast<bool*>(done.data());
    std::vector<Candidate> workspace(static_cast<size_t>(beam_step_workspace(&task, nullptr)) / sizeof(Candidate) + 1,
                                     Candidate(NAN, 1 << 28, 1 << 28));
    beam_step_workspace(&task, workspace.data());
    try {
      beam_step(task, 0, nullptr);
    } catch (const std::runtime_error& e) {
      return report(c, order, e.what());
    }
    if (parents != wanted.parents || tokens != wanted.tokens) return report(c, order, "other beams");
    if (source != wanted.pool_source || pool_tokens != wanted.pool_tokens) return report(c, order, "another pool");
    if (finished != wanted.pool_finished) return report(c, order, "other entries have finished");
    if (open != wanted.open || done != wanted.done) return report(c, order, "open or done differ");
    if (!close(scores, wanted.scores)) return report(c, order, "other scores");
    if (!close(pool_scores, wanted.pool_scores)) return report(c, order, "other pool scores");
  }
  return true;
}

bool test_greedy_step(Case c) {
  c.complete();
  std::vector<int32_t> wanted;
  std::vector<double> wanted_gains;
  std::vector<char> wanted_broken;
  for (size_t row = 0; row < static_cast<size_t>(c.rows()); ++row) {
    std::vector<float> x = c.logits[row];
    if (c.forced[row] >= 0) {
      std::fill(x.begin(), x.end(), -INFINITY);
      x[static_cast<size_t>(c.forced[row])] = 0.f;
    }
    for (const Edit& edit : c.edits[row])
      x[static_cast<size_t>(edit.token)] = apply(edit, x[static_cast<size_t>(edit.token)]);
    float most = -INFINITY;
    bool nan = false;
    for (float e : x) {
      most = std::max(most, e);
      nan = nan || std::isnan(e);
    }
    double sum = 0;
    for (float e : x) sum += std::exp(double{e} - most);
    const bool normal = !nan && std::isfinite(most);
    const float log_sum = static_cast<float>(std::log(sum));
    size_t token = 0;
    if (c.renormalize && normal) {
      while ((x[token] - most) - log_sum != -log_sum) ++token;
    } else if (!c.renormalize) {
      while (nan ? !std::isnan(x[token]) : x[token] != most) ++token;
    }
    wanted.push_back(static_cast<int32_t>(token));
    wanted_gains.push_back(normal ? -std::log(sum) : NAN);
    wanted_broken.push_back(std::isnan(c.logits[row][token]));
  }
  Call call(c);
  for (unsigned order = 0; order < 3; ++order) {
    emulator::thread_order = order;
    std::vector<int32_t> tokens(wanted.size(), -9);
    std::vector<double> gains(wanted.size(), -9.0);
    std::vector<char> broken(wanted.size(), 9);
    GreedyStepTask task{call.scan, c.renormalize, tokens.data(), gains.data(), reinterpret_cast<bool*>(broken.data())};
    std::vector<Candidate> workspace(
        static_cast<size_t>(row_scan_workspace(&task.scan, nullptr)) / sizeof(Candidate) + 1,
        Candidate(NAN, 1 << 28, 1 << 28));
    row_scan_workspace(&task.scan, workspace.data());
    try {
      greedy_step(task, 0, nullptr);
    } catch (const std::runtime_error& e) {
      return report(c, order, e.what());
    }
    if (tokens != wanted) return report(c, order, "other tokens");
    if (!close(gains, wanted_gains)) return report(c, order, "other gains");
    if (broken != wanted_broken) return report(c, order, "other rows are broken");
  }
  return true;
}

// Edits of every kind, tokens several times and in no order; every third row has none.
std::vector<std::vector<Edit>> random_edits(int rows, int n, int vocabulary) {
  const float values[4][3] = {{-INFINITY, -3.f, 0.f}, {2.f, 0.5f, 1.f}, {1.f, -1.f, 0.f}, {0.5f, -0.5f, 0.25f}};
  std::vector<std::vector<Edit>> edits(static_cast<size_t>(rows));
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < (row % 3 == 2 ? 0 : n); ++i) {
      const int kind = below(4);
      edits[static_cast<size_t>(row)].push_back({below(n) * 997 % vocabulary, kind, values[kind][below(3)]});
    }
  }
  return edits;
}

std::vector<std::vector<float>> plain(int rows, int vocabulary, float x) {
  return std::vector<std::vector<float>>(static_cast<size_t>(rows),
                                         std::vector<float>(static_cast<size_t>(vocabulary), x));
}

bool both(const Case& c) {
  return test_beam_step(c) && test_greedy_step(c);
}

bool run() {
  const LogitType types[] = {LogitType::kFloat32, LogitType::kBFloat16, LogitType::kFloat16};
  for (LogitType type : types) {
    Case aligned{"aligned rows", 2, 3, 2501, 2504, type};
    aligned.eos = {7, 2500};
    aligned.edits = random_edits(6, 40, 2501);
    if (!both(aligned)) return false;
    Case odd{"rows at an odd stride", 1, 4, 9300, 9301, type};
    odd.edits = random_edits(4, 9, 9300);
    odd.length_penalty = 0.8;
    odd.early_stopping = 2;
    if (!both(odd)) return false;
  }
  Case banned{"a banned token has the winner's logit", 1, 2, 1500, 1504};
  banned.logits = plain(2, 1500, -1.f);
  for (std::vector<float>& row : banned.logits) row[10] = row[20] = 3.f;
  banned.edits = {{{10, kSet, -INFINITY}}, {{10, kSet, -INFINITY}}};
  if (!both(banned)) return false;
  for (int again = 0; again < 2; ++again) {
    Case normalised{"normalised again", 3, 2, 1500, 1504};
    normalised.renormalize = again != 0;
    normalised.edits = random_edits(6, 300, 1500);
    normalised.edits[0].assign(1500, Edit{});
    for (int t = 0; t < 1500; ++t) normalised.edits[0][static_cast<size_t>(t)] = {1499 - t, kSet, -INFINITY};
    normalised.scores = {-0.1f, -0.2f, -0.3f, -0.45f, -0.61f, -0.78f};
    normalised.forced = {-1, -1, 1030, -1, -1, 3};
    normalised.edits[2] = {{1030, kAdd, -1.f}, {1200, kSet, -0.5f}, {1030, kPenalize, 2.f}};
    normalised.edits[5] = {{7, kSet, -2.f}};
    if (!both(normalised)) return false;
    Case broken{"rows without a distribution", 2, 3, 1100, 1104};
    broken.renormalize = again != 0;
    broken.logits = plain(6, 1100, -1.f);
    for (size_t r = 0; r < 6; ++r) broken.logits[r][40 * r] = static_cast<float>(r);
    broken.logits[0][1040] = broken.logits[0][1050] = broken.logits[1][1040] = NAN;
    broken.logits[2] = plain(1, 1100, -INFINITY)[0];
    broken.logits[3][60] = INFINITY;
    broken.edits.resize(6);
    broken.edits[1] = {{1040, kSet, -INFINITY}, {9, kSet, 5.f}};
    broken.edits[3] = {{5, kSet, -1.f}};
    broken.edits[4] = {{1030, kSet, NAN}};
    broken.scores = {0.f, NAN, 0.f, -1.f, -0.5f, -INFINITY};
    if (!both(broken)) return false;
    // Rounding: an ulp is lost when a sum of about log(4096) is taken off.
    Case ulp{"an ulp apart", 1, 1, 4096, 4096};
    ulp.renormalize = again != 0;
    ulp.logits = plain(1, 4096, 0.f);
    ulp.logits[0][3000] = 0x1p-23f;
    ulp.logits[0][3001] = 0x1p-22f;
    if (!test_greedy_step(ulp)) return false;
  }
  Case peaks{"edits of the best tokens", 1, 3, 3000, 3000};
  peaks.logits = plain(3, 3000, -2.f);
  for (auto& row : peaks.logits) row[40] = 5.f, row[1030] = 4.f, row[2047] = 3.f, row[2100] = 2.f;
  peaks.edits = {
      {{40, kSet, -INFINITY}, {1030, kAdd, -4.f}}, {{2047, kAdd, -1.f}, {40, kAdd, -0.5f}}, {{1030, kSet, -1.f}}};
  peaks.scores = {0.f, -0.5f, -1.25f};
  if (!both(peaks)) return false;
  Case long_row{"more chunks than lanes", 1, 2, 34000, 34000};
  long_row.logits = plain(2, 34000, 0.f);
  for (int chunk : {1, 2, 33}) long_row.logits[0][static_cast<size_t>(chunk * kChunk + 7)] = 3.f;
  if (!both(long_row)) return false;
  Case equal{"everything equal", 2, 4, 3000, 3000};
  equal.logits = plain(8, 3000, 1.f);
  equal.scores.assign(8, 0.f);
  equal.edits = random_edits(8, 5, 3000);
  if (!both(equal)) return false;
  // The plateau of the first beam is touched throughout: its ties come from edits, one of each chunk from the others.
  Case touched{"ties among edited tokens", 1, 2, 4000, 4000};
  touched.logits = plain(2, 4000, 1.f);
  touched.scores.assign(2, 0.f);
  touched.edits.resize(2);
  for (int t = 0; t < 2047; ++t) touched.edits[0].push_back({t, kAdd, t % 64 == 5 ? 0.f : -1.f});
  if (!both(touched)) return false;
  Case forced{"every row forced", 2, 4, 1100, 1104};
  forced.forced.assign(8, 700);
  forced.forced[5] = 3;
  forced.edits.resize(8);
  forced.edits[1] = {{700, kAdd, -1.f}};
  forced.edits[2] = {{700, kSet, -INFINITY}};
  if (!both(forced)) return false;
  Case many{"more edits than shared memory sorts", 1, 2, 6000, 6000};
  many.edits = random_edits(2, 5000, 6000);
  if (!both(many)) return false;
  Case limit{"at the length limit", 2, 2, 40, 40};
  limit.n_new = {9, 4};
  limit.open = {1, 0};
  limit.early_stopping = 1;
  limit.eos = {0, 3, 5, 8};
  if (!test_beam_step(limit)) return false;
  // The pool's worst entry leaves room to improve, but nothing goes on.
  Case last{"all have ended", 1, 2, 40, 40};
  last.n_new = last.max_new = {9};
  last.forced = {3, 3};
  last.scores = {0.f, -3e9f};
  last.pool_scores = {-1e9f, -1e9f};
  last.pool_finished = {0, 0};
  if (!test_beam_step(last)) return false;
  for (int early_stopping = 0; early_stopping < 3; ++early_stopping) {
    for (int seed = 0; seed < 12; ++seed) {
      Case pool{"pool", 3, 3, 12, 12};
      pool.early_stopping = early_stopping;
      pool.length_penalty = seed % 3 == 0 ? 2.0 : seed % 3 == 1 ? -0.5 : 1.0;
      pool.eos = {0, 3, 5, 8};
      pool.open = {1, 0, 1};
      pool.scores.assign(9, 0.f);
      for (float& s : pool.scores) s = -0.25f * static_cast<float>(below(3));
      pool.pool_finished.assign(9, seed % 2);
      pool.pool_scores.assign(9, seed % 2 ? -0.03f * static_cast<float>(seed) : -1e9f);
      if (!test_beam_step(pool)) return false;
    }
  }
  // As many candidates as the wide search of large beams needs, from one living beam.
  Case wide{"many candidates", 1, 20, 1100, 1104};
  wide.eos = {1, 2, 3, 4, 5, 6};
  wide.scores.assign(20, -1e9f);
  wide.scores[0] = 0.f;
  return test_beam_step(wide);
}

}  // namespace

int main() {
  return run() ? 0 : 1;
}
