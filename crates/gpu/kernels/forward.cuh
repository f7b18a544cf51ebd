// What a block computes between its products, in one pass over memory each: causal softmax, and the gate.
#pragma once
#include "sums.cuh"

constexpr u32 SOFTMAX_THREADS = 256;
constexpr u32 GATE_THREADS = 256;

// The nearest number of a stored format, ties to even; infinities and NaN stay what they are.
DEVICE u16 rounded_bf16(float value) {
  const u32 bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40u);
  return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE u16 rounded_f16(float value) {
  const u32 bits = __float_as_uint(value);
  const u32 sign = bits >> 16 & 0x8000u;
  const u32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<u16>(sign | 0x7e00u);
  // half a unit above the largest: what rounds to infinity
  if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // subnormal: a multiple of 2^-24, which adding a half leaves in the low bits, rounded by the adder
    const u32 aligned = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
    return static_cast<u16>(sign | (aligned - 0x3f000000u));
  }
  return static_cast<u16>(sign | (((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10)));
}

template <int TYPE>
DEVICE void store(u8* values, u64 at, float value) {
  if (TYPE == F32) reinterpret_cast<float*>(values)[at] = value;
  else reinterpret_cast<u16*>(values)[at] = TYPE == BF16 ? rounded_bf16(value) : rounded_f16(value);
}

template <int TYPE>
DEVICE float load(const u8* values, u64 at) {
  return static_cast<float>(activation<TYPE>(values, at));
}

struct SoftmaxShared {
  float partial[SOFTMAX_THREADS];
};

// Scores to weights, in place: a block a row. Row r is that of the query at `first_query` + r mod `queries`, which sees the
// keys up to its own place, the last `window` of them if that is not zero; column 0 is the key at `first_key`. Sums are
// added in one order.
template <int TYPE>
DEVICE void causal_softmax(u8* scores, u64 rows, u32 keys, u32 queries, u32 first_query, u32 first_key, u32 window,
                           float scale) {
  SHARED(SoftmaxShared, shared);
  const u32 thread = threadIdx.x;
  for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u32 position = first_query + static_cast<u32>(row % queries);
    const u32 end = smaller(position + 1 - first_key, keys);
    const u32 oldest = window != 0 && position >= window ? position + 1 - window : 0;
    const u32 start = oldest > first_key ? oldest - first_key : 0;
    const u64 first = row * keys;

    float most = -INFINITY;
    for (u32 key = start + thread; key < end; key += SOFTMAX_THREADS) most = fmaxf(most, load<TYPE>(scores, first + key));
    shared.partial[thread] = most;
    __syncthreads();
    for (u32 step = SOFTMAX_THREADS / 2; step > 0; step /= 2) {
      if (thread < step) shared.partial[thread] = fmaxf(shared.partial[thread], shared.partial[thread + step]);
      __syncthreads();
    }
    most = shared.partial[0];
    __syncthreads();

    float sum = 0;
    for (u32 key = start + thread; key < end; key += SOFTMAX_THREADS)
      sum += expf(scale * (load<TYPE>(scores, first + key) - most));
    shared.partial[thread] = sum;
    __syncthreads();
    for (u32 step = SOFTMAX_THREADS / 2; step > 0; step /= 2) {
      if (thread < step) shared.partial[thread] += shared.partial[thread + step];
      __syncthreads();
    }
    const float inverse = 1.0f / shared.partial[0];
    __syncthreads();

    for (u32 key = thread; key < keys; key += SOFTMAX_THREADS) {
      const bool seen = key >= start && key < end;
      const float weight = seen ? expf(scale * (load<TYPE>(scores, first + key) - most)) * inverse : 0.0f;
      store<TYPE>(scores, first + key, weight);
    }
  }
}

// gate = gate / (1 + e^-gate) * up, in place.
template <int TYPE>
DEVICE void gate_up(u8* gate, const u8* up, u64 count) {
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    const float value = load<TYPE>(gate, at);
    store<TYPE>(gate, at, value / (1.0f + expf(-value)) * load<TYPE>(up, at));
  }
}
