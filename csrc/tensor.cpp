#include "tensor.h"

#include <stdexcept>

namespace pegasus {
namespace {

std::string dtype_name(DType dtype, int bits) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat64:
      return "float64";
    case DType::kInt32:
      return "int32";
    case DType::kBool:
      return "bool";
    case DType::kUInt8:
      return "uint8";
    case DType::kOther:
      break;
  }
  return "another " + std::to_string(bits) + "-bit type";
}

template <typename Sizes>
std::string sizes_text(const Sizes& sizes, int n) {
  std::string text = "[";
  const int64_t* size = &*std::begin(sizes);
  for (int i = 0; i < n; ++i) {
    if (i) text += ", ";
    text += size[i] == kAny ? "any" : std::to_string(size[i]);
  }
  return text + "]";
}

DType dtype_of(dlpack::DataType type) {
  if (type.lanes != 1) return DType::kOther;
  if (type.code == dlpack::kFloat && type.bits == 32) return DType::kFloat32;
  if (type.code == dlpack::kFloat && type.bits == 16) return DType::kFloat16;
  if (type.code == dlpack::kFloat && type.bits == 64) return DType::kFloat64;
  if (type.code == dlpack::kBfloat && type.bits == 16) return DType::kBFloat16;
  if (type.code == dlpack::kInt && type.bits == 32) return DType::kInt32;
  if (type.code == dlpack::kBool && type.bits == 8) return DType::kBool;
  if (type.code == dlpack::kUInt && type.bits == 8) return DType::kUInt8;
  return DType::kOther;
}

bool inner_contiguous(const TensorView& x, int n) {
  int64_t wanted = 1;
  for (int i = x.ndim - 1; i >= x.ndim - n; --i) {
    if (x.strides[i] != wanted) return false;
    wanted *= x.shape[i];
  }
  return true;
}

}  // namespace

void fail(const char* op, const std::string& message) {
  throw std::invalid_argument(op + (": " + message));
}

TensorView view_of(const dlpack::Tensor& tensor, const char* name) {
  if (tensor.ndim > kMaxDims) {
    fail(name, "has " + std::to_string(tensor.ndim) + " dimensions; no op takes more than " + std::to_string(kMaxDims));
  }
  TensorView x{};
  x.name = name;
  x.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  x.dtype = dtype_of(tensor.dtype);
  x.bits = tensor.dtype.bits;
  x.device = tensor.device.device_type == dlpack::kCpu    ? DeviceKind::kCpu
             : tensor.device.device_type == dlpack::kCuda ? DeviceKind::kCuda
                                                          : DeviceKind::kOther;
  x.device_id = tensor.device.device_id;
  x.ndim = tensor.ndim;
  int64_t dense = 1;
  for (int i = x.ndim - 1; i >= 0; --i) {
    x.shape[i] = tensor.shape[i];
    x.strides[i] = tensor.strides && tensor.shape[i] != 1 ? tensor.strides[i] : dense;
    dense = x.strides[i] * x.shape[i];
  }
  return x;
}

std::string describe(const TensorView& x) {
  const char* device = x.device == DeviceKind::kCpu ? "cpu" : x.device == DeviceKind::kCuda ? "cuda" : "another device";
  return dtype_name(x.dtype, x.bits) + " " + sizes_text(x.shape, x.ndim) + " on " + device;
}

void expect(const char* op, const TensorView& x, std::initializer_list<DType> dtypes,
            std::initializer_list<int64_t> shape) {
  bool ok = x.ndim == static_cast<int>(shape.size());
  for (int i = 0; ok && i < x.ndim; ++i) ok = shape.begin()[i] == kAny || shape.begin()[i] == x.shape[i];
  bool known = false;
  for (DType dtype : dtypes) known = known || dtype == x.dtype;
  if (ok && known) return;
  std::string wanted;
  for (DType dtype : dtypes) wanted += (wanted.empty() ? "" : " or ") + dtype_name(dtype, 0);
  fail(op, std::string(x.name) + " must be " + wanted + " " + sizes_text(shape, static_cast<int>(shape.size())) +
               ", got " + describe(x));
}

void expect_contiguous(const char* op, const TensorView& x, std::initializer_list<DType> dtypes,
                       std::initializer_list<int64_t> shape) {
  expect(op, x, dtypes, shape);
  expect_inner_contiguous(op, x, x.ndim);
}

void expect_inner_contiguous(const char* op, const TensorView& x, int n) {
  if (x.numel() == 0 || inner_contiguous(x, n)) return;
  fail(op, std::string(x.name) + " must be contiguous in its last " + std::to_string(n) + " dimension(s), got " +
               describe(x) + " with strides " + sizes_text(x.strides, x.ndim));
}

void expect_bytes(const char* op, const TensorView& x, int64_t needed) {
  if (x.numel() >= needed) return;
  fail(op, std::string(x.name) + " must have at least " + std::to_string(needed) + " bytes, got " +
               std::to_string(x.numel()));
}

void expect_same_device(const char* op, const TensorView& first, std::initializer_list<const TensorView*> others) {
  for (const TensorView* x : others) {
    if (x->device == first.device && x->device_id == first.device_id) continue;
    fail(op, std::string(x->name) + " must be on the device of " + first.name + " (" + describe(first) + "), got " +
                 describe(*x));
  }
}

void expect_offsets(const char* op, const TensorView& offsets, int64_t limit) {
  const int32_t* p = offsets.as<const int32_t>();
  int64_t previous = 0;
  for (int64_t i = 0; i < offsets.numel(); ++i) {
    if (p[i] < previous || p[i] > limit) {
      fail(op, std::string(offsets.name) + "[" + std::to_string(i) + "] = " + std::to_string(p[i]) +
                   "; offsets must not decrease and stay within 0.." + std::to_string(limit));
    }
    previous = p[i];
  }
}

void expect_range(const char* op, const TensorView& x, int64_t low, int64_t high) {
  expect_range(op, x, low, high, 0, x.numel());
}

void expect_range(const char* op, const TensorView& x, int64_t low, int64_t high, int64_t begin, int64_t end) {
  const int32_t* p = x.as<const int32_t>();
  for (int64_t i = begin; i < end; ++i) {
    if (p[i] >= low && p[i] < high) continue;
    fail(op, std::string(x.name) + "[" + std::to_string(i) + "] = " + std::to_string(p[i]) + " is outside " +
                 std::to_string(low) + ".." + std::to_string(high - 1));
  }
}

}  // namespace pegasus
