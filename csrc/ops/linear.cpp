#include "ops/linear.h"

#include "cpu/isa.h"

namespace pegasus {
namespace {

int64_t divide_up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

cpu::WeightType type_of(DType dtype) {
  return dtype == DType::kUInt8      ? cpu::WeightType::kCodes
         : dtype == DType::kBFloat16 ? cpu::WeightType::kBFloat16
                                     : cpu::WeightType::kFloat32;
}

}  // namespace

int64_t linear_workspace(const TensorView& states, const TensorView& weights, bool has_norm) {
  expect("linear", states, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny});
  const int64_t rows = states.shape[0], inputs = states.shape[1];
  if (weights.dtype != DType::kUInt8) return has_norm ? rows * inputs * states.bits / 8 : 0;
  const int64_t codes = divide_up(inputs, cpu::kCodesPerWord) * cpu::kCodesPerWord;
  return rows * (codes + static_cast<int64_t>(sizeof(float) + sizeof(int32_t)));
}

void linear(const LinearParams& p) {
  const char* op = "linear";
  expect(op, p.weights, {DType::kFloat32, DType::kBFloat16, DType::kUInt8}, {kAny, kAny, kAny});
  const cpu::WeightType type = type_of(p.weights.dtype);
  const bool codes = type == cpu::WeightType::kCodes;
  if (codes != p.has_scales) {
    fail(op, "weight_scales go with weights of 8 bits, these and only these; got " + describe(p.weights));
  }
  if (codes) {
    expect(op, p.states, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny});
  } else {
    expect(op, p.states, {p.weights.dtype}, {kAny, kAny});
  }
  expect_inner_contiguous(op, p.states, 1);
  const int64_t rows = p.states.shape[0], inputs = p.states.shape[1];
  if (codes && inputs > cpu::kMostCodes) {
    fail(op, "sums in 32 bits take at most " + std::to_string(cpu::kMostCodes) + " inputs, got " + describe(p.states));
  }
  expect_contiguous(op, p.bias, {DType::kFloat32}, {kAny});
  const int64_t outputs = p.bias.shape[0];
  const int64_t in_word = codes ? cpu::kCodesPerWord : type == cpu::WeightType::kBFloat16 ? 2 : 1;
  expect_contiguous(op, p.weights, {p.weights.dtype},
                    {divide_up(outputs, cpu::kOutputPanel), divide_up(inputs, in_word), cpu::kOutputPanel * in_word});
  expect_contiguous(op, p.out, {DType::kFloat32, DType::kBFloat16}, {rows, outputs});
  expect_contiguous(op, p.workspace, {DType::kUInt8}, {linear_workspace(p.states, p.weights, p.has_norm)});
  expect_same_device(op, p.states, {&p.weights, &p.bias, &p.out, &p.workspace});
  if (codes) {
    expect_contiguous(op, p.weight_scales, {DType::kFloat32}, {outputs});
    expect_same_device(op, p.states, {&p.weight_scales});
  }
  if (p.has_norm) {
    expect_contiguous(op, p.norm_weight, {DType::kFloat32}, {inputs});
    expect_contiguous(op, p.norm_bias, {DType::kFloat32}, {inputs});
    expect_same_device(op, p.states, {&p.norm_weight, &p.norm_bias});
  }
  if (p.has_residual) {
    expect_contiguous(op, p.residual, {p.out.dtype}, {rows, outputs});
    expect_same_device(op, p.states, {&p.residual});
  }
  if (p.states.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(p.states) + " in this build");
  cpu::LinearTask task{};
  task.type = type;
  task.bf16_states = p.states.dtype == DType::kBFloat16;
  task.states = p.states.data;
  task.row_stride = p.states.strides[0];
  task.weights = p.weights.data;
  task.bias = p.bias.as<const float>();
  task.residual = p.has_residual ? p.residual.data : nullptr;
  task.out = p.out.data;
  task.bf16_out = p.out.dtype == DType::kBFloat16;
  task.relu = p.relu;
  task.rows = rows;
  task.inputs = inputs;
  task.outputs = outputs;
  if (p.has_norm) {
    task.norm_weight = p.norm_weight.as<const float>();
    task.norm_bias = p.norm_bias.as<const float>();
    task.norm_eps = static_cast<float>(p.norm_eps);
    task.normed = p.workspace.data;
  }
  if (codes) {
    task.weight_scales = p.weight_scales.as<const float>();
    task.scales = p.workspace.as<float>();  // what is wider comes first, so that all of it is aligned
    task.starts = reinterpret_cast<int32_t*>(task.scales + rows);
    task.codes = reinterpret_cast<int8_t*>(task.starts + rows);
  }
  cpu::kernels().linear(task);
}

}  // namespace pegasus
