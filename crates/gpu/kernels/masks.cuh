// What is done with masks: counting votes, and pruning.
#pragma once
#include "platform.cuh"

constexpr u32 MASK_THREADS = 256;

// Adds a vote of `weight` to the planes, 32 weights at once. The total has `plane_count` bits, so that nothing is carried out.
DEVICE void add_vote(const u32* mask, u32 mask_words, u32 weight, u32* planes, u64 plane_words, u32 plane_count) {
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 word = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; word < plane_words; word += stride) {
    const u32 bits = word < mask_words ? mask[word] : 0;
    for (u32 place = 0; place < plane_count; ++place) {
      if ((weight >> place & 1) == 0) continue;
      u32 carry = bits;
      for (u32 plane = place; plane < plane_count && carry != 0; ++plane) {
        const u32 old = planes[plane * plane_words + word];
        planes[plane * plane_words + word] = old ^ carry;
        carry &= old;
      }
    }
  }
}

// Zeroes the weights that the mask prunes. SIZE is the bytes of one.
template <class Word>
DEVICE void prune(const u8* mask, u32 mask_bytes, u32 weights_count, Word* weights) {
  const bool aligned = reinterpret_cast<size_t>(weights) % 16 == 0;
  const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 byte = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; byte < mask_bytes; byte += stride) {
    const u32 bits = mask[byte];
    const u64 first = byte * CHUNK;
    if (bits == 0 || first >= weights_count) continue;
    if (aligned && first + CHUNK <= weights_count) {
      constexpr u32 WORDS = CHUNK * sizeof(Word) / 16, OF_WORD = 16 / sizeof(Word);
      uint4* const at = reinterpret_cast<uint4*>(weights + first);
#pragma unroll
      for (u32 word = 0; word < WORDS; ++word) {
        uint4 four = at[word];
        u32* const parts[4] = {&four.x, &four.y, &four.z, &four.w};
#pragma unroll
        for (u32 weight = 0; weight < OF_WORD; ++weight) {
          if ((bits >> (word * OF_WORD + weight) & 1) == 0) continue;
          if (sizeof(Word) == 4) *parts[weight % 4] = 0;
          else *parts[weight / 2 % 4] &= weight % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
        }
        at[word] = four;
      }
    } else {
      for (u32 weight = 0; weight < CHUNK && first + weight < weights_count; ++weight)
        if (bits >> weight & 1) weights[first + weight] = 0;
    }
  }
}
