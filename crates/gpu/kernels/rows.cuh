// Many pools: rows, columns, and n of m.
#pragma once
#include "pool.cuh"

// Threads of a block that selects in rows: launched with 256 or 512.
constexpr u32 ROW_THREADS = 512;
constexpr u32 COLUMN_THREADS = 256;
constexpr u32 N_OF_M_THREADS = 256;

// One row. Its coarse keys lie in shared memory where there is room (CACHED), so that W is read once.
template <int PRUNER, int TYPE, bool CACHED>
struct RowPool {
  const Scorer<PRUNER, TYPE>& scorer;
  u32 row, first;  // flat index of the first weight
  const u32* cached;
  __device__ __forceinline__ u32 coarse(u32 column) const {
    if (CACHED) return cached[column];
    return scorer.coarse(scorer.magnitude(first + column), first + column, row, column);
  }
  __device__ __forceinline__ u64 key(u32 column) const {
    return scorer.key(scorer.magnitude(first + column), first + column, row, column);
  }
  __device__ __forceinline__ u64 tie(u32 column) const { return scorer.tie(scorer.magnitude(first + column), column); }
  __device__ __forceinline__ u64 window() const { return scorer.window(); }
};

// A block takes one row after another. The words that rows share are zero before.
template <int PRUNER, int TYPE, bool CACHED>
DEVICE void rows_of(const Scorer<PRUNER, TYPE>& scorer, u32 budget, u64* not_finite, u32* mask) {
  SHARED(PoolShared, shared);
  DYNAMIC_SHARED(u32, cached);
  const u32 columns = scorer.in.columns, lane = threadIdx.x % WARP;
  const bool whole = scorer.has_whole_chunks();
  for (u64 row_at = blockIdx.x; row_at < scorer.in.rows; row_at += gridDim.x) {
    const u32 row = static_cast<u32>(row_at), first = static_cast<u32>(row_at * columns);
    u32 low = 0xffffffffu, high = 0;
    const auto see = [&](u32 column, u32 magnitude, u32 coarse) {
      note_if_not_finite(scorer, magnitude, first + column, not_finite);
      low = smaller(low, coarse), high = larger(high, coarse);
    };
    if (whole) {
      for (u64 column = static_cast<u64>(threadIdx.x) * CHUNK; column < columns; column += blockDim.x * CHUNK) {
        u32 magnitudes[CHUNK], keys[CHUNK];
        const u32 at_column = static_cast<u32>(column);
        scorer.chunk(true, first + at_column, row, at_column, magnitudes, keys);
#pragma unroll
        for (u32 at = 0; at < CHUNK; ++at) see(at_column + at, magnitudes[at], keys[at]);
        if (CACHED) {
          uint4* const at = reinterpret_cast<uint4*>(cached + at_column);
          at[0] = uint4{keys[0], keys[1], keys[2], keys[3]};
          at[1] = uint4{keys[4], keys[5], keys[6], keys[7]};
        }
      }
    } else {
      for (u64 column = threadIdx.x; column < columns; column += blockDim.x) {
        const u32 at_column = static_cast<u32>(column), flat = first + at_column, magnitude = scorer.magnitude(flat);
        const u32 coarse = scorer.coarse(magnitude, flat, row, at_column);
        see(at_column, magnitude, coarse);
        if (CACHED) cached[at_column] = coarse;
      }
    }
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    const RowPool<PRUNER, TYPE, CACHED> pool{scorer, row, first, cached};
    const Threshold threshold = threshold_of(pool, columns, budget, low, high, shared);
    // a warp writes a word, of which neighbouring rows may have a part
    const u64 end = static_cast<u64>(first) + columns, warps = blockDim.x / WARP;
    for (u64 word = first / 32 + threadIdx.x / WARP; word * 32 < end; word += warps) {
      const u64 flat = word * 32 + lane;
      const bool inside = flat >= first && flat < end;
      const bool pruned = inside && is_pruned(pool, threshold, static_cast<u32>(flat - first), shared);
      const u32 bits = __ballot_sync(ALL_LANES, pruned);
      if (lane != 0) continue;
      if (word * 32 >= first && word * 32 + 32 <= end) mask[word] = bits;
      else if (bits != 0) atomicOr(&mask[word], bits);
    }
    const auto prune = [&](u32 column) { atomicOr(&mask[(first + column) / 32], 1u << (first + column) % 32); };
    prune_listed(threshold, prune, shared);
    __syncthreads();
  }
}

// One column.
template <int PRUNER, int TYPE>
struct ColumnPool {
  const Scorer<PRUNER, TYPE>& scorer;
  u32 column;
  __device__ __forceinline__ u32 flat(u32 row) const { return row * scorer.in.columns + column; }
  __device__ __forceinline__ u32 coarse(u32 row) const {
    return scorer.coarse(scorer.magnitude(flat(row)), flat(row), row, column);
  }
  __device__ __forceinline__ u64 key(u32 row) const {
    return scorer.key(scorer.magnitude(flat(row)), flat(row), row, column);
  }
  __device__ __forceinline__ u64 tie(u32 row) const { return scorer.tie(scorer.magnitude(flat(row)), row); }
  __device__ __forceinline__ u64 window() const { return scorer.window(); }
};

// A block takes one column after another. The mask is zero before.
template <int PRUNER, int TYPE>
DEVICE void columns_of(const Scorer<PRUNER, TYPE>& scorer, u32 budget, u64* not_finite, u32* mask) {
  SHARED(PoolShared, shared);
  const u32 rows = scorer.in.rows;
  for (u64 column = blockIdx.x; column < scorer.in.columns; column += gridDim.x) {
    const ColumnPool<PRUNER, TYPE> pool{scorer, static_cast<u32>(column)};
    u64 low = ~0ull, high = 0;
    for (u64 row = threadIdx.x; row < rows; row += blockDim.x) {
      const u32 at = static_cast<u32>(row);
      note_if_not_finite(scorer, scorer.magnitude(pool.flat(at)), pool.flat(at), not_finite);
      const u64 coarse = pool.coarse(at);
      if (coarse < low) low = coarse;
      if (coarse > high) high = coarse;
    }
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    const Threshold threshold = threshold_of(pool, rows, budget, low, high, shared);
    const auto prune = [&](u32 row) { atomicOr(&mask[pool.flat(row) / 32], 1u << pool.flat(row) % 32); };
    for (u64 row = threadIdx.x; row < rows; row += blockDim.x)
      if (is_pruned(pool, threshold, static_cast<u32>(row), shared)) prune(static_cast<u32>(row));
    prune_listed(threshold, prune, shared);
    __syncthreads();
  }
}

// n of M consecutive weights, M a divisor of a chunk. Writes all `mask_bytes` of the mask.
template <int PRUNER, int TYPE, u32 M>
DEVICE void n_of(const Scorer<PRUNER, TYPE>& scorer, u32 n, u64* not_finite, u8* mask, u32 mask_bytes) {
  const bool whole = scorer.has_whole_chunks();
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 byte = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; byte < mask_bytes; byte += stride) {
    u32 bits = 0;
    if (byte * CHUNK < scorer.weights_count) {
      const u32 flat = static_cast<u32>(byte * CHUNK), columns = scorer.in.columns;
      u32 magnitudes[CHUNK], keys[CHUNK];
      const u32 here = scorer.chunk(whole, flat, flat / columns, flat % columns, magnitudes, keys);
      // pools are whole: past the last weight there is none
#pragma unroll
      for (u32 at = 0; at < CHUNK; ++at) {
        if (at >= here) continue;
        note_if_not_finite(scorer, magnitudes[at], flat + at, not_finite);
        u32 rank = 0;
#pragma unroll
        for (u32 offset = 0; offset < M; ++offset) {
          const u32 other = at / M * M + offset;
          if (other == at) continue;
          bool before = keys[other] < keys[at];
          if (keys[other] == keys[at]) {
            const u64 key = key_at(scorer, flat + at), other_key = key_at(scorer, flat + other);
            before = other_key < key ||
                     (other_key == key && (magnitudes[other] < magnitudes[at] ||
                                           (magnitudes[other] == magnitudes[at] && other < at)));
          }
          rank += before;
        }
        bits |= static_cast<u32>(rank < n) << at;
      }
    }
    mask[byte] = static_cast<u8>(bits);
  }
}

// n of any m consecutive weights. Writes all `mask_words` of the mask.
template <int PRUNER, int TYPE>
DEVICE void n_of_any(const Scorer<PRUNER, TYPE>& scorer, u32 n, u32 m, u64* not_finite, u32* mask, u32 mask_words) {
  const u32 lane = threadIdx.x % WARP, columns = scorer.in.columns;
  const u64 warps = static_cast<u64>(gridDim.x) * (blockDim.x / WARP);
  for (u64 word = static_cast<u64>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP; word < mask_words; word += warps) {
    const u64 at = word * 32 + lane;
    bool pruned = false;
    if (at < scorer.weights_count) {
      const u32 flat = static_cast<u32>(at), row = flat / columns, column = flat % columns, magnitude = scorer.magnitude(flat);
      note_if_not_finite(scorer, magnitude, flat, not_finite);
      const u64 key = scorer.key(magnitude, flat, row, column);
      const u32 first = column / m * m;
      u32 rank = 0;
      for (u32 other = first; other < first + m; ++other) {
        const u32 other_flat = flat - column + other, other_magnitude = scorer.magnitude(other_flat);
        const u64 other_key = scorer.key(other_magnitude, other_flat, row, other);
        rank += other_key < key || (other_key == key && (other_magnitude < magnitude ||
                                                         (other_magnitude == magnitude && other < column)));
      }
      pruned = rank < n;
    }
    const u32 bits = __ballot_sync(ALL_LANES, pruned);
    if (lane == 0) mask[word] = bits;
  }
}
