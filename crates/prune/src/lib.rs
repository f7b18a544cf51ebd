//! fedprune-prune
