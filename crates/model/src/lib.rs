//! fedprune-model
