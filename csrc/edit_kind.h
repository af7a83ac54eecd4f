// What an edit does to a score; the numbers are those of pegasus_batch/kernels/reference.py.
#pragma once
#include <cstdint>

namespace pegasus {

enum EditKind : int32_t { kSet = 0, kPenalize = 1, kAdd = 2, kDecay = 3 };

}  // namespace pegasus
