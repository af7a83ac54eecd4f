// The only file that sees Python: one m.def per op. Tensors come in as torch objects and are borrowed through DLPack's
// C exchange API, so neither torch's headers nor its ABI are needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "dlpack_abi.h"
#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/beam_step.h"
#include "ops/blocks.h"
#include "ops/extend_beams.h"
#include "ops/greedy_step.h"
#include "ops/linear.h"
#include "ops/plan_edits.h"
#include "ops/weight_rows.h"
#include "tensor.h"

namespace py = pybind11;

namespace {

const dlpack::ExchangeApi* exchange_api = nullptr;

void connect(const py::object& tensor_type) {
  if (!py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
    throw py::import_error("this torch has no DLPack C exchange API; install torch 2.10 or later");
  }
  const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  if (api->version.major != 1 || !api->tensor_from_object) {
    throw py::import_error("this torch offers DLPack " + std::to_string(api->version.major) +
                           " without borrowed tensors; install torch 2.10 or later");
  }
  exchange_api = api;
}

pegasus::TensorView view(py::handle x, const char* name) {
  if (!exchange_api) throw std::runtime_error("call connect(torch.Tensor) first");
  dlpack::Tensor tensor;
  if (exchange_api->tensor_from_object(x.ptr(), &tensor)) throw py::error_already_set();
  return pegasus::view_of(tensor, name);
}

void* stream_of(const pegasus::TensorView& x) {
  void* stream = nullptr;
  if (x.device == pegasus::DeviceKind::kCuda &&
      exchange_api->current_work_stream(dlpack::kCuda, x.device_id, &stream)) {
    throw py::error_already_set();
  }
  return stream;
}

#define VIEW(argument) view(argument, #argument)

void attention(py::handle query, py::handle key, py::handle value, py::handle query_begin, py::handle key_begin,
               py::handle n_keys, double scale, py::handle out) {
  const pegasus::AttentionParams params{VIEW(query),     VIEW(key),    VIEW(value), VIEW(query_begin),
                                        VIEW(key_begin), VIEW(n_keys), VIEW(out),   scale};
  void* stream = stream_of(params.query);
  py::gil_scoped_release unlocked;
  pegasus::attention(params, stream);
}

void cached_attention(py::handle query, py::handle key, py::handle value, py::handle key_cache, py::handle value_cache,
                      py::handle query_begin, py::handle ancestry, py::handle n_keys, double scale, py::handle out) {
  const pegasus::CachedAttentionParams params{
      VIEW(query),       VIEW(key),      VIEW(value),  VIEW(key_cache), VIEW(value_cache),
      VIEW(query_begin), VIEW(ancestry), VIEW(n_keys), VIEW(out),       scale};
  void* stream = stream_of(params.query);
  py::gil_scoped_release unlocked;
  pegasus::cached_attention(params, stream);
}

void pack_source(py::handle key, py::handle value, py::handle key_begin, py::handle n_keys, py::handle panel_begin,
                 py::handle key_panels, py::handle value_panels) {
  const pegasus::PackSourceParams params{VIEW(key),         VIEW(value),      VIEW(key_begin),   VIEW(n_keys),
                                         VIEW(panel_begin), VIEW(key_panels), VIEW(value_panels)};
  void* stream = stream_of(params.key);
  py::gil_scoped_release unlocked;
  pegasus::pack_source(params, stream);
}

void source_attention(py::handle query, py::handle key_panels, py::handle value_panels, py::handle query_begin,
                      py::handle panel_begin, py::handle n_keys, double scale, py::handle out, py::handle workspace) {
  const pegasus::SourceAttentionParams params{VIEW(query),
                                              VIEW(key_panels),
                                              VIEW(value_panels),
                                              VIEW(query_begin),
                                              VIEW(panel_begin),
                                              VIEW(n_keys),
                                              VIEW(out),
                                              workspace.is_none() ? pegasus::TensorView{} : VIEW(workspace),
                                              scale};
  void* stream = stream_of(params.query);
  py::gil_scoped_release unlocked;
  pegasus::source_attention(params, stream);
}

int64_t source_workspace(py::handle query, py::handle key_panels, py::handle n_keys) {
  return pegasus::source_workspace(VIEW(query), VIEW(key_panels), VIEW(n_keys));
}

void beam_step(py::handle logits, py::handle scores, py::handle pool_scores, py::handle pool_finished, py::handle open,
               py::handle edit_begin, py::handle edit_end, py::handle edit_token, py::handle edit_kind,
               py::handle edit_value, py::handle forced, py::handle n_new, py::handle max_new, py::handle eos_ids,
               double length_penalty, int early_stopping, bool renormalize, py::handle out_scores,
               py::handle out_parents, py::handle out_tokens, py::handle out_pool_scores, py::handle out_pool_finished,
               py::handle out_pool_source, py::handle out_pool_tokens, py::handle out_open, py::handle out_done,
               py::handle workspace) {
  const pegasus::BeamStepParams params{{VIEW(logits), VIEW(edit_begin), VIEW(edit_end), VIEW(edit_token),
                                        VIEW(edit_kind), VIEW(edit_value), VIEW(forced)},
                                       VIEW(scores),
                                       VIEW(pool_scores),
                                       VIEW(pool_finished),
                                       VIEW(open),
                                       VIEW(n_new),
                                       VIEW(max_new),
                                       VIEW(eos_ids),
                                       length_penalty,
                                       early_stopping,
                                       renormalize,
                                       VIEW(out_scores),
                                       VIEW(out_parents),
                                       VIEW(out_tokens),
                                       VIEW(out_pool_scores),
                                       VIEW(out_pool_finished),
                                       VIEW(out_pool_source),
                                       VIEW(out_pool_tokens),
                                       VIEW(out_open),
                                       VIEW(out_done),
                                       VIEW(workspace)};
  void* stream = stream_of(params.rows.logits);
  py::gil_scoped_release unlocked;
  pegasus::beam_step(params, stream);
}

int64_t beam_step_workspace(py::handle logits, int64_t beams, int64_t edits, int64_t eos_ids) {
  return pegasus::beam_step_workspace(VIEW(logits), beams, edits, eos_ids);
}

void greedy_step(py::handle logits, py::handle edit_begin, py::handle edit_end, py::handle edit_token,
                 py::handle edit_kind, py::handle edit_value, py::handle forced, bool renormalize, py::handle tokens,
                 py::handle gains, py::handle broken, py::handle workspace) {
  const pegasus::GreedyStepParams params{{VIEW(logits), VIEW(edit_begin), VIEW(edit_end), VIEW(edit_token),
                                          VIEW(edit_kind), VIEW(edit_value), VIEW(forced)},
                                         renormalize,
                                         VIEW(tokens),
                                         VIEW(gains),
                                         VIEW(broken),
                                         VIEW(workspace)};
  void* stream = stream_of(params.rows.logits);
  py::gil_scoped_release unlocked;
  pegasus::greedy_step(params, stream);
}

int64_t greedy_step_workspace(py::handle logits, int64_t edits) {
  return pegasus::greedy_step_workspace(VIEW(logits), edits);
}

void plan_edits(py::handle sequences, py::handle lengths, py::handle phase_begin, py::handle phase_token,
                py::handle phase_kind, py::handle phase_value, py::handle phase_forced, double repetition_penalty,
                int64_t ngram_size, py::handle begin, py::handle end, py::handle token, py::handle kind,
                py::handle value, py::handle forced) {
  const pegasus::PlanEditsParams params{VIEW(sequences),  VIEW(lengths),     VIEW(phase_begin),  VIEW(phase_token),
                                        VIEW(phase_kind), VIEW(phase_value), VIEW(phase_forced), repetition_penalty,
                                        ngram_size,       VIEW(begin),       VIEW(end),          VIEW(token),
                                        VIEW(kind),       VIEW(value),       VIEW(forced)};
  void* stream = stream_of(params.sequences);
  py::gil_scoped_release unlocked;
  pegasus::plan_edits(params, stream);
}

void extend_beams(py::handle scores, py::handle parents, py::handle tokens, py::handle pool_scores,
                  py::handle pool_finished, py::handle pool_source, py::handle pool_tokens, py::handle open,
                  py::handle done, py::handle active, py::handle lengths, py::handle kept_scores,
                  py::handle kept_pool_scores, py::handle kept_pool_finished, py::handle kept_open,
                  py::handle sequences, py::handle pool_sequences, py::handle pool_lengths, py::handle next_tokens,
                  py::handle ancestry, py::handle n_keys, py::handle source_length) {
  const pegasus::ExtendBeamsParams params{VIEW(scores),
                                          VIEW(parents),
                                          VIEW(tokens),
                                          VIEW(pool_scores),
                                          VIEW(pool_finished),
                                          VIEW(pool_source),
                                          VIEW(pool_tokens),
                                          VIEW(open),
                                          VIEW(done),
                                          VIEW(active),
                                          VIEW(lengths),
                                          VIEW(kept_scores),
                                          VIEW(kept_pool_scores),
                                          VIEW(kept_pool_finished),
                                          VIEW(kept_open),
                                          VIEW(sequences),
                                          VIEW(pool_sequences),
                                          VIEW(pool_lengths),
                                          VIEW(next_tokens),
                                          VIEW(ancestry),
                                          VIEW(n_keys),
                                          VIEW(source_length)};
  void* stream = stream_of(params.sequences);
  py::gil_scoped_release unlocked;
  pegasus::extend_beams(params, stream);
}

void add_norm(py::handle stream, py::handle branch, py::handle weight, py::handle bias, double eps, bool post_norm,
              py::handle normed) {
  const bool has_branch = !branch.is_none();
  const pegasus::AddNormParams params{VIEW(stream), has_branch ? VIEW(branch) : pegasus::TensorView{},
                                      VIEW(weight), VIEW(bias),
                                      VIEW(normed), eps,
                                      has_branch,   post_norm};
  void* queue = stream_of(params.stream);
  py::gil_scoped_release unlocked;
  pegasus::add_norm(params, queue);
}

void linear(py::handle states, py::handle weights, py::handle weight_scales, py::handle bias, py::handle residual,
            bool relu, py::handle norm_weight, py::handle norm_bias, double norm_eps, py::handle out,
            py::handle workspace) {
  pegasus::LinearParams params{};
  if (norm_weight.is_none() != norm_bias.is_none()) {
    throw std::invalid_argument("linear: norm_weight and norm_bias come together or not at all");
  }
  params.has_norm = !norm_weight.is_none();
  params.has_scales = !weight_scales.is_none();
  params.has_residual = !residual.is_none();
  params.states = VIEW(states);
  params.weights = VIEW(weights);
  if (params.has_norm) {
    params.norm_weight = VIEW(norm_weight);
    params.norm_bias = VIEW(norm_bias);
    params.norm_eps = norm_eps;
  }
  if (params.has_scales) params.weight_scales = VIEW(weight_scales);
  params.bias = VIEW(bias);
  if (params.has_residual) params.residual = VIEW(residual);
  params.out = VIEW(out);
  params.workspace = VIEW(workspace);
  params.relu = relu;
  py::gil_scoped_release unlocked;
  pegasus::linear(params);
}

void weight_rows(py::handle weights, py::handle rows, py::handle out) {
  const pegasus::WeightRowsParams params{VIEW(weights), VIEW(rows), VIEW(out)};
  py::gil_scoped_release unlocked;
  pegasus::weight_rows(params);
}

int64_t linear_workspace(py::handle states, py::handle weights, bool has_norm) {
  return pegasus::linear_workspace(VIEW(states), VIEW(weights), has_norm);
}

pegasus::Layer layer_of(const py::tuple& layer) {
  if (layer.size() != 3)
    throw std::invalid_argument("block: a layer is its weights, their scales or None, and its bias");
  const py::object weights = layer[0], weight_scales = layer[1], bias = layer[2];
  const bool has_scales = !weight_scales.is_none();
  return {VIEW(weights), has_scales ? VIEW(weight_scales) : pegasus::TensorView{}, VIEW(bias), has_scales};
}

// norm: weight, bias and eps, or nothing; enter, leave: weights, their scales or None, and bias.
pegasus::Block block_of(py::handle states, const py::tuple& norm, const py::tuple& enter, const py::tuple& leave,
                        py::handle out) {
  pegasus::Block block{};
  block.states = VIEW(states);
  block.has_norm = norm.size() == 3;
  if (block.has_norm) {
    const py::object norm_weight = norm[0], norm_bias = norm[1];
    block.norm_weight = VIEW(norm_weight);
    block.norm_bias = VIEW(norm_bias);
    block.norm_eps = norm[2].cast<double>();
  }
  block.enter = layer_of(enter);
  block.leave = layer_of(leave);
  block.out = VIEW(out);
  return block;
}

void attention_block(py::handle states, const py::tuple& norm, const py::tuple& enter, const py::tuple& leave,
                     py::handle out, int64_t heads, py::handle query_begin, py::handle key_begin, py::handle n_keys,
                     double scale) {
  const pegasus::Block block = block_of(states, norm, enter, leave, out);
  pegasus::AttentionParams params{};
  params.query_begin = VIEW(query_begin);
  params.key_begin = VIEW(key_begin);
  params.n_keys = VIEW(n_keys);
  params.scale = scale;
  py::gil_scoped_release unlocked;
  pegasus::attention_block(block, params, heads);
}

void cached_attention_block(py::handle states, const py::tuple& norm, const py::tuple& enter, const py::tuple& leave,
                            py::handle out, int64_t heads, py::handle key_cache, py::handle value_cache,
                            py::handle query_begin, py::handle ancestry, py::handle n_keys, double scale) {
  const pegasus::Block block = block_of(states, norm, enter, leave, out);
  pegasus::CachedAttentionParams params{};
  params.key_cache = VIEW(key_cache);
  params.value_cache = VIEW(value_cache);
  params.query_begin = VIEW(query_begin);
  params.ancestry = VIEW(ancestry);
  params.n_keys = VIEW(n_keys);
  params.scale = scale;
  py::gil_scoped_release unlocked;
  pegasus::cached_attention_block(block, params, heads);
}

void source_attention_block(py::handle states, const py::tuple& norm, const py::tuple& enter, const py::tuple& leave,
                            py::handle out, int64_t heads, py::handle key_panels, py::handle value_panels,
                            py::handle query_begin, py::handle panel_begin, py::handle n_keys, double scale) {
  const pegasus::Block block = block_of(states, norm, enter, leave, out);
  pegasus::SourceAttentionParams params{};
  params.key_panels = VIEW(key_panels);
  params.value_panels = VIEW(value_panels);
  params.query_begin = VIEW(query_begin);
  params.panel_begin = VIEW(panel_begin);
  params.n_keys = VIEW(n_keys);
  params.scale = scale;
  py::gil_scoped_release unlocked;
  pegasus::source_attention_block(block, params, heads);
}

void feed_forward_block(py::handle states, const py::tuple& norm, const py::tuple& enter, const py::tuple& leave,
                        py::handle out) {
  const pegasus::Block block = block_of(states, norm, enter, leave, out);
  py::gil_scoped_release unlocked;
  pegasus::feed_forward_block(block);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ and CUDA kernels; use them through pegasus_batch.kernels.";
  m.def("connect", &connect, "Borrow tensors of this type from now on.");
  m.def("isa", &pegasus::cpu::active_isa, "Instruction set of the CPU kernels.");
  m.def("available_isas", &pegasus::cpu::available_isas, "Instruction sets of this host, the plainest first.");
  m.def("select_isa", &pegasus::cpu::select_isa, "Switch to another instruction set; for tests.");
#ifdef PEGASUS_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
#ifdef PEGASUS_BLOCK_EMULATOR
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  m.def("attention", &attention);
  m.def("cached_attention", &cached_attention);
  m.def("pack_source", &pack_source);
  m.def("source_attention", &source_attention);
  m.def("source_workspace", &source_workspace);
  m.def("beam_step", &beam_step);
  m.def("beam_step_workspace", &beam_step_workspace);
  m.def("greedy_step", &greedy_step);
  m.def("greedy_step_workspace", &greedy_step_workspace);
  m.def("plan_edits", &plan_edits);
  m.def("extend_beams", &extend_beams);
  m.def("add_norm", &add_norm);
  m.def("linear", &linear);
  m.def("linear_workspace", &linear_workspace);
  m.def("weight_rows", &weight_rows);
  m.def("attention_block", &attention_block);
  m.def("cached_attention_block", &cached_attention_block);
  m.def("source_attention_block", &source_attention_block);
  m.def("feed_forward_block", &feed_forward_block);
}
