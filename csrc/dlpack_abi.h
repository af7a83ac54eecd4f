// The part of DLPack's C ABI (version 1.3) that reading a borrowed tensor needs. Layouts are the standard's; see
// https://dmlc.github.io/dlpack/latest/. Declared by us, so nothing is vendored.
#pragma once
#include <cstdint>

namespace dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t device_type, device_id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;  // add byte_offset
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null means contiguous
  uint64_t byte_offset;
};

struct ExchangeApi {
  Version version;  // refuse another major
  ExchangeApi* previous;
  void *allocate, *managed_from_object, *managed_to_object;  // not used here
  int (*tensor_from_object)(void* py_object, Tensor* out);   // borrowed; may be null
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out_stream);
};

}  // namespace dlpack
