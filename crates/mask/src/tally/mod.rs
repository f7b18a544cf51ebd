//! From ballots to the global mask.
//!
//! `count = Σ weight · M` over the agreed ballots. In each pool of the global group the weights with the
//! most votes are pruned first; ties fall by |W| ascending, then flat index ascending. Integers only.
//!
//! | module | what it answers |
//! |---|---|
//! | [`counts`] | how often each weight was pruned, in bit planes |
//! | `agreement` | how far the votes agree |
//! | [`global`] | counts to the global mask |
//! | `by_threshold` | the global `layer` mask of column-prefix ballots, none of them expanded |
//! | [`scale`] | zeroing and support scaling of stored weights |
//! | [`mod@file`] | the agreed set as a file, and matrix by matrix to masks |

mod agreement;
pub(crate) mod by_threshold;
pub mod counts;
pub mod file;
pub mod global;
pub mod scale;
#[cfg(test)]
mod tests;

pub use agreement::agreement;
pub use by_threshold::{LayerThreshold, LayerVotes};
pub use counts::{BATCH, Counts, TotalError, count_one_by_one};
pub use file::{Tally, TallyError, Voter, encode_tally};
pub use global::{GlobalKeys, global_mask};
pub use scale::{apply_to_stored, support_factor};
