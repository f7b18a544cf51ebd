// A device for the tests: reads commands from standard input, answers on standard output. Both ends are one program's, on one
// machine: numbers are as they lie in memory.
#define FEDPRUNE_EMULATED
#include "fedprune.cu"

#include <unistd.h>

namespace {

struct Call {
  std::vector<u64> arguments;
  size_t at = 0;
  template <class T>
  T next() {
    if (at >= arguments.size()) emulator::fail("too few arguments");
    const u64 word = arguments[at++];
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(word);
    else return static_cast<T>(word);
  }
};

template <class... Parameters>
std::function<std::function<void()>(Call)> bound(void (*kernel)(Parameters...)) {
  return [kernel](Call call) -> std::function<void()> {
    if (call.arguments.size() != sizeof...(Parameters)) emulator::fail("another number of arguments");
    // braces: in their order
    std::tuple<Parameters...> arguments{call.next<Parameters>()...};
    return [kernel, arguments] { std::apply(kernel, arguments); };
  };
}

const std::map<std::string, std::function<std::function<void()>(Call)>>& kernels() {
#include "kernel_names.h"
}

void read_all(void* to, size_t bytes) {
  u8* at = static_cast<u8*>(to);
  while (bytes > 0) {
    const ssize_t count = ::read(0, at, bytes);
    if (count <= 0) std::exit(0);
    at += count, bytes -= static_cast<size_t>(count);
  }
}

void write_all(const void* from, size_t bytes) {
  const u8* at = static_cast<const u8*>(from);
  while (bytes > 0) {
    const ssize_t count = ::write(1, at, bytes);
    if (count <= 0) std::exit(0);
    at += count, bytes -= static_cast<size_t>(count);
  }
}

u64 read_word() {
  u64 word;
  read_all(&word, sizeof word);
  return word;
}

}  // namespace

int main() {
  const emulator::Unwatched unwatched;  // this thread; those of the kernels are watched
  // each of its very size, so that a sanitizer sees what lies beyond
  std::map<u64, std::pair<u8*, u64>> memory;
  u64 named = 0;
  for (;;) {
    switch (read_word()) {
      case 0: {  // allocate: bytes; answers its name
        const u64 bytes = read_word();
        u8* const at = static_cast<u8*>(std::malloc(bytes > 0 ? bytes : 1));
        if (at == nullptr) emulator::fail("no memory");
        std::memset(at, emulator::PATTERN, bytes);
        memory[++named] = {at, bytes};
        write_all(&named, sizeof named);
        break;
      }
      case 1: {  // free: name
        const auto found = memory.find(read_word());
        if (found == memory.end()) emulator::fail("no such memory");
        std::free(found->second.first);
        memory.erase(found);
        break;
      }
      case 2: {  // clear: name
        const auto& [at, bytes] = memory.at(read_word());
        std::memset(at, 0, bytes);
        break;
      }
      case 3: {  // upload: name, offset, bytes, what
        const auto& [at, length] = memory.at(read_word());
        const u64 offset = read_word(), bytes = read_word();
        if (offset + bytes > length) emulator::fail("a copy past the end");
        read_all(at + offset, bytes);
        break;
      }
      case 4: {  // download: name, offset, bytes; answers what
        const auto& [at, length] = memory.at(read_word());
        const u64 offset = read_word(), bytes = read_word();
        if (offset + bytes > length) emulator::fail("a copy past the end");
        write_all(at + offset, bytes);
        break;
      }
      case 5: {  // order: which, seed
        emulator::state().order = static_cast<emulator::Order>(read_word());
        emulator::state().random = read_word() | 1;
        break;
      }
      case 6: {  // launch: bytes of the name, the name, blocks, threads, shared bytes, arguments; answers that it is done
        std::string name(read_word(), ' ');
        read_all(name.data(), name.size());
        const u64 blocks = read_word(), threads = read_word(), shared_bytes = read_word();
        Call call;
        for (u64 left = read_word(); left > 0; --left) {
          const u64 name_of_memory = read_word(), value = read_word();
          // a number has no name; of memory the value is an offset
          call.arguments.push_back(name_of_memory == 0
                                       ? value
                                       : reinterpret_cast<u64>(memory.at(name_of_memory).first + value));
        }
        const auto found = kernels().find(name);
        if (found == kernels().end()) emulator::fail(("no kernel " + name).c_str());
        emulator::run(found->second(call), static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                      static_cast<unsigned>(shared_bytes));
        const u64 done = 1;
        write_all(&done, sizeof done);
        break;
      }
      default:
        emulator::fail("no such command");
    }
  }
}
