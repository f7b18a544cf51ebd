//! fedprune-mask
