#include "ops/attention.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#ifdef PEGASUS_WITH_CUDA
#include "cuda/attention.h"
#endif

namespace pegasus {
namespace {

constexpr int64_t kLine = 64;  // bytes

int element_size(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

// The tensor that decides the type of a call.
void expect_first(const char* op, const TensorView& x) {
  if (on_cuda(x)) {
    expect(op, x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}, {kAny, kAny, kAny});
  } else {
    expect(op, x, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny, kAny});
  }
}

void expect_head_size(const char* op, int64_t size) {
  if (size < 1 || size > cpu::kMaxHeadSize) {
    fail(op, "head size must be 1.." + std::to_string(cpu::kMaxHeadSize) + ", got " + std::to_string(size));
  }
}

// What is left of a call once its tensors are known to fit: sizes, types and the fields that both tasks have.
template <typename Task>
Task common_task(const TensorView& query, const TensorView& out, double scale) {
  Task task{};
  task.bf16 = query.dtype == DType::kBFloat16;
  task.query = query.data;
  task.out = out.data;
  task.query_stride = query.strides[0];
  task.n_heads = query.shape[1];
  task.head_size = query.shape[2];
  task.scale = static_cast<float>(scale);
  return task;
}

// The documents of a task whose rows are packed; rows that belong to none are zeroed, for out is written in full.
void set_documents(cpu::AttentionTask* task, const TensorView& query_begin, const TensorView& n_keys,
                   const TensorView& out) {
  const int64_t documents = n_keys.shape[0], row_bytes = out.shape[1] * out.shape[2] * element_size(out.dtype);
  task->query_begin = query_begin.as<const int32_t>();
  task->n_keys = n_keys.as<const int32_t>();
  task->n_documents = documents;
  for (int64_t b = 0; b < documents; ++b) {
    task->max_rows = std::max<int64_t>(task->max_rows, task->query_begin[b + 1] - task->query_begin[b]);
  }
  char* data = out.as<char>();
  std::fill(data, data + task->query_begin[0] * row_bytes, 0);
  std::fill(data + task->query_begin[documents] * row_bytes, data + out.shape[0] * row_bytes, 0);
}

cpu::PackTask pack_task(const TensorView& key, const TensorView& value, const TensorView& key_begin,
                        const TensorView& n_keys) {
  cpu::PackTask task{};
  task.bf16 = key.dtype == DType::kBFloat16;
  task.key = key.data;
  task.value = value.data;
  task.key_stride = key.strides[0];
  task.value_stride = value.strides[0];
  task.key_begin = key_begin.as<const int32_t>();
  task.n_keys = n_keys.as<const int32_t>();
  task.n_documents = n_keys.shape[0];
  for (int64_t b = 0; b < task.n_documents; ++b) task.max_keys = std::max<int64_t>(task.max_keys, task.n_keys[b]);
  task.n_heads = key.shape[1];
  task.head_size = key.shape[2];
  return task;
}

void expect_keys(const char* op, const TensorView& key_begin, const TensorView& n_keys, int64_t rows) {
  const int32_t *begin = key_begin.as<const int32_t>(), *count = n_keys.as<const int32_t>();
  expect_range(op, key_begin, 0, rows + 1);
  for (int64_t b = 0; b < n_keys.shape[0]; ++b) {
    if (count[b] < 0 || begin[b] + int64_t{count[b]} > rows) {
      fail(op, "document " + std::to_string(b) + " has keys " + std::to_string(begin[b]) + " : " +
                   std::to_string(begin[b] + int64_t{count[b]}) + ", but key has " + std::to_string(rows) + " rows");
    }
  }
}

void expect_panels(const char* op, const TensorView& panel_begin, const TensorView& n_keys, int64_t panels) {
  const int32_t *begin = panel_begin.as<const int32_t>(), *count = n_keys.as<const int32_t>();
  expect_range(op, panel_begin, 0, panels + 1);
  for (int64_t b = 0; b < n_keys.shape[0]; ++b) {
    const int64_t end = begin[b] + (int64_t{count[b]} + cpu::kPanel - 1) / cpu::kPanel;
    if (count[b] < 0 || end > panels) {
      fail(op, "document " + std::to_string(b) + " with " + std::to_string(count[b]) + " keys needs panels " +
                   std::to_string(begin[b]) + " : " + std::to_string(end) + ", but there are " +
                   std::to_string(panels));
    }
  }
}

int64_t panel_elements(int64_t head_size) {
  return (head_size + cpu::kPanel - 1) / cpu::kPanel * cpu::kPanel * cpu::kPanel;
}

// Panels for keys like these, and whether they hold codes.
bool expect_panel_memory(const char* op, const TensorView& keys, const TensorView& key_panels,
                         const TensorView& value_panels) {
  const bool codes =
      key_panels.dtype == DType::kUInt8 && keys.dtype == DType::kBFloat16 && keys.device == DeviceKind::kCpu;
  const DType dtype = codes ? DType::kUInt8 : keys.dtype;
  const int64_t heads = keys.shape[1], elements = panel_elements(keys.shape[2]) + (codes ? cpu::kPanel : 0);
  expect_contiguous(op, key_panels, {dtype}, {kAny, heads, elements});
  expect_contiguous(op, value_panels, {dtype}, {key_panels.shape[0], heads, elements});
  return codes;
}

#ifdef PEGASUS_WITH_CUDA
static_assert(cuda::kPanelKeys == cpu::kPanel && cuda::kMaxHeadSize == cpu::kMaxHeadSize);

cuda::Element element_of(DType dtype) {
  return dtype == DType::kFloat32    ? cuda::Element::kFloat32
         : dtype == DType::kBFloat16 ? cuda::Element::kBFloat16
                                     : cuda::Element::kFloat16;
}

// The tensor cores' kernels copy 16 bytes at a time; others take anything.
void expect_aligned(const char* op, const cuda::AttentionTask& task, std::initializer_list<const TensorView*> tensors) {
  if (!cuda::takes_tiles(task.element, task.head_size)) return;
  for (const TensorView* x : tensors) {
    bool aligned = reinterpret_cast<uintptr_t>(x->data) % 16 == 0;
    for (int i = 0; i + 2 < x->ndim; ++i) aligned = aligned && x->strides[i] % 8 == 0;
    if (aligned) continue;
    fail(op, std::string(x->name) + " must start and step at multiples of 16 bytes, got " + describe(*x));
  }
}

cuda::AttentionTask cuda_task(const TensorView& query, const TensorView& query_begin, const TensorView& n_keys,
                              const TensorView& out, double scale) {
  cuda::AttentionTask task{};
  task.element = element_of(query.dtype);
  task.query = query.data;
  task.out = out.data;
  task.query_stride = query.strides[0];
  task.query_begin = query_begin.as<const int32_t>();
  task.n_keys = n_keys.as<const int32_t>();
  task.n_documents = query_begin.shape[0] - 1;
  task.n_rows = query.shape[0];
  task.n_heads = query.shape[1];
  task.head_size = query.shape[2];
  task.scale = static_cast<float>(scale);
  return task;
}
#endif

[[noreturn]] void no_kernel(const char* op, const TensorView& query) {
  fail(op, "no kernel for " + describe(query) + " in this build");
}

}  // namespace

void attention(const AttentionParams& p, void* stream) {
  const char* op = "attention";
  expect_first(op, p.query);
  const int64_t rows = p.query.shape[0], heads = p.query.shape[1], size = p.query.shape[2];
  const DType dtype = p.query.dtype;
  expect(op, p.key, {dtype}, {kAny, heads, size});
  const int64_t n_key_rows = p.key.shape[0];
  expect(op, p.value, {dtype}, {n_key_rows, heads, size});
  for (const TensorView* x : {&p.query, &p.key, &p.value}) expect_inner_contiguous(op, *x, 2);
  expect_contiguous(op, p.n_keys, {DType::kInt32}, {kAny});
  const int64_t documents = p.n_keys.shape[0];
  expect_contiguous(op, p.key_begin, {DType::kInt32}, {documents});
  expect_contiguous(op, p.query_begin, {DType::kInt32}, {documents + 1});
  expect_contiguous(op, p.out, {dtype}, {rows, heads, size});
  expect_same_device(op, p.query, {&p.key, &p.value, &p.query_begin, &p.key_begin, &p.n_keys, &p.out});
  expect_head_size(op, size);

#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.query)) {
    cuda::AttentionTask task = cuda_task(p.query, p.query_begin, p.n_keys, p.out, p.scale);
    expect_aligned(op, task, {&p.query, &p.key, &p.value});
    task.key = p.key.data;
    task.value = p.value.data;
    task.key_stride = p.key.strides[0];
    task.value_stride = p.value.strides[0];
    task.key_begin = p.key_begin.as<const int32_t>();
    return cuda::attention(task, p.query.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  if (p.query.device == DeviceKind::kCpu) {
    expect_offsets(op, p.query_begin, rows);
    expect_keys(op, p.key_begin, p.n_keys, n_key_rows);
    std::vector<int32_t> panel_begin;
    int32_t panels = 0;
    for (int64_t b = 0; b < documents; ++b) {
      panel_begin.push_back(panels);
      panels += (p.n_keys.as<const int32_t>()[b] + cpu::kPanel - 1) / cpu::kPanel;
    }
    const int64_t bytes = panels * heads * panel_elements(size) * element_size(dtype);  // whole cache lines
    const std::unique_ptr<char[]> memory(new char[2 * bytes + kLine]);
    char* key_panels = memory.get() + kLine - reinterpret_cast<uintptr_t>(memory.get()) % kLine;
    char* value_panels = key_panels + bytes;
    cpu::PackTask pack = pack_task(p.key, p.value, p.key_begin, p.n_keys);
    pack.key_panels = key_panels;
    pack.value_panels = value_panels;
    pack.panel_begin = panel_begin.data();
    cpu::kernels().pack_panels(pack);
    auto task = common_task<cpu::AttentionTask>(p.query, p.out, p.scale);
    task.key_panels = key_panels;
    task.value_panels = value_panels;
    task.panel_begin = panel_begin.data();
    set_documents(&task, p.query_begin, p.n_keys, p.out);
    return cpu::kernels().attention(task);
  }
  no_kernel(op, p.query);
}

void cached_attention(const CachedAttentionParams& p, void* stream) {
  const char* op = "cached_attention";
  expect_first(op, p.query);
  const int64_t rows = p.query.shape[0], heads = p.query.shape[1], size = p.query.shape[2];
  const DType dtype = p.query.dtype;
  expect(op, p.key, {dtype}, {rows, heads, size});
  expect(op, p.value, {dtype}, {rows, heads, size});
  expect(op, p.key_cache, {dtype}, {kAny, kAny, heads, size});
  const int64_t slots = p.key_cache.shape[0], times = p.key_cache.shape[1];
  // Where a slot has room for one token, it may be that of any time.
  const auto time_stride = [=](const TensorView& x) { return times == 1 ? 0 : x.strides[1]; };
  expect(op, p.value_cache, {dtype}, {slots, times, heads, size});
  for (const TensorView* x : {&p.query, &p.key, &p.value, &p.key_cache, &p.value_cache}) {
    expect_inner_contiguous(op, *x, 2);
  }
  expect_contiguous(op, p.query_begin, {DType::kInt32}, {kAny});
  if (p.query_begin.shape[0] == 0) fail(op, "query_begin must have one entry more than there are documents, got none");
  expect(op, p.ancestry, {DType::kInt32}, {rows, kAny});
  expect_inner_contiguous(op, p.ancestry, 1);
  expect_contiguous(op, p.n_keys, {DType::kInt32}, {rows});
  expect_contiguous(op, p.out, {dtype}, {rows, heads, size});
  expect_same_device(op, p.query,
                     {&p.key, &p.value, &p.key_cache, &p.value_cache, &p.query_begin, &p.ancestry, &p.n_keys, &p.out});
  expect_head_size(op, size);

#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.query)) {
    cuda::AttentionTask task = cuda_task(p.query, p.query_begin, p.n_keys, p.out, p.scale);
    expect_aligned(op, task, {&p.query, &p.key, &p.value, &p.key_cache, &p.value_cache});
    task.key = p.key_cache.data;
    task.value = p.value_cache.data;
    task.key_slot_stride = p.key_cache.strides[0];
    task.value_slot_stride = p.value_cache.strides[0];
    task.key_stride = time_stride(p.key_cache);
    task.value_stride = time_stride(p.value_cache);
    task.newest_key = p.key.data;
    task.newest_value = p.value.data;
    task.newest_key_stride = p.key.strides[0];
    task.newest_value_stride = p.value.strides[0];
    task.ancestry = p.ancestry.as<const int32_t>();
    task.ancestry_stride = p.ancestry.strides[0];
    return cuda::cached_attention(task, p.query.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  if (p.query.device == DeviceKind::kCpu) {
    expect_offsets(op, p.query_begin, rows);
    const int32_t first = p.query_begin.as<const int32_t>()[0],
                  last = p.query_begin.as<const int32_t>()[p.query_begin.shape[0] - 1];
    if (first != 0 || last != rows) {
      fail(op, "query_begin must run from 0 to " + std::to_string(rows) + ", the number of rows, got " +
                   std::to_string(first) + " to " + std::to_string(last));
    }
    const int64_t columns = p.ancestry.shape[1];
    expect_range(op, p.n_keys, 0, (times == 1 ? columns : std::min(times, columns)) + 1);
    const int32_t *n_keys = p.n_keys.as<const int32_t>(), *ancestry = p.ancestry.as<const int32_t>();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < n_keys[r]; ++t) {
        const int32_t slot = ancestry[r * p.ancestry.strides[0] + t];
        if (slot < 0 || slot >= slots) {
          fail(op, "ancestry[" + std::to_string(r) + ", " + std::to_string(t) + "] = " + std::to_string(slot) +
                       " is outside 0.." + std::to_string(slots - 1));
        }
      }
    }
    auto task = common_task<cpu::CachedAttentionTask>(p.query, p.out, p.scale);
    task.key = p.key.data;
    task.value = p.value.data;
    task.key_stride = p.key.strides[0];
    task.value_stride = p.value.strides[0];
    task.key_cache = p.key_cache.data;
    task.value_cache = p.value_cache.data;
    task.key_slot_stride = p.key_cache.strides[0];
    task.value_slot_stride = p.value_cache.strides[0];
    task.key_time_stride = time_stride(p.key_cache);
    task.value_time_stride = time_stride(p.value_cache);
    task.ancestry = ancestry;
    task.ancestry_stride = p.ancestry.strides[0];
    task.n_keys = n_keys;
    task.n_rows = rows;
    return cpu::kernels().cached_attention(task);
  }
  no_kernel(op, p.query);
}

void pack_source(const PackSourceParams& p, void* stream) {
  const char* op = "pack_source";
  expect_first(op, p.key);
  const int64_t rows = p.key.shape[0], heads = p.key.shape[1], size = p.key.shape[2];
  const DType dtype = p.key.dtype;
  expect(op, p.value, {dtype}, {rows, heads, size});
  for (const TensorView* x : {&p.key, &p.value}) expect_inner_contiguous(op, *x, 2);
  expect_contiguous(op, p.n_keys, {DType::kInt32}, {kAny});
  const int64_t documents = p.n_keys.shape[0];
  expect_contiguous(op, p.key_begin, {DType::kInt32}, {documents});
  expect_contiguous(op, p.panel_begin, {DType::kInt32}, {documents});
  expect_head_size(op, size);
  const bool codes = expect_panel_memory(op, p.key, p.key_panels, p.value_panels);
  const int64_t panels = p.key_panels.shape[0];
  expect_same_device(op, p.key, {&p.value, &p.key_begin, &p.n_keys, &p.panel_begin, &p.key_panels, &p.value_panels});

#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.key) && !codes) {
    cuda::PackTask task{};
    task.key = p.key.data;
    task.value = p.value.data;
    task.key_panels = p.key_panels.data;
    task.value_panels = p.value_panels.data;
    task.key_stride = p.key.strides[0];
    task.value_stride = p.value.strides[0];
    task.key_begin = p.key_begin.as<const int32_t>();
    task.n_keys = p.n_keys.as<const int32_t>();
    task.panel_begin = p.panel_begin.as<const int32_t>();
    task.n_documents = documents;
    task.n_rows = rows;
    task.n_heads = heads;
    task.head_size = size;
    task.padded_size = panel_elements(size) / cpu::kPanel;
    task.element_size = element_size(dtype);
    return cuda::pack_source(task, p.key.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  if (p.key.device != DeviceKind::kCpu) no_kernel(op, p.key);
  expect_keys(op, p.key_begin, p.n_keys, rows);
  expect_panels(op, p.panel_begin, p.n_keys, panels);
  cpu::PackTask task = pack_task(p.key, p.value, p.key_begin, p.n_keys);
  task.codes = codes;
  task.key_panels = p.key_panels.data;
  task.value_panels = p.value_panels.data;
  task.panel_begin = p.panel_begin.as<const int32_t>();
  cpu::kernels().pack_panels(task);
}

void source_attention(const SourceAttentionParams& p, void* stream) {
  const char* op = "source_attention";
  expect_first(op, p.query);
  const int64_t rows = p.query.shape[0], heads = p.query.shape[1], size = p.query.shape[2];
  const DType dtype = p.query.dtype;
  expect_inner_contiguous(op, p.query, 2);
  expect_head_size(op, size);
  const bool codes = expect_panel_memory(op, p.query, p.key_panels, p.value_panels);
  const int64_t panels = p.key_panels.shape[0];
  expect_contiguous(op, p.n_keys, {DType::kInt32}, {kAny});
  const int64_t documents = p.n_keys.shape[0];
  expect_contiguous(op, p.panel_begin, {DType::kInt32}, {documents});
  expect_contiguous(op, p.query_begin, {DType::kInt32}, {documents + 1});
  expect_contiguous(op, p.out, {dtype}, {rows, heads, size});
  expect_same_device(op, p.query, {&p.key_panels, &p.value_panels, &p.query_begin, &p.panel_begin, &p.n_keys, &p.out});

#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(p.query) && !codes) {
    cuda::AttentionTask task = cuda_task(p.query, p.query_begin, p.n_keys, p.out, p.scale);
    expect_aligned(op, task, {&p.query, &p.key_panels, &p.value_panels});
    task.packed = true;
    task.key = p.key_panels.data;
    task.value = p.value_panels.data;
    task.key_begin = p.panel_begin.as<const int32_t>();
    if (const int64_t bytes = source_workspace(p.query, p.key_panels, p.n_keys); bytes > 0) {
      expect_contiguous(op, p.workspace, {DType::kUInt8}, {bytes});
      expect_same_device(op, p.query, {&p.workspace});
      task.partials = p.workspace.as<float>();
      task.n_chunks = cuda::source_chunks(documents, heads, panels);
    }
    return cuda::attention(task, p.query.device_id, stream);
  }
#endif
  static_cast<void>(stream);
  if (p.query.device != DeviceKind::kCpu) no_kernel(op, p.query);
  expect_offsets(op, p.query_begin, rows);
  expect_panels(op, p.panel_begin, p.n_keys, panels);
  auto task = common_task<cpu::AttentionTask>(p.query, p.out, p.scale);
  task.codes = codes;
  task.key_panels = p.key_panels.data;
  task.value_panels = p.value_panels.data;
  task.panel_begin = p.panel_begin.as<const int32_t>();
  set_documents(&task, p.query_begin, p.n_keys, p.out);
  cpu::kernels().attention(task);
}

int64_t source_workspace(const TensorView& query, const TensorView& key_panels, const TensorView& n_keys) {
#ifdef PEGASUS_WITH_CUDA
  if (on_cuda(query) && key_panels.dtype == query.dtype && query.ndim == 3 && key_panels.ndim == 3 &&
      n_keys.ndim == 1) {
    const int64_t documents = n_keys.shape[0], heads = query.shape[1];
    const int64_t chunks = cuda::source_chunks(documents, heads, key_panels.shape[0]);
    if (chunks > 1 && cuda::takes_tiles(element_of(query.dtype), query.shape[2])) {
      return documents * heads * chunks * cuda::kPartialRows * cuda::kPartialFloats * int64_t{sizeof(float)};
    }
  }
#endif
  static_cast<void>(query), static_cast<void>(key_panels), static_cast<void>(n_keys);
  return 0;
}

}  // namespace pegasus
