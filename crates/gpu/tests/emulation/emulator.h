// CUDA as far as the kernels use it, on the processor: a test of their arithmetic, indices and order, not of their speed.
//
// A block's threads are fibers. One runs until it waits at a barrier or for its warp; who runs next is forward, reverse, or
// as a seed says, and so is the order of blocks. What a thread may not count on is made to fail: shared memory and fresh
// device memory are filled with a pattern, threads that wait for one another in vain end the program, and so do lanes of a
// warp that wait in different places.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(threads)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::exit(3);
}

constexpr unsigned WARP_LANES = 32;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr unsigned char PATTERN = 0xa5;

enum class Order : unsigned { FORWARD, REVERSE, SEEDED };

enum class Waits { NO, FOR_BLOCK, FOR_WARP, ENDED };

struct Fiber {
  uint3 thread;
  Waits waits = Waits::NO;
  int place = 0;              // where in the source it waits
  unsigned long long given = 0;  // what it gives to its warp
  unsigned long long lanes[WARP_LANES] = {};  // what it got
  bool started = false;
  ucontext_t context;
  jmp_buf point;
  void* stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
};

// What the emulator itself does is no race of the kernels'.
struct Unwatched {
#if defined(__SANITIZE_THREAD__)
  Unwatched() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
  Unwatched() {}
  ~Unwatched() {}
#endif
};

// Memory of one block, which no other block of the launch is given where races are watched.
struct BlockMemory {
  std::map<int, std::vector<unsigned char>> shared;
  std::vector<unsigned char> dynamic_shared;
};

struct State {
  Order order = Order::FORWARD;
  unsigned long long random = 1;
  std::vector<Fiber> fibers;
  std::vector<void*> stacks;
  std::vector<void*> used_stacks;  // of blocks of this launch, which no other block is given
  Fiber* running = nullptr;
  ucontext_t scheduler_context;
  jmp_buf scheduler_point;
#if defined(__SANITIZE_ADDRESS__)
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void* scheduler_tsan = nullptr;
#endif
  std::function<void()> kernel;
  std::vector<BlockMemory> memories;
  unsigned launches = 0;
  char launched[2] = {};  // what the threads of one launch leave to those of the next, by turns
  uint3 block{}, grid_size{}, block_size{};
};

inline State& state() {
  static State state;
  return state;
}

inline unsigned long long next_random() {
  unsigned long long& random = state().random;
  random = random * 6364136223846793005ull + 1442695040888963407ull;
  return random >> 33;
}

inline std::vector<unsigned> ordered(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (state().order == Order::REVERSE) std::reverse(order.begin(), order.end());
  if (state().order == Order::SEEDED)
    for (unsigned left = count; left > 1; --left) std::swap(order[left - 1], order[next_random() % left]);
  return order;
}

// Fibers change places by their context the first time and by a jump after that, which costs no system call; sanitizers are
// told, and change by contexts always.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool JUMPS = false;
#else
constexpr bool JUMPS = true;
#endif

inline void to_scheduler(bool ends) {
  Fiber& fiber = *state().running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &fiber.fake_stack, state().scheduler_stack,
                                 state().scheduler_stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(state().scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  if (JUMPS) {
    if (ends || _setjmp(fiber.point) == 0) _longjmp(state().scheduler_point, 1);
  } else {
    swapcontext(&fiber.context, &state().scheduler_context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &state().scheduler_stack, &state().scheduler_stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&state().launched[(state().launches + 1) % 2]);
#endif
  state().kernel();
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&state().launched[state().launches % 2]);
#endif
  {
    const Unwatched unwatched;
    state().running->waits = Waits::ENDED;
  }
  to_scheduler(true);
}

inline void resume(Fiber& fiber) {
  state().running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state().scheduler_fake_stack, fiber.stack, STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  if (JUMPS) {
    if (_setjmp(state().scheduler_point) == 0) {
      if (fiber.started) _longjmp(fiber.point, 1);
      fiber.started = true;
      setcontext(&fiber.context);
    }
  } else {
    swapcontext(&state().scheduler_context, &fiber.context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state().scheduler_fake_stack, nullptr, nullptr);
#endif
  state().running = nullptr;
}

inline void wait(Waits waits, int place) {
  const Unwatched unwatched;
  Fiber& fiber = *state().running;
  fiber.waits = waits, fiber.place = place;
#if defined(__SANITIZE_THREAD__)
  void* const meeting = waits == Waits::FOR_BLOCK ? static_cast<void*>(&state().block)
                                                  : static_cast<void*>(&state().stacks[fiber.thread.x / WARP_LANES]);
  __tsan_release(meeting);
#endif
  to_scheduler(false);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(meeting);
#endif
}

// Lets those go on who have met. Returns whether anyone has.
inline bool release() {
  std::vector<Fiber>& fibers = state().fibers;
  bool released = false;
  for (size_t first = 0; first < fibers.size(); first += WARP_LANES) {
    Fiber* const lanes = &fibers[first];
    const bool met = std::all_of(lanes, lanes + WARP_LANES, [](const Fiber& lane) { return lane.waits == Waits::FOR_WARP; });
    if (!met) continue;
    for (unsigned lane = 0; lane < WARP_LANES; ++lane)
      if (lanes[lane].place != lanes[0].place) fail("lanes of one warp wait for it in different places");
    for (unsigned lane = 0; lane < WARP_LANES; ++lane) {
      for (unsigned other = 0; other < WARP_LANES; ++other) lanes[lane].lanes[other] = lanes[other].given;
      lanes[lane].waits = Waits::NO;
    }
    released = true;
  }
  if (released) return true;
  // threads that have ended are not waited for, as on a device
  int place = -1;
  for (const Fiber& fiber : fibers) {
    if (fiber.waits == Waits::ENDED) continue;
    if (fiber.waits != Waits::FOR_BLOCK) return false;
    if (place != -1 && fiber.place != place) fail("threads of one block wait for it in different places");
    place = fiber.place;
  }
  for (Fiber& fiber : fibers)
    if (fiber.waits == Waits::FOR_BLOCK) fiber.waits = Waits::NO, released = true;
  return released;
}

inline void run_block(unsigned dynamic_shared_bytes) {
  State& all = state();
  const unsigned threads = all.block_size.x;
#if defined(__SANITIZE_THREAD__)
  all.used_stacks.insert(all.used_stacks.end(), all.stacks.begin(), all.stacks.end());
  all.stacks.clear();
  constexpr bool KEPT = true;
#else
  constexpr bool KEPT = false;
#endif
  while (all.stacks.size() < threads) {
    void* const stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for stacks");
    all.stacks.push_back(stack);
  }
  all.fibers.resize(threads);
  if (!KEPT) all.memories.clear();
  all.memories.emplace_back();
  all.memories.back().dynamic_shared.assign(dynamic_shared_bytes, PATTERN);
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = all.fibers[thread];
    fiber.thread = {thread, 0, 0};
    fiber.waits = Waits::NO, fiber.started = false;
    fiber.stack = all.stacks[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
#if defined(__SANITIZE_THREAD__)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
  for (;;) {
    bool ran = false;
    for (const unsigned thread : ordered(threads)) {
      if (all.fibers[thread].waits != Waits::NO) continue;
      resume(all.fibers[thread]);
      ran = true;
    }
    const bool ended = std::all_of(all.fibers.begin(), all.fibers.end(),
                                   [](const Fiber& fiber) { return fiber.waits == Waits::ENDED; });
    if (ended) break;
    if (!release() && !ran) fail("threads wait for one another in vain");
  }
#if defined(__SANITIZE_THREAD__)
  for (Fiber& fiber : all.fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
}

// Runs a kernel whose arguments are bound.
inline void run(std::function<void()> kernel, unsigned blocks, unsigned threads, unsigned shared_bytes) {
  State& all = state();
  if (threads == 0 || threads % WARP_LANES != 0 || threads > 1024 || blocks == 0) fail("a grid that no device runs");
  all.kernel = std::move(kernel);
  all.grid_size = {blocks, 1, 1}, all.block_size = {threads, 1, 1};
  all.memories.clear();
  ++all.launches;
#if defined(__SANITIZE_THREAD__)
  all.scheduler_tsan = __tsan_get_current_fiber();
#endif
  for (const unsigned block : ordered(blocks)) {
    all.block = {block, 0, 0};
    run_block(shared_bytes);
  }
  for (void* const stack : all.used_stacks) munmap(stack, STACK_BYTES);
  all.used_stacks.clear();
}

// Shared memory of one declaration, the same for all threads of a block.
inline void* shared(int declaration, size_t bytes) {
  const Unwatched unwatched;
  std::vector<unsigned char>& memory = state().memories.back().shared[declaration];
  if (memory.empty()) memory.assign(bytes, PATTERN);
  return memory.data();
}

template <class T>
unsigned long long as_word(T value) {
  static_assert(sizeof(T) <= 8, "a lane gives eight bytes at most");
  unsigned long long word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_word(unsigned long long word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline const unsigned long long* exchange(unsigned lanes, unsigned long long given, int place) {
  if (lanes != 0xffffffffu) fail("kernels ask whole warps");
  const Unwatched unwatched;
  Fiber& fiber = *state().running;
  fiber.given = given;
  wait(Waits::FOR_WARP, place);
  return fiber.lanes;
}

inline unsigned lane() { return state().running->thread.x % WARP_LANES; }

template <class T>
T from_lane(unsigned lanes, T value, long long lane, int place) {
  const unsigned long long* const given = exchange(lanes, as_word(value), place);
  return lane >= 0 && lane < WARP_LANES ? from_word<T>(given[lane]) : value;
}

inline unsigned ballot(unsigned lanes, bool value, int place) {
  const unsigned long long* const given = exchange(lanes, value, place);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < WARP_LANES; ++lane) bits |= static_cast<unsigned>(given[lane] != 0) << lane;
  return bits;
}

}  // namespace emulator

#define threadIdx (emulator::state().running->thread)
#define blockIdx (emulator::state().block)
#define blockDim (emulator::state().block_size)
#define gridDim (emulator::state().grid_size)

#define SHARED(Type, name) Type& name = *static_cast<Type*>(emulator::shared(__COUNTER__, sizeof(Type)))
#define DYNAMIC_SHARED(Type, name) Type* const name = reinterpret_cast<Type*>(emulator::state().memories.back().dynamic_shared.data())

#define __syncthreads() emulator::wait(emulator::Waits::FOR_BLOCK, __LINE__)
#define __ballot_sync(lanes, value) emulator::ballot(lanes, value, __LINE__)
#define __shfl_down_sync(lanes, value, step) \
  emulator::from_lane(lanes, value, static_cast<long long>(emulator::lane()) + static_cast<long long>(step), __LINE__)
#define __shfl_up_sync(lanes, value, step) \
  emulator::from_lane(lanes, value, static_cast<long long>(emulator::lane()) - static_cast<long long>(step), __LINE__)

template <class T>
T atomicAdd(T* at, T value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* at, T value) {
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicMax(T* at, T value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline float __uint_as_float(unsigned bits) { return emulator::from_word<float>(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(emulator::as_word(value)); }
inline double __longlong_as_double(long long bits) { return emulator::from_word<double>(static_cast<unsigned long long>(bits)); }
inline long long __double_as_longlong(double value) { return static_cast<long long>(emulator::as_word(value)); }
// compiled without contraction and for IEEE arithmetic: each of these rounds once, to nearest even
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
