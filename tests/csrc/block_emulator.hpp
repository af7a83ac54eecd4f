// Runs CUDA kernels on the CPU: included by cuda/common.cuh in place of cuda_runtime.h when a kernel compiles as C++
// with PEGASUS_BLOCK_EMULATOR (x86-64).
//
// A thread of a block is a fiber, blocks run one after another. What it is for is catching synchronisation mistakes:
// shared memory starts as NaN, asynchronous copies land only when they are waited for, barriers and warp collectives
// check who takes part, and fibers may run in several orders. It cannot see races between warps that a missing
// __syncwarp allows on hardware, memory fences, bank conflicts or the rounding of approximate instructions.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Saves the callee-saved registers and the stack pointer, and continues on another stack.
extern "C" void emulator_switch(void** saved_stack, void* next_stack);
asm(R"(
.text
.weak emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 227 << 10;  // of one block on Hopper
constexpr int kSlotWords = 4;               // what a lane can show its warp: 32 bytes

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  void* stack_pointer = nullptr;
  State state = State::kReady;
  uint32_t mask = 0;  // of the warp collective that it waits at
  dim3 thread;
  std::vector<Copy> open_group;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

struct Block {
  std::vector<Fiber> fibers;
  void* scheduler_stack = nullptr;
  int current = 0;
  std::function<void()> body;
  std::string error;
  std::vector<char> shared;
  uint64_t slots[32][32][kSlotWords];  // [warp][lane]
  dim3 grid, size, index;
};

inline Block*& block() {
  static Block* current = nullptr;
  return current;
}
inline Fiber& fiber() {
  return block()->fibers[block()->current];
}
inline int warp() {
  return block()->current / 32;
}
inline int lane() {
  return block()->current % 32;
}

inline void yield() {
  emulator_switch(&fiber().stack_pointer, block()->scheduler_stack);
}

inline void fiber_main() {
  try {
    block()->body();
  } catch (const std::exception& error) {
    if (block()->error.empty()) block()->error = error.what();
  }
  fiber().state = State::kDone;
  yield();
  std::abort();  // a finished fiber never runs again
}

inline void barrier() {
  fiber().state = State::kAtBarrier;
  yield();
}

inline void warp_barrier(uint32_t mask) {
  if (!(mask >> lane() & 1)) throw Error("warp collective called by a lane outside its mask");
  fiber().mask = mask;
  fiber().state = State::kAtWarp;
  yield();
}

// Lets the lanes go on whose whole mask has arrived.
inline bool release_warps() {
  std::vector<Fiber>& fibers = block()->fibers;
  const int n = static_cast<int>(fibers.size());
  bool released = false;
  for (int i = 0; i < n; ++i) {
    if (fibers[i].state != State::kAtWarp) continue;
    const uint32_t mask = fibers[i].mask;
    const int first = i / 32 * 32;
    bool complete = true;
    for (int l = 0; l < 32 && complete; ++l) {
      if (!(mask >> l & 1)) continue;
      complete = first + l < n && fibers[first + l].state == State::kAtWarp;
      if (complete && fibers[first + l].mask != mask) throw Error("lanes of one warp collective pass different masks");
    }
    if (!complete) continue;
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1) fibers[first + l].state = State::kReady;
    }
    released = true;
  }
  return released;
}

// Order 0: threads ascending; 1: descending; above: shuffled anew at every turn.
inline void run_block(unsigned order_id) {
  Block* b = block();
  const int n = static_cast<int>(b->fibers.size());
  std::vector<int> order(n);
  for (int i = 0; i < n; ++i) order[i] = order_id == 1 ? n - 1 - i : i;
  std::mt19937 random(order_id);
  for (;;) {
    if (order_id > 1) std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (b->fibers[i].state != State::kReady) continue;
      b->current = i;
      emulator_switch(&b->scheduler_stack, b->fibers[i].stack_pointer);
      if (!b->error.empty()) throw Error(b->error);
    }
    if (release_warps()) continue;
    int at_barrier = 0, at_warp = 0, done = 0;
    for (const Fiber& f : b->fibers) {
      at_barrier += f.state == State::kAtBarrier;
      at_warp += f.state == State::kAtWarp;
      done += f.state == State::kDone;
    }
    if (done == n) return;
    if (at_barrier != n) {
      throw Error("deadlock: " + std::to_string(at_barrier) + " threads at __syncthreads, " + std::to_string(at_warp) +
                  " at a warp collective, " + std::to_string(done) + " have returned");
    }
    for (Fiber& f : b->fibers) f.state = State::kReady;
  }
}

inline char* shared_memory() {
  char* p = block()->shared.data();
  return p + (128 - reinterpret_cast<uintptr_t>(p) % 128) % 128;
}

// Runs body() as every thread of every block.
inline void launch(dim3 grid, dim3 size, size_t shared_bytes, unsigned order, std::function<void()> body) {
  Block b;
  const unsigned n = size.x * size.y * size.z;
  if (n == 0 || n > 1024) throw Error("bad block size " + std::to_string(n));
  if (shared_bytes > kSharedBytes) throw Error("more shared memory than a block has: " + std::to_string(shared_bytes));
  b.grid = grid;
  b.size = size;
  b.body = std::move(body);
  b.fibers.resize(n);
  b.shared.resize(kSharedBytes + 128);
  char* stacks = static_cast<char*>(
      mmap(nullptr, kStackBytes * n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED) throw Error("no memory for the fibers' stacks");
  struct Cleanup {
    char* stacks;
    size_t bytes;
    ~Cleanup() {
      munmap(stacks, bytes);
      block() = nullptr;
    }
  } cleanup{stacks, kStackBytes * n};
  block() = &b;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        b.index = dim3(x, y, z);
        std::fill(b.shared.begin(), b.shared.end(), static_cast<char>(0xff));  // NaN as float and as bfloat16
        for (unsigned i = 0; i < n; ++i) {
          b.fibers[i] = Fiber();
          b.fibers[i].thread = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
          // What emulator_switch pops: six registers, then the return address; a zero keeps the stack aligned.
          auto** top = reinterpret_cast<void**>(stacks + kStackBytes * (i + 1));
          *--top = nullptr;
          *--top = reinterpret_cast<void*>(&fiber_main);
          for (int r = 0; r < 6; ++r) *--top = nullptr;
          b.fibers[i].stack_pointer = top;
        }
        run_block(order);
      }
    }
  }
}

// Shows `bytes` of every lane to its warp, then reads with `read`, then lets the slots be reused.
template <typename Read>
void exchange(uint32_t mask, const void* mine, size_t bytes, Read read) {
  std::memcpy(block()->slots[warp()][lane()], mine, bytes);
  warp_barrier(mask);
  read();
  warp_barrier(mask);
}

struct Coordinate {
  unsigned (*read)();
  operator unsigned() const { return read(); }
};
struct Coordinates {
  Coordinate x, y, z;
};

}  // namespace emulator

#define EMULATOR_COORDINATES(source)                            \
  {                                                             \
    {[] { return (source).x; }}, {[] { return (source).y; }}, { \
      [] { return (source).z; }                                 \
    }                                                           \
  }
static const emulator::Coordinates threadIdx = EMULATOR_COORDINATES(emulator::fiber().thread);
static const emulator::Coordinates blockIdx = EMULATOR_COORDINATES(emulator::block()->index);
[[maybe_unused]] static const emulator::Coordinates blockDim = EMULATOR_COORDINATES(emulator::block()->size);
[[maybe_unused]] static const emulator::Coordinates gridDim = EMULATOR_COORDINATES(emulator::block()->grid);

inline void __syncthreads() {
  emulator::barrier();
}
inline void __syncwarp(uint32_t mask = ~0u) {
  emulator::warp_barrier(mask);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source) {
  if (!(mask >> (source & 31) & 1)) throw emulator::Error("shuffle reads a lane outside the mask");
  T result;
  emulator::exchange(mask, &value, sizeof value, [&] {
    std::memcpy(&result, emulator::block()->slots[emulator::warp()][source & 31], sizeof result);
  });
  return result;
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance) {
  const int lane = emulator::lane(), source = lane - static_cast<int>(distance);
  return __shfl_sync(mask, value, source < 0 ? lane : source);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int x) {
  return __shfl_sync(mask, value, emulator::lane() ^ x);
}

#define PEGASUS_DYNAMIC_SHARED(name) char* name = ::emulator::shared_memory()

#include "emulated_intrinsics.hpp"
