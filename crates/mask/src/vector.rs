//! The widest vectors that the processor has, for loops that are written plainly.
//!
//! A build for every x86-64 may assume vectors of 16 bytes only. What runs within [`vectorized`] is compiled for wider ones
//! as well, and the processor decides which is taken: the same integer operations, hence the same bits.

use pulp::Arch;

/// Runs `work` compiled for the widest vectors there are; only what is inlined into it profits. A closure that is more than a
/// line is inlined for certain only with `#[inline(always)]` before it.
#[inline]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}
