// TensorView: what an op knows about a tensor that someone else owns, and the checks that every op shares.
//
// Checks throw std::invalid_argument (ValueError in Python) and name the op, the argument, what was wanted and what
// came.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>

#include "dlpack_abi.h"

namespace pegasus {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64, kInt32, kBool, kUInt8, kOther };
enum class DeviceKind { kCpu, kCuda, kOther };

constexpr int kMaxDims = 4;
constexpr int64_t kAny = -1;  // a size that a check leaves open

struct TensorView {
  const char* name;  // the argument's name, for messages
  void* data;
  DType dtype;
  int bits;  // of one element, for naming a dtype that no op takes
  DeviceKind device;
  int device_id;
  int ndim;
  int64_t shape[kMaxDims];
  // In elements. A dimension of size 1 is never stepped along, so its stride is set to what contiguity would give.
  int64_t strides[kMaxDims];

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
};

// Tells whether the CUDA kernels take a tensor; where they are emulated, it lies in the CPU's memory.
inline bool on_cuda(const TensorView& x) {
#ifdef PEGASUS_BLOCK_EMULATOR
  return x.device == DeviceKind::kCpu;
#else
  return x.device == DeviceKind::kCuda;
#endif
}

TensorView view_of(const dlpack::Tensor& tensor, const char* name);
std::string describe(const TensorView& x);  // "float32 [3, 4] on cpu"

// Throws invalid_argument("<op>: <message>").
[[noreturn]] void fail(const char* op, const std::string& message);

// One of the dtypes, exactly these sizes (kAny: any).
void expect(const char* op, const TensorView& x, std::initializer_list<DType> dtypes,
            std::initializer_list<int64_t> shape);
// As expect, and no gaps between elements.
void expect_contiguous(const char* op, const TensorView& x, std::initializer_list<DType> dtypes,
                       std::initializer_list<int64_t> shape);
// The last n dimensions lie without gaps; those before may be strided.
void expect_inner_contiguous(const char* op, const TensorView& x, int n);
// At least so many elements of one byte, for workspaces.
void expect_bytes(const char* op, const TensorView& x, int64_t needed);
void expect_same_device(const char* op, const TensorView& first, std::initializer_list<const TensorView*> others);

// Bounds of index tensors on the CPU. Device memory is never read from the host: there the caller answers for them.
// Offsets [n+1]: not decreasing, the first at least 0, the last at most `limit`.
void expect_offsets(const char* op, const TensorView& offsets, int64_t limit);
// Every element, or elements begin : end alone, in [low, high).
void expect_range(const char* op, const TensorView& x, int64_t low, int64_t high);
void expect_range(const char* op, const TensorView& x, int64_t low, int64_t high, int64_t begin, int64_t end);

}  // namespace pegasus
