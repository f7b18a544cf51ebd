// The body of a function that returns all kernels by name, bound by whoever includes it.
#define NAMED(name) {#name, bound(name)},
#define OF_SCORER(name) NAMED(split_##name) NAMED(rows_##name) NAMED(n_of_4_##name)
#define OF_WANDA(name, TYPE) OF_SCORER(name)
#define OF_TYPE(name, TYPE)                                                                                  \
  NAMED(sums_of_columns_##name) NAMED(sums_of_rows_##name) NAMED(squares_##name) NAMED(causal_softmax_##name) \
  NAMED(gate_up_##name)
  static const std::map<std::string, decltype(bound(add_slices_any))> all = {
      EACH_TYPE(OF_WANDA, wanda) OF_SCORER(any) EACH_TYPE(OF_TYPE, of)
      NAMED(bracket_any) NAMED(narrow_listed_any) NAMED(settle_any) NAMED(exact_start_any) NAMED(exact_round_any)
      NAMED(exact_pick_any) NAMED(exact_mark_any) NAMED(wide_rows_any) NAMED(columns_any) NAMED(n_of_2_any) NAMED(n_of_8_any)
      NAMED(n_of_m_any) NAMED(add_slices_any) NAMED(add_vote_any) NAMED(prune_16) NAMED(prune_32)};
  return all;
