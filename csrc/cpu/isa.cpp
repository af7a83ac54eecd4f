#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace pegasus::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*supported)();
  Kernels kernels;
};

#ifdef PEGASUS_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512bf16() {
  return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}
#endif

#define PEGASUS_KERNELS(isa) \
  {isa::attention, isa::cached_attention, isa::pack_panels, isa::scan_chunk, isa::find_at_least, isa::linear}

// The plainest first; the last supported one is the default.
const Isa kIsas[] = {
    {"baseline", [] { return true; }, PEGASUS_KERNELS(baseline)},
#ifdef PEGASUS_X86
    {"avx2", has_avx2, PEGASUS_KERNELS(avx2)},
    {"avx512", has_avx512, PEGASUS_KERNELS(avx512)},
    {"avx512vnni", has_avx512vnni, PEGASUS_KERNELS(avx512vnni)},
    {"avx512bf16", has_avx512bf16, PEGASUS_KERNELS(avx512bf16)},
#endif
};

const Isa& find(const std::string& name) {
  std::string known, host;
  const Isa* found = nullptr;
  for (const Isa& isa : kIsas) {
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
    if (isa.supported()) host += (host.empty() ? "" : ", ") + std::string(isa.name);
    if (name == isa.name) found = &isa;
  }
  if (!found) throw std::runtime_error("PEGASUS_ISA=" + name + " is unknown; choose one of " + known);
  if (!found->supported()) {
    throw std::runtime_error("PEGASUS_ISA=" + name + " is not supported by this host; it has " + host);
  }
  return *found;
}

const Isa& default_isa() {
  const char* wanted = std::getenv("PEGASUS_ISA");
  return find(wanted && *wanted ? wanted : available_isas().back());
}

const Isa*& active() {
  static const Isa* isa = &default_isa();  // thread-safe; tried again after an exception
  return isa;
}

}  // namespace

const Kernels& kernels() {
  return active()->kernels;
}

std::string active_isa() {
  return active()->name;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) names.push_back(isa.name);
  }
  return names;
}

void select_isa(const std::string& name) {
  const Isa& wanted = find(name);
  active() = &wanted;
}

}  // namespace pegasus::cpu
