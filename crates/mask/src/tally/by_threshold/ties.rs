//! Weights that some ballot splits by flat index.

use super::{FREE_PLACES, Voter};
use crate::thresholds::band::places_of;
use crate::weights::WeightsView;

/// The weights of magnitudes that some ballot splits, one by one.
pub(super) struct Ties {
    /// (column, magnitude), ascending.
    pub(super) cells: Vec<(u32, u32)>,
    /// Flat index and cell of each of their weights, by flat index.
    pub(super) places: Vec<(u64, u32)>,
    /// For each cell the voters that split it.
    pub(super) splitters: Vec<Vec<u32>>,
}

impl Ties {
    /// Finds the weights, and where splits end that are known by their number of weights only.
    pub(super) fn look_up(voters: &mut [Voter], weights: WeightsView<'_>) -> Option<Self> {
        let mut all: Vec<((u32, u32), u32)> = Vec::new();
        for (number, voter) in (0..).zip(voters.iter()) {
            if let Some(split) = &voter.thresholds.split {
                all.extend(split.columns.iter().map(|column| ((*column, split.magnitude), number)));
            }
        }
        all.sort_unstable();
        let (mut cells, mut splitters) = (Vec::new(), Vec::new());
        for same in all.chunk_by(|a, b| a.0 == b.0) {
            cells.push(same[0].0);
            splitters.push(same.iter().map(|(_, voter)| *voter).collect::<Vec<u32>>());
        }
        let places = places_of(weights, &cells, weights.rows() * weights.columns() / 16 + FREE_PLACES)?;
        let mut left: Vec<Option<u64>> = voters.iter().map(|voter| voter.wanted).collect();
        for (index, cell) in &places {
            for &voter in &splitters[*cell as usize] {
                if let Some(wanted) = &mut left[voter as usize]
                    && *wanted > 0
                {
                    *wanted -= 1;
                    if let Some(split) = &mut voters[voter as usize].thresholds.split {
                        split.last = *index;
                    }
                }
            }
        }
        Some(Self { cells, places, splitters })
    }
}
