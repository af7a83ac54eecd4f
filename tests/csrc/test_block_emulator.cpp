// The emulator must report the mistakes that it exists for: a block-wide sum, right and with each of them planted.
// Argument: 0 for the correct kernel, else the number of the mistake. Exits with 0 if every order gives the right sum.
#include <cstdio>
#include <cstdlib>

#include "block_emulator.hpp"

namespace {

enum Mistake { kNone, kNoBarrier, kDivergentBarrier, kWrongMask, kOverwrittenEarly };

constexpr int kThreads = 128, kWarps = kThreads / 32, kColumns = 1024;

float warp_sum(float x) {
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

void sum_kernel(int mistake, const float* x, float* out) {
  PEGASUS_DYNAMIC_SHARED(shared);
  float* partial = reinterpret_cast<float*>(shared);
  float sum = 0;
  for (unsigned i = threadIdx.x; i < kColumns; i += kThreads) sum += x[i];
  if (mistake == kWrongMask && threadIdx.x % 32 < 16) sum += __shfl_xor_sync(~0u, sum, 1);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (mistake == kDivergentBarrier) {
    if (threadIdx.x < 64) __syncthreads();
  } else if (mistake != kNoBarrier) {
    __syncthreads();
  }
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  if (mistake != kOverwrittenEarly) __syncthreads();
  if (threadIdx.x == 0) partial[0] = total;  // others may still be reading the partial sums
  __syncthreads();
  if (partial[0] != total) out[0] = NAN;
  if (threadIdx.x == 7) out[1] = total;
}

}  // namespace

int main(int, char** argv) {
  const int mistake = std::atoi(argv[1]);
  std::vector<float> x(kColumns);
  float wanted = 0;
  for (int i = 0; i < kColumns; ++i) wanted += x[i] = static_cast<float>(i % 17);  // exact in float
  for (unsigned order = 0; order < 3; ++order) {
    float out[2] = {0, 0};
    try {
      emulator::launch(1, kThreads, 4096, order, [&] { sum_kernel(mistake, x.data(), out); });
    } catch (const emulator::Error& e) {
      std::printf("order %u: %s\n", order, e.what());
      return 1;
    }
    if (!(out[0] == 0 && out[1] == wanted)) {
      std::printf("order %u: got %g (%g), wanted %g\n", order, out[1], out[0], wanted);
      return 1;
    }
  }
  return 0;
}
