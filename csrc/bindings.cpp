// The only file that sees Python: one m.def per op. Tensors come in as torch objects and are borrowed through DLPack's
// C exchange API, so neither torch's headers nor its ABI are needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "dlpack_abi.h"
#include "ops/attention.h"
#include "ops/beam_step.h"
#include "ops/linear_int8.h"
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

void cached_attention(py::handle query, py::handle key_cache, py::handle value_cache, py::handle ancestry,
                      py::handle n_keys, double scale, py::handle out) {
  const pegasus::CachedAttentionParams params{
      VIEW(query), VIEW(key_cache), VIEW(value_cache), VIEW(ancestry), VIEW(n_keys), VIEW(out), scale};
  void* stream = stream_of(params.query);
  py::gil_scoped_release unlocked;
  pegasus::cached_attention(params, stream);
}

void pack_source(py::handle key, py::handle value, py::handle key_begin, py::handle n_keys, py::handle panel_begin,
                 py::handle key_panels, py::handle value_panels) {
  const pegasus::PackSourceParams params{VIEW(key),         VIEW(value),      VIEW(key_begin),   VIEW(n_keys),
                                         VIEW(panel_begin), VIEW(key_panels), VIEW(value_panels)};
  py::gil_scoped_release unlocked;
  pegasus::pack_source(params);
}

void source_attention(py::handle query, py::handle key_panels, py::handle value_panels, py::handle query_begin,
                      py::handle panel_begin, py::handle n_keys, double scale, py::handle out) {
  const pegasus::SourceAttentionParams params{
      VIEW(query),       VIEW(key_panels), VIEW(value_panels), VIEW(query_begin),
      VIEW(panel_begin), VIEW(n_keys),     VIEW(out),          scale};
  py::gil_scoped_release unlocked;
  pegasus::source_attention(params);
}

void beam_step(py::handle logits, py::handle scores, py::handle pool_scores, py::handle pool_finished, py::handle open,
               py::handle edit_begin, py::handle edit_token, py::handle edit_kind, py::handle edit_value,
               py::handle forced, py::handle n_new, py::handle max_new, py::handle eos_ids, double length_penalty,
               int early_stopping, bool renormalize, py::handle out_scores, py::handle out_parents,
               py::handle out_tokens, py::handle out_pool_scores, py::handle out_pool_finished,
               py::handle out_pool_source, py::handle out_pool_tokens, py::handle out_open, py::handle out_done,
               py::handle workspace) {
  const pegasus::BeamStepParams params{VIEW(logits),
                                       VIEW(scores),
                                       VIEW(pool_scores),
                                       VIEW(pool_finished),
                                       VIEW(open),
                                       VIEW(edit_begin),
                                       VIEW(edit_token),
                                       VIEW(edit_kind),
                                       VIEW(edit_value),
                                       VIEW(forced),
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
  py::gil_scoped_release unlocked;
  pegasus::beam_step(params);
}

void linear_int8(py::handle states, py::handle weights, py::handle weight_scales, py::handle bias, py::handle residual,
                 bool relu, py::handle out, py::handle workspace) {
  const bool has_residual = !residual.is_none();
  const pegasus::LinearInt8Params params{VIEW(states),
                                         VIEW(weights),
                                         VIEW(weight_scales),
                                         VIEW(bias),
                                         has_residual ? VIEW(residual) : pegasus::TensorView{},
                                         VIEW(out),
                                         VIEW(workspace),
                                         has_residual,
                                         relu};
  py::gil_scoped_release unlocked;
  pegasus::linear_int8(params);
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
  m.def("beam_step", &beam_step);
  m.def("beam_step_workspace", &pegasus::beam_step_workspace);
  m.def("linear_int8", &linear_int8);
  m.def("linear_int8_workspace", &pegasus::linear_int8_workspace);
}
