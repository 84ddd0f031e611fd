// Runs the threads of a block as fibers: see cuda_runtime.h beside this file.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// What csrc/cuda/launch.cuh declares as the block's dynamic shared memory, and room to see what is written behind it.
alignas(128) unsigned char nsr_dynamic_shared[nsr_emulation::kSharedBytes + 4096];

namespace nsr_emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024, kUsualSharedBytes = 48 * 1024;
constexpr unsigned char kFresh = 0xff, kCanary = 0xa5;  // a float or double of kFresh bytes is a NaN

enum class Wait { kNothing, kBlock, kWarp, kEnd };

struct Fiber {
  ucontext_t context;
  std::vector<unsigned char> stack;
  uint3 index;
  Wait wait;
  bool yes;
};

// What the lanes of a warp hand each other: two sets in turn, as a lane may be one operation ahead of another.
struct Warp {
  uint64_t value[2][warpSize];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<int> turn;  // of each warp: which set its next operation uses
std::vector<int> order;
ucontext_t scheduler;
unsigned count, current;
int block_yes;
const std::function<void()>* body;
std::mt19937 shuffler;
std::map<const void*, size_t> allowed;  // bytes of shared memory by kernel

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s, in thread %u of block (%u, %u)\n", message, threadIdx.x, blockIdx.x, blockIdx.y);
  std::abort();
}

void enter() {
  (*body)();
  fibers[current].wait = Wait::kEnd;
  swapcontext(&fibers[current].context, &scheduler);
}

void give_way(Wait wait) {
  fibers[current].wait = wait;
  swapcontext(&fibers[current].context, &scheduler);
}

void resume(unsigned k) {
  current = k;
  threadIdx = fibers[k].index;
  fibers[k].wait = Wait::kNothing;
  swapcontext(&scheduler, &fibers[k].context);
}

bool all_wait(unsigned first, unsigned last, Wait wait) {
  return std::all_of(fibers.begin() + first, fibers.begin() + last, [&](const Fiber& f) { return f.wait == wait; });
}

// Lets go on who may, and says whether anybody may.
bool release() {
  bool any = false;
  for (unsigned w = 0; w * warpSize < count; ++w) {
    const unsigned first = w * warpSize, last = std::min(count, first + warpSize);
    if (!all_wait(first, last, Wait::kWarp)) continue;
    turn[w] ^= 1;
    for (unsigned k = first; k < last; ++k) fibers[k].wait = Wait::kNothing;
    any = true;
  }
  if (any || !all_wait(0, count, Wait::kBlock)) return any;
  block_yes = 0;
  for (unsigned k = 0; k < count; ++k) {
    block_yes += fibers[k].yes;
    fibers[k].wait = Wait::kNothing;
  }
  return true;
}

void run_block(size_t shared_bytes) {
  std::memset(nsr_dynamic_shared, kFresh, shared_bytes);
  std::memset(nsr_dynamic_shared + shared_bytes, kCanary, sizeof(nsr_dynamic_shared) - shared_bytes);
  std::fill(turn.begin(), turn.end(), 0);
  for (unsigned k = 0; k < count; ++k) {
    Fiber& fiber = fibers[k];
    fiber.index = {k, 0, 0};
    fiber.wait = Wait::kNothing;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  while (!all_wait(0, count, Wait::kEnd)) {
    std::shuffle(order.begin(), order.begin() + count, shuffler);
    bool ran = false;
    for (unsigned k = 0; k < count; ++k)
      if (fibers[order[k]].wait == Wait::kNothing) {
        resume(order[k]);
        ran = true;
      }
    if (!release() && !ran && !all_wait(0, count, Wait::kEnd))
      fail("threads wait at a barrier or a warp operation that others of the block or warp do not reach");
  }
  for (size_t k = shared_bytes; k < sizeof(nsr_dynamic_shared); ++k)
    if (nsr_dynamic_shared[k] != kCanary) fail("something was written behind the shared memory");
}

}  // namespace

void allow_shared(const void* kernel, size_t bytes) { allowed[kernel] = bytes; }

void run(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
  count = threads.x;
  const auto found = allowed.find(kernel);
  if (shared_bytes > (found == allowed.end() ? kUsualSharedBytes : std::max(found->second, kUsualSharedBytes)))
    fail("more shared memory than was allowed to the kernel (cudaFuncSetAttribute)");
  if (count == 0 || count > 1024 || threads.y != 1 || threads.z != 1 || blocks.x == 0 || blocks.y == 0 || blocks.z != 1)
    fail("a launch with an unusual number of threads or blocks");
  if (shared_bytes > kSharedBytes) fail("more shared memory was asked for than a block can have");
  while (fibers.size() < count) fibers.push_back({{}, std::vector<unsigned char>(kStackBytes), {}, Wait::kEnd, false});
  warps.resize((fibers.size() + warpSize - 1) / warpSize);
  turn.resize(warps.size());
  order.clear();
  for (unsigned k = 0; k < count; ++k) order.push_back(int(k));
  shuffler.seed(1);
  body = &thread;
  gridDim = blocks;
  blockDim = threads;
  for (unsigned y = 0; y < blocks.y; ++y)
    for (unsigned x = 0; x < blocks.x; ++x) {
      blockIdx = {x, y, 0};
      run_block(shared_bytes);
    }
}

int lane() { return int(current % warpSize); }

void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp operation with a mask of some lanes, which is not emulated");
}

void block_barrier() { count_block(false); }

int count_block(bool yes) {
  fibers[current].yes = yes;
  give_way(Wait::kBlock);
  return block_yes;
}

uint64_t exchange(uint64_t value, int from) {
  const unsigned w = current / warpSize;
  const int set = turn[w];
  warps[w].value[set][lane()] = value;
  give_way(Wait::kWarp);
  return warps[w].value[set][from % warpSize];
}

unsigned ballot(bool yes) {
  const unsigned w = current / warpSize;
  const int set = turn[w];
  warps[w].value[set][lane()] = yes;
  give_way(Wait::kWarp);
  const unsigned lanes = std::min<unsigned>(warpSize, count - w * warpSize);
  unsigned bits = 0;
  for (unsigned k = 0; k < lanes; ++k) bits |= unsigned(warps[w].value[set][k] & 1) << k;
  return bits;
}

}  // namespace nsr_emulation
