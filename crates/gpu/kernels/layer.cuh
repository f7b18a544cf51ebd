// One pool, the whole matrix.
//
// The way that reads W once: `bracket` samples coarse keys and brackets the one at which the budget runs out; `split` marks
// what lies below the bracket and lists what lies inside it, with a histogram; `narrow_listed` marks the bins below the one in
// which the budget runs out; `settle` ranks what lies in it. Ranks are counted, so that a sample that misleads is noticed
// (`OUTCOME` says `FAILED`), and so is a list that is full.
//
// The way that always works: `exact_round` counts keys, and then |W| and indices, in the 2048 bins of an ever narrower range,
// `exact_pick` takes the bin in which the budget runs out, `exact_mark` writes the mask.
#pragma once
#include "pool.cuh"

// Words of the state that the kernels of one selection share.
enum State : u32 {
  NOT_FINITE,  // see `note_if_not_finite`
  OUTCOME,
  BELOW,       // weights below the bracket
  LOW,         // the bracket: coarse keys, both included
  HIGH,
  CANDIDATES,  // weights inside the bracket
  SETTLING,    // weights of the bin in which the budget runs out
  WANTED,      // how many of them are pruned
  EXACT_LOW,   // the range that is left: of keys, then of ties
  EXACT_HIGH,
  EXACT_WANTED,
  EXACT_COUNT,
  EXACT_KEY,   // the key that all ties share
  EXACT_LEVEL,
  EXACT_ENDED,  // the level at which it ended
  STATE_WORDS
};
enum Outcome : u64 { PENDING, DONE, FAILED };
enum Level : u64 { KEYS, TIES, SETTLED };

constexpr u32 BRACKET_THREADS = 1024;
// Samples that one thread keeps in registers.
constexpr u32 SAMPLES_OF_THREAD = 16;
constexpr u32 SPLIT_THREADS = 256;
// Weights inside the bracket that one block sets aside before it writes to the list one by one.
constexpr u32 STAGED = 4096;
constexpr u32 NARROW_THREADS = 256;
constexpr u32 SETTLE_THREADS = 1024;
constexpr u32 EXACT_THREADS = 256;

DEVICE u32 scattered(u32 value) {
  value ^= value >> 16;
  value *= 0x7feb352du;
  value ^= value >> 15;
  value *= 0x846ca68bu;
  return value ^ value >> 16;
}

struct BracketShared {
  u32 bins[2][BINS];
  u32 warp_sums[MOST_WARPS];
  u32 found[3];
};

// Launched with one block. `samples` weights are looked at; the bracket reaches from the sample of rank `low_rank` to that of
// rank `high_rank` (1 is the lowest), or to the end where a rank is none of the sample's.
template <int PRUNER, int TYPE>
DEVICE void bracket(const Scorer<PRUNER, TYPE>& scorer, u32 samples, u32 low_rank, u32 high_rank, u64* state,
                    u32* histogram) {
  SHARED(BracketShared, shared);
  const u32 count = scorer.weights_count;
  u32 keys[SAMPLES_OF_THREAD];
#pragma unroll
  for (u32 at = 0; at < SAMPLES_OF_THREAD; ++at) {
    const u32 sample = at * BRACKET_THREADS + threadIdx.x;
    keys[at] = 0;
    if (sample >= samples) continue;
    // one weight of each stretch, anywhere in it: a fixed stride would meet few columns
    const u32 first = static_cast<u32>(static_cast<u64>(count) * sample / samples);
    const u32 end = static_cast<u32>(static_cast<u64>(count) * (sample + 1) / samples);
    const u32 flat = first + scattered(sample) % larger(end - first, 1);
    keys[at] = coarse_at(scorer, flat);
  }
  // two selections at once, by the highest 22 bits of the keys, eleven at a time: the bracket is a little wider for that
  u32 prefix[2] = {0, 0}, wanted[2] = {low_rank, high_rank}, bins_count;
#pragma unroll
  for (u32 round = 0; round < 2; ++round) {
    for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) shared.bins[0][bin] = shared.bins[1][bin] = 0;
    __syncthreads();
#pragma unroll
    for (u32 at = 0; at < SAMPLES_OF_THREAD; ++at) {
      if (at * BRACKET_THREADS + threadIdx.x >= samples) continue;
      const u32 above = round == 0 ? 0 : keys[at] >> 21, digit = keys[at] >> (round == 0 ? 21 : 10) & (BINS - 1);
#pragma unroll
      for (u32 side = 0; side < 2; ++side)
        if (above == prefix[side]) atomicAdd(&shared.bins[side][digit], 1u);
    }
    __syncthreads();
#pragma unroll
    for (u32 side = 0; side < 2; ++side) {
      u32 bin = 0;
      // a rank of the sample's is found; of one that is not, nothing is used
      if (wanted[side] >= 1 && wanted[side] <= samples)
        bin_of(shared.bins[side], wanted[side], bin, bins_count, shared.warp_sums, shared.found);
      prefix[side] = prefix[side] << BIN_BITS | bin;
    }
  }
  for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) histogram[bin] = 0;
  if (threadIdx.x == 0) {
    for (u32 word = 0; word < STATE_WORDS; ++word) state[word] = 0;
    state[LOW] = low_rank >= 1 ? prefix[0] << 10 : 0;
    state[HIGH] = high_rank <= samples ? prefix[1] << 10 | 1023 : 0xffffffffu;
  }
}

// By how many places coarse keys of the bracket are shifted to fall into the bins.
DEVICE u32 bracket_shift(u32 low, u32 high) {
  const u32 bits = bits_of(high - low);
  return bits > BIN_BITS ? bits - BIN_BITS : 0;
}

struct SplitShared {
  u64 entries[STAGED];
  u32 staged, below, base;
};

// Writes all `mask_bytes` of the mask, those past the last weight as well. An entry of the list is coarse key and index.
template <int PRUNER, int TYPE>
DEVICE void split(const Scorer<PRUNER, TYPE>& scorer, u64* state, u32* histogram, u64* list, u32 capacity, u8* mask,
                  u32 mask_bytes) {
  SHARED(SplitShared, shared);
  if (threadIdx.x == 0) shared.staged = shared.below = 0;
  __syncthreads();
  const u32 low = static_cast<u32>(state[LOW]), high = static_cast<u32>(state[HIGH]);
  const u32 shift = bracket_shift(low, high), columns = scorer.in.columns;
  const bool whole = scorer.has_whole_chunks();
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const u64 weights_of_stride = stride * CHUNK;
  const u32 more_rows = static_cast<u32>(weights_of_stride / columns);
  const u32 more_columns = static_cast<u32>(weights_of_stride % columns);
  u32 row = static_cast<u32>(first * CHUNK / columns), column = static_cast<u32>(first * CHUNK % columns);
  u32 below = 0;
  for (u64 byte = first; byte < mask_bytes; byte += stride) {
    const u64 flat_of_byte = byte * CHUNK;
    u32 bits = 0;
    if (flat_of_byte < scorer.weights_count) {
      const u32 flat = static_cast<u32>(flat_of_byte);
      u32 magnitudes[CHUNK], keys[CHUNK];
      const u32 here = scorer.chunk(whole, flat, row, column, magnitudes, keys);
#pragma unroll
      for (u32 at = 0; at < CHUNK; ++at) {
        if (at >= here) continue;
        note_if_not_finite(scorer, magnitudes[at], flat + at, &state[NOT_FINITE]);
        bits |= static_cast<u32>(keys[at] < low) << at;
        if (keys[at] < low || keys[at] > high) continue;
        const u64 entry = static_cast<u64>(keys[at]) << 32 | (flat + at);
        const u32 place = atomicAdd(&shared.staged, 1u);
        if (place < STAGED) {
          shared.entries[place] = entry;
        } else {
          const u64 direct = atomicAdd(&state[CANDIDATES], 1ull);
          if (direct < capacity) list[direct] = entry;
          atomicAdd(&histogram[(keys[at] - low) >> shift], 1u);
        }
      }
    }
    below += __popc(bits);
    mask[byte] = static_cast<u8>(bits);
    row += more_rows;
    if (column >= columns - more_columns) column -= columns - more_columns, ++row;
    else column += more_columns;
  }
  below = warp_sum(below);
  if (threadIdx.x % WARP == 0) atomicAdd(&shared.below, below);
  __syncthreads();
  const u32 staged = smaller(shared.staged, STAGED);
  if (threadIdx.x == 0) {
    atomicAdd(&state[BELOW], static_cast<u64>(shared.below));
    // a list that is full anyway is not written to
    const u64 base = atomicAdd(&state[CANDIDATES], static_cast<u64>(staged));
    shared.base = base < capacity ? static_cast<u32>(base) : capacity;
  }
  __syncthreads();
  for (u32 place = threadIdx.x; place < staged; place += blockDim.x) {
    const u64 entry = shared.entries[place];
    if (static_cast<u64>(shared.base) + place < capacity) list[shared.base + place] = entry;
    atomicAdd(&histogram[(static_cast<u32>(entry >> 32) - low) >> shift], 1u);
  }
}

struct NarrowShared {
  u32 bins[BINS];
  u32 warp_sums[MOST_WARPS];
  u32 found[3];
};

// Marks what the histogram decides, and writes the indices of what it does not to `settling`.
DEVICE void narrow_listed(u64 budget, u64* state, const u32* histogram, const u64* list, u32 capacity, u32* settling,
                          u32 settling_capacity, u32* mask) {
  SHARED(NarrowShared, shared);
  const u64 below = state[BELOW], candidates = state[CANDIDATES];
  const u32 low = static_cast<u32>(state[LOW]), shift = bracket_shift(low, static_cast<u32>(state[HIGH]));
  // every block comes to the same
  const bool misled = budget < below || budget > below + candidates || candidates > capacity;
  u32 wanted = misled ? 0 : static_cast<u32>(budget - below), bin = 0, count = 0;
  if (wanted > 0) {
    for (u32 at = threadIdx.x; at < BINS; at += blockDim.x) shared.bins[at] = histogram[at];
    __syncthreads();
    bin_of(shared.bins, wanted, bin, count, shared.warp_sums, shared.found);
  }
  const bool all = wanted == count, settles = wanted > 0 && !all;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state[WANTED] = settles ? wanted : 0;
    state[OUTCOME] = misled || (settles && count > settling_capacity) ? FAILED : settles ? PENDING : DONE;
  }
  if (misled || wanted == 0) return;
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; at < candidates; at += stride) {
    const u64 entry = list[at];
    const u32 flat = static_cast<u32>(entry), of_entry = (static_cast<u32>(entry >> 32) - low) >> shift;
    if (of_entry < bin || (of_entry == bin && all)) {
      atomicOr(&mask[flat / 32], 1u << flat % 32);
    } else if (of_entry == bin && count <= settling_capacity) {
      settling[atomicAdd(&state[SETTLING], 1ull)] = flat;
    }
  }
}

// Weights by a list of flat indices.
template <int PRUNER, int TYPE>
struct ListedPool {
  const Scorer<PRUNER, TYPE>& scorer;
  const u32* list;
  __device__ u32 coarse(u32 index) const { return coarse_at(scorer, list[index]); }
  __device__ u64 key(u32 index) const { return key_at(scorer, list[index]); }
  __device__ u64 tie(u32 index) const { return scorer.tie(scorer.magnitude(list[index]), list[index]); }
  __device__ u64 window() const { return ~0ull; }
};

// Launched with one block.
template <int PRUNER, int TYPE>
DEVICE void settle(const Scorer<PRUNER, TYPE>& scorer, u64* state, const u32* settling, u32* mask) {
  SHARED(PoolShared, shared);
  const u64 outcome = state[OUTCOME];
  const u32 size = static_cast<u32>(state[SETTLING]), wanted = static_cast<u32>(state[WANTED]);
  if (outcome != PENDING || wanted == 0 || wanted > size) return;
  if (threadIdx.x == 0) shared.listed = 0;
  const ListedPool<PRUNER, TYPE> pool{scorer, settling};
  u64 low = ~0ull, high = 0;
  for (u32 index = threadIdx.x; index < size; index += blockDim.x) {
    const u64 coarse = pool.coarse(index);
    if (coarse < low) low = coarse;
    if (coarse > high) high = coarse;
  }
  const Threshold threshold = threshold_of(pool, size, wanted, low, high, shared);
  const auto prune = [&](u32 index) { atomicOr(&mask[settling[index] / 32], 1u << settling[index] % 32); };
  for (u32 index = threadIdx.x; index < size; index += blockDim.x)
    if (is_pruned(pool, threshold, index, shared)) prune(index);
  prune_listed(threshold, prune, shared);
  if (threadIdx.x == 0) state[OUTCOME] = DONE;
}

// Launched with one block, before the first round.
DEVICE void exact_start(u64 budget, u64 count, u32 key_bits, u64* state, u32* histogram) {
  for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) histogram[bin] = 0;
  if (threadIdx.x != 0) return;
  for (u32 word = 0; word < STATE_WORDS; ++word) state[word] = 0;
  state[EXACT_HIGH] = ~0ull >> (64 - key_bits);
  state[EXACT_WANTED] = budget;
  state[EXACT_COUNT] = count;
}

struct ExactShared {
  u32 bins[BINS];
};

template <int PRUNER, int TYPE>
DEVICE void exact_round(const Scorer<PRUNER, TYPE>& scorer, u64* state, u32* histogram) {
  SHARED(ExactShared, shared);
  const u64 level = state[EXACT_LEVEL], low = state[EXACT_LOW], high = state[EXACT_HIGH], shared_key = state[EXACT_KEY];
  if (level == SETTLED) return;
  const u32 bits = bits_of(high - low), shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
  for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) shared.bins[bin] = 0;
  __syncthreads();
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; at < scorer.weights_count; at += stride) {
    const u32 flat = static_cast<u32>(at), magnitude = scorer.magnitude(flat);
    note_if_not_finite(scorer, magnitude, flat, &state[NOT_FINITE]);
    u64 value = scorer.key(magnitude, flat, flat / scorer.in.columns, flat % scorer.in.columns);
    if (level == TIES) {
      if (value != shared_key) continue;
      value = scorer.tie(magnitude, flat);
    }
    if (value >= low && value <= high) atomicAdd(&shared.bins[(value - low) >> shift], 1u);
  }
  __syncthreads();
  for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x)
    if (shared.bins[bin] > 0) atomicAdd(&histogram[bin], shared.bins[bin]);
}

// Launched with one block, after each round. In a key's lowest `magnitude_bits` lies |W|, where they are any.
DEVICE void exact_pick(u32 magnitude_bits, u64* state, u32* histogram) {
  SHARED(NarrowShared, shared);
  const u64 level = state[EXACT_LEVEL], low = state[EXACT_LOW], high = state[EXACT_HIGH];
  u32 wanted = static_cast<u32>(state[EXACT_WANTED]), bin = 0, count = 0;
  const u32 bits = bits_of(high - low), shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
  for (u32 at = threadIdx.x; at < BINS; at += blockDim.x) shared.bins[at] = histogram[at], histogram[at] = 0;
  __syncthreads();
  if (level == SETTLED) return;
  // weights that are no numbers, and refused, may be in no bin
  const bool found = bin_of(shared.bins, wanted, bin, count, shared.warp_sums, shared.found);
  if (threadIdx.x != 0) return;
  const u64 first = low + (static_cast<u64>(bin) << shift), last = first + ((1ull << shift) - 1);
  state[EXACT_LOW] = first;
  state[EXACT_HIGH] = last < high ? last : high;
  state[EXACT_WANTED] = wanted;
  state[EXACT_COUNT] = count;
  if (!found || wanted == count) {
    state[EXACT_LEVEL] = SETTLED;
    state[EXACT_ENDED] = level;
  } else if (level == KEYS && state[EXACT_LOW] == state[EXACT_HIGH]) {
    state[EXACT_LEVEL] = TIES;
    state[EXACT_KEY] = first;
    const u64 magnitude = first & ((1ull << magnitude_bits) - 1);
    state[EXACT_LOW] = magnitude << 32;
    state[EXACT_HIGH] = magnitude_bits > 0 ? magnitude << 32 | 0xffffffffu : ~0ull >> 1;
  }
}

// Writes all `mask_words` of the mask.
template <int PRUNER, int TYPE>
DEVICE void exact_mark(const Scorer<PRUNER, TYPE>& scorer, const u64* state, u32* mask, u32 mask_words) {
  const u64 level = state[EXACT_ENDED], high = state[EXACT_HIGH], shared_key = state[EXACT_KEY];
  const u32 lane = threadIdx.x % WARP;
  const u64 warps = static_cast<u64>(gridDim.x) * (blockDim.x / WARP);
  for (u64 word = static_cast<u64>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP; word < mask_words; word += warps) {
    const u64 at = word * 32 + lane;
    bool pruned = false;
    if (at < scorer.weights_count) {
      const u32 flat = static_cast<u32>(at), magnitude = scorer.magnitude(flat);
      const u64 key = scorer.key(magnitude, flat, flat / scorer.in.columns, flat % scorer.in.columns);
      pruned = level == KEYS ? key <= high : key < shared_key || (key == shared_key && scorer.tie(magnitude, flat) <= high);
    }
    const u32 bits = __ballot_sync(ALL_LANES, pruned);
    if (lane == 0) mask[word] = bits;
  }
}
