#include "ops/add_norm.h"

#ifdef PEGASUS_WITH_CUDA
#include "cuda/add_norm.h"
#endif

namespace pegasus {

void add_norm(const AddNormParams& p, void* stream) {
  const char* op = "add_norm";
  expect_contiguous(op, p.stream, {DType::kFloat32}, {kAny, kAny});
  const int64_t rows = p.stream.shape[0], size = p.stream.shape[1];
  expect_contiguous(op, p.weight, {DType::kFloat32}, {size});
  expect_contiguous(op, p.bias, {DType::kFloat32}, {size});
  expect_contiguous(op, p.normed, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}, {rows, size});
  expect_same_device(op, p.stream, {&p.weight, &p.bias, &p.normed});
  if (p.has_branch) {
    expect_contiguous(op, p.branch, {p.normed.dtype}, {rows, size});
    expect_same_device(op, p.stream, {&p.branch});
  }
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.stream)) {
    cuda::AddNormTask task{};
    task.stream = p.stream.as<float>();
    task.branch = p.has_branch ? p.branch.data : nullptr;
    task.weight = p.weight.as<const float>();
    task.bias = p.bias.as<const float>();
    task.normed = p.normed.data;
    task.type = p.normed.dtype == DType::kFloat32    ? cuda::NormType::kFloat32
                : p.normed.dtype == DType::kBFloat16 ? cuda::NormType::kBFloat16
                                                     : cuda::NormType::kFloat16;
    task.n_rows = rows;
    task.size = size;
    task.eps = static_cast<float>(p.eps);
    task.post_norm = p.post_norm;
    return cuda::add_norm(task, p.stream.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  fail(op, "no kernel for " + describe(p.stream) + " in this build");
}

}  // namespace pegasus
