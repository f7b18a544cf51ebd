// A stand-in for libcuda.so.1, so that a program built with CUDA runs where there is no GPU: memory is the processor's, every
// call is carried out at once, our kernels run in the emulation of the tests, and candle's few are written out below. It shows
// that what is launched and copied is right, and in which order; of streams, of speed and of what a compiler makes of the
// kernels it shows nothing. `.ci/stand-in` builds and uses it.
//
// Fresh memory is filled with a pattern. STAND_IN_FREE bytes are said to be free, if it is set; STAND_IN_REPORT=1 tells at the
// end what was launched and what was not freed.
#define FEDPRUNE_EMULATED
#include "fedprune.cu"

#include <mutex>
#include <set>

namespace {

typedef void** Arguments;

template <class T>
T taken(Arguments* next) {
  return *static_cast<std::remove_const_t<T>*>(*(*next)++);
}

template <class... Parameters>
std::function<std::function<void()>(Arguments)> bound(void (*kernel)(Parameters...)) {
  return [kernel](Arguments given) -> std::function<void()> {
    auto next = given;
    // braces: in their order
    std::tuple<Parameters...> arguments{taken<Parameters>(&next)...};
    return [kernel, arguments] { std::apply(kernel, arguments); };
  };
}

const std::map<std::string, std::function<std::function<void()>(Arguments)>>& ours() {
#include "kernel_names.h"
}

template <class T>
T argument(Arguments given, int at) {
  return *static_cast<T*>(given[at]);
}

// One value of candle's formats.
double value(const std::string& type, const void* from, size_t at) {
  if (type == "f32") return static_cast<const float*>(from)[at];
  if (type == "f64") return static_cast<const double*>(from)[at];
  if (type == "bf16") return load<BF16>(static_cast<const u8*>(from), at);
  if (type == "f16") return load<F16>(static_cast<const u8*>(from), at);
  emulator::fail(("a kernel of candle in " + type).c_str());
}

void put(const std::string& type, void* to, size_t at, double value) {
  if (type == "f32") static_cast<float*>(to)[at] = static_cast<float>(value);
  else if (type == "f64") static_cast<double*>(to)[at] = value;
  else if (type == "bf16") static_cast<u16*>(to)[at] = rounded_bf16(static_cast<float>(value));
  else if (type == "f16") static_cast<u16*>(to)[at] = rounded_f16(static_cast<float>(value));
  else emulator::fail(("a kernel of candle in " + type).c_str());
}

// Where element `at` lies: `shape` holds as many dimensions, then their strides; none is contiguous.
size_t place(size_t at, size_t dimensions, const size_t* shape, const size_t* strides) {
  if (shape == nullptr) return at;
  size_t found = 0;
  for (size_t dimension = dimensions; dimension-- > 0; at /= shape[dimension])
    found += at % shape[dimension] * strides[dimension];
  return found;
}

// A name that begins so, and what comes after.
bool begins(const std::string& name, const char* with, std::string* rest) {
  const size_t length = std::strlen(with);
  if (name.compare(0, length, with) != 0) return false;
  *rest = name.substr(length);
  return true;
}

// The kernels of candle 0.11 that a pass and perplexity launch.
bool candles(const std::string& name, Arguments given, unsigned blocks) {
  std::string type;
  const auto elements = [&] { return argument<size_t>(given, 0); };
  const auto dimensions = [&] { return argument<size_t>(given, 1); };
  const auto shape = [&] { return argument<const size_t*>(given, 2); };
  if (begins(name, "cast_", &type)) {
    const std::string from = type.substr(0, type.find('_')), to = type.substr(type.find('_') + 1);
    for (size_t at = 0; at < elements(); ++at) {
      const size_t source = place(at, dimensions(), shape(), shape() + dimensions());
      put(to, argument<void*>(given, 4), at, value(from, argument<const void*>(given, 3), source));
    }
    return true;
  }
  if (begins(name, "ucopy_", &type) || begins(name, "uexp_", &type)) {
    for (size_t at = 0; at < elements(); ++at) {
      const size_t source = place(at, dimensions(), shape(), shape() + dimensions());
      const double x = value(type, argument<const void*>(given, 3), source);
      put(type, argument<void*>(given, 4), at, name[1] == 'e' ? std::exp(x) : x);
    }
    return true;
  }
  if (begins(name, "badd_", &type) || begins(name, "bsub_", &type)) {
    for (size_t at = 0; at < elements(); ++at) {
      const size_t left = place(at, dimensions(), shape(), shape() + dimensions());
      const size_t right = place(at, dimensions(), shape(), shape() + 2 * dimensions());
      const double x = value(type, argument<const void*>(given, 3), left);
      const double y = value(type, argument<const void*>(given, 4), right);
      put(type, argument<void*>(given, 5), at, name[1] == 'a' ? x + y : x - y);
    }
    return true;
  }
  if (begins(name, "rmsnorm_", &type)) {
    const void* const x = argument<const void*>(given, 0);
    const int columns = argument<int>(given, 3);
    for (size_t row = 0; row < blocks; ++row) {
      float sum = 0;
      for (int column = 0; column < columns; ++column) {
        const float one = static_cast<float>(value(type, x, row * columns + column));
        sum += one * one;
      }
      const float scale = 1.0f / std::sqrt(sum / static_cast<float>(columns) + argument<float>(given, 5));
      for (int column = 0; column < columns; ++column) {
        const float one = static_cast<float>(value(type, x, row * columns + column));
        const float gain = static_cast<float>(value(type, argument<const void*>(given, 2), column));
        put(type, argument<void*>(given, 1), row * columns + column, scale * one * gain);
      }
    }
    return true;
  }
  if (begins(name, "rope_thd_", &type)) {
    const size_t batch = argument<u32>(given, 4), tokens = argument<u32>(given, 5), heads = argument<u32>(given, 6);
    const size_t width = argument<u32>(given, 7), half = width / 2;
    if (argument<u32>(given, 8) != 0) emulator::fail("rotary tables of each batch");
    for (size_t at = 0; at < batch * tokens * heads * half; ++at) {
      const size_t head = at / half, pair = at % half, angle = head / heads % tokens * half + pair;
      const double cos = value(type, argument<const void*>(given, 1), angle);
      const double sin = value(type, argument<const void*>(given, 2), angle);
      const double left = value(type, argument<const void*>(given, 0), head * width + pair);
      const double right = value(type, argument<const void*>(given, 0), head * width + pair + half);
      put(type, argument<void*>(given, 3), head * width + pair, left * cos - right * sin);
      put(type, argument<void*>(given, 3), head * width + pair + half, left * sin + right * cos);
    }
    return true;
  }
  if (begins(name, "fast_max_", &type) || begins(name, "fast_sum_", &type)) {
    const size_t of_each = argument<size_t>(given, 1), count = argument<size_t>(given, 2);
    const size_t* const reduced = argument<const size_t*>(given, 3);
    for (size_t to = 0; to < elements() / of_each; ++to) {
      double total = name[5] == 'm' ? -INFINITY : 0;
      for (size_t at = to * of_each; at < (to + 1) * of_each; ++at) {
        const double x = value(type, argument<const void*>(given, 4), place(at, count, reduced, reduced + count));
        total = name[5] == 'm' ? std::max(total, x) : total + x;
      }
      put(type, argument<void*>(given, 5), to, total);
    }
    return true;
  }
  if (begins(name, "gather_u32_", &type)) {
    const size_t source = argument<size_t>(given, 5), ids = argument<size_t>(given, 6), right = argument<size_t>(given, 7);
    for (size_t at = 0; at < elements(); ++at) {
      const size_t id = argument<const u32*>(given, 1)[at], before = at / (right * ids);
      const double x = value(type, argument<const void*>(given, 2), (before * source + id) * right + at % right);
      put(type, argument<void*>(given, 3), at, x);
    }
    return true;
  }
  return false;
}

constexpr u64 ALL_BYTES = 80ull << 30;
constexpr size_t AHEAD = 64;  // bytes before an allocation, which hold its length

struct Told {
  std::mutex lock;
  u64 used = 0, most = 0, allocations = 0, freed = 0, up = 0, down = 0;
  std::vector<std::string> functions;
  std::map<std::string, u64> launches;

  ~Told() {
    if (std::getenv("STAND_IN_REPORT") == nullptr) return;
    std::fprintf(stderr, "stand-in: %llu allocations, %llu freed, %llu bytes at most, %llu left, %llu up, %llu down\n",
                 allocations, freed, most, used, up, down);
    for (const auto& [name, count] : launches) std::fprintf(stderr, "%8llu %s\n", count, name.c_str());
  }
} told;

int allocate(u64* to, size_t bytes) {
  char* const at = static_cast<char*>(std::malloc(bytes + AHEAD));
  if (at == nullptr) return 2;
  std::memcpy(at, &bytes, sizeof bytes);
  std::memset(at + AHEAD, emulator::PATTERN, bytes);
  *to = reinterpret_cast<u64>(at + AHEAD);
  const std::lock_guard held(told.lock);
  told.used += bytes, told.most = std::max(told.most, told.used), ++told.allocations;
  return 0;
}

int give_back(u64 from) {
  if (from == 0) return 0;
  char* const at = reinterpret_cast<char*>(from) - AHEAD;
  size_t bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  const std::lock_guard held(told.lock);
  told.used -= bytes, ++told.freed;
  std::free(at);
  return 0;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return ordinal == 0 ? (*device = 0, 0) : 101; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "stand-in"), 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = ALL_BYTES, 0; }
int cuDeviceGetAttribute(int* found, int attribute, int) {
  switch (attribute) {
    case 16: *found = 3; break;           // multiprocessors
    case 75: *found = 9; break;           // compute capability, major
    case 76: *found = 0; break;           // and minor
    case 97: *found = 64 << 10; break;    // shared memory that a block may ask for
    default: *found = 1;
  }
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &told, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxGetCurrent(void** context) { return *context = &told, 0; }
int cuCtxSynchronize() { return 0; }
int cuGetErrorName(int, const char** name) { return *name = "STAND_IN", 0; }
int cuGetErrorString(int, const char** words) { return *words = "the stand-in says no", 0; }
int cuMemGetInfo_v2(size_t* free, size_t* all) {
  const char* const said = std::getenv("STAND_IN_FREE");
  return *all = ALL_BYTES, *free = said != nullptr ? std::strtoull(said, nullptr, 10) : ALL_BYTES - told.used, 0;
}
int cuMemAllocAsync(u64* to, size_t bytes, void*) { return allocate(to, bytes); }
int cuMemAlloc_v2(u64* to, size_t bytes) { return allocate(to, bytes); }
int cuMemFreeAsync(u64 from, void*) { return give_back(from); }
int cuMemFree_v2(u64 from) { return give_back(from); }
int cuMemHostAlloc(void** to, size_t bytes, unsigned) { return *to = std::aligned_alloc(4096, (bytes + 4095) & ~4095ull), 0; }
int cuMemFreeHost(void* from) { return std::free(from), 0; }
int cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, void*) {
  return told.up += bytes, std::memcpy(reinterpret_cast<void*>(to), from, bytes), 0;
}
int cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, void*) {
  return told.down += bytes, std::memcpy(to, reinterpret_cast<void*>(from), bytes), 0;
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void*) {
  return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), 0;
}
int cuMemsetD8Async(u64 to, unsigned char byte, size_t bytes, void*) {
  return std::memset(reinterpret_cast<void*>(to), byte, bytes), 0;
}
int cuDeviceGetMemPool(void** pool, int) { return *pool = &told, 0; }
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &told, 0; }
int cuMemPoolSetAttribute(void*, int, void*) { return 0; }
int cuMemPoolGetAttribute(void*, int attribute, void* found) {
  return *static_cast<u64*>(found) = attribute == 8 ? told.most : told.used, 0;
}
int cuEventCreate(void** event, unsigned) { return *event = std::malloc(1), 0; }
int cuEventDestroy_v2(void* event) { return std::free(event), 0; }
int cuEventRecord(void*, void*) { return 0; }
int cuEventSynchronize(void*) { return 0; }
int cuEventQuery(void*) { return 0; }
int cuStreamCreate(void** stream, unsigned) { return *stream = std::malloc(1), 0; }
int cuStreamDestroy_v2(void* stream) { return std::free(stream), 0; }
int cuStreamSynchronize(void*) { return 0; }
int cuStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cuStreamIsCapturing(void*, int* status) { return *status = 0, 0; }
int cuModuleLoadData(void** module, const void*) { return *module = &told, 0; }
int cuModuleLoad(void** module, const char*) { return *module = &told, 0; }
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void*, const char* name) {
  const std::lock_guard held(told.lock);
  auto found = std::find(told.functions.begin(), told.functions.end(), name);
  if (found == told.functions.end()) found = told.functions.insert(found, name);
  // never zero
  return *function = reinterpret_cast<void*>(found - told.functions.begin() + 1), 0;
}
int cuFuncGetAttribute(int* found, int, void*) { return *found = 1024, 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernel(void* function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared_bytes, void*, void** arguments, void**) {
  const std::lock_guard held(told.lock);
  const std::string name = told.functions.at(reinterpret_cast<size_t>(function) - 1);
  if (blocks == 0 || y == 0 || z == 0 || threads == 0 || threads > 1024) emulator::fail(("a grid of " + name).c_str());
  ++told.launches[name];
  const auto found = ours().find(name);
  if (found != ours().end()) emulator::run(found->second(arguments), blocks, threads, shared_bytes);
  else if (!candles(name, arguments, blocks)) emulator::fail(("no kernel " + name).c_str());
  return 0;
}

}  // extern "C"
