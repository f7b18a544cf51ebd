// What the kernels are written in: CUDA, or C++ with the emulator of the tests (FEDPRUNE_EMULATED).
#pragma once

#ifdef FEDPRUNE_EMULATED
#include "emulator.h"
#else
// A variable of one block; its type is plain, and nothing is in it before it is written.
#define SHARED(Type, name) __shared__ Type name
// Shared memory whose size the launch says.
#define DYNAMIC_SHARED(Type, name)                                  \
  extern __shared__ __align__(16) unsigned char dynamic_shared_[]; \
  Type* const name = reinterpret_cast<Type*>(dynamic_shared_)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef double f64;

#define DEVICE static __device__ __forceinline__
// What is called from many places, or seldom: compiled once.
#define DEVICE_CALLED static __device__ __noinline__

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// Weights that one thread takes at a time: a byte of the mask.
constexpr u32 CHUNK = 8;

DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// How many bits a number takes.
DEVICE u32 bits_of(u64 value) { return 64 - __clzll(static_cast<long long>(value)); }

// The sum over a warp, for its first lane.
DEVICE u32 warp_sum(u32 value) {
  for (u32 step = WARP / 2; step > 0; step /= 2) value += __shfl_down_sync(ALL_LANES, value, step);
  return value;
}
