#include "ops/linear_int8.h"

#include "cpu/isa.h"

namespace pegasus {
namespace {

int64_t divide_up(int64_t n, int64_t by) {
  return (n + by - 1) / by;
}

}  // namespace

int64_t linear_int8_workspace(int64_t rows, int64_t inputs) {
  const int64_t codes = divide_up(inputs, cpu::kInt8Quad) * cpu::kInt8Quad;
  return rows * (codes + static_cast<int64_t>(sizeof(float) + sizeof(int32_t)));
}

void linear_int8(const LinearInt8Params& p) {
  const char* op = "linear_int8";
  expect(op, p.states, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny});
  expect_inner_contiguous(op, p.states, 1);
  const int64_t rows = p.states.shape[0], inputs = p.states.shape[1];
  if (inputs > cpu::kInt8MaxInputs) {
    fail(op,
         "sums in 32 bits take at most " + std::to_string(cpu::kInt8MaxInputs) + " inputs, got " + describe(p.states));
  }
  expect_contiguous(op, p.weight_scales, {DType::kFloat32}, {kAny});
  const int64_t outputs = p.weight_scales.shape[0];
  expect_contiguous(op, p.bias, {DType::kFloat32}, {outputs});
  expect_contiguous(
      op, p.weights, {DType::kUInt8},
      {divide_up(outputs, cpu::kInt8Panel), divide_up(inputs, cpu::kInt8Quad), cpu::kInt8Panel * cpu::kInt8Quad});
  expect_contiguous(op, p.out, {DType::kFloat32, DType::kBFloat16}, {rows, outputs});
  expect_contiguous(op, p.workspace, {DType::kUInt8}, {linear_int8_workspace(rows, inputs)});
  expect_same_device(op, p.states, {&p.weights, &p.weight_scales, &p.bias, &p.out, &p.workspace});
  if (p.has_residual) {
    expect_contiguous(op, p.residual, {p.out.dtype}, {rows, outputs});
    expect_same_device(op, p.states, {&p.residual});
  }
  if (p.states.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(p.states) + " in this build");
  float* scales = p.workspace.as<float>();  // what is wider comes first, so that all of it is aligned
  auto* starts = reinterpret_cast<int32_t*>(scales + rows);
  cpu::kernels().linear_int8({p.states.dtype == DType::kBFloat16, p.states.data, p.states.strides[0],
                              p.weights.as<const uint8_t>(), p.weight_scales.as<const float>(),
                              p.bias.as<const float>(), p.has_residual ? p.residual.data : nullptr, p.out.data,
                              p.out.dtype == DType::kBFloat16, p.relu, rows, inputs, outputs,
                              reinterpret_cast<int8_t*>(starts + rows), scales, starts});
}

}  // namespace pegasus
