// Sums, each in one order whatever the number of threads.
#pragma once
#include "scores.cuh"

constexpr u32 SUM_THREADS = 256;
constexpr u32 TILE_ROWS = 32;
constexpr u32 TILE_COLUMNS = 128;
// Tokens that one thread adds before their sum is.
constexpr u32 SLICE_TOKENS = 64;

// |W| summed over each column, in the order of rows: a thread a column.
template <int TYPE>
DEVICE void sums_of_columns(const Scorer<MAGNITUDE, TYPE>& scorer, f64* sums) {
  const u32 rows = scorer.in.rows, columns = scorer.in.columns;
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 column = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; column < columns; column += stride) {
    f64 sum = 0;
#pragma unroll 8
    for (u32 row = 0; row < rows; ++row)
      sum = __dadd_rn(sum, scorer.widened(scorer.magnitude(row * columns + static_cast<u32>(column))));
    sums[column] = sum;
  }
}

struct TileShared {
  float weights[TILE_ROWS][TILE_COLUMNS + 1];
};

// |W| summed over each row, in the order of columns, behind the sums of columns: a block reads tiles of 32 rows, and a thread
// a row adds them up.
template <int TYPE>
DEVICE void sums_of_rows(const Scorer<MAGNITUDE, TYPE>& scorer, f64* sums) {
  SHARED(TileShared, shared);
  const u32 rows = scorer.in.rows, columns = scorer.in.columns;
  for (u64 first_row = static_cast<u64>(blockIdx.x) * TILE_ROWS; first_row < rows;
       first_row += static_cast<u64>(gridDim.x) * TILE_ROWS) {
    const u32 first = static_cast<u32>(first_row), tile_rows = smaller(TILE_ROWS, rows - first);
    f64 sum = 0;
    for (u64 column = 0; column < columns; column += TILE_COLUMNS) {
      const u32 from = static_cast<u32>(column), tile_columns = smaller(TILE_COLUMNS, columns - from);
      for (u32 at = threadIdx.x; at < tile_rows * TILE_COLUMNS; at += blockDim.x) {
        const u32 row = at / TILE_COLUMNS, offset = at % TILE_COLUMNS;
        if (offset < tile_columns)
          shared.weights[row][offset] = scorer.widened(scorer.magnitude((first + row) * columns + from + offset));
      }
      __syncthreads();
      if (threadIdx.x < tile_rows)
        for (u32 offset = 0; offset < tile_columns; ++offset) sum = __dadd_rn(sum, shared.weights[threadIdx.x][offset]);
      __syncthreads();
    }
    if (threadIdx.x < tile_rows) sums[columns + first + threadIdx.x] = sum;
  }
}

// One activation, widened exactly.
template <int TYPE>
DEVICE f64 activation(const u8* activations, u64 at) {
  if (TYPE == F32) return reinterpret_cast<const float*>(activations)[at];
  const u32 bits = reinterpret_cast<const u16*>(activations)[at];
  const u32 sign = (bits & 0x8000u) << 16;
  if (TYPE == BF16) return __uint_as_float(bits << 16);
  // infinities and NaN of f16 must stay what they are
  if ((bits & 0x7c00u) == 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (bits & 0x3ffu) << 13);
  return __uint_as_float(sign | (bits & 0x7fffu) << 13) * 0x1p112f;
}

// Σ x² of each channel over each slice of tokens, in their order: `partial` is (slices, channels).
template <int TYPE>
DEVICE void squares(const u8* activations, u64 tokens, u32 channels, f64* partial) {
  const u64 slices = (tokens + SLICE_TOKENS - 1) / SLICE_TOKENS, stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; at < slices * channels; at += stride) {
    const u64 slice = at / channels, channel = at % channels;
    const u64 first = slice * SLICE_TOKENS, end = first + SLICE_TOKENS < tokens ? first + SLICE_TOKENS : tokens;
    f64 sum = 0;
#pragma unroll 8
    for (u64 token = first; token < end; ++token) {
      const f64 value = activation<TYPE>(activations, token * channels + channel);
      // the square of a float is exact in a double: a fused product would round alike
      sum = __dadd_rn(sum, __dmul_rn(value, value));
    }
    partial[at] = sum;
  }
}

// Adds the slices to the sums, in their order.
DEVICE void add_slices(const f64* partial, u64 slices, u32 channels, f64* sums) {
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 channel = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; channel < channels; channel += stride) {
    f64 sum = sums[channel];
#pragma unroll 8
    for (u64 slice = 0; slice < slices; ++slice) sum = __dadd_rn(sum, partial[slice * channels + channel]);
    sums[channel] = sum;
  }
}
