#include "ops/quantize.h"

#include "cpu/isa.h"

namespace pegasus {
namespace {

void expect_cpu(const char* op, const TensorView& x) {
  if (x.device != DeviceKind::kCpu) fail(op, "no kernel for " + describe(x) + " in this build");
}

}  // namespace

void quantize_rows(const QuantizeRowsParams& p) {
  const char* op = "quantize_rows";
  expect(op, p.states, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny});
  expect_inner_contiguous(op, p.states, 1);
  const int64_t rows = p.states.shape[0], columns = p.states.shape[1];
  expect_contiguous(op, p.codes, {DType::kUInt8}, {rows, columns});
  expect_contiguous(op, p.scales, {DType::kFloat32}, {rows});
  expect_same_device(op, p.states, {&p.codes, &p.scales});
  expect_cpu(op, p.states);
  cpu::kernels().quantize_rows({p.states.dtype == DType::kBFloat16, p.states.data, p.states.strides[0],
                                p.codes.as<uint8_t>(), p.scales.as<float>(), rows, columns});
}

void dequantize_rows(const DequantizeRowsParams& p) {
  const char* op = "dequantize_rows";
  expect_contiguous(op, p.products, {DType::kFloat32}, {kAny, kAny});
  const int64_t rows = p.products.shape[0], columns = p.products.shape[1];
  expect_contiguous(op, p.scales, {DType::kFloat32}, {rows});
  expect_contiguous(op, p.bias, {DType::kFloat32}, {columns});
  expect_contiguous(op, p.out, {DType::kFloat32, DType::kBFloat16}, {rows, columns});
  expect_same_device(op, p.products, {&p.scales, &p.bias, &p.out});
  if (p.has_residual) {
    expect_contiguous(op, p.residual, {p.out.dtype}, {rows, columns});
    expect_same_device(op, p.products, {&p.residual});
  }
  expect_cpu(op, p.products);
  cpu::kernels().dequantize_rows({p.products.as<const float>(), p.scales.as<const float>(), p.bias.as<const float>(),
                                  p.has_residual ? p.residual.data : nullptr, p.out.data,
                                  p.out.dtype == DType::kBFloat16, p.relu, rows, columns});
}

}  // namespace pegasus
