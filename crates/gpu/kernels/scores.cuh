// Weights, and the keys by which they are ordered: integers whose order is that of the scores, as `fedprune_mask::score` has
// them. A *coarse* key of 32 bits never contradicts the key, and tells most weights apart.
//
// Order inside a pool, always: key, then |W| (stored bits without the sign), then flat index; the first are pruned.
#pragma once
#include "platform.cuh"

enum Pruner : u32 { WANDA = 0, MAGNITUDE = 1, RIA = 2, VOTES = 3 };
enum Type : u32 { BF16 = 0, F16 = 1, F32 = 2 };

// As a template argument: looked up in `Inputs::kind` when the kernel runs.
constexpr int AT_RUN_TIME = -1;

// The matrix and what scores it. Every kernel that knows keys starts with these parameters.
struct Inputs {
  const u8* weights;   // row-major, little-endian, aligned to one weight
  const u8* factors;   // WANDA: bf16 norms; RIA: float64 roots of norms; one a column
  const f64* sums;     // RIA: |W| summed over each column, then over each row
  const u32* planes;   // VOTES: plane p has bit p of every count, 32 weights a word
  u32 rows, columns;   // rows · columns < 2^32
  u32 total;           // VOTES: weight of all votes
  u32 plane_count;     // VOTES: bits of the total
  u32 kind;            // pruner + 16 · type
};

#define INPUTS                                                                                                   \
  const u8 *weights, const u8 *factors, const f64 *sums, const u32 *planes, u32 rows, u32 columns, u32 total, \
      u32 plane_count, u32 kind
#define PASS_INPUTS \
  Inputs { weights, factors, sums, planes, rows, columns, total, plane_count, kind }

template <int PRUNER, int TYPE>
struct Scorer {
  Inputs in;
  u32 weights_count;  // rows · columns

  __device__ explicit Scorer(const Inputs& inputs) : in(inputs), weights_count(inputs.rows * inputs.columns) {}

  __device__ __forceinline__ u32 pruner() const { return PRUNER >= 0 ? static_cast<u32>(PRUNER) : in.kind % 16; }
  __device__ __forceinline__ u32 type() const { return TYPE >= 0 ? static_cast<u32>(TYPE) : in.kind / 16; }
  __device__ __forceinline__ u32 magnitude_bits() const { return type() == F32 ? 31 : 15; }

  // |W| as bits that order as magnitudes do.
  __device__ __forceinline__ u32 magnitude(u32 flat) const {
    if (type() == F32) return reinterpret_cast<const u32*>(in.weights)[flat] & 0x7fffffffu;
    return reinterpret_cast<const u16*>(in.weights)[flat] & 0x7fffu;
  }

  // Whether these are bits of a number, neither NaN nor infinite.
  __device__ __forceinline__ bool is_finite(u32 magnitude) const {
    const u32 infinite = type() == BF16 ? 0x7f80u : type() == F16 ? 0x7c00u : 0x7f800000u;
    return magnitude < infinite;
  }

  // |W|, exactly.
  __device__ __forceinline__ float widened(u32 magnitude) const {
    if (type() == BF16) return __uint_as_float(magnitude << 16);
    // read as if its exponent were that of a float, an f16 number is 2^112 too small
    if (type() == F16) return __uint_as_float(magnitude << 13) * 0x1p112f;
    return __uint_as_float(magnitude);
  }

  __device__ __forceinline__ float norm(u32 column) const {
    return __uint_as_float(static_cast<u32>(reinterpret_cast<const u16*>(in.factors)[column]) << 16);
  }

  // Votes for pruning a weight.
  __device__ __forceinline__ u32 votes(u32 flat) const {
    const size_t words = (static_cast<size_t>(weights_count) + 31) / 32;
    u32 count = 0;
    for (u32 plane = 0; plane < in.plane_count; ++plane)
      count |= (in.planes[plane * words + flat / 32] >> (flat % 32) & 1u) << plane;
    return count;
  }

  __device__ __forceinline__ u64 key(u32 magnitude, u32 flat, u32 row, u32 column) const {
    switch (pruner()) {
      case WANDA:
        // exact: at most 24 significant bits by eight, far from the ends of a double
        return __double_as_longlong(
            __dmul_rn(static_cast<f64>(widened(magnitude)), static_cast<f64>(norm(column))));
      case MAGNITUDE:
        return magnitude;
      case RIA: {
        if (magnitude == 0) return 0;  // 0/0 must not arise
        const f64 weight = widened(magnitude);
        const f64 shares = __dadd_rn(__ddiv_rn(weight, in.sums[column]), __ddiv_rn(weight, in.sums[in.columns + row]));
        return __double_as_longlong(__dmul_rn(shares, reinterpret_cast<const f64*>(in.factors)[column]));
      }
      default:
        return static_cast<u64>(in.total - votes(flat)) << magnitude_bits() | magnitude;
    }
  }

  __device__ __forceinline__ u32 coarse_of_norm(u32 magnitude, float norm) const {
    // canonical norms lie below 2^127: products with weights below 2^16 do not overflow; where others do, more tie
    return __float_as_uint(__fmul_rn(widened(magnitude), norm * 0x1p-16f)) & 0x7fffffffu;
  }

  __device__ __forceinline__ u32 coarse(u32 magnitude, u32 flat, u32 row, u32 column) const {
    switch (pruner()) {
      case WANDA:
        return coarse_of_norm(magnitude, norm(column));
      case MAGNITUDE:
        return magnitude;
      case RIA:
        return __float_as_uint(
                   __double2float_rn(__longlong_as_double(static_cast<long long>(key(magnitude, flat, row, column))))) &
               0x7fffffffu;
      default: {
        const u32 bits = in.plane_count + magnitude_bits();
        return static_cast<u32>(key(magnitude, flat, row, column) >> (bits > 32 ? bits - 32 : 0));
      }
    }
  }

  // How wide coarse keys are in which most scores lie: sixteen octaves, or all where keys are no floats.
  __device__ __forceinline__ u64 window() const {
    if (pruner() == VOTES) return ~0ull;
    const u32 fraction_bits = pruner() != MAGNITUDE || type() == F32 ? 23 : type() == BF16 ? 7 : 10;
    return 16ull << fraction_bits;
  }

  // |W| and flat index: what orders weights of equal keys.
  DEVICE u64 tie(u32 magnitude, u32 index) { return static_cast<u64>(magnitude) << 32 | index; }

  // Whether chunks can be read whole: no chunk crosses a row, and every one is aligned.
  __device__ __forceinline__ bool has_whole_chunks() const {
    if (in.columns % CHUNK != 0 || reinterpret_cast<size_t>(in.weights) % 16 != 0) return false;
    return pruner() != WANDA || reinterpret_cast<size_t>(in.factors) % 16 == 0;
  }

  // |W| of a whole, aligned chunk.
  __device__ __forceinline__ void read_whole(u32 flat, u32 (&magnitudes)[CHUNK]) const {
    if (type() == F32) {
      const uint4* at = reinterpret_cast<const uint4*>(in.weights + static_cast<size_t>(flat) * 4);
      const uint4 low = at[0], high = at[1];
      const u32 words[CHUNK] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (u32 at = 0; at < CHUNK; ++at) magnitudes[at] = words[at] & 0x7fffffffu;
    } else {
      const uint4 read = *reinterpret_cast<const uint4*>(in.weights + static_cast<size_t>(flat) * 2);
      const u32 words[CHUNK / 2] = {read.x, read.y, read.z, read.w};
#pragma unroll
      for (u32 at = 0; at < CHUNK / 2; ++at) {
        magnitudes[2 * at] = words[at] & 0x7fffu;
        magnitudes[2 * at + 1] = words[at] >> 16 & 0x7fffu;
      }
    }
  }

  // Coarse keys of a whole, aligned chunk of one row.
  __device__ __forceinline__ void coarse_whole(const u32 (&magnitudes)[CHUNK], u32 flat, u32 row, u32 column,
                                               u32 (&coarse_keys)[CHUNK]) const {
    if (pruner() == WANDA) {
      const uint4 read = *reinterpret_cast<const uint4*>(in.factors + static_cast<size_t>(column) * 2);
      const u32 words[CHUNK / 2] = {read.x, read.y, read.z, read.w};
#pragma unroll
      for (u32 at = 0; at < CHUNK / 2; ++at) {
        coarse_keys[2 * at] = coarse_of_norm(magnitudes[2 * at], __uint_as_float(words[at] << 16));
        coarse_keys[2 * at + 1] = coarse_of_norm(magnitudes[2 * at + 1], __uint_as_float(words[at] & 0xffff0000u));
      }
    } else {
#pragma unroll
      for (u32 at = 0; at < CHUNK; ++at)
        coarse_keys[at] = coarse(magnitudes[at], flat + at, row, column + at);
    }
  }

  // Magnitudes and coarse keys of the chunk at `flat`, of which `row` and `column` are the first weight's; how many
  // weights it has. Those past the last weight are zero.
  __device__ __forceinline__ u32 chunk(bool whole, u32 flat, u32 row, u32 column, u32 (&magnitudes)[CHUNK],
                                       u32 (&coarse_keys)[CHUNK]) const {
    if (whole) {
      read_whole(flat, magnitudes);
      coarse_whole(magnitudes, flat, row, column, coarse_keys);
      return CHUNK;
    }
    const u32 here = smaller(CHUNK, weights_count - flat);
#pragma unroll
    for (u32 at = 0; at < CHUNK; ++at) {
      magnitudes[at] = coarse_keys[at] = 0;
      if (at < here) {
        magnitudes[at] = magnitude(flat + at);
        coarse_keys[at] = coarse(magnitudes[at], flat + at, row, column);
        if (++column == in.columns) column = 0, ++row;
      }
    }
    return here;
  }
};

template <int PRUNER, int TYPE>
DEVICE_CALLED u32 coarse_at(Scorer<PRUNER, TYPE> scorer, u32 flat) {
  return scorer.coarse(scorer.magnitude(flat), flat, flat / scorer.in.columns, flat % scorer.in.columns);
}

template <int PRUNER, int TYPE>
DEVICE_CALLED u64 key_at(Scorer<PRUNER, TYPE> scorer, u32 flat) {
  return scorer.key(scorer.magnitude(flat), flat, flat / scorer.in.columns, flat % scorer.in.columns);
}

// The first weight that is no number, by flat index: what is noted is one more than 2^32 - 1 less the index, so that zero says
// that there is none.
template <int PRUNER, int TYPE>
DEVICE void note_if_not_finite(const Scorer<PRUNER, TYPE>& scorer, u32 magnitude, u32 flat, u64* not_finite) {
  if (!scorer.is_finite(magnitude)) atomicMax(not_finite, static_cast<u64>(0xffffffffu - flat) + 1);
}
