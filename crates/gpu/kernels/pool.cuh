// The first `wanted` of one pool, found by one block.
//
// A range of values is narrowed to the one bin of a histogram in which the pool runs out, until few weights are left in it,
// which are ranked one by one. Coarse keys are narrowed first, keys where too many weights share one, |W| and index where
// too many share those. Counts decide, so that the order in which threads run does not matter.
#pragma once
#include "scores.cuh"

constexpr u32 BINS = 2048;
constexpr u32 BIN_BITS = 11;
// Weights that are ranked one by one.
constexpr u32 LISTED = 128;
constexpr u32 MOST_WARPS = 32;
// Rounds that 64 bits take, and one for what lies below the window.
constexpr u32 MOST_ROUNDS = 8;

struct PoolShared {
  u32 bins[BINS];
  u32 warp_sums[MOST_WARPS];
  u64 warp_lows[MOST_WARPS], warp_highs[MOST_WARPS];
  u32 found[3];
  u32 listed;
  u64 list_keys[LISTED], list_ties[LISTED];
  u32 list_at[LISTED];
};

// Values from `low` to `high`, of which there are `count`; the first `wanted` of them are pruned, and all below.
struct Range {
  u64 low, high;
  u32 wanted, count;
  __device__ __forceinline__ bool all() const { return wanted == count; }
  __device__ __forceinline__ bool few() const { return count <= LISTED; }
  __device__ __forceinline__ bool done() const { return all() || few() || low >= high; }
};

// The smallest and the largest over a block; every thread gets both.
DEVICE void block_range(u64& low, u64& high, PoolShared& shared) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (u32 step = WARP / 2; step > 0; step /= 2) {
    const u64 other_low = __shfl_down_sync(ALL_LANES, low, step), other_high = __shfl_down_sync(ALL_LANES, high, step);
    if (other_low < low) low = other_low;
    if (other_high > high) high = other_high;
  }
  if (lane == 0) shared.warp_lows[warp] = low, shared.warp_highs[warp] = high;
  __syncthreads();
  low = shared.warp_lows[0], high = shared.warp_highs[0];
  for (u32 other = 1; other < warps; ++other) {
    if (shared.warp_lows[other] < low) low = shared.warp_lows[other];
    if (shared.warp_highs[other] > high) high = shared.warp_highs[other];
  }
  __syncthreads();
}

// The sum over a block, and the sum over the threads before this one.
DEVICE u32 block_scan(u32 value, u32& before, u32 (&warp_sums)[MOST_WARPS]) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  u32 sum = value;
  for (u32 step = 1; step < WARP; step *= 2) {
    const u32 other = __shfl_up_sync(ALL_LANES, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == WARP - 1) warp_sums[warp] = sum;
  __syncthreads();
  before = sum - value;
  u32 total = 0;
  for (u32 other = 0; other < warps; ++other) {
    if (other < warp) before += warp_sums[other];
    total += warp_sums[other];
  }
  __syncthreads();
  return total;
}

// The bin in which `wanted` (at least 1) runs out. Returns false, for every thread, where the bins hold fewer. Otherwise
// `bin` is that bin, and `wanted` what is left of it there.
DEVICE bool bin_of(const u32* bins, u32& wanted, u32& bin, u32& count, u32 (&warp_sums)[MOST_WARPS], u32 (&found)[3]) {
  const u32 of_thread = (BINS + blockDim.x - 1) / blockDim.x;
  const u32 first = smaller(threadIdx.x * of_thread, BINS), end = smaller(first + of_thread, BINS);
  u32 sum = 0, before;
  for (u32 at = first; at < end; ++at) sum += bins[at];
  const u32 total = block_scan(sum, before, warp_sums);
  if (total < wanted) return false;
  if (before < wanted && wanted <= before + sum) {
    u32 left = wanted - before, at = first;
    while (bins[at] < left) left -= bins[at++];
    found[0] = at, found[1] = left, found[2] = bins[at];
  }
  __syncthreads();
  bin = found[0], wanted = found[1], count = found[2];
  __syncthreads();
  return true;
}

// One round: a histogram of the values from `base` to the end of the range, of a word of T each, and how many of the range lie
// below. In the first round all values lie in the range.
template <class T, bool FIRST, class Value>
DEVICE u32 count_bins(const Value& value, u32 size, const Range& range, u64 base, u32 shift, PoolShared& shared) {
  for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) shared.bins[bin] = 0;
  __syncthreads();
  const T low = static_cast<T>(range.low), high = static_cast<T>(range.high), first = static_cast<T>(base);
  u32 below = 0;
  for (u32 index = threadIdx.x; index < size; index += blockDim.x) {
    T at;
    if (!value(index, at)) continue;
    if (!FIRST && (at < low || at > high)) continue;
    if (at < first) ++below;
    else atomicAdd(&shared.bins[(at - first) >> shift], 1u);
  }
  u32 before;
  return block_scan(below, before, shared.warp_sums);
}

// Narrows `range`, which all values lie in, until it is done. `value(index, T&)` says whether a weight takes part, and its
// value. Only the first round looks at the highest `window` values alone and counts what lies below.
template <class T, class Value>
static __device__ Range narrow(const Value& value, u32 size, Range range, u64 window, PoolShared& shared) {
  for (u32 round = 0; round < MOST_ROUNDS && !range.done(); ++round) {
    const u64 base = round == 0 && range.high - range.low >= window ? range.high - window + 1 : range.low;
    const u32 bits = bits_of(range.high - base), shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
    const u32 all_below = round == 0 ? count_bins<T, true>(value, size, range, base, shift, shared)
                                     : count_bins<T, false>(value, size, range, base, shift, shared);
    if (range.wanted <= all_below) {
      range.high = base - 1, range.count = all_below;
      continue;
    }
    range.wanted -= all_below;
    u32 bin;
    if (!bin_of(shared.bins, range.wanted, bin, range.count, shared.warp_sums, shared.found)) {
      // weights that are no numbers, and refused: their values have no order
      range.low = range.high, range.count = range.wanted;
      break;
    }
    range.low = base + (static_cast<u64>(bin) << shift);
    const u64 last = range.low + ((1ull << shift) - 1);
    if (last < range.high) range.high = last;
  }
  return range;
}

// Where a pool runs out.
struct Threshold {
  Range coarse, key, tie;
};

enum Decision : u32 { KEPT, PRUNED, UNDECIDED };

template <class T>
DEVICE Decision within(const Range& range, T value) {
  const T low = static_cast<T>(range.low), high = static_cast<T>(range.high);
  return value < low ? PRUNED : value > high ? KEPT : range.all() ? PRUNED : UNDECIDED;
}

// The threshold of a pool of `size` weights, of which the first `wanted` (1 to `size`) are pruned; `low` and `high` are the
// smallest and largest coarse key that this thread has seen.
template <class Pool>
static __device__ Threshold threshold_of(const Pool& pool, u32 size, u32 wanted, u64 low, u64 high, PoolShared& shared) {
  Threshold threshold;
  block_range(low, high, shared);
  const auto coarse = [&](u32 index, u32& value) { return value = pool.coarse(index), true; };
  threshold.coarse = narrow<u32>(coarse, size, Range{low, high, wanted, size}, pool.window(), shared);
  threshold.key = threshold.tie = Range{0, 0, 0, 0};
  if (threshold.coarse.all() || threshold.coarse.few()) return threshold;
  const u32 shared_coarse = static_cast<u32>(threshold.coarse.low);
  const auto key = [&](u32 index, u64& value) {
    if (pool.coarse(index) != shared_coarse) return false;
    return value = pool.key(index), true;
  };
  low = ~0ull, high = 0;
  for (u32 index = threadIdx.x; index < size; index += blockDim.x) {
    u64 value;
    if (!key(index, value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  block_range(low, high, shared);
  threshold.key = narrow<u64>(key, size, Range{low, high, threshold.coarse.wanted, threshold.coarse.count}, ~0ull, shared);
  if (threshold.key.all() || threshold.key.few()) return threshold;
  const u64 shared_key = threshold.key.low;
  const auto tie = [&](u32 index, u64& value) {
    if (pool.coarse(index) != shared_coarse || pool.key(index) != shared_key) return false;
    return value = pool.tie(index), true;
  };
  threshold.tie = narrow<u64>(tie, size, Range{0, ~0ull >> 1, threshold.key.wanted, threshold.key.count}, ~0ull, shared);
  return threshold;
}

// Whether a weight is pruned. One that takes a rank to know is kept for now, and set aside in the list, which is empty
// before the first.
template <class Pool>
DEVICE bool is_pruned(const Pool& pool, const Threshold& threshold, u32 index, PoolShared& shared) {
  Decision decision = within(threshold.coarse, pool.coarse(index));
  if (decision != UNDECIDED) return decision == PRUNED;
  const u64 key = pool.key(index), tie = pool.tie(index);
  if (!threshold.coarse.few()) {
    decision = within(threshold.key, key);
    if (decision == UNDECIDED && !threshold.key.few()) decision = within(threshold.tie, tie);
    if (decision != UNDECIDED) return decision == PRUNED;
  }
  const u32 place = atomicAdd(&shared.listed, 1u);
  if (place < LISTED) shared.list_keys[place] = key, shared.list_ties[place] = tie, shared.list_at[place] = index;
  return false;
}

// Calls `prune(index)` for the first of those that were set aside. All threads of the block call it.
template <class Prune>
DEVICE void prune_listed(const Threshold& threshold, const Prune& prune, PoolShared& shared) {
  __syncthreads();
  const u32 listed = smaller(shared.listed, LISTED);
  const u32 wanted = threshold.coarse.few() ? threshold.coarse.wanted
                     : threshold.key.few()  ? threshold.key.wanted
                                            : threshold.tie.wanted;
  for (u32 place = threadIdx.x; place < listed; place += blockDim.x) {
    const u64 key = shared.list_keys[place], tie = shared.list_ties[place];
    u32 rank = 0;
    for (u32 other = 0; other < listed; ++other)
      rank += shared.list_keys[other] < key || (shared.list_keys[other] == key && shared.list_ties[other] < tie);
    if (rank < wanted) prune(shared.list_at[place]);
  }
}
