//! What happens to bytes between nodes, put together from the disturbances that are at work, and what came of it.

use std::time::Duration;

use super::{SEGMENT_BYTES, WAITING_BYTES, WAITING_ON_SLOW};
use crate::manifest::Disturbance;

/// What happens to bytes in one direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rule {
    pub(super) cut: bool,
    pub(super) stalled: bool,
    pub(super) delay: Duration,
    pub(super) per_mille: u64,
    pub(super) bytes_per_second: Option<u64>,
}

impl Rule {
    /// This and another disturbance at once.
    pub(crate) fn add(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Cut => self.cut = true,
            Disturbance::Stall => self.stalled = true,
            Disturbance::Delay(delay) => self.delay = self.delay.saturating_add(delay),
            Disturbance::Loss { per_mille } => self.per_mille = self.per_mille.max(per_mille),
            Disturbance::Slow { bytes_per_second } => {
                let slower = self.bytes_per_second.map_or(bytes_per_second, |slow| slow.min(bytes_per_second));
                self.bytes_per_second = Some(slower);
            }
        }
    }

    /// Bytes that one connection may be given in one turn, so that all that share a slow line have theirs.
    pub(super) fn turn_bytes(&self) -> usize {
        let Some(rate) = self.bytes_per_second else { return WAITING_BYTES };
        let in_a_millisecond = usize::try_from(rate / 1000).unwrap_or(WAITING_BYTES);
        in_a_millisecond.clamp(SEGMENT_BYTES, WAITING_BYTES)
    }

    /// Bytes that may wait in one direction of a connection.
    pub(super) fn waiting_bytes(&self) -> usize {
        let Some(rate) = self.bytes_per_second else { return WAITING_BYTES };
        let waits = self.delay.saturating_add(WAITING_ON_SLOW).as_secs_f64();
        ((rate as f64 * waits) as usize).clamp(SEGMENT_BYTES, WAITING_BYTES)
    }
}

/// The rules of all directions, by sender and receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(super) nodes: usize,
    rules: Vec<Rule>,
}

impl Rules {
    /// Nothing happens to any byte.
    pub(crate) fn open(nodes: usize) -> Self {
        Self { nodes, rules: vec![Rule::default(); nodes * nodes] }
    }

    /// The rule for what `from` sends `to`.
    pub(crate) fn of(&mut self, from: usize, to: usize) -> Option<&mut Rule> {
        self.rules.get_mut(from * self.nodes + to)
    }

    pub(super) fn get(&self, from: usize, to: usize) -> Rule {
        self.rules.get(from * self.nodes + to).copied().unwrap_or_default()
    }
}

/// What faults of links came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Felt {
    /// Connections that were broken or refused.
    pub(crate) cut: u64,
    /// Connections that stood still.
    pub(crate) stalled: u64,
    /// Segments that came later, as told.
    pub(crate) delayed: u64,
    /// Segments that were lost, each time.
    pub(crate) lost: u64,
    /// Segments that waited for a slow line.
    pub(crate) slowed: u64,
}
