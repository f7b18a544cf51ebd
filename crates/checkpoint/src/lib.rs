//! fedprune-checkpoint
