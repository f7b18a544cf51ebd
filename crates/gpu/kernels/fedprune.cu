// The kernels, by name: what is launched from `src/engine`.
//
// What is to be as fast as memory is compiled for Wanda and each type of weights; the rest looks pruner and type up when it runs.
#include "forward.cuh"
#include "layer.cuh"
#include "masks.cuh"
#include "rows.cuh"
#include "sums.cuh"

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

#define EACH_TYPE(X, prefix) X(prefix##_bf16, BF16) X(prefix##_f16, F16) X(prefix##_f32, F32)

typedef Scorer<AT_RUN_TIME, AT_RUN_TIME> AnyScorer;

#define SCORED(name, OfScorer, PRUNER, TYPE)                                                             \
  KERNEL(SPLIT_THREADS)                                                                                  \
  split_##name(INPUTS, u64* state, u32* histogram, u64* list, u32 capacity, u8* mask, u32 mask_bytes) {  \
    split(OfScorer(PASS_INPUTS), state, histogram, list, capacity, mask, mask_bytes);                    \
  }                                                                                                      \
  KERNEL(ROW_THREADS) rows_##name(INPUTS, u32 budget, u64* not_finite, u32* mask) {                      \
    rows_of<PRUNER, TYPE, true>(OfScorer(PASS_INPUTS), budget, not_finite, mask);                        \
  }                                                                                                      \
  KERNEL(N_OF_M_THREADS) n_of_4_##name(INPUTS, u32 n, u64* not_finite, u8* mask, u32 mask_bytes) {       \
    n_of<PRUNER, TYPE, 4>(OfScorer(PASS_INPUTS), n, not_finite, mask, mask_bytes);                       \
  }
#define SCORED_BY_WANDA(name, TYPE)            \
  typedef Scorer<WANDA, TYPE> Scorer_##name; \
  SCORED(name, Scorer_##name, WANDA, TYPE)
EACH_TYPE(SCORED_BY_WANDA, wanda)
SCORED(any, AnyScorer, AT_RUN_TIME, AT_RUN_TIME)
#undef SCORED_BY_WANDA
#undef SCORED

KERNEL(BRACKET_THREADS)
bracket_any(INPUTS, u32 samples, u32 low_rank, u32 high_rank, u64* state, u32* histogram) {
  bracket(AnyScorer(PASS_INPUTS), samples, low_rank, high_rank, state, histogram);
}

KERNEL(NARROW_THREADS)
narrow_listed_any(u64 budget, u64* state, const u32* histogram, const u64* list, u32 capacity, u32* settling,
                  u32 settling_capacity, u32* mask) {
  narrow_listed(budget, state, histogram, list, capacity, settling, settling_capacity, mask);
}

KERNEL(SETTLE_THREADS) settle_any(INPUTS, u64* state, const u32* settling, u32* mask) {
  settle(AnyScorer(PASS_INPUTS), state, settling, mask);
}

KERNEL(SETTLE_THREADS) exact_start_any(u64 budget, u64 count, u32 key_bits, u64* state, u32* histogram) {
  exact_start(budget, count, key_bits, state, histogram);
}

KERNEL(EXACT_THREADS) exact_round_any(INPUTS, u64* state, u32* histogram) {
  exact_round(AnyScorer(PASS_INPUTS), state, histogram);
}

KERNEL(SETTLE_THREADS) exact_pick_any(u32 magnitude_bits, u64* state, u32* histogram) {
  exact_pick(magnitude_bits, state, histogram);
}

KERNEL(EXACT_THREADS) exact_mark_any(INPUTS, const u64* state, u32* mask, u32 mask_words) {
  exact_mark(AnyScorer(PASS_INPUTS), state, mask, mask_words);
}

// rows that do not fit the shared memory of a block
KERNEL(ROW_THREADS) wide_rows_any(INPUTS, u32 budget, u64* not_finite, u32* mask) {
  rows_of<AT_RUN_TIME, AT_RUN_TIME, false>(AnyScorer(PASS_INPUTS), budget, not_finite, mask);
}

KERNEL(COLUMN_THREADS) columns_any(INPUTS, u32 budget, u64* not_finite, u32* mask) {
  columns_of(AnyScorer(PASS_INPUTS), budget, not_finite, mask);
}

KERNEL(N_OF_M_THREADS) n_of_2_any(INPUTS, u32 n, u64* not_finite, u8* mask, u32 mask_bytes) {
  n_of<AT_RUN_TIME, AT_RUN_TIME, 2>(AnyScorer(PASS_INPUTS), n, not_finite, mask, mask_bytes);
}

KERNEL(N_OF_M_THREADS) n_of_8_any(INPUTS, u32 n, u64* not_finite, u8* mask, u32 mask_bytes) {
  n_of<AT_RUN_TIME, AT_RUN_TIME, 8>(AnyScorer(PASS_INPUTS), n, not_finite, mask, mask_bytes);
}

KERNEL(N_OF_M_THREADS) n_of_m_any(INPUTS, u32 n, u32 m, u64* not_finite, u32* mask, u32 mask_words) {
  n_of_any(AnyScorer(PASS_INPUTS), n, m, not_finite, mask, mask_words);
}

#define TYPED(name, TYPE)                                                                      \
  KERNEL(SUM_THREADS) sums_of_columns_##name(INPUTS, f64* out) {                                       \
    sums_of_columns<TYPE>(Scorer<MAGNITUDE, TYPE>(PASS_INPUTS), out);                                     \
  }                                                                                                    \
  KERNEL(SUM_THREADS) sums_of_rows_##name(INPUTS, f64* out) {                                          \
    sums_of_rows<TYPE>(Scorer<MAGNITUDE, TYPE>(PASS_INPUTS), out);                                        \
  }                                                                                                    \
  KERNEL(SUM_THREADS) squares_##name(const u8* activations, u64 tokens, u32 channels, f64* partial) { \
    squares<TYPE>(activations, tokens, channels, partial);                                            \
  }                                                                                                    \
  KERNEL(SOFTMAX_THREADS)                                                                              \
  causal_softmax_##name(u8* scores, u64 rows, u32 keys, u32 queries, u32 first_query, u32 first_key,   \
                        u32 window, u32 scale) {                                                       \
    causal_softmax<TYPE>(scores, rows, keys, queries, first_query, first_key, window,                  \
                         __uint_as_float(scale));                                                      \
  }                                                                                                    \
  KERNEL(GATE_THREADS) gate_up_##name(u8* gate, const u8* up, u64 count) {                             \
    gate_up<TYPE>(gate, up, count);                                                                    \
  }
EACH_TYPE(TYPED, of)
#undef TYPED

KERNEL(SUM_THREADS) add_slices_any(const f64* partial, u64 slices, u32 channels, f64* sums) {
  add_slices(partial, slices, channels, sums);
}

KERNEL(MASK_THREADS)
add_vote_any(const u32* mask, u32 mask_words, u32 weight, u32* planes, u64 plane_words, u32 plane_count) {
  add_vote(mask, mask_words, weight, planes, plane_words, plane_count);
}

KERNEL(MASK_THREADS) prune_16(const u8* mask, u32 mask_bytes, u32 weights_count, u16* weights) {
  prune(mask, mask_bytes, weights_count, weights);
}

KERNEL(MASK_THREADS) prune_32(const u8* mask, u32 mask_bytes, u32 weights_count, u32* weights) {
  prune(mask, mask_bytes, weights_count, weights);
}
